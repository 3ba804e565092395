"""The examples: each program builds and says what it misses, and the commands in the units are uffdtrace's."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from uffdtrace.cli import main
from uffdtrace.kernel.privileges import NEEDED, Capability

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STORIES = ("balloon", "late", "unprotected")
SERVICE = EXAMPLES / "systemd" / "uffdtrace.service"


def commands() -> list[list[str]]:
    lines = [line.partition("=")[2] for line in SERVICE.read_text().splitlines() if line.startswith("ExecStart=")]
    return [shlex.split(line.replace("%H", "hv1")) for line in lines]


def test_the_stories_build(tmp_path: Path) -> None:
    done = subprocess.run(["make", "-C", str(EXAMPLES), f"OUT={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(STORIES)
    assert sorted(path.stem for path in EXAMPLES.glob("*.c")) == sorted(STORIES)


@pytest.mark.parametrize("story", STORIES)
def test_what_came_out_stands_beside_it(story: str) -> None:
    text = (EXAMPLES / f"{story}.txt").read_text()
    wanted = [f"$ ./{story}", f"$ uffdtrace run -o {story}.data -- ./{story} >/dev/null"]
    wanted += [f"$ uffdtrace report --summary {story}.data", f"$ ./{story} --fixed"]
    assert [line for line in text.splitlines() if line.startswith("$ ")][:4] == wanted
    assert "CORRUPT" in text and "the tracker knows of 1024" in text


def test_the_units_commands_are_commands() -> None:
    ours = [words for words in commands() if Path(words[0]).name == "uffdtrace"]
    assert [words[1] for words in ours] == ["attach", "export", "export"]
    for _, verb, *arguments in ours:
        # Parses all of it; an option that is none is a UsageError.
        with click.Context(main) as parent:
            main.commands[verb].make_context(verb, list(arguments), parent=parent)


def test_the_container_has_the_capabilities_and_its_package() -> None:
    text = (EXAMPLES / "container" / "README.md").read_text()
    given = set(re.findall(r"--cap-add=(\w+)", text))
    assert given == {one.name for one in (*NEEDED, Capability.SYS_RAWIO)}
    built = (EXAMPLES / "container" / "Containerfile").read_text()
    assert "uffdtrace_*.deb" in built and 'ENTRYPOINT ["uffdtrace"]' in built


def test_the_units_have_what_systemd_wants() -> None:
    for path in EXAMPLES.glob("systemd/uffdtrace.*"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(path)
        assert "Unit" in parser and parser["Unit"]["Description"]
    assert (EXAMPLES / "systemd" / "uffdtrace.timer").read_text().count("OnCalendar=hourly") == 1
