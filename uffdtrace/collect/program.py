"""The BPF program: made for this kernel, loaded, attached, read out, detached."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from uffdtrace.collect.bcc import STUB_ROOT
from uffdtrace.collect.ring import Ring, Slots, Stream
from uffdtrace.kernel.preflight import Refusal
from uffdtrace.kernel.probes import Attachment, Where
from uffdtrace.model.events import Counter, Loss, c_header

# 32 MiB hold half a million events: what two cores can fault in half a second.
RING_PAGES = 8192
_MESSAGE_SLOTS = 1 << 17
_FEWEST_SLOTS = 1 << 12

# The parts of the BPF program, each after those that it needs.
PARTS = ("maps", "filter", "tables", "found", "calls", "faults", "pages", "areas")
SOURCES = tuple(STUB_ROOT / f"{part}.bpf.c" for part in PARTS)

# include/uapi/asm/ptrace.h: what a kprobe program is given on x86-64.
_PT_REGS = """
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
"""
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


def possible_cpus() -> int:
    """How many numbers bpf_get_smp_processor_id() can give."""
    return int(re.split("[-,]", Path("/sys/devices/system/cpu/possible").read_text().strip())[-1]) + 1


def message_slots(cpus: int) -> int:
    """Slots for each CPU, a power of two: 8 MiB in all, or 256 KiB for each CPU."""
    each = max(_FEWEST_SLOTS, _MESSAGE_SLOTS // cpus)
    return 1 << (each.bit_length() - 1)


def _entry_name(attachment: Attachment) -> str:
    return f"kp_{attachment.candidate.handler}"


def _entry_point(attachment: Attachment) -> str:
    """The C function that calls a row's handler with its arguments."""
    candidate = attachment.candidate
    returns = candidate.where is Where.RETURN
    if attachment.fentry:
        macro = "KRETFUNC_PROBE" if returns else "KFUNC_PROBE"
        # fexit finds the return value behind the arguments.
        slots = (attachment.parameter_count,) if returns else attachment.positions
        arguments = "".join(f", ctx[{slot}]" for slot in slots)
        return f"{macro}({candidate.function})\n{{\n\treturn {candidate.handler}(true{arguments});\n}}\n"
    values = (
        ["PT_REGS_RC(ctx)"] if returns else [f"PT_REGS_PARM{position + 1}(ctx)" for position in attachment.positions]
    )
    arguments = "".join(f", {value}" for value in values)
    return (
        f"int {_entry_name(attachment)}(struct pt_regs *ctx)\n{{\n\treturn {candidate.handler}(false{arguments});\n}}\n"
    )


def source_for(attachments: Iterable[Attachment]) -> str:
    """The whole C text: pt_regs, the events' definitions, the handlers, the entry points."""
    return "\n".join(
        [
            _PT_REGS,
            "#include <linux/types.h>",
            c_header(),
            *(source.read_text() for source in SOURCES),
            *map(_entry_point, attachments),
            _TRACEPOINT_PROGRAMS,
        ]
    )


