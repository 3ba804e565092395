"""The trace file: written, read back, not written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from unit.events import Events
from unit.traces import ENDING, WHAT, history, one_line, read_all, write

from uffdtrace.reporters import offline, text
from uffdtrace.trace.file import PROCESSES, SCHEMA, TraceError
from uffdtrace.trace.output import Output, check_path
from uffdtrace.trace.writer import Writer

# ---- whole files -----------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    events = history()
    reader, found = read_all(write(tmp_path / "trace", events[:5], events[5:5], events[5:]))
    assert found.tobytes() == events.tobytes()
    assert reader.complete
    assert reader.ending == ENDING
    assert reader.meta == {"schema": SCHEMA, **WHAT}


def test_an_empty_trace(tmp_path: Path) -> None:
    found = offline.read(write(tmp_path / "trace"))
    assert (found["ranges"], found["verdict"], found["trace"]["duration_s"]) == ([], "idle", 1.5)


def test_the_report_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    events, path = history(), tmp_path / "trace"
    whole = offline.read(write(path, events))
    assert offline.read(write(path, *(events[n : n + 1] for n in range(len(events))))) == whole


OWNER = {"pid": 200, "comm": "guest", "cmdline": ["qemu", "-m", "4G"]}
MONITOR = {"pid": 100, "comm": "vmm", "cmdline": []}


def test_who_the_processes_are(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    writer = Writer(path, WHAT)
    writer.processes([OWNER, {"pid": 4711, "comm": "unconcerned", "cmdline": []}])
    writer.events(history())
    writer.processes([])
    writer.processes([MONITOR])
    writer.done(ENDING)
    assert path.read_bytes().count(PROCESSES) == 2
    reader, _ = read_all(path)
    assert [process["pid"] for process in reader.processes] == [200, 4711, 100]
    assert offline.read(path)["processes"] == [MONITOR, OWNER]


def test_who_they_are_is_known_before_the_file_is_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace", WHAT)
    writer.processes([OWNER])
    writer.events(history())
    assert offline.read(tmp_path / "trace")["processes"] == [OWNER]


@pytest.mark.parametrize("pid", [100, 200, 7])
def test_the_traced_process_is_called_as_when_the_trace_began(tmp_path: Path, pid: int) -> None:
    """It may have executed another program since."""
    path, process = tmp_path / "trace", {"pid": pid, "comm": "before", "cmdline": ["before", "exec"]}
    writer = Writer(path, {**WHAT, "process": process})
    writer.events(history())
    writer.processes([OWNER, MONITOR])
    writer.done(ENDING)
    said = {one["pid"]: one["comm"] for one in offline.read(path)["processes"]}
    assert said == {100: "vmm", 200: "guest", **({pid: "before"} if pid != 7 else {})}


def test_a_trace_of_all_userfaultfds(tmp_path: Path) -> None:
    path = write(tmp_path / "trace", history(), process=None)
    found = offline.read(path)
    assert (found["process"], found["verdict"]) == (None, "lost-writes")
    stream = io.StringIO()
    text.render(found, stream)
    assert stream.getvalue().startswith("every userfaultfd\n")


def test_a_trace_of_a_followed_fork(tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4, 3)
    events.fork(0, 4, watched=True)
    events.forked(events.ctx + 8, events.mm + 8)
    events.process(300, events.mm + 8)
    events.using(events.ctx + 8, mm=events.mm + 8, owner=300).fresh(1)
    path = tmp_path / "trace"
    whole = offline.read(write(path, events.array()))
    assert [(one["owner_pid"], one["forked_from"]) for one in whole["userfaultfds"]] == [(200, None), (300, 0)]
    assert [(one["userfaultfd"], one["lost"]["observed"]) for one in whole["ranges"]] == [(0, 0), (1, 1)]
    each = [events.array()[place : place + 1] for place in range(len(events))]
    assert offline.read(write(path, *each)) == whole


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    assert write(tmp_path / "trace").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("variables", "owner"),
    [
        ({"SUDO_UID": "65534", "SUDO_GID": "65533"}, (65534, 65533)),
        ({"SUDO_UID": "65534"}, (0, 0)),
        ({"SUDO_UID": "x", "SUDO_GID": "-1"}, (0, 0)),
    ],
)
def test_under_sudo_it_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], owner: tuple[int, int]
) -> None:
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = write(tmp_path / "trace").stat()
    assert (made.st_uid, made.st_gid) == owner


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("user", ["65534", str(1 << 40)])
def test_a_file_system_without_owners_holds_a_trace_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setenv("SUDO_UID", user)
    monkeypatch.setenv("SUDO_GID", "65534")
    if user == "65534":
        monkeypatch.setattr(os, "fchown", refuse)
    assert offline.read(write(tmp_path / "trace", history()))["ranges"]


def test_a_moved_trace_is_reported_under_its_new_name(tmp_path: Path) -> None:
    moved = write(tmp_path / "trace", history()).rename(tmp_path / "moved")
    assert offline.read(moved)["trace"]["file"] == str(moved)


def test_a_folder_that_is_not_there_is_known_before_anything_is_done(tmp_path: Path) -> None:
    check_path(tmp_path / "trace")
    check_path(Path("/dev/null"))
    with pytest.raises(TraceError, match=r"cannot create .*: No such file or directory: choose another file with -o"):
        check_path(tmp_path / "nowhere" / "trace")
    with pytest.raises(TraceError, match="File name too long"):
        check_path(tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_as_old(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("before")
    write(path, history())
    assert (tmp_path / "trace.old").read_text() == "before"
    with pytest.raises(TraceError, match=r"trace\.old, which is no trace and would be lost"):
        check_path(path)
    with pytest.raises(TraceError, match="would be lost"):
        write(path)
    assert len(read_all(path)[1]) == len(history())
    (tmp_path / "trace.old").unlink()
    write(path)
    assert len(read_all(tmp_path / "trace.old")[1]) == len(history())
    assert sorted(found.name for found in tmp_path.iterdir()) == ["trace", "trace.old"]


def test_a_start_that_fails_costs_no_earlier_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "trace", history())
    write(path, history(), history())
    for _ in range(3):
        Output(path).abandon()
        with pytest.raises(TypeError):
            Writer(path, {"not": object()})
    assert sorted(found.name for found in tmp_path.iterdir()) == ["trace", "trace.old"]
    assert [len(read_all(tmp_path / name)[1]) for name in ("trace.old", "trace")] == [
        len(history()),
        2 * len(history()),
    ]


def test_until_its_head_is_written_it_has_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "trace", history())
    output = Output(path)
    assert len(read_all(path)[1]) == len(history())
    Writer(output, WHAT).done(ENDING)
    assert len(read_all(path)[1]) == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == ["trace", "trace.old"]


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_regular_file_stays_where_it_is(tmp_path: Path, kind: str) -> None:
    """`-o /dev/null` as root must not take the machine's /dev/null away."""
    path = tmp_path / "special" if kind == "fifo" else Path("/dev/null")
    keep = -1
    if kind == "fifo":
        os.mkfifo(path)
        # So that opening it for writing does not wait.
        keep = os.open(path, os.O_RDWR)
    before = os.stat(path)
    Writer(path, WHAT).done(ENDING)
    if keep >= 0:
        os.close(keep)
        assert [found.name for found in tmp_path.iterdir()] == ["special"]
    after = os.stat(path)
    assert (after.st_mode, after.st_rdev, after.st_ino) == (before.st_mode, before.st_rdev, before.st_ino)


