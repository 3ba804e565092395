"""What this machine allows, asked as attach asks, as plain data: `reporters/doctor.schema.json`.

Every question stands by itself. Its `ok` is null, and `problem` says why, where
the answer hangs on something that is missing.
"""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from types import ModuleType
from typing import Any, TypeVar

from uffdtrace import __version__
from uffdtrace.collect import bcc, proof
from uffdtrace.collect.program import Program, Say
from uffdtrace.errors import UffdtraceError
from uffdtrace.kernel import layout, offers, preflight, privileges, probes, proc
from uffdtrace.kernel.btf import VMLINUX, Btf
from uffdtrace.kernel.offers import Memory
from uffdtrace.kernel.pagemap import Pagemap
from uffdtrace.kernel.probes import Attachment, Backend, ProbeError, Row, Where
from uffdtrace.kernel.symbols import SymbolError, Symbols
from uffdtrace.model.records.events import Feature

SCHEMA = "uffdtrace-doctor/1"
# What the other verbs advise is being done.
_OURSELVES = re.compile(r"(, or )?run uffdtrace doctor(, and )?")
_REPORT = "report it to the project, with what uffdtrace doctor says"
_ONLY_ROOT = "only root can find out"
# In every kernel with a symbol table.
_SYMBOL = "_text"
_MARKERS = "boot Linux 5.19 or newer, built with CONFIG_PTE_MARKER_UFFD_WP=y"
_WRITE_PROTECT_REMEDY = {
    Memory.ANON: "boot a kernel built with CONFIG_HAVE_ARCH_USERFAULTFD_WP=y (x86-64 since 5.7, arm64 since 6.10)",
    Memory.SHMEM: _MARKERS,
    Memory.HUGETLB: _MARKERS,
}

T = TypeVar("T")
Json = dict[str, Any]


class _Checks:
    """Answers, and what to do about those that are bad."""

    def __init__(self) -> None:
        self.problems: list[Json] = []

    def add(self, what: str, remedy: str, blocks_attach: bool = False) -> str:
        problem = {"what": what, "remedy": remedy, "blocks_attach": blocks_attach}
        if problem not in self.problems:
            self.problems.append(problem)
        return what

    def ask(self, question: Callable[[], T], unknown: str = "") -> tuple[T | None, Json]:
        """The answer, or None; `ok` and `problem`. `unknown` is why it cannot be asked."""
        if unknown:
            return None, {"ok": None, "problem": unknown}
        try:
            return question(), {"ok": True, "problem": None}
        except UffdtraceError as error:
            return None, {"ok": False, "problem": self.add(*split(error), blocks_attach=True)}

    @property
    def attach_works(self) -> bool:
        return not any(problem["blocks_attach"] for problem in self.problems)


def split(error: Exception) -> tuple[str, str]:
    """Cause and remedy, in which all our errors end."""
    text = " ".join(str(error).split())
    what, _, remedy = text.rpartition(": ")
    return what or text, (what and _OURSELVES.sub("", remedy)) or _REPORT


def check(backend: Backend, say: Say) -> Json:
    """In the order in which attach asks, so that its error is the first problem."""
    checks, root = _Checks(), not privileges.missing()
    only_root = "" if root else _ONLY_ROOT
    said: dict[str, Json] = {}
    _, said["privileges"] = checks.ask(preflight.check_privileges)
    _, said["namespaces"] = checks.ask(preflight.check_namespaces)
    _, said["programs"] = checks.ask(preflight.check_programs, only_root)
    _, said["kprobes"] = checks.ask(preflight.check_kprobes)
    module, answer = checks.ask(bcc.load)
    said["bcc"] = {**answer, "path": module and module.__file__, "version": module and bcc.version(module)}
    with ExitStack() as stack:
        symbols, answer = checks.ask(Symbols)
        said["kallsyms"] = answer if symbols is None else checks.ask(lambda: symbols.address(_SYMBOL), only_root)[1]
        btf, answer = checks.ask(lambda: stack.enter_context(Btf()))
        said["btf"] = {**answer, "path": str(VMLINUX), "bytes": VMLINUX.stat().st_size if VMLINUX.exists() else None}
        if symbols is None or btf is None:
            needs = "needs BTF" if btf is None else "needs kallsyms"
            attachments, defines = None, None
            said["plan"] = said["layout"] = {"ok": None, "problem": needs}
            rows = [_row(row, None, needs) for row in probes.TABLE]
        else:
            kernel = _Kernel(btf, symbols, backend, root)
            attachments, said["plan"] = checks.ask(kernel.plan, only_root)
            defines, said["layout"] = checks.ask(lambda: layout.defines(kernel.btf, kernel.symbols), only_root)
            rows = kernel.rows(attachments)
    said["trial"], said["proof"] = _tried(checks, module, attachments, defines, say)
    return {
        "schema": SCHEMA,
        "checkup": {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "backend": backend.value,
            "uffdtrace": __version__,
        },
        "kernel": {
            "release": platform.release(),
            "arch": platform.machine(),
            "lockdown": preflight.lockdown(),
            "preemptible": preflight.preemption(),
        },
        "checks": said,
        "probes": rows,
        "offers": _offers(checks),
        "problems": checks.problems,
        "attach_works": checks.attach_works,
    }


# ---- probes ----------------------------------------------------------------------


