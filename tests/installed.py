"""uffdtrace installed as its users install it, where nothing else of this tree is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from unit.test_layout_rules import repository_files

ROOT = Path(__file__).resolve().parents[1]
# Debian's: its click, rich and numpy are there for both.
PYTHON = "/usr/bin/python3"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Installed:
    # What the package is in; both hold nothing of this tree.
    library: Path
    man: Path
    python: str
    environment: dict[str, str]
    folder: Path
    # What a command is started by.
    prefix: tuple[str, ...] = ()

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *command],
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
    environment = {"PATH": f"{root / 'usr' / 'bin'}:{SYSTEM_PATH}"}
    # Its script takes no PYTHONPATH: the package must be where Python looks by itself.
    ask = "import site; print(next(path for path in site.getsitepackages() if path.startswith('/usr/local')))"
    place = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh", str(library), place)
    return Installed(library, root / "usr" / "share" / "man", PYTHON, environment, folder, prefix)
