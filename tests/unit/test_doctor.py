"""What doctor concludes where one thing or another is missing, and how it says so."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, ClassVar

import jsonschema
import pytest
from click.testing import CliRunner

from uffdtrace.cli import doctor, main
from uffdtrace.collect import checkup
from uffdtrace.collect.proof import Proof
from uffdtrace.kernel import offers, preflight, privileges, probes
from uffdtrace.kernel.btf import BtfError, Function
from uffdtrace.kernel.layout import LayoutError
from uffdtrace.kernel.offers import Memory
from uffdtrace.kernel.preflight import Refusal
from uffdtrace.kernel.probes import TABLE, Backend, ProbeError, Where
from uffdtrace.kernel.symbols import SymbolError
from uffdtrace.kernel.userfaultfd import Access
from uffdtrace.model.records.events import Feature
from uffdtrace.reporters import doctor_text

SCHEMA = json.loads(Path(doctor_text.__file__).with_name("doctor.schema.json").read_text())
ALL_FEATURES = sum(int(feature) for feature in Feature)
# Functions of a kernel that has all of the table's first choices.
FUNCTIONS = {
    candidate.function: candidate.parameters
    for row in TABLE
    for candidate in reversed(row.candidates)
    if candidate.where is Where.ENTRY and candidate.parameters
}
FUNCTIONS["add_wait_queue"] = ("wq_head", "wq_entry")


def fail(error: Exception) -> Callable[..., Any]:
    def raising(*_: object) -> Any:
        raise error

    return raising


class FakeBtf:
    functions = FUNCTIONS

    def __enter__(self) -> FakeBtf:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def member_type(self, structure: str, member: str) -> str | None:
        """A kernel whose maps are no locked memory."""
        return None

    def function(self, name: str) -> Function | None:
        return Function(name, self.functions[name], False) if name in self.functions else None


class FakeSymbols:
    hidden = False

    def has(self, name: str) -> bool:
        return True

    def address(self, name: str) -> int:
        if self.hidden:
            raise SymbolError("/proc/kallsyms shows no addresses: run as root, with kernel.kptr_restrict below 2")
        return 1


class FakeProgram:
    made: ClassVar[list[FakeProgram]] = []
    error: Exception | None = None

    def __init__(self, *_: object) -> None:
        self.steps: list[str] = []
        self.made.append(self)

    def attach(self) -> None:
        self.steps.append("attach")
        if self.error:
            raise self.error

    def stream(self) -> None:
        return None

    def close(self) -> None:
        self.steps.append("close")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which everything works."""
    module = ModuleType("bcc")
    module.__file__ = "/usr/lib/bcc/__init__.py"
    module.__dict__["__version__"] = "0.26.0"
    monkeypatch.setattr(checkup.bcc, "load", lambda: module)
    monkeypatch.setattr(checkup, "Btf", type("Btf", (FakeBtf,), {}))
    monkeypatch.setattr(checkup, "Symbols", type("Symbols", (FakeSymbols,), {}))
    monkeypatch.setattr(checkup, "Program", type("Program", (FakeProgram,), {"made": []}))
    monkeypatch.setattr(checkup.proof, "prove", lambda program, stream: Proof(proven=["faults"], not_tried=["merges"]))
    monkeypatch.setattr(checkup.layout, "defines", lambda btf, symbols: {"A": symbols.address("a")})
    monkeypatch.setattr(probes, "find_call", lambda symbols, caller, _: (caller, symbols.address(caller)))
    monkeypatch.setattr(probes, "ahead_of", lambda _, __, offset, ___: offset)
    for name, answer in {"preemption": False, "lockdown": "none", "try_program": 0}.items():
        monkeypatch.setattr(preflight, name, lambda answer=answer: answer)
    be_root(monkeypatch, True)
    monkeypatch.setattr(preflight, "check_kprobes", lambda: None)
    monkeypatch.setattr(offers, "access", lambda: Access.FULL)
    monkeypatch.setattr(offers, "unprivileged", lambda: False)
    monkeypatch.setattr(offers, "features", lambda: ALL_FEATURES)
    monkeypatch.setattr(offers, "write_protects", lambda kind: True)
    monkeypatch.setattr(offers, "pagemap_tells_protection", lambda: True)
    monkeypatch.setattr(checkup, "_pagemap_scans", lambda: True)
    return monkeypatch


