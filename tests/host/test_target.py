"""A process found by its name or its program."""

from __future__ import annotations

import shutil
import subprocess
import time
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
        # Until then each is a copy of us: exec changes the name last.
        while any(Path(f"/proc/{one.pid}/comm").read_text()[:-1] != program.name[:15] for one in started):
            time.sleep(0.01)
        yield [one.pid for one in started]
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_by_name_and_by_program(tmp_path: Path) -> None:
    # The kernel keeps 15 letters.
    program = tmp_path / "uffd-test-target-of-a-long-name"
    with running(program, 1) as (pid,):
        assert find(program.name, None) == find(None, str(program)) == find(program.name, str(program)) == [pid]
        with pytest.raises(NoProcess):
            find(program.name, "/bin/true")


def test_all_that_match_are_found(tmp_path: Path) -> None:
    program = tmp_path / "uffd-several"
    with running(program, 3) as pids:
        assert find(program.name, None) == find(None, str(program)) == sorted(pids)


def test_where_none_matches_who_holds_a_userfaultfd_is_said() -> None:
    with child(lambda: armed(4, range(4), (0, 4))) as (pid, *_):
        with pytest.raises(NoProcess, match=r"^no process is called so: userfaultfds are held by ") as said:
            find("uffd-nobody", None)
        assert f"{pid} (" in str(said.value)