def _row(row: Row, attachment: Attachment | None, problem: str | None) -> Json:
    kind = None
    # A place with a problem is one whose kind is not known.
    if attachment is not None and problem is None:
        kind = attachment.kind.value
    return {
        "row": row.name,
        "place": attachment and attachment.place,
        "kind": kind,
        "required": row.is_needed,
        "numbers": list(row.numbers),
        "problem": problem,
        "exception": (kind and attachment and (attachment.exception or attachment.candidate.caveat)) or None,
    }


class _Kernel:
    """How this kernel's functions serve the rows of the probe table."""

    def __init__(self, btf: Btf, symbols: Symbols, backend: Backend, root: bool) -> None:
        self.btf, self.symbols = btf, symbols
        self._backend, self._root = backend, root
        self._preemptible = preflight.preemptible()
        self._sessions = preflight.has_sessions(btf, symbols)
        # As root, attach decides without; another user cannot tell what root reads.
        self._guessed = not root and backend is Backend.AUTO and preflight.preemption() is None

    def plan(self) -> list[Attachment]:
        preflight.check_ring(self.btf)
        preflight.check_memory(self.btf)
        return probes.plan(self.btf, self.symbols, self._backend, self._preemptible, self._sessions)

    def rows(self, planned: list[Attachment] | None) -> list[Json]:
        """As planned; without a plan, each row by itself."""
        served = [_row(attachment.row, attachment, None) for attachment in planned or ()]
        names = {one["row"] for one in served}
        return served + [one for row in probes.TABLE if row.name not in names for one in self._alone(row)]

    def _alone(self, row: Row) -> list[Json]:
        # A call is found in /proc/kcore.
        if not self._root and any(candidate.where is Where.CALL for candidate in row.candidates):
            return [_row(row, None, _ONLY_ROOT)]
        try:
            found = probes.plan_row(row, self.btf, self.symbols, self._backend, self._preemptible)
        except (ProbeError, SymbolError) as error:
            return [_row(row, None, split(error)[0])]
        return [_row(row, one, _ONLY_ROOT if self._guessed else None) for one in found]


def _tried(
    checks: _Checks,
    module: ModuleType | None,
    attachments: list[Attachment] | None,
    defines: dict[str, int] | None,
    say: Say,
) -> tuple[Json, Json]:
    """The whole program compiled, loaded, attached, tried and removed: whether it attached, and what it proved."""
    proved = _proof(proof.Proof(problem="the program was not attached"), "not tried: the program was not attached")
    if not checks.attach_works or module is None or attachments is None or defines is None:
        return {"ok": None, "problem": "not tried: something before it is missing"}, proved
    say("attaching every probe for a moment")
    program, answer = checks.ask(lambda: Program(module, attachments, defines, say))
    if program is not None:
        try:
            _, answer = checks.ask(program.attach)
            if answer["ok"]:
                found = proof.prove(program, program.stream())
                said = [checks.add(*split(RuntimeError(one))) for one in proof.sentences(attachments, found)]
                proved = _proof(found, said[0] if said else None)
        finally:
            program.close()
    return answer, proved


def _proof(found: proof.Proof, problem: str | None) -> Json:
    """`ok` is null where nothing was tried."""
    ok = None if found.problem else not found.silent
    return {"ok": ok, "problem": problem, "proven": found.proven, "not_tried": found.not_tried}


# ---- userfaultfd -----------------------------------------------------------------


def _names(features: int | None) -> list[str] | None:
    """Without their UFFD_FEATURE_; those that we do not know as bits."""
    if features is None:
        return None
    bits = [1 << bit for bit in range(features.bit_length()) if features >> bit & 1]
    known = {int(feature): str(feature.name) for feature in Feature}
    return [known.get(bit, f"{bit:#x}") for bit in bits]


def _pagemap_scans() -> bool | None:
    """Whether there is PAGEMAP_SCAN; None where even our own pagemap is closed to us."""
    try:
        with Pagemap(os.getpid()) as pagemap:
            return pagemap.scans
    except (PermissionError, proc.NoProcess):
        return None


def _offers(checks: _Checks) -> Json:
    access, problem = None, None
    try:
        access = offers.access()
    except OSError as error:
        if error.errno == errno.ENOSYS:
            problem = checks.add("the kernel has no userfaultfd", "boot a kernel built with CONFIG_USERFAULTFD=y")
        else:
            remedy = "use sudo, or set vm.unprivileged_userfaultfd=1"
            if privileges.is_root():
                remedy = "allow userfaultfd(2) in the container's seccomp profile, or in the security module"
            problem = checks.add(f"this user may open no userfaultfd ({error.strerror})", remedy)
    write_protect = {kind: offers.write_protects(kind) for kind in Memory}
    unprotected: dict[str, list[str]] = {}
    for kind, works in write_protect.items():
        if works is False:
            unprotected.setdefault(_WRITE_PROTECT_REMEDY[kind], []).append(kind.value)
    for remedy, kinds in unprotected.items():
        checks.add(f"the kernel cannot write-protect {' and '.join(kinds)} memory", remedy)
    scans = _pagemap_scans()
    tells = None
    if scans is not None and write_protect[Memory.ANON]:
        tells = offers.pagemap_tells_protection()
        if not tells:
            checks.add("pagemap does not show which pages are protected", "boot Linux 5.14 or newer")
    return {
        "access": access and access.value,
        "problem": problem,
        "unprivileged_userfaultfd": offers.unprivileged(),
        "features": _names(offers.features()),
        "write_protect": {kind.value: works for kind, works in write_protect.items()},
        "pagemap_scan": scans,
        "pagemap_tells_protection": tells,
    }
