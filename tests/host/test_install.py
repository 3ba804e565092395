"""The wheel and the Debian package, each where nothing else of ours is, used from another folder."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from pathlib import Path

import pytest
from host.tracked import armed, child, need_wp
from installed import Installed, build_deb, from_deb, from_wheel
from unit.test_layout_rules import repository_files
from unit.traces import history, write

from uffdtrace import __version__
from uffdtrace.collect import bcc, program
from uffdtrace.kernel import architecture

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "zsh", "fish")
COMPLETED = """
COMP_WORDS=(uffdtrace rep) COMP_CWORD=1
_uffdtrace_completion uffdtrace
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_deb(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module", params=["wheel", "deb"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, deb: Path) -> Installed:
    folder = tmp_path_factory.mktemp(request.param)
    return from_wheel(folder) if request.param == "wheel" else from_deb(folder, deb)


def test_all_of_it_is_there(installed: Installed) -> None:
    mine = {path.relative_to(ROOT) for path in repository_files() if path.relative_to(ROOT).parts[0] == "uffdtrace"}
    theirs = {path for path in (installed.library / "uffdtrace").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(installed.library) for path in theirs} == mine
    code = "from uffdtrace.collect import bcc, program; from uffdtrace.kernel import architecture"
    code += "; print(*program.sources(architecture.of()), bcc.STUB_ROOT, sep='\\n')"
    found = [Path(line) for line in installed.out(installed.python, "-c", code).splitlines()]
    for path, ours in zip(found, (*program.sources(architecture.of()), bcc.STUB_ROOT)):
        # The Debian package's library is seen elsewhere while it runs.
        there = ours.relative_to(ROOT)
        assert path.parts[-len(there.parts) :] == there.parts and (installed.library / there).exists()
        assert ROOT not in path.parents


def test_version(installed: Installed) -> None:
    assert installed.out("uffdtrace", "--version") == f"uffdtrace, version {__version__}\n"
    assert installed.out(installed.python, "-m", "uffdtrace", "--version").endswith(f" {__version__}\n")


def test_report(installed: Installed) -> None:
    write(installed.folder / "uffdtrace.data", history())
    assert installed.out("uffdtrace", "report").splitlines()[-1].startswith("Verdict: lost-writes")
    found = json.loads(installed.out("uffdtrace", "report", "--format", "json"))
    assert (found["schema"], found["ranges"][0]["lost"]["observed"]) == ("uffdtrace-report/1", 1)
    assert installed.run("uffdtrace", "report", "--check").returncode == 3


@need_wp
def test_inspect(installed: Installed) -> None:
    with child(lambda: armed(16, range(4), (0, 16))) as (pid, *_):
        found = json.loads(installed.out("uffdtrace", "inspect", "--format", "json", str(pid)))
        text = installed.out("uffdtrace", "inspect", str(pid))
    (one,) = found["ranges"]
    assert (one["pages"], one["protected"], one["empty"], found["verdict"]) == (16, 4, 12, "holes")
    assert text.splitlines()[-1].startswith("Verdict: holes")


def test_doctor_answers(installed: Installed) -> None:
    """Whatever it is: JSON, and no traceback."""
    done = installed.run("uffdtrace", "doctor", "--format", "json")
    assert done.returncode == (0 if json.loads(done.stdout)["attach_works"] else 1)
    assert "Traceback" not in done.stderr


def test_man_pages(installed: Installed) -> None:
    for page in ROOT.glob("man/*.[17]"):
        found = Path(installed.run("mman", "-M", str(installed.man), "-w", page.stem).stdout.strip())
        assert found.parent == installed.man / f"man{page.suffix[1:]}"
        read = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
        assert read == page.read_bytes()


def test_the_deb_s_python_takes_nothing_from_where_it_is_called(deb: Path, tmp_path: Path) -> None:
    """Root runs it in a directory of somebody else's, with that user's environment."""
    made = from_deb(tmp_path, deb)
    for planted in (tmp_path / "json.py", tmp_path / "click.py"):
        planted.write_text("raise SystemExit('planted')\n")
    told = made.run("uffdtrace", "--version", PYTHONPATH=str(tmp_path))
    assert (told.returncode, told.stdout) == (0, f"uffdtrace, version {__version__}\n"), told.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(installed: Installed, shell: str) -> None:
    script = installed.out("uffdtrace", _UFFDTRACE_COMPLETE=f"{shell}_source")
    assert f"_UFFDTRACE_COMPLETE={shell}_complete" in script
    share = installed.man.parent
    shipped = {
        path.name: path.read_text()
        for folder in ("bash-completion/completions", "zsh/vendor-completions", "fish/vendor_completions.d")
        for path in share.glob(f"{folder}/*")
    }
    if shipped:
        assert sorted(shipped) == ["_uffdtrace", "uffdtrace", "uffdtrace.fish"]
        own = shipped[{"bash": "uffdtrace", "zsh": "_uffdtrace", "fish": "uffdtrace.fish"}[shell]]
        assert own.startswith(script)
        # zsh runs the file in place of a function when it first completes.
        assert shell != "zsh" or own.count("loadautofunc") == 1
        script = own
    if shell == "bash":
        assert installed.out("bash", "-c", script + COMPLETED) == "report\n"


def test_the_deb_says_what_it_needs(deb: Path) -> None:
    def field(name: str) -> str:
        return subprocess.run(["dpkg-deb", "-f", str(deb), name], capture_output=True, text=True, check=True).stdout

    assert deb.name == f"uffdtrace_{__version__}_all.deb"
    assert (field("Package"), field("Version"), field("Architecture")) == ("uffdtrace\n", f"{__version__}\n", "all\n")
    needs = {one.split()[0]: one.partition(" ")[2].strip() for one in field("Depends").split(",")}
    declared = re.findall(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    ours = {f"python3-{name}" for name in re.findall(r'"(\w+)>=', declared)}
    assert set(needs) == {"python3", "python3-bpfcc", *ours} and needs["python3"] == "(>= 3.9)"
    # Of this machine's packages, whose versions it compares.
    subprocess.run(["apt-get", "--simulate", "install", str(deb)], capture_output=True, check=True)
    assert all(field(name).strip() for name in ("Maintainer", "Description", "Section", "Installed-Size"))


def test_the_deb_is_root_s_and_the_same_each_time(deb: Path, tmp_path: Path) -> None:
    listed = subprocess.run(["dpkg-deb", "-c", str(deb)], capture_output=True, text=True, check=True).stdout
    assert "__pycache__" not in listed
    heads = {tuple(line.split()[:2]) for line in listed.splitlines()}
    assert heads == {(mode, "root/root") for mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x")}
    (tmp_path / "other").mkdir()
    again = build_deb(tmp_path / "built", TMPDIR=str(tmp_path / "other"), LANG="de_DE", TZ="Asia/Tokyo")
    assert again.read_bytes() == deb.read_bytes()
