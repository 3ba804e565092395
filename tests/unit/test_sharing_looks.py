"""When the collector looks at who else maps registered memory."""

from __future__ import annotations

import time

import pytest
from unit.events import THREAD, Events, fed, page

from uffdtrace.collect.sharing import Sharing
from uffdtrace.kernel import sharing
from uffdtrace.kernel.sharing import Elsewhere
from uffdtrace.model.account.model import Model
from uffdtrace.model.records.events import Memory, Mode, Type

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

Asked = list[dict[int, list[tuple[int, int]]]]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made: Asked = []

    def look(watched: dict[int, list[tuple[int, int]]]) -> sharing.Look:
        made.append(watched)
        return sharing.Look([Elsewhere(THREAD, page(0), page(8), 7, "dpdk", 0x1000, 0x9000)], 2)

    monkeypatch.setattr(sharing, "look", look)
    return made


def model(*registered: tuple[int, int], memory: Memory = Memory.SHMEM, modes: Mode = Mode.WP) -> Model:
    events = Events()
    events.memory = memory
    events.userfaultfd()
    for at, pages in registered:
        events.register(at, pages, modes)
        events.add(Type.AREA_REGISTERED, **events._span(at, pages), flags=int(memory))
    return fed(events.array())


def test_once_for_what_is_new_and_again_at_the_end(clock: Clock, asked: Asked) -> None:
    looks, one, two = Sharing(), model((0, 8)), model((0, 8), (16, 8))
    (look,) = looks.look(one)
    assert (look.unreadable, look.elsewhere[0].comm, look.elsewhere[0].owner) == (2, "dpdk", THREAD)
    clock.now += 0.5
    assert looks.look(two) == []
    clock.now += 1
    assert looks.look(one) == []
    clock.now += 1
    assert len(looks.look(two)) == 1
    assert len(looks.look(two, last=True)) == 1
    assert asked == [{THREAD: [(page(0), page(8))]}] + [{THREAD: [(page(0), page(8)), (page(16), page(24))]}] * 2
    assert len(looks.looks) == 3


def test_memory_that_nobody_else_can_map_is_not_looked_for(clock: Clock, asked: Asked) -> None:
    for found in (model(), model((0, 8), memory=Memory.ANON), model((0, 8), modes=Mode.MINOR)):
        assert Sharing().look(found) == Sharing().look(found, last=True) == []
    assert asked == []


def test_looks_without_end_are_not_all_kept(clock: Clock, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may register something new each second; what is left off is counted as not looked at."""
    monkeypatch.setattr(sharing, "MOST_ELSEWHERE", 1)
    looks, found = Sharing(), []
    for number in range(20):
        clock.now += 2
        found += looks.look(model((32 * number, 8)))
    assert [len(look.elsewhere) for look in found] == [1] * 16 + [0] * 4
    assert [look.unreadable for look in found] == [2] * 16 + [3] * 4
