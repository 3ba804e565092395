"""The BPF program: made for this kernel, loaded, attached, read out, detached."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import numpy as np

from uffdtrace.collect import cache, threads
from uffdtrace.collect.bcc import STUB_ROOT, library, version
from uffdtrace.collect.image import Image, Map, compiled, placed, placeholder, value_placeholder
from uffdtrace.collect.maps import Table
from uffdtrace.collect.ring import Lanes, Ring, Stream
from uffdtrace.kernel import architecture
from uffdtrace.kernel.architecture import Architecture
from uffdtrace.kernel.bpf import At, Kind, link_function, load_program
from uffdtrace.kernel.layout import ADDRESSES, FUNCTIONS
from uffdtrace.kernel.preflight import Refusal, can_call, preemptible
from uffdtrace.kernel.probes import Attachment, ProbeKind, Where
from uffdtrace.model.records.events import EVENT, Array, Counter, Loss, c_header

# Half a million events: what two cores can fault in half a second.
_RING_BYTES = 32 << 20
RING_PAGES = _RING_BYTES // mmap.PAGESIZE
# Array maps whose values programs reach without a lookup: VALUE_OF_* in bpf/maps.bpf.c. The kernel gives the address
# of one value only, so all of theirs are one. Before "bpf: remove obsolete KMALLOC_MAX_SIZE restriction on array map
# value size" (6.0) none was larger than that: 4 MiB with pages of 4 KiB.
VALUES = ("generations", "shows", "threads", "lanes", "tails")
# So are all lanes' slots where the kernel makes such a map and lets a program add so much to an address:
# BPF_MAX_VAR_OFF (include/linux/bpf_verifier.h).
_LARGE_VALUE = "slots"
_MOST_ADDED = 1 << 29
# BPF_MAP_TYPE_ARRAY (include/uapi/linux/bpf.h).
_ARRAY = 2
# Lanes of each CPU (LANES in bpf/maps.bpf.c), and slots of all CPUs' first lanes.
LANES = 2
_SLOTS = 1 << 17
_FEWEST_SLOTS = 1 << 12

_TRACEPOINT_PROGRAMS = """
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
	return on_fork(false, ctx->args[0], ctx->args[1]);
}

RAW_TRACEPOINT_PROBE(sched_process_exit)
{
	return forget_thread();
}
"""
_TRACEPOINTS = ("sched_process_fork", "sched_process_exit")
# Kinds of probes that go through fprobe, and what their programs are loaded for.
_AT = {ProbeKind.MULTI: At.MULTI, ProbeKind.SESSION: At.SESSION}

# The maps' keys and values in bpf/maps.bpf.c: numbers, and struct place.
_U32, _U64, _PLACE = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<QQ")
_YES = b"\1"
_STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")

Say = Callable[[str], None]


class Follow(IntEnum):
    """Whose userfaultfds are traced besides the process's own: what FOLLOW is one of in the BPF program."""

    NOBODY = 0
    FORKS = 1
    ALL = 2


def possible_cpus() -> int:
    """How many numbers bpf_get_smp_processor_id() can give."""
    return int(re.split("[-,]", Path("/sys/devices/system/cpu/possible").read_text().strip())[-1]) + 1


