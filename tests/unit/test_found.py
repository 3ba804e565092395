"""What the collector finds out by itself, on a machine made by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from unit.events import CTX, new_model, page
from unit.machine import MONITOR, OWNER, OWNERS_MM, STRANGER, STRANGERS_MM, Machine, Mapping, Uffd, events, span

from uffdtrace.collect import found
from uffdtrace.kernel import offers, proc
from uffdtrace.model.account.watched import Reader, Userfaultfd
from uffdtrace.model.diagnosis.report import Name
from uffdtrace.model.records.events import Ioctl, Memory, Mode, Type, name_in

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    for name in ("pids", "userfaultfds", "fdinfo", "registered", "areas", "protected_runs"):
        monkeypatch.setattr(proc, name, getattr(made, name))
    monkeypatch.setattr(offers, "pagemap_tells_protection", lambda: True)
    ticks = itertools.count(1000, 10)
    monkeypatch.setattr(found, "_now", lambda: next(ticks))
    return made


@pytest.fixture
def watched(machine: Machine) -> Uffd:
    """OWNER's memory, whose userfaultfd MONITOR holds; and a stranger that watches itself."""
    ours, strange = Uffd(CTX, OWNERS_MM, OWNER), Uffd(CTX + 0x1000, STRANGERS_MM, STRANGER)
    machine.holds = {MONITOR: {7: ours}, STRANGER: {3: strange}}
    machine.mappings = {OWNER: [Mapping(0, 8, ours)], STRANGER: [Mapping(100, 4, strange)]}
    return ours


# ---- at the start ----------------------------------------------------------------


@pytest.mark.parametrize("pid", [OWNER, MONITOR])
def test_the_process_owns_the_memory_or_holds_the_descriptor(machine: Machine, watched: Uffd, pid: int) -> None:
    assert machine.look_back.start([pid] if pid else []) == []
    assert machine.traced == [(CTX, OWNERS_MM)]
    assert machine.ranges() == [(CTX, OWNER, 0, 8)]
    assert ("smaps", STRANGER) not in machine.asked


def test_all(machine: Machine, watched: Uffd) -> None:
    machine.look_back.start([])
    assert machine.traced == [(CTX, OWNERS_MM), (CTX + 0x1000, STRANGERS_MM)]
    assert machine.ranges() == [(CTX, OWNER, 0, 8), (CTX + 0x1000, STRANGER, 100, 4)]


def test_nobody(machine: Machine, watched: Uffd) -> None:
    machine.look_back.start([999])
    assert (machine.traced, machine.ranges(), machine.waiters()) == ([], [], [])


@pytest.mark.parametrize("pid", [OWNER, MONITOR, None])
def test_several_holders_of_one(machine: Machine, watched: Uffd, pid: int | None) -> None:
    """Inherited, duplicated, sent: one userfaultfd all the same."""
    machine.holds = {MONITOR - 1: {5: watched}, MONITOR: {7: watched, 8: watched}, OWNER: {3: watched}}
    watched.waiting = 2
    machine.look_back.start([pid] if pid else [])
    assert machine.traced == [(CTX, OWNERS_MM)]
    assert machine.ranges() == [(CTX, OWNER, 0, 8)]
    assert machine.waiters() == [(CTX, 0, 2)]


def test_several_of_one_process(machine: Machine, watched: Uffd) -> None:
    second = Uffd(CTX + 0x2000, OWNERS_MM, OWNER, 1, 1)
    machine.holds[OWNER] = {4: second}
    machine.mappings[OWNER].append(Mapping(20, 2, second, Mode.MISSING))
    machine.look_back.start([OWNER])
    assert machine.ranges() == [(CTX, OWNER, 0, 8), (CTX + 0x2000, OWNER, 20, 2)]
    assert sorted(machine.waiters()) == [(CTX, 0, 0), (CTX + 0x2000, 1, 1)]


def test_who_waits(machine: Machine, watched: Uffd) -> None:
    watched.unread, watched.waiting = 3, 5
    machine.look_back.start([OWNER])
    assert machine.waiters() == [(CTX, 3, 5)]


