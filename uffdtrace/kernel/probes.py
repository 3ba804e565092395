"""The probe table: what is observed, and by which functions.

Each row names the handler of bpf/ and the functions that can
serve it, best first. `plan()` asks the running kernel which of them it has and
decides kprobe or fentry for each. Presence decides, never a version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from uffdtrace.errors import UffdtraceError
from uffdtrace.kernel.btf import Btf
from uffdtrace.kernel.callsite import ahead_of, find_call
from uffdtrace.kernel.symbols import Symbols


class Backend(str, Enum):
    AUTO = "auto"
    FENTRY = "fentry"
    KPROBE = "kprobe"


class ProbeKind(Enum):
    """How a handler is called, as libbpf names its sections.

    A session is one program for a function's entry and its return, which run with preemption disabled.
    """

    FENTRY = "fentry"
    KPROBE = "kprobe"
    MULTI = "kprobe.multi"
    SESSION = "kprobe.session"


class Where(Enum):
    """At which point of a function a handler runs."""

    ENTRY = "entry"
    RETURN = "return"
    CALL = "call"


@dataclass(frozen=True)
class Candidate:
    """A function, where in it, the handler, and the parameters the handler takes.

    For CALL, `within` makes the call and `function` is called; the parameters
    are the callee's. For RETURN the handler takes what the function returns first,
    and of its parameters UNTOLD from a kretprobe, which has none.
    """

    function: str
    handler: str
    parameters: tuple[str, ...] = ()
    where: Where = Where.ENTRY
    within: str = ""
    # For ENTRY: what says, given the same parameters, whether a session is to see the return, too; none sees all.
    returns_if: str = ""
    # What whoever traces by it must know.
    caveat: str = ""


@dataclass(frozen=True)
class Row:
    """One thing to observe. `numbers` are the report's fields that rest on it."""

    name: str
    numbers: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    # Without it the report would be wrong, not merely poorer; of what the kernel does not have (`only_with`) nothing
    # is to be observed.
    required: bool = True
    only_with: Path | None = None
    # A kretprobe runs out of instances where many threads sleep in the function, a
    # fentry program is skipped where it was preempted (kernel-semantics.md 8.1 A, B):
    # where both can happen, both are attached; the handler counts the first.
    twice: bool = False

    @property
    def is_needed(self) -> bool:
        return self.required and (self.only_with is None or self.only_with.exists())


@dataclass(frozen=True)
class Attachment:
    """How a row is served on this kernel."""

    row: Row
    candidate: Candidate
    kind: ProbeKind
    positions: tuple[int, ...]
    parameter_count: int
    offset: int = 0
    # Where it is tried before `offset`, as it costs less there; 0 where that is no place for it.
    ahead: int = 0
    # Why the backend that was asked for could not serve this row.
    exception: str = ""
    # The function's number in the kernel's BTF.
    number: int = 0

    @property
    def fentry(self) -> bool:
        return self.kind is ProbeKind.FENTRY

    @property
    def backend(self) -> Backend:
        return Backend.FENTRY if self.fentry else Backend.KPROBE

    @property
    def place(self) -> str:
        """`function`, `function%return` or `function+offset`, as perf writes probe points."""
        candidate = self.candidate
        if candidate.where is Where.CALL:
            return f"{candidate.within}+{self.ahead or self.offset:#x}"
        return candidate.function + ("%return" if candidate.where is Where.RETURN else "")


class ProbeError(UffdtraceError):
    """A row that no function of this kernel can serve."""


_RETURN = Where.RETURN
# Where CONFIG_TRANSPARENT_HUGEPAGE is set, which it cannot be with PREEMPT_RT.
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")

