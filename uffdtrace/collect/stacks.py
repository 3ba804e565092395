"""Stacks of those who wrote, armed and populated: STACK records put together, their frames named by a child."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from uffdtrace.collect.helper import MOST_BYTES, Helper
from uffdtrace.kernel import proc
from uffdtrace.kernel.privileges import Capability
from uffdtrace.kernel.symbols import KALLSYMS
from uffdtrace.model.diagnosis.stacks import ASLEEP, MOST_STACKS, PAGE_FAULT, SYSTEM_CALL, Stack
from uffdtrace.model.records.events import STACK_NAME, STACK_USER, Array, Type, name_in
from uffdtrace.trace import shape

# Programs and trampolines of BPF stand before the function that was probed, as does what calls them.
_MOST_BEFORE = 8
_FIELDS = ("ctx", "start", "end", "aux", "value")
# A row of kallsyms for code: address, kind, name, and perhaps the module.
_CODE = re.compile(r"^([0-9a-f]+) [tTwW] (.+)$", re.MULTILINE)
_ANSWER = {"number": int, "tgid": int, "kernel": [str], "user": [str]}
# A name that a target's file holds.
_MOST_NAME = 200
# Processes whose symbols are kept, and seconds that the last answers are waited for.
_MOST_PROCESSES = 16
_LAST_S = 5.0


class Namer:
    """Says what addresses are called: in the child, where a file that makes BCC's library fall over ends no trace."""

    def __init__(self, bcc: ModuleType) -> None:
        self._bcc = bcc
        self._kernel: tuple[list[int], list[str]] | None = None
        self._processes: dict[int, Any] = {}

    def __call__(self, message: bytes) -> bytes:
        asked = json.loads(message)
        # In this order: the process may end soon.
        asked["user"] = [self._of_process(asked["tgid"], address) for address in asked["user"]]
        asked["kernel"] = [self._of_kernel(address) for address in asked["kernel"]]
        answer = json.dumps(asked).encode()
        if len(answer) > MOST_BYTES:
            answer = json.dumps({**asked, "kernel": [], "user": []}).encode()
        return answer

    def _of_kernel(self, address: int) -> str:
        if self._kernel is None:
            self._kernel = _kernel_symbols()
        starts, names = self._kernel
        place = bisect.bisect_right(starts, address) - 1
        return f"{names[place]}+{address - starts[place]:#x}" if place >= 0 else f"{address:#x}"

    def _of_process(self, tgid: int, address: int) -> str:
        if tgid not in self._processes:
            if len(self._processes) >= _MOST_PROCESSES:
                self._processes.clear()
            self._processes[tgid] = self._bcc.SymbolCache(tgid)
        name, offset, module = self._processes[tgid].resolve(address, True)
        file = _text(module).rpartition("/")[2]
        if name:
            return f"{_text(name)}+{offset:#x}" + f" ({file})" * bool(file)
        return f"{offset:#x} ({file})" if file else f"{address:#x}"


def _text(raw: bytes | str | None) -> str:
    said = raw.decode(errors="replace") if isinstance(raw, bytes) else raw or ""
    return said[:_MOST_NAME]


def _kernel_symbols() -> tuple[list[int], list[str]]:
    """Addresses, ascending, and their names: `kvm_mmu_page_fault [kvm]`."""
    # By one pattern: line by line it takes several times as long, and there are 200,000.
    rows = _CODE.findall(KALLSYMS.read_text(errors="replace"))
    found = sorted((int(address, 16), name.replace("\t", " ")) for address, name in rows)
    return [address for address, _ in found], [name for _, name in found]


@dataclass
class _Parts:
    """What came of a stack: frames by the number of their slot."""

    tgid: int
    type: Type
    slots: dict[int, list[int]] = field(default_factory=dict)