def test_a_fifo_waits_for_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    threading.Timer(0.3, reader.start).start()
    writer = Writer(path, WHAT)
    writer.events(history())
    writer.done(ENDING)
    reader.join(10)
    (tmp_path / "read").write_bytes(found[0])
    assert read_all(tmp_path / "read")[1].tobytes() == history().tobytes()


@pytest.mark.parametrize("to", ["/dev/null", "victim", "nothing"])
@pytest.mark.parametrize("name", ["trace", "uffdtrace.data"])
def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("victim").write_text("root's")
    Path(name).symlink_to(to)
    for attempt in (lambda: check_path(Path(name)), lambda: Writer(Path(name), WHAT)):
        with pytest.raises(TraceError, match="symbolic link") as caught:
            attempt()
        one_line(caught.value)
    assert Path("victim").read_text() == "root's" and os.readlink(name) == to
    assert sorted(os.listdir()) == sorted(["victim", name])


def test_the_old_ones_link_is_not_followed(tmp_path: Path) -> None:
    path, victim = write(tmp_path / "trace", history()), tmp_path / "victim"
    victim.write_text("root's")
    (tmp_path / "trace.old").symlink_to(victim)
    with pytest.raises(TraceError, match=r"trace\.old"):
        Writer(path, WHAT)
    assert victim.read_text() == "root's" and len(read_all(path)[1]) == len(history())


