"""How a thread came to write: what its stack says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from uffdtrace.model.diagnosis.document import StackDict

# The event of a thread that sleeps in a fault when the trace ends. Of its kernel's frames /proc tells one: this, or
# the system call and its number.
ASLEEP, PAGE_FAULT, SYSTEM_CALL = "asleep", "page fault", "system call"
# Of one trace; a target has as many threads as it likes.
MOST_STACKS = 1000


@dataclass(frozen=True)
class Stack:
    """Of a thread at `time` (ns), when it did what `event` names (`fresh-page`, `protect`); the innermost frame first.

    A frame is `function+0x12`, with `[module]` or `(file)` where it is in one, or an address.
    """

    tid: int
    time: int
    event: str
    kernel: list[str]
    user: list[str]


# Functions of the kernel that tell on whose behalf it touched memory; the first that a stack has decides.
_WAYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Where a guest's CPU would have to wait, a kworker has its fault, with no other function of KVM's.
    ("kvm", ("kvm_", "async_pf_execute")),
    ("vhost", ("vhost_",)),
    ("io_uring", ("io_uring_", "io_issue_sqe", "io_submit_sqe", "io_wq_")),
    ("process_vm_writev", ("process_vm_rw",)),
    ("ptrace", ("ptrace_", "__access_remote_vm", "mem_rw")),
    ("fork", ("copy_process", "dup_mm", "copy_page_range")),
    ("populate", ("populate_vma_page_range", "faultin_page_range", "__mm_populate", "madvise_populate")),
    ("ksm", ("break_ksm", "ksm_")),
)
_SYSTEM_CALL = (SYSTEM_CALL, "do_syscall_64", "__x64_sys_", "__arm64_sys_", "el0_svc", "__se_sys_")
# How the CPU's exception for a page fault comes in.
_EXCEPTION = (PAGE_FAULT, "asm_exc_page_fault", "exc_page_fault", "do_user_addr_fault", "el0_da", "el0t_64_sync")
WAYS = ("its own code", "a system call", "unknown", *(way for way, _ in _WAYS))


def way(kernel: Sequence[str]) -> str:
    """One of WAYS: on whose behalf a stack's thread touched the memory."""
    names = [frame.partition("+")[0] for frame in kernel]
    for found, functions in _WAYS:
        if any(name.startswith(functions) for name in names):
            return found
    if any(name.startswith(_SYSTEM_CALL) for name in names):
        return "a system call"
    return "its own code" if any(name.startswith(_EXCEPTION) for name in names) else "unknown"


def told(stacks: Iterable[Stack], began: int, called: Mapping[int, str]) -> list[StackDict]:
    """Stacks as the report has them, in order of time; `called` are threads' names by tid."""
    return [
        {
            "tid": stack.tid,
            "thread": called.get(stack.tid),
            "at_s": round((stack.time - began) / 1e9, 6),
            "event": stack.event,
            "way": way(stack.kernel),
            "kernel": list(stack.kernel),
            "user": list(stack.user),
        }
        for stack in sorted(stacks, key=lambda stack: (stack.time, stack.tid))[:MOST_STACKS]
    ]