class Program:
    """A loaded program. `attach()` and `detach()` bracket the trace.

    Everything hangs on file descriptors of this process (perf events, BPF
    links), so the kernel removes the probes however the process dies.
    """

    def __init__(self, bcc: ModuleType, attachments: list[Attachment], defines: dict[str, int]) -> None:
        self.attachments = attachments
        self._cpus = possible_cpus()
        self._slots = message_slots(self._cpus)
        flags = [f"-D{name}={value:#x}UL" for name, value in defines.items()]
        # BCC's macro takes the ring's size as text.
        flags += [f"-DRING_PAGES={RING_PAGES}", f"-DCPUS={self._cpus}", f"-DMESSAGE_SLOTS={self._slots}"]
        flags += [f"-DCOLLECTOR={os.getpid()}", "-Wno-unused-function"]
        # BCC attaches by name while it constructs; we want to know which one fails.
        quiet = type("QuietBPF", (bcc.BPF,), {"_trace_autoload": lambda self: None})
        self._lib: Any = bcc.lib if hasattr(bcc, "lib") else __import__("bcc.libbcc", fromlist=["lib"]).lib
        try:
            self._bpf: Any = quiet(text=source_for(attachments), cflags=flags)
        except Exception as error:
            raise Refusal(f"BCC could not compile the BPF program ({error}): run uffdtrace doctor") from error
        self._names = [
            self._lib.bpf_function_name(self._bpf.module, index)
            for index in range(self._lib.bpf_num_functions(self._bpf.module))
        ]

    def attach(self) -> None:
        """Attach every row; Refusal names the one that the kernel refuses."""
        for attachment in self.attachments:
            try:
                self._attach(attachment)
            except Exception as error:
                raise Refusal(
                    f"the kernel refuses the probe on {attachment.place} ({attachment.kind}: {error}):"
                    f" try --backend {'kprobe' if attachment.fentry else 'fentry'}, or run uffdtrace doctor"
                ) from error
        for name in _TRACEPOINTS:
            try:
                self._bpf.attach_raw_tracepoint(tp=name.encode(), fn_name=f"raw_tracepoint__{name}".encode())
            except Exception as error:
                raise Refusal(f"the kernel refuses the tracepoint {name} ({error}): run uffdtrace doctor") from error

    def _attach(self, attachment: Attachment) -> None:
        candidate = attachment.candidate
        name = self._program_name(attachment)
        returns = candidate.where is Where.RETURN
        if attachment.fentry:
            (self._bpf.attach_kretfunc if returns else self._bpf.attach_kfunc)(fn_name=name)
        elif returns:
            self._bpf.attach_kretprobe(event=candidate.function.encode(), fn_name=name)
        else:
            function = candidate.within if candidate.where is Where.CALL else candidate.function
            self._bpf.attach_kprobe(event=function.encode(), event_off=attachment.offset, fn_name=name)

    def _program_name(self, attachment: Attachment) -> bytes:
        if not attachment.fentry:
            return _entry_name(attachment).encode()
        prefix = b"kretfunc__" if attachment.candidate.where is Where.RETURN else b"kfunc__"
        function = attachment.candidate.function.encode()
        # kfunc__X up to BCC 0.18, kfunc__vmlinux__X since.
        for name in (prefix + b"vmlinux__" + function, prefix + function):
            if name in self._names:
                return name
        raise LookupError(f"BCC made no program for {function.decode()}")

    def stream(self) -> Stream:
        """The events, from now on."""
        messages, heads = self._bpf["messages"].map_fd, self._bpf["heads"].map_fd
        return Stream(Ring(self._bpf["events"].map_fd, RING_PAGES), Slots(messages, heads, self._cpus, self._slots))

    def follow(self, tgid: int) -> None:
        table = self._bpf["followed"]
        table[table.Key(tgid)] = table.Leaf(1)

    def forget(self, tgid: int, addresses: list[int]) -> None:
        """Follow a process no more that is gone, whose userfaultfds and memory had these addresses in the kernel.

        Its number and the addresses will be others' soon.
        """
        for name, keys in (("followed", [tgid]), ("named", [tgid]), ("known", addresses), ("traced", addresses)):
            table = self._bpf[name]
            for key in keys:
                with suppress(KeyError):
                    del table[table.Key(key)]

    def forget_counters(self, userfaultfds: set[int]) -> None:
        """Take the counts of these userfaultfds (their addresses in the kernel) away."""
        counters = self._bpf["counters"]
        for key in [key for key in counters if int(key.ctx) in userfaultfds]:
            del counters[key]

    def followed(self) -> set[int]:
        """The processes that are followed now: those named, and their children with FOLLOW_FORKS."""
        return {int(key.value) for key in self._bpf["followed"]}

    def trace(self, ctx: int, mm: int) -> None:
        """Record what happens to a userfaultfd's memory."""
        # In this order: one that is not known when it is used is looked back at.
        for name, key in (("known", ctx), ("traced", mm)):
            table = self._bpf[name]
            table[table.Key(key)] = table.Leaf(1)

    def losses(self) -> dict[Loss, int]:
        """How often something could not be recorded, by kind."""
        table = self._bpf["losses"]
        return {what: int(table[table.Key(int(what))].value) for what in Loss}

    def counters(self) -> dict[tuple[int, int], list[int]]:
        """(ctx, vm_start) to the counters of model.events.Counter; vm_start 0 where it was not known."""
        return {
            (int(key.ctx), int(key.vm_start)): [int(leaf.slot[slot]) for slot in range(len(Counter))]
            for key, leaf in self._bpf["counters"].items()
        }

    def misses(self) -> list[tuple[Attachment, int]]:
        """Runs that the kernel skipped, from each program's fdinfo; probes with none are left out.

        `recursion_misses` is there since 5.12 (9ed9e9ba2337); for kprobes it
        counts since 6.7 (dd8657894c11).
        """
        missed = []
        for attachment in self.attachments:
            function = self._bpf.funcs[self._program_name(attachment)]
            text = Path(f"/proc/self/fdinfo/{function.fd}").read_text()
            found = re.search(r"^recursion_misses:\s*(\d+)", text, re.MULTILINE)
            if found and int(found.group(1)):
                missed.append((attachment, int(found.group(1))))
        return missed

    def detach(self) -> None:
        """Remove every probe; the maps stay readable."""
        bpf = self._bpf
        for name in list(bpf.kprobe_fds):
            bpf.detach_kprobe_event(name)
        for name in list(bpf.raw_tracepoint_fds):
            bpf.detach_raw_tracepoint(name)
        for name in list(bpf.kfunc_entry_fds):
            bpf.detach_kfunc(name)
        for name in list(bpf.kfunc_exit_fds):
            bpf.detach_kretfunc(name)

    def close(self) -> None:
        self._bpf.cleanup()
