"""The rules of the layout: who imports whom, how long a module grows, what must not be named."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "uffdtrace"
MAX_LINES = 500

# Each room and the rooms it may import from, besides itself.
ROOMS = {
    "cli": {"collect", "export", "reporters", "trace", "model", "kernel"},
    "collect": {"trace", "model", "kernel"},
    "export": {"reporters", "trace", "model"},
    "reporters": {"trace", "model"},
    "trace": {"model"},
    "model": set(),
    "kernel": set(),
}
# Within model/ each takes from those before it alone.
MODEL = ("records", "account", "diagnosis")
# Modules of no room: the package itself, what `python -m` starts, and what all rooms have of errors, arrays, intervals.
ROOMLESS = {"__init__": set(), "__main__": {"cli"}, "errors": set(), "arrays": set(), "intervals": set()}

# Put together here, so that this file does not name them.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (("debian", "org"), ("pypi", "org"), ("pythonhosted", "org"), ("ubuntu", "com"), ("golang", "org"))
)
FORBIDDEN = re.compile("|".join([*map(re.escape, REGISTRIES), r"(?<![\w.~}])/(?:wor" + r"k|roo" + r"t)/"]))

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a module imports, wherever it does so."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(package[: len(package) - node.level + 1])
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                # `from uffdtrace import kernel` imports the room as well.
                yield node.lineno, ".".join([*base, alias.name])


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "uffdtrace" and len(parts) > 1 and parts[1] in ROOMS else None


def test_every_room_is_known() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} <= set(ROOMLESS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    inside = path.relative_to(PACKAGE).parts
    allowed = ROOMLESS[path.stem] if len(inside) == 1 else ROOMS[inside[0]] | {inside[0]}
    wrong = [
        f"{name_of(path)}:{line} imports {dotted}"
        for line, dotted in imports(path)
        if (room := room_of(dotted)) and room not in allowed
    ]
    assert not wrong


def test_the_rooms_of_the_model() -> None:
    assert {path.name for path in (PACKAGE / "model").iterdir() if path.suffix != ".py"} - {"__pycache__"} == set(MODEL)
    assert [path.name for path in (PACKAGE / "model").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*/*.py")), ids=name_of)
def test_within_the_model_imports_point_one_way(path: Path) -> None:
    allowed = MODEL[: MODEL.index(path.parent.name) + 1]
    taken = {dotted.split(".")[2] for _, dotted in imports(path) if dotted.startswith("uffdtrace.model.")}
    assert taken <= set(allowed)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_cli_knows_click(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    assert [line for line, dotted in imports(path) if dotted.split(".")[0] == "click"] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def repository_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_registry_or_machine_is_named() -> None:
    found = []
    for path in repository_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if FORBIDDEN.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("deb http://deb." + REGISTRIES[0] + "/debian", True),
        ("cd /wor" + "k/main", True),
        ("ls /roo" + "t/.cache", True),
        ("tests/work/file", False),
        ("chroot/root/etc", False),
        ("the workload", False),
    ],
)
def test_the_search_finds_what_it_should(text: str, forbidden: bool) -> None:
    assert bool(FORBIDDEN.search(text)) is forbidden


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_nothing_sorts_as_goes_wrong_on_emulated_cpus(module: Path) -> None:
    # See ranked() in model/records/counting.py.
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func).rpartition(".")[2], {one.arg for one in call.keywords}) for call in calls]
    assert not [name for name, keywords in named if name == "argsort" and "kind" not in keywords]
    assert not [name for name, keywords in named if name == "unique" and keywords & {"return_inverse", "return_index"}]