@pytest.mark.parametrize("pid", [OWNER, MONITOR, None])
def test_who_waits_in_the_queues_is_told_once(machine: Machine, watched: Uffd, pid: int | None) -> None:
    """Each look at each descriptor has the kernel tell of them, and of those of strangers."""
    watched.queue = [301, 302]
    machine.holds[MONITOR][8] = watched
    machine.holds[STRANGER][3].queue = [501]
    machine.look_back.start([pid] if pid else [])
    waiting = machine.told(Type.FAULT_FOUND)
    assert waiting["tid"].tolist() == [301, 302] + [501] * (pid is None)
    # Their range stands before them.
    assert waiting["time"].min() > machine.told(Type.RANGE_FOUND)["time"].min()


def test_a_descriptor_of_which_fdinfo_says_nothing(machine: Machine, watched: Uffd, monkeypatch: Any) -> None:
    """Closed once the kernel had begun to show it."""
    monkeypatch.setattr(proc, "fdinfo", lambda pid, fd: machine.fdinfo(pid, fd) and None)
    machine.look_back.start([OWNER])
    assert (machine.ranges(), machine.waiters()) == ([(CTX, OWNER, 0, 8)], [])


def test_a_descriptor_that_is_gone(machine: Machine, watched: Uffd, monkeypatch: Any) -> None:
    monkeypatch.setattr(proc, "fdinfo", lambda pid, fd: None)
    machine.look_back.start([])
    assert (machine.traced, machine.ranges()) == ([], [])


def test_a_process_that_is_gone(machine: Machine, watched: Uffd) -> None:
    machine.mappings.pop(OWNER)
    assert machine.look_back.start([MONITOR]) == []
    assert (machine.traced, machine.ranges()) == ([(CTX, OWNERS_MM)], [])


def test_memory_whose_owner_the_kernel_does_not_tell(machine: Machine, watched: Uffd) -> None:
    """Without CONFIG_MEMCG."""
    watched.owner = 0
    machine.look_back.start([MONITOR])
    assert (machine.traced, machine.ranges()) == ([(CTX, OWNERS_MM)], [])


def test_what_another_process_looks_at_is_not_our_look(machine: Machine, watched: Uffd) -> None:
    machine.send(Type.USERFAULTFD, ctx=CTX + 0x7000, start=1, aux=OWNER, tgid=STRANGER)
    machine.look_back.start([OWNER])
    assert machine.traced == [(CTX, OWNERS_MM)]


def test_names(machine: Machine, watched: Uffd) -> None:
    machine.mappings[OWNER][0].name = "/memfd:guest (deleted)"
    machine.mappings[OWNER].append(Mapping(20, 2, watched))
    names = machine.look_back.start([OWNER])
    shown = int(machine.told(Type.USERFAULTFD)["time"][0])
    assert names == [Name(shown, CTX, page(0), page(8), "/memfd:guest (deleted)")]


def test_a_range_is_as_old_as_the_first_event_that_is_recorded(machine: Machine, watched: Uffd) -> None:
    machine.mappings[OWNER][0].modes = Mode.WP | Mode.MISSING
    machine.look_back.start([OWNER])
    shown = machine.told(Type.USERFAULTFD)
    (one,) = machine.told(Type.RANGE_FOUND)
    assert one["time"] == shown["time"][shown["ctx"] == CTX][0]
    assert (one["aux"], one["flags"], one["kind"]) == (3, Memory.ANON, 1)


@pytest.mark.parametrize("why", ["grown", "unmapped", "another's", "shown twice"])
def test_mappings_that_changed_while_they_were_looked_at(
    machine: Machine, watched: Uffd, monkeypatch: Any, why: str
) -> None:
    def areas(pid: int) -> list[proc.Area]:
        (one,) = machine.mappings[OWNER]
        if why == "grown":
            one.pages += 1
        elif why == "unmapped":
            machine.mappings[OWNER] = []
        elif why == "another's":
            one.uffd = Uffd(CTX + 0x5000, OWNERS_MM, OWNER)
        else:
            # Where the kernel's buffer ended.
            machine._shown(pid)
        return machine.areas(pid)

    monkeypatch.setattr(proc, "areas", areas)
    machine.look_back.start([OWNER])
    assert machine.ranges() == ([(CTX, OWNER, 0, 8)] if why == "shown twice" else [])