TABLE: tuple[Row, ...] = (
    Row("faults", ("faults", "pending", "latency_us"), (Candidate("handle_userfault", "on_fault", ("vmf", "reason")),)),
    Row(
        "fault-returns",
        ("killed",),
        (Candidate("handle_userfault", "on_fault_return", (), _RETURN),),
        required=False,
        twice=True,
    ),
    Row(
        "messages",
        ("messages", "notified_pages"),
        (
            # ->read_iter since 6.10 (40f45fe8eb7e).
            Candidate("add_wait_queue", "on_message", ("wq_entry",), Where.CALL, "userfaultfd_read_iter"),
            Candidate("add_wait_queue", "on_message", ("wq_entry",), Where.CALL, "userfaultfd_read"),
            # The last resort.
            Candidate(
                "add_wait_queue",
                "on_any_wait",
                ("wq_entry",),
                caveat="its call in the read of a userfaultfd was not found in /proc/kcore: the probe runs for every"
                " poll on this machine, and slows them",
            ),
        ),
    ),
    Row("wakes", ("pending", "latency_us"), (Candidate("userfaultfd_wake_function", "on_wake", ("wq", "key")),)),
    Row(
        "ioctls",
        ("armed_pages", "holes", "lost"),
        (Candidate("userfaultfd_ioctl", "on_ioctl", ("file", "cmd", "arg")),),
    ),
    Row(
        "ioctl-returns",
        ("armed_pages", "holes", "latency_us", "lost", "pending"),
        (Candidate("userfaultfd_ioctl", "on_ioctl_return", (), _RETURN),),
        twice=True,
    ),
    # Inlined in 5.10 and 6.1: there the first event of an area says what memory it is.
    Row(
        "registrations",
        (),
        (Candidate("userfaultfd_set_ctx", "on_set_uffd", ("vma", "ctx")),),
        required=False,
    ),
    Row("releases", ("pages",), (Candidate("userfaultfd_release", "on_release", ("file",)),)),
    Row("polls", (), (Candidate("userfaultfd_poll", "on_poll", ("file",)),), required=False),
    Row(
        "protection",
        ("armed_pages", "lost"),
        (
            Candidate(
                "change_protection",
                "on_protect",
                ("vma", "start", "end", "cp_flags"),
                returns_if="is_arming",
            ),
        ),
    ),
    Row(
        "protection-returns",
        ("holes",),
        (Candidate("change_protection", "on_protect_return", ("cp_flags",), _RETURN),),
        twice=True,
    ),
    Row(
        "page-commits",
        ("skipped", "lost"),
        (
            # Folios since 6.3 (4d510f3da4c2).
            Candidate("folio_add_new_anon_rmap", "on_anon_commit", ("folio", "vma", "address")),
            Candidate("page_add_new_anon_rmap", "on_anon_commit", ("page", "vma", "address")),
        ),
    ),
    Row(
        "anonymous-faults",
        ("skipped", "lost"),
        (
            Candidate("do_anonymous_page", "on_anon_fault", ("vmf",)),
            # Inlined in Debian's 5.10 and 6.1.
            Candidate("handle_mm_fault", "on_mm_fault", ("vma", "address", "flags")),
        ),
    ),
    Row(
        "huge-faults",
        ("skipped", "lost"),
        (Candidate("do_huge_pmd_anonymous_page", "on_huge_fault", ("vmf",)),),
        only_with=HUGE_PAGES,
    ),
    Row(
        "huge-fault-returns",
        ("skipped",),
        (Candidate("do_huge_pmd_anonymous_page", "on_huge_fault_return", (), _RETURN),),
        only_with=HUGE_PAGES,
        twice=True,
    ),
    Row(
        "huge-writes",
        ("lost",),
        (Candidate("do_huge_pmd_wp_page", "on_huge_wp", ("vmf",)),),
        only_with=HUGE_PAGES,
    ),
    Row(
        "huge-write-returns",
        ("lost",),
        (Candidate("do_huge_pmd_wp_page", "on_huge_wp_return", (), _RETURN),),
        only_with=HUGE_PAGES,
        twice=True,
    ),
    Row("swap-ins", ("skipped",), (Candidate("do_swap_page", "on_swap", ("vmf",)),)),
    Row("unprotected-writes", ("lost",), (Candidate("do_wp_page", "on_wp_fault", ("vmf",)),)),
    Row("file-faults", ("skipped", "lost"), (Candidate("finish_fault", "on_file_fault", ("vmf",)),)),
    Row(
        "hugetlb-faults",
        ("skipped", "lost"),
        (Candidate("hugetlb_fault", "on_hugetlb_fault", ("vma", "address", "flags")),),
    ),
    Row("discards", ("lost",), (Candidate("userfaultfd_remove", "on_discard", ("vma", "start", "end")),)),
    # What no userfaultfd_remove() announces: holes punched into files, guard regions.
    Row(
        "zaps",
        ("lost", "dropped"),
        (
            # 7.2's name for what 6.12 calls zap_page_range_single(); each drops a part of an area.
            Candidate("zap_vma_range_batched", "on_zap", ("vma", "address", "size")),
            Candidate("zap_page_range_single", "on_zap", ("vma", "address", "size")),
        ),
        required=False,
    ),
    Row(
        "zap-returns",
        ("lost",),
        (
            Candidate("zap_vma_range_batched", "on_zap_return", (), _RETURN),
            Candidate("zap_page_range_single", "on_zap_return", (), _RETURN),
        ),
        required=False,
        twice=True,
    ),
    # madvise() called it up to 6.0; gone since 6.3 (e9adcfecf572).
    Row(
        "advised-zaps",
        ("lost", "dropped"),
        (Candidate("zap_page_range", "on_advised_zap", ("vma", "start", "size")),),
        required=False,
    ),
    Row(
        "advised-zap-returns",
        ("lost",),
        (Candidate("zap_page_range", "on_advised_zap_return", (), _RETURN),),
        required=False,
        twice=True,
    ),
    Row(
        "hugetlb-zaps",
        ("dropped",),
        (Candidate("unmap_hugepage_range", "on_hugetlb_zap", ("vma", "start", "end")),),
        required=False,
    ),
    Row(
        "hugetlb-zap-returns",
        ("lost",),
        (Candidate("unmap_hugepage_range", "on_hugetlb_zap_return", (), _RETURN),),
        required=False,
        twice=True,
    ),
    # break_ksm() is a write fault without a write up to 6.1.
    Row("unmerges", ("lost",), (Candidate("break_ksm", "on_unmerge", ("vma", "addr")),), required=False),
    Row("unmerge-returns", ("lost",), (Candidate("break_ksm", "on_unmerge_return", (), _RETURN),), required=False),
    Row(
        "unmaps",
        ("pages",),
        (
            # The mm with 6.1's first maple tree code (69dbe6daf104), a vma in 5.10 and in 6.12.
            Candidate("userfaultfd_unmap_prep", "on_unmap", ("mm", "start", "end")),
            Candidate("userfaultfd_unmap_prep", "on_unmap_vma", ("vma", "start", "end")),
        ),
    ),
    Row("exits", ("pages",), (Candidate("exit_mmap", "on_exit", ("mm",)),)),
    # Without these two no forked child is followed, and findings are fewer.
    Row("forks", ("pages",), (Candidate("dup_userfaultfd", "on_fork_area", ("vma",)),), required=False),
    Row(
        "remaps",
        ("pages",),
        (
            # BTF took the parameter's name from a weak twin up to 6.12.
            Candidate("__x64_sys_mremap", "on_remap", ("regs",)),
            Candidate("__x64_sys_mremap", "on_remap", ("__unused",)),
            Candidate("__arm64_sys_mremap", "on_remap", ("regs",)),
            Candidate("__arm64_sys_mremap", "on_remap", ("__unused",)),
        ),
    ),
    Row(
        "remap-returns",
        ("pages",),
        (
            Candidate("__x64_sys_mremap", "on_remap_return", (), _RETURN),
            Candidate("__arm64_sys_mremap", "on_remap_return", (), _RETURN),
        ),
    ),
    Row(
        "events",
        ("pages",),
        (Candidate("userfaultfd_event_wait_completion", "on_event", ("ctx", "ewq")),),
        required=False,
    ),
    # PAGEMAP_SCAN is as old as WP_ASYNC (52526ca7fdb9, "fs/proc/task_mmu: implement IOCTL to get and optionally clear
    # info about PTEs", 6.7).
    Row("page-scans", (), (Candidate("do_pagemap_cmd", "on_page_scan", ("cmd", "arg", "file")),), required=False),
    Row(
        "page-scan-returns",
        (),
        (Candidate("do_pagemap_cmd", "on_page_scan_return", (), _RETURN),),
        required=False,
        twice=True,
    ),
    Row("areas", ("pages",), (Candidate("show_map_vma", "on_area", ("m", "vma")),)),
    # A kernel without CONFIG_KSM merges nothing.
    Row(
        "merges",
        ("lost",),
        (Candidate("try_to_merge_with_ksm_page", "on_merge", ("rmap_item", "kpage")),),
        required=False,
    ),
    Row(
        "merge-returns",
        ("lost",),
        (Candidate("try_to_merge_with_ksm_page", "on_merge_return", (), _RETURN),),
        required=False,
    ),
    Row(
        "swapoffs",
        (),
        # Its bool became flags in 5.19 (f1e2db12e45b), after swapoff had learnt to keep the bit (14a762dd1977).
        (Candidate("page_add_anon_rmap", "on_mapped_again", ("vma", "address", "compound")),),
        required=False,
    ),
    Row("descriptors", ("pages",), (Candidate("userfaultfd_show_fdinfo", "on_fdinfo", ("m", "f")),)),
)

