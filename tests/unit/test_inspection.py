"""What inspect concludes from counts, and how it says so."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from unit.reports import HOSTILE

from uffdtrace.cli import main
from uffdtrace.model.diagnosis.inspection import (
    VERDICTS,
    Elsewhere,
    EventSleeper,
    Holder,
    Span,
    Userfaultfd,
    build,
    join,
    verdict,
)
from uffdtrace.model.records.events import Feature, Mode
from uffdtrace.reporters import inspection_text

SCHEMA = json.loads(Path(inspection_text.__file__).with_name("inspect.schema.json").read_text())
WP, MISSING, MINOR = int(Mode.WP), int(Mode.MISSING), int(Mode.MINOR)
BASE = 0x7F0000000000
PAGE_SIZE = 4096


def span(
    protected: int | None, unprotected: int | None, swapped: int | None, empty: int, modes: int = WP, first: int = 0
) -> Span:
    pages = (protected or 0) + (unprotected or 0) + (swapped or 0) + empty
    start = BASE + first * PAGE_SIZE
    return Span(
        start,
        start + pages * PAGE_SIZE,
        PAGE_SIZE,
        modes,
        "anon",
        "",
        False,
        protected,
        unprotected,
        swapped,
        empty,
        pages - empty,
    )


def made(
    *spans: Span,
    userfaultfds: tuple[Userfaultfd, ...] = (),
    asleep: tuple[int, ...] = (),
    in_events: tuple[EventSleeper, ...] = (),
) -> dict[str, Any]:
    found = build(
        {"at": "2026-01-01T00:00:00Z", "kernel": "6.12", "arch": "x86_64", "method": "pagemap", "uffdtrace": "1"},
        {"pid": 10, "comm": "tracker", "cmdline": []},
        spans,
        userfaultfds,
        asleep,
        [],
        whole=True,
        in_events=in_events,
    )
    jsonschema.validate(found, SCHEMA, format_checker=jsonschema.FormatChecker())
    return found


def text(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    inspection_text.render(found, stream)
    assert all(len(line) <= 80 and line.isprintable() for line in stream.getvalue().splitlines())
    return stream.getvalue()


def held(pid: int, waiting: int | None = 0, unread: int | None = 0, fds: tuple[int, ...] = (3,)) -> Userfaultfd:
    return Userfaultfd(int(Feature.THREAD_ID) | 1 << 31, unread, waiting, (Holder(pid, "tracker", fds),))


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (span(4, 0, 0, 0), "ok"),
        (span(4, 1, 0, 0), "unknown"),
        (span(4, 0, 1, 0), "unknown"),
        (span(4, 0, 0, 1), "holes"),
        (span(4, 1, 1, 1), "holes"),
        (span(0, 4, 0, 0), "unprotected"),
        (span(0, 0, 4, 0), "unprotected"),
        (span(0, 0, 0, 4), "unprotected"),
        (span(None, None, None, 4), "unknown"),
        # An empty page sends a message where MISSING is registered too, but not for MINOR's sake.
        (span(4, 0, 0, 4, WP | MISSING), "ok"),
        (span(4, 1, 0, 4, WP | MISSING), "unknown"),
        (span(0, 1, 0, 4, WP | MISSING), "unprotected"),
        (span(0, 0, 0, 4, WP | MISSING), "idle"),
        (span(4, 0, 0, 4, WP | MINOR), "unknown"),
        (span(0, 0, 0, 4, MISSING), "idle"),
        (span(0, 3, 0, 4, MISSING), "ok"),
        (span(None, None, None, 4, MISSING), "idle"),
        (replace(span(2, 1, 0, 4), wp_async=True), "async"),
    ],
)
def test_verdicts(found: Span, word: str) -> None:
    assert verdict(found) == word
    assert made(found)["verdict"] == word


def test_what_touches_and_is_alike_is_one_range() -> None:
    one, two = span(4, 0, 0, 0), span(1, 2, 3, 4, first=4)
    (joined,) = join([one, two])
    assert (joined.start, joined.end) == (one.start, two.end)
    counts = (joined.protected, joined.unprotected, joined.swapped, joined.empty, joined.in_memory)
    assert counts == (5, 2, 3, 4, 10)
    assert join([one, replace(two, protected=None)])[0].protected is None
    assert join([replace(one, name="[heap]"), replace(two, name="[heap]")])[0].name == "[heap]"
    assert join([replace(one, name="[heap]"), two])[0].name is None


@pytest.mark.parametrize(
    "other",
    [
        span(1, 0, 0, 0, first=5),
        span(1, 0, 0, 0, modes=WP | MISSING, first=4),
        replace(span(1, 0, 0, 0, first=4), memory="shmem"),
        replace(span(1, 0, 0, 0, first=4), wp_async=True),
    ],
)
def test_what_does_not_touch_or_differs_stays_apart(other: Span) -> None:
    assert join([span(4, 0, 0, 0), other]) == [span(4, 0, 0, 0), other]


def test_the_worst_is_the_verdict_of_all() -> None:
    ranges = [span(4, 0, 0, 0), span(0, 4, 0, 0, first=10), span(4, 4, 0, 0, first=20)]
    assert made(*ranges)["verdict"] == "unprotected"
    assert made(ranges[0], ranges[2])["verdict"] == "unknown"


@pytest.mark.parametrize(
    ("userfaultfds", "asleep"), [((held(10, waiting=2, unread=1),), ()), ((held(10, waiting=None),), (11,))]
)
def test_faults_that_wait(
    userfaultfds: tuple[Userfaultfd, ...], asleep: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(span(4, 0, 0, 0), userfaultfds=userfaultfds, asleep=asleep)
    assert (found["verdict"], found["ranges"][0]["verdict"]) == ("pending", "ok")
    assert "Verdict: pending" in text(found, monkeypatch)


def test_messages_that_wait_where_poll_brings_none(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = replace(held(10, waiting=1, unread=1, fds=(3, 7)), blocking=True)
    said = " ".join(text(made(span(4, 0, 0, 0), userfaultfds=(waits,)), monkeypatch).split())
    assert (
        "Messages wait in its descriptors 3, 7, without O_NONBLOCK: poll(), select() and epoll answer POLLERR" in said
    )
    # Whoever reads such a one, and has read, needs no poll().
    for other in (replace(waits, unread=0), replace(waits, unread=None), replace(waits, blocking=False)):
        assert made(span(4, 0, 0, 0), userfaultfds=(other,))["notes"] == []


def test_events_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    in_events = (EventSleeper(11, "munmap", "unmap"), EventSleeper(12, None, None))
    found = made(span(4, 0, 0, 0), userfaultfds=(held(10),), in_events=in_events)
    assert (found["verdict"], found["ranges"][0]["verdict"]) == ("pending", "ok")
    written = " ".join(text(found, monkeypatch).split())
    assert "Thread 11 sleeps in munmap until UFFD_EVENT_UNMAP is read from the userfaultfd." in written
    assert "Thread 12 sleeps until an event is read from the userfaultfd." in written


def test_many_events_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(span(4, 0, 0, 0), in_events=tuple(EventSleeper(tid, "fork", "fork") for tid in range(1_300)))
    assert " more threads sleep until an event is read" in text(found, monkeypatch)


def test_faults_that_wait_elsewhere_are_not_its_own() -> None:
    found = made(span(4, 0, 0, 0), userfaultfds=(held(99, waiting=2),))
    assert (found["userfaultfds"], len(found["elsewhere"]), found["verdict"]) == ([], 1, "ok")
    assert found["elsewhere"][0]["features"] == ["THREAD_ID"]


def test_others_are_listed_only_where_something_must_watch() -> None:
    assert made(userfaultfds=(held(99),))["elsewhere"] == []
    assert made(span(4, 0, 0, 0), userfaultfds=(held(10), held(99)))["elsewhere"] == []


def test_a_monitor() -> None:
    both = Userfaultfd(0, 0, 0, (Holder(9, "guest", (3,)), Holder(10, "monitor", (4,))))
    found = made(userfaultfds=(both,))
    assert found["verdict"] == "unknown"
    assert any("9: inspect that" in note for note in found["notes"])


def test_hostile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Userfaultfd(0, 1, 1, (Holder(10, HOSTILE, (3,)),))
    found = made(replace(span(4, 0, 0, 0), name=HOSTILE), userfaultfds=(own,))
    found["process"]["cmdline"] = [HOSTILE]
    assert "\x1b" not in text(found, monkeypatch)


def test_many_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = [span(1, 1, 0, 1, first=10 * number) for number in range(30)]
    assert "and 10 more ranges: 10 protected, 10 unprotected, 10 empty" in text(made(*ranges), monkeypatch)


def test_big_numbers_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(replace(span(1 << 24, 1 << 24, 0, 1 << 24, modes=WP | MISSING | MINOR), memory="hugetlb"))
    assert "16,777,216" in text(found, monkeypatch)


def test_unknown_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    said = text(made(span(None, None, None, 4)), monkeypatch)
    assert said.count("?") == 3 and "does not show" in said and "released" not in said


def test_every_verdict_is_explained_in_the_readme_and_the_schema() -> None:
    assert SCHEMA["$defs"]["verdict"]["enum"] == list(VERDICTS)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    section = readme[readme.index("## Without BPF") :]
    section = section[: section.index("\n## ")]
    assert all(f"| {word} |" in section for word in VERDICTS)


def test_usage() -> None:
    assert "Examples:" in CliRunner().invoke(main, ["inspect", "--help"]).output
    for arguments in (["inspect"], ["inspect", "0"], ["inspect", "x"], ["inspect", "--format", "html", "1"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2


def test_memory_that_is_also_mapped_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    others = (Elsewhere(10, "tracker", 0x1000, 0x5000), Elsewhere(20, HOSTILE, 0x1000, 0x5000))
    shared = replace(span(4, 0, 0, 0), memory="shmem", elsewhere=others)
    # Two mappings that are one range name each of the others once.
    found = made(shared, replace(shared, start=shared.end, end=shared.end + 4 * PAGE_SIZE))
    (row,) = found["ranges"]
    assert [other["pid"] for other in row["mapped_elsewhere"]] == [10, 20]
    said = text(found, monkeypatch)
    unwrapped = " ".join(said.split())
    assert "is also mapped by tracker (10) at 1000-5000: writes there send no message." in unwrapped
    assert unwrapped.endswith("Verdict: ok: nothing can be written without its message, but for its other mappings.")
    assert all(one.isprintable() for one in said.replace("\n", ""))


def test_without_write_protection_only_empty_pages_send_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(span(None, None, None, 2, MISSING), end=BASE + 4 * PAGE_SIZE, in_memory=2)
    alone = " ".join(text(made(missing), monkeypatch).split())
    assert "Verdict: ok: only pages that are not there send messages in the ranges" in alone
    beside = " ".join(text(made(missing, span(4, 0, 0, 0, first=8)), monkeypatch).split())
    assert "in ranges without write protection" in beside
    assert "nothing can be written" not in alone + beside
