"""A process found by its name or its program."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host.tracked import armed, child

from uffdtrace.collect.target import find
from uffdtrace.kernel.proc import NoProcess

pytestmark = pytest.mark.host


@contextmanager
def running(program: Path, times: int) -> Iterator[list[int]]:
    shutil.copy("/bin/sleep", program)
    started = [subprocess.Popen([str(program), "60"]) for _ in range(times)]
    try:
        yield [one.pid for one in started]
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_by_name_and_by_program(tmp_path: Path) -> None:
    # The kernel keeps 15 letters.
    program = tmp_path / "uffd-test-target-of-a-long-name"
    with running(program, 1) as (pid,):
        assert find(program.name, None) == find(None, str(program)) == find(program.name, str(program)) == pid
        with pytest.raises(NoProcess):
            find(program.name, "/bin/true")


def test_several_are_named_and_none_is_chosen(tmp_path: Path) -> None:
    program = tmp_path / "uffd-several"
    with running(program, 10) as pids:
        with pytest.raises(NoProcess, match=r"^10 processes match: ") as said:
            find(program.name, None)
    assert f"{min(pids)} (uffd-several)" in str(said.value) and "and 2 more" in str(said.value)


def test_where_none_matches_who_holds_a_userfaultfd_is_said() -> None:
    with child(lambda: armed(4, range(4), (0, 4))) as (pid, *_):
        with pytest.raises(NoProcess, match=r"^no process is called so: userfaultfds are held by ") as said:
            find("uffd-nobody", None)
        assert f"{pid} (" in str(said.value)