def lane_slots(cpus: int) -> int:
    """Slots of a lane, a power of two: 8 MiB for a lane of each CPU, or 256 KiB for each."""
    each = max(_FEWEST_SLOTS, _SLOTS // cpus)
    return 1 << (each.bit_length() - 1)


def _entry_name(attachment: Attachment) -> str:
    """Of a row that has both kinds of probe each has its own; the two rows of a session have one."""
    if attachment.kind is ProbeKind.SESSION:
        return f"session_{attachment.candidate.function}"
    return f"{'tracing' if attachment.fentry else 'kp'}_{attachment.candidate.handler}"


def _arguments(attachment: Attachment, here: Architecture) -> str:
    """What a row's handler is given, as C."""
    returns = attachment.candidate.where is Where.RETURN
    if attachment.fentry:
        # fexit finds the return value behind the arguments.
        slots = (*([attachment.parameter_count] if returns else []), *attachment.positions)
        values, typed = [f"ctx[{slot}]" for slot in slots], "true"
    else:
        values, typed = [f"ctx->{here.arguments[position]}" for position in attachment.positions], "false"
        if returns:
            values = [f"ctx->{here.returned}", *("UNTOLD" for _ in values)]
    return ", ".join([typed, *values])


def _told(attachment: Attachment, here: Architecture) -> str:
    """A row's handler called, as C, and the stack told if it says so."""
    return f"tell_stack(ctx, {attachment.candidate.handler}({_arguments(attachment, here)}))"


def _entry_point(attachments: list[Attachment], here: Architecture) -> str:
    """The C function that calls the handlers of one program's rows with their arguments.

    BCC's KFUNC_PROBE() would do nothing more, and up to BCC 0.18 takes no function without arguments.
    """
    first = attachments[0]
    context = "unsigned long long" if first.fentry else "struct pt_regs"
    body = f"\treturn {_told(first, here)};\n"
    if first.kind is ProbeKind.SESSION:
        entry, left = sorted(attachments, key=lambda one: one.candidate.where is Where.RETURN)
        wanted = entry.candidate.returns_if
        body = (
            f"\tif (session_is_return(ctx))\n\t\treturn {_told(left, here)};\n\t{_told(entry, here)};\n"
            # With 1 the function's return is left alone.
            f"\treturn {f'!{wanted}({_arguments(entry, here)})' if wanted else 0};\n"
        )
    return f"int {_entry_name(first)}({context} *ctx)\n{{\n{body}}}\n"


def _entry_points(attachments: Iterable[Attachment], here: Architecture) -> list[str]:
    """The C function of each program that serves these rows."""
    of_program: dict[str, list[Attachment]] = {}
    for attachment in attachments:
        of_program.setdefault(_entry_name(attachment), []).append(attachment)
    return [_entry_point(some, here) for some in of_program.values()]


def sources(here: Architecture) -> list[Path]:
    """The parts of the BPF program, each after those that it needs."""
    parts = ("maps", here.name, "filter", "tables", "found", "calls", "faults", "pages", "areas")
    return [STUB_ROOT / f"{part}.bpf.c" for part in parts]


def source_for(attachments: Iterable[Attachment], here: Architecture) -> str:
    """The whole C text: pt_regs, the events' definitions, the handlers, the entry points."""
    return "\n".join(
        [
            here.registers,
            "#include <linux/types.h>",
            c_header(),
            *(source.read_text() for source in sources(here)),
            *_entry_points(attachments, here),
            _TRACEPOINT_PROGRAMS,
        ]
    )


def _image(bcc: ModuleType, source: str, flags: list[str], say: Say) -> Image:
    """The program compiled, by an earlier trace or now."""
    name = cache.key(source, flags, version(bcc))
    image = cache.find(name)
    if image is None:
        say("compiling the BPF program: once for this kernel and this backend")
        image = compiled(bcc, source, flags)
        cache.keep(name, image)
    return image


def _fdinfo_number(program: int, name: str) -> int | None:
    """A number in the fdinfo of a BPF program's descriptor; None where this kernel's has no such line."""
    text = Path(f"/proc/self/fdinfo/{program}").read_text()
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def _accepted(defines: dict[str, int]) -> dict[str, int]:
    """The defines, without a kernel function that this kernel has, but not for all of our programs.

    Of a session's own (SESSION_IS_RETURN) the plan has made sure.
    """
    cast = defines.get("RDONLY_CAST")
    if cast is None or can_call(cast, defines["INTEGERS"]):
        return defines
    return {name: value for name, value in defines.items() if name != "RDONLY_CAST"}


class Program:
    """A program, compiled and loaded. `attach()` and `detach()` bracket the trace.

    Everything hangs on file descriptors of this process (perf events, BPF
    links), so the kernel removes the probes however the process dies.
    """

    def __init__(
        self,
        bcc: ModuleType,
        attachments: list[Attachment],
        defines: dict[str, int],
        say: Say,
        follow: Follow = Follow.NOBODY,
    ) -> None:
        self.attachments = attachments
        self._lib = library()
        self._cpus = possible_cpus()
        self._slots = lane_slots(self._cpus)
        self._settings = {name: value for name, value in defines.items() if name in ADDRESSES}
        self._settings.update(COLLECTOR=os.getpid(), FOLLOW=follow)
        defines = _accepted(defines)
        self._functions = {defines[name] for name in FUNCTIONS & defines.keys()}
        flags = [f"-D{name}={value:#x}UL" for name, value in defines.items() if name not in self._settings]
        flags += [f"-D{name}=SETTING({placeholder(index):#x})" for index, name in enumerate(self._settings)]
        large = self._cpus * LANES * self._slots * EVENT.itemsize
        self._values = (*VALUES, _LARGE_VALUE) if large <= _MOST_ADDED and self._holds(large) else VALUES
        places = ((name.upper(), value_placeholder(index)) for index, name in enumerate(self._values))
        flags += [f"-DVALUE_OF_{name}=SETTING({place:#x})" for name, place in places]
        # BCC's macro takes the ring's size as text.
        flags += [f"-DRING_PAGES={RING_PAGES}", f"-DCPUS={self._cpus}", f"-DLANES={LANES}"]
        flags += [f"-DLANE_SLOTS={self._slots}", f"-DPREEMPTIBLE={int(preemptible())}"]
        flags += [f"-DFOLLOW_{one.name}={one.value}" for one in Follow]
        flags += ["-Wno-unused-function"]
        # Without these the compiler does more than it must at each first start: BCC has clang write down types and
        # lines, which nobody reads, and optimize what BCC itself optimizes afterwards.
        flags += ["-g0", "-Xclang", "-disable-llvm-passes"]
        self._image = _image(bcc, source_for(attachments, architecture.of()), flags, say)
        # Up to 5.10 maps and programs count as locked memory, of which a user may have a few megabytes at most.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self._tables: dict[str, Table] = {}
        # Where the kernel counts them.
        self._losses: Array | None = None
        self._programs: dict[str, int] = {}
        self._probes: list[tuple[int, bytes | None]] = []
        # Of programs that go through fprobe, by name; and what they missed, once they are detached.
        self._links: dict[str, int] = {}
        self._missed: dict[str, int] = {}
        try:
            for shape in self._image.maps:
                self._tables[shape.name] = Table(self._lib, shape, self._create(shape))
        except OSError as error:
            self.close()
            raise Refusal(f"the kernel makes no {error.strerror}: run uffdtrace doctor") from error

    def _holds(self, size: int) -> bool:
        """Whether the kernel makes an array map with a value of so many bytes."""
        fd = self._lib.bcc_create_map(_ARRAY, b"", _U32.size, size, 1, 0)
        if fd >= 0:
            os.close(fd)
        return bool(fd >= 0)

    def _create(self, shape: Map) -> int:
        name, size, entries = shape.name.encode(), shape.value_size, shape.entries
        if shape.name in self._values:
            size, entries = size * entries, 1
        fd = self._lib.bcc_create_map(shape.kind, name, shape.key_size, size, entries, shape.flags)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"BPF map {shape.name} ({os.strerror(number)})")
        return int(fd)

    def attach(self) -> None:
        """Load and attach every row; Refusal names the one that the kernel refuses."""
        for attachment in list(self.attachments):
            try:
                self._attach(attachment)
            except Exception as error:
                raise Refusal(
                    f"the kernel refuses the probe on {attachment.place} ({attachment.kind.value}: {error}):"
                    f" try --backend {'kprobe' if attachment.fentry else 'fentry'}, or run uffdtrace doctor"
                ) from error
        for name in _TRACEPOINTS:
            try:
                program = self._load(f"raw_tracepoint__{name}", Kind.RAW_TRACEPOINT, name)
                self._probe(self._lib.bpf_attach_raw_tracepoint(program, name.encode()))
            except Exception as error:
                raise Refusal(f"the kernel refuses the tracepoint {name} ({error}): run uffdtrace doctor") from error

    def _attach(self, attachment: Attachment) -> None:
        candidate = attachment.candidate
        name = _entry_name(attachment)
        returns = candidate.where is Where.RETURN
        if attachment.fentry:
            at = At.RETURN if returns else At.ENTRY
            program = self._load(name, Kind.TRACING, candidate.function, at, attachment.number)
            self._probe(self._lib.bpf_attach_kfunc(program))
            return
        if attachment.kind in _AT:
            # The second row of a session has come with the first.
            if name not in self._links:
                program = self._load(name, Kind.KPROBE, name, _AT[attachment.kind])
                self._links[name] = link_function(program, _AT[attachment.kind], candidate.function)
                self._probe(self._links[name])
            return
        function = (candidate.within if candidate.where is Where.CALL else candidate.function).encode()
        event = f"{'r' if returns else 'p'}_{function.decode()}".replace(".", "_").encode()
        program = self._load(name, Kind.KPROBE, name)
        offset = 0 if returns else attachment.ahead or attachment.offset
        fd = self._lib.bpf_attach_kprobe(program, int(returns), event, function, offset, 0)
        if fd < 0 and offset != attachment.offset and not returns:
            # `ahead` was read from bytes: what the kernel refuses was within an instruction.
            fd = self._lib.bpf_attach_kprobe(program, 0, event, function, attachment.offset, 0)
            self.attachments[self.attachments.index(attachment)] = replace(attachment, ahead=0)
        self._probe(fd, event)

    def _load(self, name: str, kind: Kind, shown: str, at: At = At.NOTHING, function: int = 0) -> int:
        """Load a program of the image; its file descriptor. bpftool shows it as `shown`."""
        descriptors = [table.fd for table in self._tables.values()]
        values = [self._tables[one].fd for one in self._values]
        settings = list(self._settings.values())
        code = placed(self._image.programs[name], descriptors, settings, self._functions, values)
        fd = load_program(kind, code, shown, at, function)
        self._programs[name] = fd
        return fd

    def _probe(self, fd: int, event: bytes | None = None) -> None:
        """Keep what holds a probe; `event` names that of a kprobe."""
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"it cannot be attached: {os.strerror(ctypes.get_errno())}")
        self._probes.append((fd, event))

    @property
    def backend(self) -> str:
        """Which backends the probes are of, joined by +."""
        return "+".join(sorted({one.backend.value for one in self.attachments}))

    def stream(self) -> Stream:
        """The events, from now on."""
        slots, heads, tails = (self._tables[name].fd for name in ("slots", "lanes", "tails"))
        lanes = Lanes(slots, heads, tails, self._cpus * LANES, self._slots)
        return Stream(Ring(self._tables["events"].fd, RING_PAGES), lanes)

    def follow(self, tgid: int) -> None:
        self._tables["followed"][_U32.pack(tgid)] = _YES

    def forget(self, tgid: int, addresses: list[int]) -> None:
        """Follow a process no more that is gone, whose userfaultfds and memory had these addresses in the kernel.

        Its number and the addresses will be others' soon.
        """
        process, places = [_U32.pack(tgid)], [_U64.pack(address) for address in addresses]
        for name, keys in (("followed", process), ("named", process), ("known", places), ("traced", places)):
            for key in keys:
                self._tables[name].discard(key)

    def forget_counters(self, userfaultfds: set[int]) -> None:
        """Take the counts of these userfaultfds (their addresses in the kernel) away."""
        counters = self._tables["counters"]
        for key in counters:
            if _PLACE.unpack(key)[0] in userfaultfds:
                counters.discard(key)

    def followed(self) -> set[int]:
        """The processes that are followed now: those named, and, unless nobody's are, their children."""
        return {_U32.unpack(key)[0] for key in self._tables["followed"]}

    def trace(self, ctx: int, mm: int) -> None:
        """Record what happens to a userfaultfd's memory."""
        # In this order: one that is not known when it is used is looked back at.
        for name, key in (("known", ctx), ("traced", mm)):
            self._tables[name][_U64.pack(key)] = _YES

    def losses(self) -> dict[Loss, int]:
        """How often something could not be recorded, by kind."""
        if self._losses is None:
            self._losses = self._tables["losses"].values(np.dtype("<u8"))
        return {what: int(self._losses[what]) for what in Loss}

    def counters(self) -> dict[tuple[int, int], list[int]]:
        """(ctx, vm_start) to the counters of model.records.events.Counter; vm_start 0 where it was not known."""
        return {
            _PLACE.unpack(key): np.frombuffer(counts, dtype="<u8").tolist()[: len(Counter)]
            for key, counts in self._tables["counters"].items()
        }

    def returns(self) -> Array:
        """FAULT_RETURN events for what no thread will tell any more; nothing is attached by then."""
        return threads.returns(self._tables["threads"], self._tables["crowded"])

    def misses(self) -> list[tuple[Attachment, int]]:
        """Runs that the kernel skipped, from each program's fdinfo; probes with none are left out.

        `recursion_misses` is there since 5.12 (9ed9e9ba2337); for kprobes it
        counts since 6.7 (dd8657894c11). What did not come as far as the program fprobe counts with the link.
        """
        missed = []
        for attachment in self.attachments:
            name = _entry_name(attachment)
            runs = _fdinfo_number(self._programs[name], "recursion_misses") or 0
            runs += self._missed_by_link(name)
            if runs:
                missed.append((attachment, runs))
        return missed

    def _missed_by_link(self, name: str) -> int:
        if name in self._links:
            self._missed[name] = _fdinfo_number(self._links[name], "missed") or 0
        return self._missed.get(name, 0)

    def run_ns(self) -> int | None:
        """The time that all programs took together; None where the kernel does not count it.

        It does while kernel.bpf_stats_enabled is 1, since "bpf: enable program stats" (492ecee892c2, 5.1).
        """
        try:
            counts = _STATISTICS.read_text().strip() == "1"
        except OSError:
            counts = False
        return sum(_fdinfo_number(fd, "run_time_ns") or 0 for fd in self._programs.values()) if counts else None

    def detach(self) -> None:
        """Remove every probe; the maps, and what was missed, stay readable."""
        for name in self._links:
            self._missed_by_link(name)
        self._links.clear()
        while self._probes:
            fd, event = self._probes.pop()
            if event is None:
                os.close(fd)
            else:
                self._lib.bpf_close_perf_event_fd(fd)
                # BCC makes it by name where the kernel gives no descriptor for it.
                self._lib.bpf_detach_kprobe(event)

    def close(self) -> None:
        self.detach()
        for fd in (*self._programs.values(), *(table.fd for table in self._tables.values())):
            os.close(fd)
        self._programs.clear()
        self._tables.clear()