def be_root(machine: pytest.MonkeyPatch, root: bool) -> None:
    """Root with all capabilities, or another user with none."""
    machine.setattr(privileges, "is_root", lambda: root)
    machine.setattr(privileges, "missing", lambda: [] if root else list(privileges.NEEDED))


def look(backend: Backend = Backend.AUTO) -> dict[str, Any]:
    found = json.loads(json.dumps(checkup.check(backend, lambda line: None)))
    jsonschema.validate(found, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert found["attach_works"] is not any(problem["blocks_attach"] for problem in found["problems"])
    blamed = {problem["what"] for problem in found["problems"]}
    assert {check["problem"] for check in found["checks"].values() if check["ok"] is False} <= blamed
    return found


def text(found: dict[str, Any]) -> str:
    stream = io.StringIO()
    doctor_text.render(found, stream)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())
    return stream.getvalue()


def oks(found: dict[str, Any]) -> dict[str, Any]:
    return {name: check["ok"] for name, check in found["checks"].items()}


def blocking(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["what"], one["remedy"]) for one in found["problems"] if one["blocks_attach"]]


# ---- one thing missing -----------------------------------------------------------


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_all_is_well() -> None:
    found = look()
    assert set(oks(found).values()) == {True}
    assert found["problems"] == [] and found["attach_works"]
    assert found["checks"]["bcc"]["version"] == "0.26.0"
    assert {one["row"] for one in found["probes"]} == {row.name for row in TABLE}
    assert {one["kind"] for one in found["probes"] if one["row"] != "messages"} == {"fentry"}
    said = text(found)
    assert said.endswith("attach works here.\n") and len(said.splitlines()) <= 60
    assert "all 17" in said and f"{len(TABLE)} of {len(TABLE)}" in said


def test_it_attaches_and_leaves_nothing() -> None:
    look()
    (program,) = checkup.Program.made  # type: ignore[attr-defined]
    assert program.steps == ["attach", "close"]


@pytest.mark.parametrize(
    ("failing", "error", "check", "remedy"),
    [
        ("preflight.try_program", errno.EPERM, "programs", "trace on a machine that allows BPF"),
        ("preflight.try_program", errno.ENOSYS, "programs", "CONFIG_BPF_SYSCALL"),
        ("preflight.check_kprobes", Refusal("the kernel has no kprobes: it needs them"), "kprobes", "it needs them"),
        ("bcc.load", Refusal("BCC for python is missing: install it"), "bcc", "install it"),
        ("bcc.load", Refusal("bcc is not BCC but another: pip uninstall bcc, then b"), "bcc", "pip uninstall bcc"),
        ("Btf", BtfError("the kernel has no BTF (it is missing): boot another"), "btf", "boot another"),
        ("Symbols", SymbolError("/proc/kallsyms: no: the kernel needs it"), "kallsyms", "the kernel needs it"),
        ("layout.defines", LayoutError("this is arm64: use uffdtrace inspect"), "layout", "use uffdtrace inspect"),
        ("probes.plan", ProbeError("no f: run uffdtrace doctor, and report it"), "plan", "report it"),
    ],
)
def test_each_thing_by_itself(
    machine: pytest.MonkeyPatch, failing: str, error: Exception | int, check: str, remedy: str
) -> None:
    answer = fail(error) if isinstance(error, Exception) else lambda: error
    machine.setattr(f"uffdtrace.collect.checkup.{failing}", answer)
    found = look()
    ((what, said),) = blocking(found)
    assert said.startswith(remedy) or remedy in said
    assert found["checks"][check] == {**found["checks"][check], "ok": False, "problem": what}
    missing = {check, "trial", "proof"} | ({"plan", "layout"} if check in ("btf", "kallsyms") else set())
    assert {name for name, ok in oks(found).items() if not ok} == missing
    assert found["checks"]["trial"]["ok"] is None
    shown = " ".join(text(found).split())
    assert what in shown and said in shown and shown.endswith("attach does not work here: 1 reason above.")