def test_a_device_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("uffdtrace.data")
    with pytest.raises(TraceError, match="not named with -o") as caught:
        Writer(Path("uffdtrace.data"), WHAT)
    one_line(caught.value)


def test_a_link_that_comes_and_goes_is_never_followed(tmp_path: Path) -> None:
    """Somebody exchanges the file and a link all the time."""
    path, victim = tmp_path / "trace", tmp_path / "victim"
    victim.write_text("root's")
    stop = threading.Event()

    def exchange() -> None:
        link = tmp_path / "link"
        while not stop.is_set():
            link.symlink_to(victim)
            link.replace(path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    other = threading.Thread(target=exchange)
    other.start()
    try:
        for _ in range(300):
            with contextlib.suppress(TraceError):
                Writer(path, WHAT).done(ENDING)
            assert victim.read_text() == "root's"
    finally:
        stop.set()
        other.join()


# ---- what cannot be written ------------------------------------------------------


@pytest.mark.parametrize("path", ["missing/trace", "file/trace", "/proc/trace"])
def test_where_no_file_can_be_made(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TraceError) as caught:
        Writer(tmp_path / path, WHAT)
    one_line(caught.value)


def test_a_directory_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere.
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TraceError, match="Permission denied") as caught:
        Writer(tmp_path / "trace", WHAT)
    one_line(caught.value)