def test_protected_pages(machine: Machine, watched: Uffd) -> None:
    machine.mappings[OWNER] = [
        Mapping(0, 8, watched, protected=[(1, 3), (5, 6)]),
        Mapping(20, 4, watched, Mode.MISSING, protected=[(20, 24)]),
    ]
    machine.look_back.start([OWNER])
    pages = machine.told(Type.PAGES_FOUND)
    assert [(int(one["ctx"]), *span(one)) for one in pages] == [(CTX, 1, 2), (CTX, 5, 1)]
    assert set(pages["tgid"].tolist()) == {OWNER}
    # Protected all the time since then: what happened since comes after.
    assert set(pages["time"].tolist()) == set(machine.told(Type.RANGE_FOUND)["time"].tolist())


def test_a_kernel_that_does_not_show_protection(machine: Machine, watched: Uffd, monkeypatch: Any) -> None:
    monkeypatch.setattr(offers, "pagemap_tells_protection", lambda: False)
    machine.mappings[OWNER][0].protected = [(1, 3)]
    machine.look_back.start([OWNER])
    assert ("pagemap", OWNER) not in machine.asked
    assert machine.told(Type.RANGE_FOUND)["kind"].tolist() == [0]
    assert len(machine.told(Type.PAGES_FOUND)) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"what": Type.PROTECT, "kind": 1},
        {"what": Type.IOCTL, "kind": int(Ioctl.COPY)},
        {"what": Type.IOCTL, "kind": int(Ioctl.CONTINUE)},
    ],
)
def test_what_is_armed_during_the_look_was_not_found(
    machine: Machine, watched: Uffd, monkeypatch: Any, fields: dict[str, Any]
) -> None:
    def protected_runs(pid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        machine.send(**fields, ctx=CTX, start=page(2), end=page(4))
        # Another's, and a release.
        machine.send(**fields, ctx=CTX + 8, start=page(0), end=page(8))
        machine.send(Type.PROTECT, kind=0, ctx=CTX, start=page(0), end=page(8))
        yield page(1), page(8)

    monkeypatch.setattr(proc, "protected_runs", protected_runs)
    machine.look_back.start([OWNER])
    assert [span(one) for one in machine.told(Type.PAGES_FOUND)] == [(1, 1), (4, 4)]


def test_what_was_found_makes_a_report(machine: Machine, watched: Uffd) -> None:
    machine.mappings[OWNER][0].protected = [(1, 3)]
    machine.look_back.start([OWNER])
    model = new_model()
    model.feed(machine.stream.drain(None))
    model.finish()
    (row,) = model.rows()
    assert (row.start, row.pages, row.modes, row.memory) == (page(0), 8, Mode.WP, Memory.ANON)
    assert (row.count("armed_pages"), row.before, model.uffd_of(row).owner) == (2, True, OWNER)


# ---- late ones -------------------------------------------------------------------


@pytest.fixture
def late(machine: Machine, watched: Uffd) -> Uffd:
    """One that STRANGER made for itself and handed to MONITOR, that is followed."""
    machine.look_back.start([MONITOR])
    strange = machine.holds[STRANGER][3]
    machine.holds[MONITOR][9] = strange
    machine.stream.drain(None)
    machine.asked.clear()
    return strange


def look(machine: Machine) -> list[Name]:
    machine.stream.fetch()
    return machine.look_back.late()


def test_nothing_late(machine: Machine, late: Uffd) -> None:
    machine.send(Type.USERFAULTFD, ctx=CTX + 0x7000, aux=OWNER, tgid=OWNER)
    machine.lanes.waiting.append(events({"type": Type.MESSAGE, "ctx": CTX, "kind": 1}))
    assert look(machine) == []
    assert machine.asked == []


def test_a_late_one_is_looked_back_at(machine: Machine, late: Uffd) -> None:
    machine.mappings[STRANGER][0].name = "[heap]"
    machine.mappings[STRANGER][0].protected = [(101, 102)]
    late.unread, late.waiting = 1, 4
    machine.use(late, MONITOR)
    when = int(machine.ring.waiting[0]["time"][0])
    assert look(machine) == [Name(when, late.ctx, page(100), page(104), "[heap]")]
    assert machine.ranges() == [(late.ctx, STRANGER, 100, 4)]
    assert machine.told(Type.RANGE_FOUND)["time"].tolist() == [when]
    assert [span(one) for one in machine.told(Type.PAGES_FOUND)] == [(101, 1)]
    # By then it may be more, which events tell of.
    assert machine.waiters() == []


def test_a_late_one_that_a_message_brings(machine: Machine, late: Uffd) -> None:
    machine.use(late, MONITOR)
    machine.lanes.waiting, machine.ring.waiting = machine.ring.waiting, []
    look(machine)
    assert machine.ranges() == [(late.ctx, STRANGER, 100, 4)]


def test_it_is_looked_back_at_once(machine: Machine, late: Uffd) -> None:
    """Its event waits in the stream for what may be older."""
    machine.use(late, MONITOR)
    look(machine)
    machine.asked.clear()
    look(machine)
    assert machine.asked == []
    # Two threads used it first.
    machine.use(late, MONITOR)
    look(machine)
    assert machine.asked == []
    assert len(machine.ranges()) == 1


def test_one_that_was_known_from_the_start_is_not_late(machine: Machine, late: Uffd) -> None:
    """It was used while we looked."""
    machine.use(machine.holds[MONITOR][7], MONITOR)
    assert look(machine) == []
    assert machine.asked == []


def test_several_late_ones(machine: Machine, late: Uffd) -> None:
    other = Uffd(CTX + 0x9000, STRANGERS_MM, STRANGER, 2, 2)
    machine.holds[MONITOR][8] = other
    machine.mappings[STRANGER].append(Mapping(200, 1, other))
    machine.use(late, MONITOR)
    machine.use(other, MONITOR)
    look(machine)
    assert machine.ranges() == [(late.ctx, STRANGER, 100, 4), (other.ctx, STRANGER, 200, 1)]
    assert machine.waiters() == []


def test_only_what_is_late_is_found_in_its_owners_memory(machine: Machine, late: Uffd) -> None:
    """The rest has events of its own."""
    machine.mappings[STRANGER].append(Mapping(200, 1, Uffd(CTX + 0x9000, STRANGERS_MM, STRANGER)))
    machine.use(late, MONITOR)
    look(machine)
    assert machine.ranges() == [(late.ctx, STRANGER, 100, 4)]


@pytest.mark.parametrize("gone", ["monitor", "owner", "both"])
def test_a_late_one_whose_process_is_gone(machine: Machine, late: Uffd, gone: str) -> None:
    machine.use(late, MONITOR)
    if gone != "owner":
        machine.holds.pop(MONITOR)
    if gone != "monitor":
        machine.mappings.pop(STRANGER)
    assert look(machine) == []
    assert len(machine.ranges()) == (gone == "monitor")


def used_again(machine: Machine, late: Uffd) -> list[tuple[int, int, int, int]]:
    """What is found where another userfaultfd has the address of the late one."""
    again = Uffd(late.ctx, OWNERS_MM, OWNER)
    machine.holds[MONITOR][10] = again
    machine.mappings[OWNER] = [Mapping(50, 5, again)]
    machine.use(again, MONITOR)
    look(machine)
    return machine.ranges()


def test_the_same_address_after_a_close_is_another(machine: Machine, late: Uffd) -> None:
    machine.use(late, MONITOR)
    look(machine)
    machine.stream.drain(None)
    machine.close(MONITOR, 9)
    look(machine)
    machine.stream.drain(None)
    assert used_again(machine, late) == [(late.ctx, OWNER, 50, 5)]


def test_the_same_address_in_one_look(machine: Machine, late: Uffd) -> None:
    """Closed, made and handed over again between two looks."""
    machine.use(late, MONITOR)
    look(machine)
    machine.stream.drain(None)
    machine.close(MONITOR, 9)
    again = Uffd(late.ctx, OWNERS_MM, OWNER)
    machine.holds[MONITOR][10] = again
    machine.mappings[OWNER] = [Mapping(50, 5, again)]
    machine.use(again, MONITOR)
    look(machine)
    assert machine.ranges() == [(late.ctx, OWNER, 50, 5)]


# ---- registrations ---------------------------------------------------------------


def seen(ctx: int = CTX, owner: int = OWNER) -> dict[str, int]:
    return {"type": Type.USERFAULTFD, "ctx": ctx, "aux": owner}


def registered(at: int, pages: int, ctx: int = CTX, ret: int = 0, time: int = 5) -> dict[str, int]:
    kinds = {"type": Type.IOCTL_RETURN, "kind": Ioctl.REGISTER}
    return {**kinds, "ctx": ctx, "start": page(at), "end": page(at + pages), "ret": ret, "time": time}


def test_registrations_are_looked_at_once_a_batch(machine: Machine, watched: Uffd) -> None:
    machine.mappings[OWNER] = [Mapping(0, 8, watched, name="a"), Mapping(8, 4, watched, name="b")]
    registrations = found.Registrations()
    names = registrations.names(events(seen(), registered(0, 2), registered(9, 1), registered(7, 2), registered(50, 1)))
    assert [(name.start, name.end, name.name) for name in names] == [(page(0), page(2), "a"), (page(9), page(10), "b")]
    assert (machine.asked, registrations.owners) == ([("maps", OWNER)], {OWNER})


@pytest.mark.parametrize(
    "batch", [[registered(0, 2)], [seen(owner=0), registered(0, 2)], [seen(), registered(0, 2, ret=-22)], [seen()]]
)
def test_registrations_of_nobody_or_that_failed(machine: Machine, batch: list[dict[str, int]]) -> None:
    assert found.Registrations().names(events(*batch)) == []
    assert machine.asked == []


def test_whose_registration_it_is_says_the_event_before_it(machine: Machine, watched: Uffd) -> None:
    machine.mappings[OWNER] = [Mapping(0, 8, watched, name="ours")]
    machine.mappings[STRANGER] = [Mapping(0, 8, watched, name="theirs")]
    names = found.Registrations().names(events(seen(), registered(0, 2), seen(owner=STRANGER), registered(0, 2)))
    assert [name.name for name in names] == ["ours", "theirs"]


# ---- processes -------------------------------------------------------------------


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The processes there are; `asked` has who was asked for."""
    names = {OWNER: "guest", MONITOR: "vmm", STRANGER: "other"}

    def process(pid: int) -> proc.Process:
        if pid not in names:
            raise proc.NoProcess(f"no process {pid}")
        return proc.Process(pid, names[pid], [f"./{names[pid]}", "-x"])

    monkeypatch.setattr(proc, "process", process)
    return names


def pids(who: list[dict[str, Any]]) -> list[int]:
    return [one["pid"] for one in who]


def test_who_owns_and_who_watches(alive: dict[int, str]) -> None:
    assert found.Processes().new(events(seen(), {"type": Type.IOCTL, "tgid": MONITOR})) == [
        {"pid": OWNER, "comm": "guest", "cmdline": ["./guest", "-x"]},
        {"pid": MONITOR, "comm": "vmm", "cmdline": ["./vmm", "-x"]},
    ]


@pytest.mark.parametrize("what", [Type.IOCTL, Type.MESSAGE, Type.PROCESS, Type.RANGE_FOUND])
def test_events_that_name_a_process(alive: dict[int, str], what: Type) -> None:
    assert pids(found.Processes().new(events({"type": what, "tgid": STRANGER, "aux": OWNER}))) == [STRANGER]


@pytest.mark.parametrize("what", sorted(set(Type) - {*found._ACTORS, Type.USERFAULTFD}))
def test_events_that_name_none(alive: dict[int, str], what: Type) -> None:
    assert found.Processes().new(events({"type": what, "tgid": STRANGER, "aux": OWNER, "tid": MONITOR})) == []


def test_who_looked_at_a_userfaultfd_is_neither(alive: dict[int, str]) -> None:
    assert pids(found.Processes().new(events({**seen(), "tgid": STRANGER}))) == [OWNER]


def test_each_is_asked_for_once(alive: dict[int, str]) -> None:
    processes = found.Processes()
    batch = events(seen(), seen(), seen(owner=MONITOR), {"type": Type.IOCTL, "tgid": OWNER})
    assert pids(processes.new(batch)) == [OWNER, MONITOR]
    alive[OWNER] = "exec"
    assert processes.new(batch) == []
    assert pids(processes.new(events(seen(owner=STRANGER)))) == [STRANGER]


def test_no_owner_and_no_events(alive: dict[int, str]) -> None:
    alive[0] = "nobody"
    assert found.Processes().new(events(seen(owner=0))) == []
    assert found.Processes().new(events()) == []


def test_a_process_that_went_before_it_was_asked_for_stays_a_number(alive: dict[int, str]) -> None:
    processes = found.Processes()
    name = alive.pop(OWNER)
    assert pids(processes.new(events(seen(), seen(owner=MONITOR)))) == [MONITOR]
    # Another one by now.
    alive[OWNER] = name
    assert processes.new(events(seen())) == []


def named(pid: int, comm: bytes) -> dict[str, int]:
    words = comm.ljust(16, b"\0")
    start, end = int.from_bytes(words[:8], "little"), int.from_bytes(words[8:], "little")
    return {"type": Type.PROCESS_NAME, "tgid": pid, "start": start, "end": end}


def test_a_process_that_went_before_it_was_asked_for_has_the_name_that_the_kernel_told(alive: dict[int, str]) -> None:
    alive.clear()
    processes = found.Processes()
    assert processes.new(events(named(OWNER, b"brief\xff0123456789"[:16]), seen(), seen(owner=MONITOR))) == [
        {"pid": OWNER, "comm": "brief\ufffd0123456789"[:16], "cmdline": None}
    ]
    # Messages come from slots of their own: the name may come later.
    assert processes.new(events(named(MONITOR, b"late"))) == [{"pid": MONITOR, "comm": "late", "cmdline": None}]
    assert processes.new(events(named(MONITOR, b"late"), seen(), seen(owner=MONITOR))) == []


def test_who_lives_is_asked_and_who_acts_on_nothing_is_not_told_of(alive: dict[int, str]) -> None:
    told = found.Processes().new(events(named(OWNER, b"old name"), named(STRANGER, b"stranger"), seen()))
    assert [(one["pid"], one["comm"]) for one in told] == [(OWNER, "guest")]


# ---- sleepers --------------------------------------------------------------------


def test_who_sleeps_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "is_alive", lambda pid: pid != MONITOR)
    monkeypatch.setattr(proc, "asleep_in_fault", lambda pid: [pid + 1, pid + 2] if pid == OWNER else [])
    said = [(int(one["tgid"][0]), int(one["tid"][0])) for one in found.asleep([OWNER, MONITOR, STRANGER])]
    assert said == [(OWNER, 0), (OWNER, OWNER + 1), (OWNER, OWNER + 2), (STRANGER, 0)]


def test_which_readers_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: set[int] = set()
    monkeypatch.setattr(proc, "has_ended", lambda tid: tid in ended)
    monkeypatch.setattr(proc, "is_alive", lambda pid: pid != MONITOR)
    home = Userfaultfd(0, 1, threads={7: Reader(OWNER, 1, 1), 8: Reader(MONITOR, 1, 1)})
    readers = found.Readers()
    assert readers.look([home]) == []
    seen = found._now()
    ended.add(8)
    (gone,) = readers.look([home])
    assert (int(gone["tid"][0]), int(gone["kind"][0])) == (8, 1)
    assert 0 < int(gone["value"][0]) <= seen <= int(gone["time"][0])
    assert readers.look([home]) == []
    # Another thread of that number has read since.
    home.threads[8].last = found._now()
    (gone,) = readers.look([home])
    assert (int(gone["tid"][0]), int(gone["value"][0])) == (8, 0)


def test_who_holds_it_at_the_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    uffd, other = Uffd(0x51, OWNERS_MM, OWNER, queue=[7]), Uffd(0x52, STRANGERS_MM, STRANGER)
    machine.holds = {OWNER: {3: uffd}, MONITOR: {4: other, 5: uffd, 6: uffd}}
    monkeypatch.setattr(proc, "comm", lambda pid: f"name of process {pid}")
    held = found.holders(machine.stream, {0x51})
    told = [(int(one["ctx"][0]), int(one["tgid"][0]), int(one["value"][0])) for one in held]
    assert told == [(0x51, 0, 0), (0x51, OWNER, 3), (0x51, MONITOR, 5), (0x51, MONITOR, 6)]
    assert name_in(held[1][0]) == f"name of process {OWNER}"[:16]
    # What the looks told is no event of the trace.
    assert not len(machine.stream.held)
    machine.asked.clear()
    assert found.holders(machine.stream, set()) == [] and not machine.asked


def test_who_waits_at_the_end_for_an_event_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sleepers = [proc.EventSleeper(7, "munmap", "unmap"), proc.EventSleeper(8, None, None)]
    monkeypatch.setattr(proc, "is_alive", lambda pid: True)
    monkeypatch.setattr(proc, "asleep_in_fault", lambda pid: [])
    monkeypatch.setattr(proc, "asleep_in_event", lambda pid: sleepers)
    said = [event[0] for event in found.asleep([OWNER]) if event["type"][0] == Type.EVENT_ASLEEP]
    assert [(int(one["tgid"]), int(one["tid"]), int(one["kind"])) for one in said] == [(OWNER, 7, 0x16), (OWNER, 8, 0)]


def test_closed_in_the_round_in_which_it_turned_up(machine: Machine, late: Uffd) -> None:
    machine.use(late, MONITOR)
    machine.close(MONITOR, 9)
    look(machine)
    machine.stream.drain(None)
    assert used_again(machine, late) == [(late.ctx, OWNER, 50, 5)]


def test_its_process_ended_before_it_was_closed(machine: Machine, late: Uffd) -> None:
    """A close is not told once its memory is gone."""
    machine.use(late, MONITOR)
    look(machine)
    machine.send(Type.EXIT, ctx=STRANGERS_MM)
    machine.holds[MONITOR].pop(9)
    look(machine)
    machine.stream.drain(None)
    assert used_again(machine, late) == [(late.ctx, OWNER, 50, 5)]


def test_two_threads_use_it_first(machine: Machine, late: Uffd) -> None:
    machine.use(late, MONITOR)
    first = int(machine.ring.waiting[0]["time"][0])
    machine.use(late, MONITOR)
    look(machine)
    assert machine.told(Type.RANGE_FOUND)["time"].tolist() == [first]


def test_a_followed_child_is_asked_who_sleeps() -> None:
    registrations = found.Registrations()
    child = {"type": Type.FORKED, "ctx": CTX + 8, "start": 77, "aux": CTX}
    registrations.names(events(seen(), child, {"type": Type.PROCESS, "ctx": 77, "tgid": STRANGER}))
    assert STRANGER in registrations.owners


def test_strangers_stay_out_of_the_report(machine: Machine, watched: Uffd) -> None:
    machine.look_back.start([OWNER])
    model = new_model()
    model.feed(machine.stream.drain(None))
    model.finish()
    assert [home.owner for home in model.userfaultfds] == [OWNER]