# The kernel passes at most six arguments in registers, on x86-64 and arm64.
_REGISTERS = 6


def _serve(
    row: Row, candidate: Candidate, btf: Btf, symbols: Symbols, wanted: Backend, preemptible: bool
) -> Attachment | None:
    function = btf.function(candidate.function)
    if function is None or not symbols.has(candidate.function):
        return None
    positions = [function.position(name) for name in candidate.parameters]
    if any(position is None or position >= _REGISTERS for position in positions):
        return None
    offset = ahead = 0
    if candidate.where is Where.CALL:
        call = find_call(symbols, candidate.within, candidate.function)
        if call is None:
            return None
        offset = call[1]
        ahead = ahead_of(symbols, candidate.within, offset, [p for p in positions if p is not None])

    # A preempted fentry program blocks itself on its CPU (kernel-semantics.md 8.1 A).
    fentry = not preemptible if wanted is Backend.AUTO else wanted is Backend.FENTRY
    exception = ""
    if fentry and candidate.where is Where.CALL:
        fentry, exception = False, "a call inside a function takes a kprobe only"
    elif fentry and function.by_value:
        # Some are allowed since 6.1 (720e6a435194); a kprobe reads them everywhere.
        fentry, exception = False, "fentry refuses a struct passed by value"
    elif fentry and function.declared.intersection(p for p in positions if p is not None):
        # System calls' pt_regs in 5.10 and 6.12.
        fentry, exception = False, "fentry refuses a pointer to a struct that BTF does not describe"
    return Attachment(
        row,
        candidate,
        ProbeKind.FENTRY if fentry else ProbeKind.KPROBE,
        tuple(p for p in positions if p is not None),
        len(function.parameters),
        offset,
        ahead,
        exception,
        function.number,
    )


