"""The wheel and the Debian package, each where nothing else of ours is, used from another folder."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from host.tracked import armed, child, need_wp
from unit.test_layout_rules import repository_files
from unit.traces import history, write

from uffdtrace import __version__
from uffdtrace.collect import bcc, program

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
# Debian's: its click, rich and numpy are there for both.
PYTHON = "/usr/bin/python3"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SHELLS = ("bash", "zsh", "fish")
COMPLETED = """
COMP_WORDS=(uffdtrace rep) COMP_CWORD=1
_uffdtrace_completion uffdtrace
echo "${COMPREPLY[@]}"
"""


@dataclass(frozen=True)
class Installed:
    # What the package is in; both hold nothing of this tree.
    library: Path
    man: Path
    python: str
    environment: dict[str, str]
    folder: Path

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, "LC_ALL": "C.UTF-8", "HOME": str(self.folder), **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def out(self, *command: str, **more: str) -> str:
        done = self.run(*command, **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


def build_deb(folder: Path, **environment: str) -> Path:
    done = subprocess.run(
        [str(ROOT / "scripts" / "build-deb"), str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (built,) = folder.glob("*.deb")
    assert done.stdout == f"{built}\n"
    return built


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_deb(tmp_path_factory.mktemp("deb"))


def from_wheel(folder: Path) -> Installed:
    tree = folder / "tree"
    # setuptools builds where the source is, and takes what an earlier build left there.
    for file in repository_files():
        copy = tree / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [sys.executable, *pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*build, str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(tree)
    (wheel,) = folder.glob("*.whl")
    place = folder / "environment"
    subprocess.run([PYTHON, "-m", "venv", "--system-site-packages", str(place)], check=True)
    (library,) = place.glob("lib/python3*/site-packages")
    environment = {"PATH": f"{place / 'bin'}:{SYSTEM_PATH}"}
    made = Installed(library, place / "share" / "man", str(place / "bin" / "python"), environment, folder)
    # Finds click, rich and numpy on the system, or fails.
    made.out(made.python, *pip, "install", "--no-index", str(wheel))
    return made


def from_deb(folder: Path, deb: Path) -> Installed:
    root = folder / "root"
    subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    library = root / "usr" / "lib" / "python3" / "dist-packages"
    environment = {"PATH": f"{root / 'usr' / 'bin'}:{SYSTEM_PATH}", "PYTHONPATH": str(library)}
    return Installed(library, root / "usr" / "share" / "man", PYTHON, environment, folder)


@pytest.fixture(scope="module", params=["wheel", "deb"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, deb: Path) -> Installed:
    folder = tmp_path_factory.mktemp(request.param)
    return from_wheel(folder) if request.param == "wheel" else from_deb(folder, deb)


def test_all_of_it_is_there(installed: Installed) -> None:
    mine = {path.relative_to(ROOT) for path in repository_files() if path.relative_to(ROOT).parts[0] == "uffdtrace"}
    theirs = {path for path in (installed.library / "uffdtrace").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(installed.library) for path in theirs} == mine
    code = "from uffdtrace.collect import bcc, program; print(program.SOURCE, bcc.STUB_ROOT, sep='\\n')"
    found = [Path(line) for line in installed.out(installed.python, "-c", code).splitlines()]
    for path, ours in zip(found, (program.SOURCE, bcc.STUB_ROOT)):
        assert path == installed.library / ours.relative_to(ROOT) and path.exists()


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
    assert (one["pages"], one["protected"], one["empty"], found["verdict"]) == (16, 4, 12, "unknown")
    assert text.splitlines()[-1].startswith("Verdict: unknown")


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