def test_everything_missing(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(preflight, "try_program", lambda: errno.EPERM)
    machine.setattr(preflight, "check_kprobes", fail(Refusal("no kprobes: a")))
    machine.setattr(checkup.bcc, "load", fail(Refusal("no BCC: b")))
    machine.setattr(checkup, "Btf", fail(BtfError("no BTF: c")))
    machine.setattr(offers, "access", fail(OSError(errno.ENOSYS, "Function not implemented")))
    machine.setattr(offers, "write_protects", lambda kind: None)
    machine.setattr(offers, "features", lambda: None)
    found = look()
    assert [remedy for _, remedy in blocking(found)][1:] == ["a", "b", "c"]
    assert {(one["place"], one["problem"]) for one in found["probes"]} == {(None, "needs BTF")}
    assert found["offers"]["features"] is None and found["offers"]["pagemap_tells_protection"] is None
    said = text(found)
    assert f"all {len(probes.TABLE)}: needs BTF" in said and "CONFIG_USERFAULTFD=y" in said and "4 reasons" in said


def test_confidentiality(machine: pytest.MonkeyPatch) -> None:
    """It withholds the helper, and the verifier says only EINVAL."""
    machine.setattr(preflight, "lockdown", lambda: "confidentiality")
    machine.setattr(preflight, "try_program", lambda: errno.EINVAL)
    ((what, _),) = blocking(look())
    assert "lockdown is in confidentiality mode" in what


# ---- probes ----------------------------------------------------------------------


def test_missing_functions_are_named_row_by_row(machine: pytest.MonkeyPatch) -> None:
    without = {"handle_userfault", "exit_mmap", "dup_userfaultfd"}
    machine.setattr(checkup.Btf, "functions", {name: FUNCTIONS[name] for name in set(FUNCTIONS) - without})
    found = look()
    missing = {one["row"]: one["problem"] for one in found["probes"] if one["place"] is None}
    assert set(missing) == {"faults", "fault-returns", "exits", "forks"}
    assert "exit_mmap" in missing["exits"]
    ((what, remedy),) = blocking(found)
    assert "handle_userfault" in what and remedy == "report the kernel's version to the project"
    assert "forks (optional): this kernel has no function dup_userfaultfd" in text(found)


def test_an_optional_row_blocks_nothing(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(checkup.Btf, "functions", {name: FUNCTIONS[name] for name in set(FUNCTIONS) - {"dup_userfaultfd"}})
    found = look()
    assert found["attach_works"] and f"{len(probes.TABLE) - 1} of {len(probes.TABLE)}" in text(found)


def test_both_kinds(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(preflight, "preemption", lambda: True)
    found = look()
    assert [one["kind"] for one in found["probes"] if one["row"] == "fault-returns"] == ["kprobe", "fentry"]
    lines = [line.split() for line in text(found).splitlines()]
    assert ["faults", "and", "returns", "handle_userfault", "kprobe,", "both"] in lines
    assert ["remaps", "and", "returns", "__x64_sys_mremap", "kprobe"] in lines
    assert ["wakes", "userfaultfd_wake_function", "kprobe"] in lines


@pytest.mark.parametrize("backend", [Backend.FENTRY, Backend.KPROBE])
def test_a_forced_kind(backend: Backend) -> None:
    found = look(backend)
    wrong = {one["row"]: one["exception"] for one in found["probes"] if one["kind"] != backend.value}
    assert set(wrong) == ({"messages"} if backend is Backend.FENTRY else set())
    assert all(wrong.values()) and f"--backend {backend.value}" in text(found)


@pytest.mark.parametrize(
    ("stage", "error", "expected"),
    [
        (
            "attach",
            "the kernel refuses the probe on f (fentry: no): try --backend kprobe, or run uffdtrace doctor",
            ("the kernel refuses the probe on f (fentry: no)", "try --backend kprobe"),
        ),
        (
            "compile",
            "BCC could not compile the BPF program (no): run uffdtrace doctor",
            (
                "BCC could not compile the BPF program (no)",
                "report it to the project, with what uffdtrace doctor says",
            ),
        ),
    ],
)
def test_the_trial_fails(machine: pytest.MonkeyPatch, stage: str, error: str, expected: tuple[str, str]) -> None:
    made = checkup.Program.made  # type: ignore[attr-defined]
    if stage == "attach":
        machine.setattr(checkup.Program, "error", Refusal(error))
    else:
        machine.setattr(checkup, "Program", fail(Refusal(error)))
    found = look()
    assert blocking(found) == [expected]
    assert found["checks"]["trial"] == {"ok": False, "problem": expected[0]}
    assert [program.steps for program in made] == ([["attach", "close"]] if stage == "attach" else [])


def test_a_probe_that_does_not_fire(machine: pytest.MonkeyPatch) -> None:
    silent = Proof(proven=["messages"], silent=["faults", "discards"], not_tried=["merges"])
    machine.setattr(checkup.proof, "prove", lambda program, stream: silent)
    found = look()
    assert found["attach_works"] and oks(found)["proof"] is False
    assert found["checks"]["proof"]["not_tried"] == ["merges"]
    shown = " ".join(text(found).split())
    for row, place, rest in (
        ("faults", "handle_userfault", "faults, latency_us, pending"),
        ("discards", "userfaultfd_remove", "lost"),
    ):
        assert f"{row}: the probe on {place} saw nothing of what it was tried with" in shown
        assert f"these are lower bounds: {rest}" in shown


def test_probes_that_could_not_be_tried(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(checkup.proof, "prove", lambda program, stream: Proof(not_tried=["faults"], problem="no memory"))
    found = look()
    assert found["attach_works"] and oks(found)["proof"] is None
    assert "the probes were not tried (no memory)" in " ".join(text(found).split())


# ---- another user ----------------------------------------------------------------


def test_without_root(machine: pytest.MonkeyPatch) -> None:
    be_root(machine, False)
    machine.setattr(preflight, "try_program", lambda: errno.EPERM)
    machine.setattr(checkup.Symbols, "hidden", True)
    found = look()
    known = {"kprobes": True, "bcc": True, "btf": True, "privileges": False, "namespaces": True}
    assert oks(found) == {**dict.fromkeys(SCHEMA["properties"]["checks"]["required"]), **known}
    ((what, remedy),) = blocking(found)
    assert what.startswith("tracing needs root, or CAP_BPF, CAP_PERFMON, ")
    assert remedy == "use sudo (uffdtrace report and inspect work without)"
    unknown = {one["row"]: one["problem"] for one in found["probes"] if one["kind"] is None}
    assert unknown == {"messages": "only root can find out"}
    assert checkup.Program.made == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("root", [False, True])
def test_hidden_addresses(machine: pytest.MonkeyPatch, root: bool) -> None:
    """Said once, and whether or not there is BTF."""
    be_root(machine, root)
    machine.setattr(checkup.Symbols, "hidden", True)
    for btf in (checkup.Btf, fail(BtfError("no BTF: c"))):
        machine.setattr(checkup, "Btf", btf)
        found = look()
        assert found["checks"]["kallsyms"]["ok"] is (False if root else None)
        restricted = [what for what, remedy in blocking(found) if "kptr_restrict" in remedy]
        assert len(restricted) == int(root)


def test_the_kind_is_not_guessed(machine: pytest.MonkeyPatch) -> None:
    """debugfs, which tells how the kernel is preempted, is closed to users."""
    be_root(machine, False)
    machine.setattr(preflight, "preemption", lambda: None)
    found = look()
    assert {one["kind"] for one in found["probes"]} == {None}
    assert {one["row"] for one in found["probes"] if one["place"] is None} == {"messages"}
    assert {one["kind"] for one in look(Backend.KPROBE)["probes"]} == {"kprobe", None}
    assert f"{len(TABLE) - 1} of {len(TABLE)}" in text(found)
    # Root cannot read it either: then attach takes kprobes.
    be_root(machine, True)
    twice = {row.name for row in TABLE if row.twice}
    assert {one["kind"] for one in look()["probes"] if one["row"] not in twice} == {"kprobe"}


# ---- userfaultfd -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "number", "what", "remedy"),
    [
        (False, errno.EPERM, "Operation not permitted", "sudo"),
        (True, errno.EPERM, "Operation not permitted", "seccomp"),
        (True, errno.ENOSYS, "no userfaultfd", "CONFIG_USERFAULTFD"),
    ],
)
def test_no_userfaultfd(machine: pytest.MonkeyPatch, root: bool, number: int, what: str, remedy: str) -> None:
    be_root(machine, root)
    machine.setattr(offers, "access", fail(OSError(number, "Operation not permitted")))
    machine.setattr(offers, "write_protects", lambda kind: None)
    found = look()
    problem = found["problems"][-1]
    assert what in problem["what"] and remedy in problem["remedy"] and not problem["blocks_attach"]
    assert found["offers"]["problem"] == problem["what"] and found["offers"]["access"] is None
    assert "anon ?, shmem ?, hugetlb ?" in text(found)


def test_an_old_kernel_still_traces(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(offers, "write_protects", lambda kind: kind is Memory.ANON)
    machine.setattr(offers, "pagemap_tells_protection", lambda: False)
    machine.setattr(offers, "features", lambda: ALL_FEATURES & ~Feature.MOVE | 1 << 40)
    machine.setattr(checkup, "_pagemap_scans", lambda: False)
    found = look()
    assert found["attach_works"]
    assert [problem["remedy"][:15] for problem in found["problems"]] == ["boot Linux 5.19", "boot Linux 5.14"]
    assert found["problems"][0]["what"] == "the kernel cannot write-protect shmem and hugetlb memory"
    assert found["offers"]["features"][-1] == "0x10000000000" and "MOVE" not in found["offers"]["features"]
    said = text(found)
    assert "all but MOVE, and 0x10000000000" in said
    assert "anon yes, shmem no, hugetlb no" in said and "tells protection no, PAGEMAP_SCAN no" in said


def test_an_unreadable_pagemap(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(checkup, "_pagemap_scans", lambda: None)
    found = look()
    assert (found["offers"]["pagemap_scan"], found["offers"]["pagemap_tells_protection"]) == (None, None)


# ---- the verb --------------------------------------------------------------------


def test_exit_status(machine: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["doctor", "--format", "json"])
    assert done.exit_code == 0
    machine.setattr(doctor, "check", lambda backend, say: {"attach_works": False, "backend": backend.value})
    done = CliRunner().invoke(main, ["doctor", "--format", "json", "--backend", "kprobe"])
    assert (done.exit_code, json.loads(done.output)) == (1, {"attach_works": False, "backend": "kprobe"})


def test_help_has_two_examples() -> None:
    said = CliRunner().invoke(main, ["doctor", "--help"]).output
    assert said.count("uffdtrace doctor") == 2


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a: b (c)", ("a", "b (c)")),
        ("/proc/kallsyms: denied:\n the kernel needs it", ("/proc/kallsyms: denied", "the kernel needs it")),
        ("nothing to do", ("nothing to do", checkup._REPORT)),
    ],
)
def test_cause_and_remedy(message: str, expected: tuple[str, str]) -> None:
    assert checkup.split(Refusal(message)) == expected