def plan_row(
    row: Row, btf: Btf, symbols: Symbols, wanted: Backend, preemptible: bool, sessions: bool = False
) -> list[Attachment]:
    """How one row is served here: by its first function that there is.

    Raises ProbeError where no function can serve it.
    """
    for candidate in row.candidates:
        attachment = _serve(row, candidate, btf, symbols, wanted, preemptible)
        if attachment is not None:
            if not (row.twice and wanted is Backend.AUTO and preemptible) or sessions:
                return [attachment]
            # change_protection() takes a struct by value in 5.10 and 6.1, which fentry refuses: it has
            # a kretprobe alone there, and the returns that the kernel counts as missed are reported.
            second = _serve(row, candidate, btf, symbols, Backend.FENTRY, preemptible)
            return [attachment, second] if second is not None and second.fentry else [attachment]
    functions = " or ".join(dict.fromkeys(candidate.function for candidate in row.candidates))
    raise ProbeError(
        f"this kernel has no function {functions} that can be probed"
        + (f", and {', '.join(row.numbers)} rest on it" if row.numbers else "")
        + ": run uffdtrace doctor, and report the kernel's version to the project"
    )


def plan(btf: Btf, symbols: Symbols, wanted: Backend, preemptible: bool, sessions: bool = False) -> list[Attachment]:
    """How each row is served here; `sessions` says that this kernel has them (preflight.has_sessions()).

    Raises ProbeError for a required row that no function can serve.
    """
    chosen: list[Attachment] = []
    for row in TABLE:
        try:
            chosen += plan_row(row, btf, symbols, wanted, preemptible, sessions)
        except ProbeError:
            if row.is_needed:
                raise
    kprobes = wanted is Backend.KPROBE or (wanted is Backend.AUTO and preemptible)
    return _through_fprobe(chosen) if sessions and kprobes else chosen


def _through_fprobe(chosen: list[Attachment]) -> list[Attachment]:
    """The same, with what fprobe can serve served by it.

    A session's return is found on a stack of its thread: it has no limited number of places, as a kretprobe has, and
    needs no fexit beside it: kprobe and fexit on one function make ftrace go through a list of both for each call.
    """
    at_functions = [one for one in chosen if one.kind is ProbeKind.KPROBE and one.candidate.where is not Where.CALL]
    entered = {one.candidate.function for one in at_functions if one.candidate.where is Where.ENTRY}
    left = {one.candidate.function for one in at_functions if one.candidate.where is Where.RETURN}

    def kind_of(one: Attachment) -> ProbeKind:
        if one not in at_functions:
            return one.kind
        if one.candidate.function in entered & left:
            return ProbeKind.SESSION
        return ProbeKind.MULTI if one.candidate.where is Where.ENTRY else ProbeKind.KPROBE

    return [replace(one, kind=kind_of(one)) for one in chosen]
