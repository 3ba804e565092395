"""The HTML page in a real browser: nothing is fetched, axe-core finds nothing serious, its script does what it says."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from unit.reports import HOSTILE
from unit.test_page import made, many, one

BROWSER = shutil.which("chromium")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "uffdtrace" / "axe"
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=20000",
]
SERIOUS = ("serious", "critical")
# Writes what it found where the test reads it: `--dump-dom` prints the page when it is quiet.
RUN_AXE = """
<script>
axe.run(document).then((found) => {
  const told = found.violations.map((one) => (
    {id: one.id, impact: one.impact, nodes: one.nodes.map((node) => node.html)}
  ));
  const element = document.createElement("pre");
  element.id = "axe-found";
  element.textContent = JSON.stringify(told);
  document.body.append(element);
});
</script>
"""

pytestmark = pytest.mark.host


def dom(page: str, folder: Path, *options: str) -> str:
    """The page as the browser has it once its scripts have run."""
    assert BROWSER, "chromium is missing: scripts/test installs it"
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [str(BROWSER), *OPTIONS, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source; scripts/test needs npm for it."""
    source = CACHE / "axe.min.js"
    if not source.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", "axe-core@4"], cwd=CACHE, capture_output=True, text=True, check=True
        )
        with tarfile.open(CACHE / packed.stdout.split()[-1]) as archive:
            found = archive.extractfile("package/axe.min.js")
            assert found is not None
            source.write_bytes(found.read())
    return source.read_text(encoding="utf-8")


def told(document: str, element: str) -> Any:
    found = re.search(rf'<pre id="{element}">(.*?)</pre>', document, re.DOTALL)
    assert found, document[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("ranges", [1, 10])
def test_axe_finds_nothing_serious(ranges: int, dark: bool, axe: str, tmp_path: Path) -> None:
    page = made(*many(ranges)).replace("</body>", f"<script>{axe}</script>{RUN_AXE}</body>")
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = told(dom(page, tmp_path, *options), "axe-found")
    assert [one for one in found if one["impact"] in SERIOUS] == []


def test_the_pointer_and_the_arrow_keys_tell_of_a_cell(tmp_path: Path) -> None:
    """Of the lost pages also why, when, and by whom."""
    act = """
<script>
addEventListener("load", async () => {
  const map = document.querySelector(".map"), said = [];
  const wait = () => new Promise((done) => setTimeout(done, 50));
  const output = map.parentElement.querySelector("output");
  for (const key of ["ArrowRight", "ArrowRight", "ArrowRight"]) {
    map.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    await wait();
    said.push(output.textContent);
  }
  const box = map.getBoundingClientRect();
  map.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 1, clientY: box.top + 1, bubbles: true}));
  await wait();
  said.push(output.textContent);
  const element = document.createElement("pre");
  element.id = "said";
  element.textContent = JSON.stringify(said);
  document.body.append(element);
});
</script>
"""
    said = told(dom(made(*one()).replace("</body>", f"{act}</body>"), tmp_path), "said")
    assert said[0].startswith("offset 0x0-0x1000, 1 pages: ")
    lost = "written without a message; unpopulated, first after 0.000 s by thread 200"
    assert said[1] == f"offset 0x1000-0x2000, 1 pages: {lost}"
    assert said[2].startswith("offset 0x2000-0x3000, 1 pages: ")
    assert said[3] == said[0]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    report, picture = one()
    name = HOSTILE + "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    report["ranges"][0]["name"] = name
    report["process"] = {"pid": 1, "comm": name, "cmdline": [name]}
    report["trace"]["kernel"] = name
    document = dom(made(report, picture), tmp_path)
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)
    assert title and "owned'" in title[1] and title[1] != "owned"
    assert document.count("<script") == 2 and "<img" not in document