def room_for(size: int, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no more than so many bytes are written, and then that error comes."""
    really, room = os.write, [size]

    def limited(fd: int, data: Any) -> int:
        if not room[0]:
            raise OSError(error, os.strerror(error))
        done = really(fd, bytes(data)[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", limited)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "trace", WHAT)
    writer.events(history())
    room_for(10, errno.ENOSPC, monkeypatch)
    writer.events(history())
    assert writer.ended == "No space left on device"
    # Others made room: what is missing stays missing, and the last word is there.
    monkeypatch.undo()
    writer.events(history())
    writer.done({**ENDING, "file_ended": {"after_s": 1.0, "reason": writer.ended}})
    reader, found = read_all(tmp_path / "trace")
    assert (len(found), reader.complete) == (len(history()), True)
    report = offline.read(tmp_path / "trace")
    assert report["trace"]["file_ended"] == {"after_s": 1.0, "reason": "No space left on device"}
    assert {"lost", "armed_pages"} <= set(report["loss"]["lower_bounds"])


@pytest.mark.parametrize("refused", [None, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT])
def test_until_it_takes_its_place_a_trace_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    """Killed before, it leaves nothing; on a file system without such files it has a name of its own."""
    path = tmp_path / "trace"
    really = os.open

    def limited(name: Any, flags: int, *mode: int, **more: Any) -> int:
        if refused not in (None, errno.ENOENT) and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(refused, os.strerror(refused or 0))
        return really(name, flags, *mode, **more)

    def unlinkable(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(os, "open", limited)
    if refused == errno.ENOENT:
        monkeypatch.setattr(os, "link", unlinkable)
    for _ in range(2):
        output = Output(path)
        names = [one.name for one in tmp_path.iterdir() if not one.name.startswith("trace")]
        assert names == ([f".trace.{os.getpid()}.part"] if refused else [])
        writer = Writer(output, WHAT)
        writer.events(history())
        writer.done(ENDING)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["trace", "trace.old"]
    assert len(read_all(path)[1]) == len(history())
    assert path.stat().st_mode & 0o777 == 0o600
    abandoned = Output(path)
    abandoned.abandon()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["trace", "trace.old"]


def test_a_disk_that_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "trace", WHAT)
    writer.events(history())
    room_for(0, errno.ENOSPC, monkeypatch)
    writer.done(ENDING)
    assert writer.ended == "No space left on device"
    monkeypatch.undo()
    assert offline.read(tmp_path / "trace")["trace"]["stop_reason"] == offline.CUT_SHORT


def test_what_cannot_be_cut_gets_nothing_behind_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO's reader has a part of a chunk: for it the trace is cut short, as by a kill, and not damaged."""
    fifo, copy = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: copy.write_bytes(fifo.read_bytes()))
    reader.start()
    writer = Writer(fifo, WHAT)
    writer.events(history())
    room_for(10, errno.EIO, monkeypatch)
    writer.events(history())
    monkeypatch.undo()
    writer.done(ENDING)
    reader.join()
    assert writer.ended == "Input/output error"
    found, events = read_all(copy)
    assert (len(events), found.complete, found.damaged) == (len(history()), False, False)


def test_the_head_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(0, errno.ENOSPC, monkeypatch)
    with pytest.raises(TraceError, match="No space left") as caught:
        Writer(tmp_path / "trace", WHAT)
    one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    size = write(path, history()).stat().st_size
    writer = Writer(path, WHAT, size)
    for _ in range(10):
        writer.events(history())
    assert writer.ended == f"it would be larger than --max-size {size:,} bytes"
    assert path.stat().st_size <= size
    writer.done({**ENDING, "file_ended": {"after_s": 0.5, "reason": writer.ended}})
    reader, found = read_all(path)
    assert (len(found), reader.complete) == (len(history()), True)


def test_of_a_file_that_ended_faults_and_messages_are_still_counted(tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.register(10, 4)
    for at in (0, 10):
        events.fault(at, area=(at, at + 4))
        events.message(at, start_of_area=at)
    begun = len(events)
    for at in (0, 10, 10):
        events.fault(at + 1, area=(at, at + 4), tid=900 + at)
        events.message(at + 1, tid=900 + at, start_of_area=at)
    events.fault(2, area=(0, 4), ret=1)
    array = events.array()
    path = tmp_path / "trace"
    writer = Writer(path, WHAT, write(path, array[:begun]).stat().st_size)
    writer.events(array[:begun])
    writer.events(array[begun:])
    counters = [[*key, *slots] for key, slots in writer.unwritten.items()]
    assert sorted(slots for _, _, *slots in counters) == [[0, 1, 0, 0, 1, 0], [0, 2, 0, 0, 2, 0]]
    writer.done({**ENDING, "counters": counters, "file_ended": {"after_s": 0.5, "reason": "full"}})
    report = offline.read(path)
    assert [(one["faults"]["wp"], one["messages"]["wp"]) for one in report["ranges"]] == [(2, 2), (3, 3)]
    assert not {"faults", "messages"} & set(report["loss"]["lower_bounds"])


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: really(fd, bytes(data)[:7]))
    write(tmp_path / "trace", history())
    monkeypatch.undo()
    assert read_all(tmp_path / "trace")[1].tobytes() == history().tobytes()