class Stacks:
    """What the kernel told of stacks, MOST_STACKS at most."""

    def __init__(self, bcc: ModuleType, functions: Iterable[str]) -> None:
        """`functions` are those with probes: what stands above them in a stack is how the probe came about."""
        self._functions = frozenset(functions)
        self._child = Helper(Namer(bcc), (Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH, Capability.SYSLOG))
        # By thread and time.
        self._parts: dict[tuple[int, int], _Parts] = {}
        self._waiting: dict[int, Stack] = {}
        # Whose frames nobody names.
        self._plain: list[Stack] = []
        self.unnamed = 0
        # What the threads were called, by tid.
        self.names: dict[int, str] = {}
        self._asked = 0

    def take(self, records: Array) -> list[Stack]:
        """More STACK records; the stacks that are whole since the last call."""
        came = _keys(records)
        for key in [key for key in self._parts if key not in came]:
            self._ask(*key, self._parts.pop(key))
        for record in records:
            key = (int(record["tid"]), int(record["time"]))
            parts = self._parts.setdefault(key, _Parts(int(record["tgid"]), Type(int(record["flags"]))))
            if record["kind"] == STACK_NAME:
                self.names[key[0]] = name_in(record)
                continue
            frames = [int(record[name]) & ((1 << 64) - 1) for name in _FIELDS]
            parts.slots[int(record["kind"])] = [frame for frame in frames if frame]
        return self._answers()

    def sleepers(self, threads: Iterable[tuple[int, int]], now: int) -> None:
        """Threads, by tid and tgid, that sleep in a fault now (ns): where they stand, as far as /proc tells."""
        for tid, tgid in threads:
            if self._asked < MOST_STACKS and (place := proc.stands_at(tid)) is not None:
                call, address = place
                kernel = [PAGE_FAULT if call is None else f"{SYSTEM_CALL} {call}"]
                self._send(Stack(tid, now, ASLEEP, kernel, [hex(address)]), tgid, [], [address])

    def rest(self, records: Array) -> list[Stack]:
        """The last records, and the last answers that come in time; of others the frames have no names."""
        found = self.take(records) + self.take(records[:0])
        while self._waiting:
            more = self._answers(_LAST_S)
            if not more:
                break
            found += more
        found += [*self._plain, *self._waiting.values()]
        self.unnamed = len(self._plain) + len(self._waiting)
        self._waiting, self._plain = {}, []
        return found

    def close(self) -> None:
        # It may be at a file of the target's that has no end.
        self._child.kill()

    def _ask(self, tid: int, time: int, parts: _Parts) -> None:
        if self._asked >= MOST_STACKS:
            return
        slots = sorted(parts.slots.items())
        kernel = [frame for slot, frames in slots if slot < STACK_USER for frame in frames]
        user = [frame for slot, frames in slots if slot >= STACK_USER for frame in frames]
        plain = Stack(
            tid, time, parts.type.name.lower().replace("_", "-"), [hex(a) for a in kernel], [hex(a) for a in user]
        )
        self._send(plain, parts.tgid, kernel, user)

    def _send(self, plain: Stack, tgid: int, kernel: list[int], user: list[int]) -> None:
        question = {"number": self._asked, "tgid": tgid, "kernel": kernel, "user": user}
        if self._child.send(json.dumps(question).encode()):
            self._waiting[self._asked] = plain
        else:
            self._plain.append(plain)
        self._asked += 1

    def _answers(self, seconds: float = 0.0) -> list[Stack]:
        found: list[Stack] = []
        while self._waiting:
            answer = self._child.receive(0.0 if found else seconds)
            if not answer:
                break
            told = _read(answer)
            if told is None or told["number"] not in self._waiting:
                # What it reads has made it somebody else's: it is asked nothing more.
                self._child.kill()
                break
            stack = self._waiting.pop(told["number"])
            kernel = stack.kernel if stack.event == ASLEEP else self._below(told["kernel"])
            found.append(Stack(stack.tid, stack.time, stack.event, kernel, told["user"]))
        return found

    def _below(self, frames: list[str]) -> list[str]:
        """From the function that was probed on, without what our probes put in between."""
        for place, frame in enumerate(frames[:_MOST_BEFORE]):
            if frame.partition("+")[0] in self._functions:
                frames = frames[place:]
                break
        kept: list[str] = []
        ours = False
        for frame in frames:
            if "[bpf]" in frame:
                ours = True
                continue
            # Within a trampoline the traced function is called by itself.
            again = ours and kept and kept[-1].partition("+")[0] == frame.partition("+")[0]
            if not again:
                kept.append(frame)
            ours = False
        return kept


def _read(answer: bytes) -> dict[str, Any] | None:
    """What the child says, if it has the form of an answer: a target's file may have got the better of it."""
    try:
        told = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return told if shape.fits(told, _ANSWER) else None


def _keys(records: Array) -> set[tuple[int, int]]:
    return set(zip(records["tid"].tolist(), records["time"].tolist()))
