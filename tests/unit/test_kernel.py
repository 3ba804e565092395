"""What is asked of a kernel's code, symbols and types, of kernels made by hand."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrace.collect import program
from uffdtrace.collect.program import _entry_point
from uffdtrace.kernel import architecture, callsite, layout, preflight, probes, x86_code
from uffdtrace.kernel.btf import Function
from uffdtrace.kernel.callsite import calls_in, find_call
from uffdtrace.kernel.probes import TABLE, Attachment, Backend, ProbeError, ProbeKind, Where, plan
from uffdtrace.kernel.symbols import SymbolError, Symbols

# ---- machine code ----------------------------------------------------------------

BASE = 0xFFFFFFFF81000000
TARGET = 0xFFFFFFFF81234560
NOP = b"\x90"
X86_64, ARM64 = architecture.of("x86_64"), architecture.of("aarch64")


def call(offset: int, target: int = TARGET) -> bytes:
    return b"\xe8" + struct.pack("<i", target - (BASE + offset + 5))


def test_a_call_is_found_where_it_stands() -> None:
    code = NOP * 7 + call(7) + NOP * 3 + call(15, TARGET + 1) + call(20) + b"\xc3"
    assert calls_in(code, BASE, TARGET, X86_64) == [7, 20]


# Debian's 6.12 ahead of its call of add_wait_queue() in userfaultfd_read_iter(): lea -0x18(%r14),%rsi;
# lea 0x18(%rbx),%rdi; mov %rax,(%r14); add $0x22,%rax; mov %rax,0x8(%r14).
AHEAD = [bytes.fromhex(one) for one in ("498d76e8", "488d7b18", "498906", "4883c022", "49894608")]
MOVABS = bytes.fromhex("48b8000100000000adde")


def ahead(
    parts: list[bytes],
    argument: int = 1,
    before: bytes = b"",
    after: bytes = b"",
    parts_elsewhere: Sequence[tuple[int, bytes]] = (),
) -> int:
    """How many bytes ahead of the call, which stands between the parts and `after`."""
    code = before + b"".join(parts)
    return len(code) - X86_64.ahead(code + call(len(code)) + after, len(code), [argument], parts_elsewhere)


def test_a_probe_that_can_be_made_a_jump_stands_ahead_of_the_call() -> None:
    assert ahead(AHEAD, before=MOVABS) == 8
    # Four bytes would not do, and the last instruction before them is good.
    assert ahead(AHEAD[-1:], before=NOP) == 0
    assert ahead([MOVABS], before=NOP) == 10


def test_no_argument_is_written_between() -> None:
    # rsi and rdi are written by the first two.
    assert ahead(AHEAD[:2] + AHEAD[4:], before=NOP) == 8
    assert ahead(AHEAD[:2], before=NOP) == 0
    assert ahead(AHEAD[1:2] + AHEAD[4:], argument=0, before=NOP) == 0
    # mov %r14,%rsi
    assert ahead([*AHEAD, bytes.fromhex("4c89f6")], before=NOP) == 0


@pytest.mark.parametrize(
    "one", ["ff248500000000", "e900000000", "e8ffffffff", "0f05", "0f0b", "65488b0425", "488d0500000000", "c3"]
)
def test_what_goes_elsewhere_or_reads_from_where_it_stands(one: str) -> None:
    assert ahead([*AHEAD[2:4], bytes.fromhex(one)]) == 0


def test_all_who_come_to_the_call_have_come_to_the_probe() -> None:
    # A short and a long jump from behind the call: to the probe, and behind it.
    for to, place in ((0, 8), (4, 0), (8, 0)):
        assert ahead(AHEAD, after=bytes([0xEB, (to - 15) & 0xFF]) + NOP * 8) == place
        assert ahead(AHEAD, after=b"\xe9" + struct.pack("<i", to - 18) + NOP * 8) == place
        assert ahead(AHEAD, after=b"\x0f\x84" + struct.pack("<i", to - 19) + NOP * 8) == place
    # jmp *%rax
    assert ahead(AHEAD, after=b"\xff\xe0" + NOP * 8) == 0


def test_a_cold_part_of_a_function_may_jump_into_it() -> None:
    """A part at 0x1000 with a long jump to the probe, behind it, or by a register."""
    for to, place in ((len(b"".join(AHEAD)) - 8, 8), (len(b"".join(AHEAD)) - 4, 0)):
        part = b"\xe9" + struct.pack("<i", to - 0x1005)
        assert ahead(AHEAD, parts_elsewhere=[(0x1000, part + NOP * 15)]) == place
    assert ahead(AHEAD, parts_elsewhere=[(0x1000, b"\xff\xe0" + NOP * 15)]) == 0
    # Not in 64-bit mode.
    assert ahead(AHEAD, parts_elsewhere=[(0x1000, b"\xc4" + NOP * 20)]) == 0


def test_where_a_function_has_cold_parts(tmp_path: Path) -> None:
    text = f"{BASE:x} t reader\n{BASE + 64:x} t next\n{BASE + 128:x} t reader.cold\n{BASE + 160:x} t reader.cold.7\n"
    symbols = kallsyms(tmp_path / "k", text + f"{BASE + 192:x} t reader.colder\n{TARGET:x} T waiter\n")
    assert symbols.cold_parts("reader") == ["reader.cold", "reader.cold.7"]
    code = MOVABS + b"".join(AHEAD)
    whole = (code + call(len(code))).ljust(128, NOP) + (b"\xe9" + struct.pack("<i", len(code) - 4 - 128 - 5))
    into = core(tmp_path / "into", BASE, whole.ljust(4096, NOP))
    assert callsite.ahead_of(symbols, "reader", len(code), [1], into, "x86_64") == len(code)
    beside = core(tmp_path / "beside", BASE, (code + call(len(code))).ljust(4096, NOP))
    assert callsite.ahead_of(symbols, "reader", len(code), [1], beside, "x86_64") == len(code) - 8


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 5))
def test_a_probe_is_at_the_call_or_ahead(code: bytes, at: int, argument: int) -> None:
    at = min(at, len(code))
    assert 0 <= X86_64.ahead(code[:at] + call(at) + code[at:], at, [argument], []) <= at
    assert ARM64.ahead(code, at, [argument], []) == at


@pytest.mark.parametrize(
    "text, jumps",
    [
        ("90", None),
        ("f30f1efa", None),
        ("0f1f440000", None),
        ("660f1f840000000000", None),
        ("65488b0425001a0300", None),
        ("48b8000100000000adde", None),
        ("66c7400c3412", None),
        ("66b83412", None),
        ("f6470801", None),
        ("f7d8", None),
        ("81fb00010000", None),
        ("410fba650003", None),
        ("f0480fb10b", None),
        ("488d0500000000", None),
        ("0f01cb", None),
        ("e800000000", None),
        ("74f0", 2 - 16),
        ("0f8510000000", 22),
        ("e900010000", 261),
        ("2eeb04", 7),
        ("ff2485a0b0c0d0", x86_code.ANYWHERE),
        ("3effe0", x86_code.ANYWHERE),
        ("ff15a0b0c0d0", None),
    ],
)
def test_where_an_instruction_ends_and_may_go(text: str, jumps: int | None) -> None:
    code = bytes.fromhex(text)
    assert x86_code.instruction(code + NOP * 15, 0) == (len(code), jumps)


def test_no_kernel_memory_to_look_ahead_in(tmp_path: Path) -> None:
    symbols = kallsyms(tmp_path / "k", f"{BASE:x} t reader\n{BASE + 64:x} t next\n{TARGET:x} T waiter\n")
    code = MOVABS + b"".join(AHEAD)
    file = core(tmp_path / "core", BASE, (code + call(len(code))).ljust(4096, NOP))
    assert callsite.ahead_of(symbols, "reader", len(code), [1], file, "x86_64") == len(code) - 8
    assert callsite.ahead_of(symbols, "reader", len(code), [1], file, "aarch64") == len(code)
    assert callsite.ahead_of(symbols, "reader", len(code), [1], tmp_path / "none", "x86_64") == len(code)


def test_a_call_backwards() -> None:
    assert calls_in(NOP * 100 + call(100, BASE - 5000), BASE, BASE - 5000, X86_64) == [100]


def test_a_call_at_the_very_end_and_one_that_is_cut() -> None:
    code = NOP * 3 + call(3)
    assert calls_in(code, BASE, TARGET, X86_64) == [3]
    for length in range(len(code)):
        assert calls_in(code[:length], BASE, TARGET, X86_64) == []


@pytest.mark.parametrize("code", [b"", b"\xe8", b"\xe8\0\0\0", b"\xe8" * 40])
def test_what_holds_no_such_call(code: bytes) -> None:
    assert calls_in(code, BASE, TARGET, X86_64) == []


@given(st.binary(max_size=64), st.integers(0, 64))
def test_no_bytes_are_an_error(code: bytes, at: int) -> None:
    found = calls_in(code[:at] + call(min(at, len(code))) + code[at:], BASE, TARGET, X86_64)
    assert min(at, len(code)) in found


def branch(offset: int, target: int, link: bool = True) -> bytes:
    """arm64's `bl`, or `b`, at that offset."""
    return struct.pack("<I", (0x94000000 if link else 0x14000000) | (target - BASE - offset) // 4 & 0x3FFFFFF)


def test_calls_of_arm64() -> None:
    near, far, behind = BASE + 0x1234560, BASE + (1 << 27) - 4, BASE - (1 << 27) + 12
    code = b"".join(
        [branch(0, near), branch(4, near, link=False), branch(8, far), branch(12, behind), branch(16, near), b"\0\0\0"]
    )
    assert calls_in(code, BASE, near, ARM64) == [0, 16]
    assert calls_in(code, BASE, far, ARM64) == [8]
    assert calls_in(code, BASE, behind, ARM64) == [12]


@given(st.binary(max_size=64))
def test_no_bytes_are_an_error_on_arm64(code: bytes) -> None:
    for offset in calls_in(code, BASE, BASE, ARM64):
        assert offset % 4 == 0 and code[offset + 3] >> 2 == 0x25


class Layouts:
    """A kernel whose BTF has every struct and member, each elsewhere."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, str], int] = {}

    def offset(self, structure: str, path: str) -> int:
        return self.places.setdefault((structure, path), 8 * len(self.places))

    def size(self, structure: str) -> int:
        return 336

    def enumerators(self, enum: str) -> dict[str, int]:
        return {"PG_head": 6}

    def function(self, name: str) -> None:
        return None

    def number(self, structure: str) -> int:
        return 1


@pytest.mark.parametrize("machine", architecture.KNOWN)
def test_each_architectures_c_has_the_defines_it_names(tmp_path: Path, machine: str) -> None:
    here, btf = architecture.of(machine), Layouts()
    names = {*here.symbols.values(), *layout._SYMBOLS.values(), *layout._FIRST_STACK[0]}
    text = "".join(f"{BASE + 0x4000 * at:x} D {name}\n" for at, name in enumerate(sorted(names, reverse=True)))
    found = layout.defines(btf, kallsyms(tmp_path / "k", text), machine)  # type: ignore[arg-type]
    own = (program.STUB_ROOT / f"{machine}.bpf.c").read_text()
    used = set(re.findall(r"\b(?:REGS|PTE|TASK|MM)_[A-Z0-9_]+", own)) | {"THREAD_SIZE", "REGS_SIZE", *here.symbols}
    assert used <= found.keys()
    assert {name for name in found if name.startswith(("REGS_", "PTE_"))} >= {*here.saved, *here.bits}
    assert (
        found["REGS_ARGUMENT_4"] - btf.places["pt_regs", here.saved["REGS_ARGUMENT_4"][0]]
        == here.saved["REGS_ARGUMENT_4"][1]
    )


def test_another_machine_is_one_line() -> None:
    with pytest.raises(architecture.ArchitectureError, match="this is vax: use uffdtrace inspect"):
        architecture.of("vax")


def core(path: Path, address: int, code: bytes) -> Path:
    """A /proc/kcore with one segment."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, address, 0, len(code), len(code), 4096)
    path.write_bytes((header + segment).ljust(4096, b"\0") + code)
    return path


def kallsyms(path: Path, text: str) -> Symbols:
    path.write_text(text)
    return Symbols(path)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (NOP * 7 + call(7), ("reader", 7)),
        (NOP * 12, None),
        (call(0) + call(5), None),
        # Beyond the next symbol it is another function's.
        (NOP * 64 + call(64), None),
    ],
    ids=["one", "none", "two", "beyond"],
)
def test_the_only_call(tmp_path: Path, code: bytes, found: tuple[str, int] | None) -> None:
    symbols = kallsyms(tmp_path / "k", f"{BASE:x} t reader\n{BASE + 64:x} t next\n{TARGET:x} T waiter\n")
    file = core(tmp_path / "core", BASE, code.ljust(4096, NOP))
    assert find_call(symbols, "reader", "waiter", file, "x86_64") == found


def test_no_kernel_memory_to_read(tmp_path: Path) -> None:
    symbols = kallsyms(tmp_path / "k", f"{BASE:x} t reader\n{BASE + 64:x} t next\n{TARGET:x} T waiter\n")
    assert find_call(symbols, "reader", "waiter", tmp_path / "none") is None
    for data in (b"", b"\x7fELF"):
        (tmp_path / "core").write_bytes(data)
        assert find_call(symbols, "reader", "waiter", tmp_path / "core") is None


# ---- symbols ---------------------------------------------------------------------

TABLE_TEXT = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t reader
ffffffff81000100 t alias_of_reader
ffffffff81000180 t twice
ffffffff81000200 t after
ffffffff81000300 t twice
ffffffff81000400 t reader.cold
ffffffffc0000000 t in_module\t[kvm]
ffffffffc0000100 t twice_module\t[kvm]
ffffffffc0000200 t twice_module\t[xfs]
ffffffffc0000300 t last\t[xfs]
"""


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    return kallsyms(tmp_path / "kallsyms", TABLE_TEXT)


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("reader", [0xFFFFFFFF81000100]),
        ("reader.cold", [0xFFFFFFFF81000400]),
        ("twice", [0xFFFFFFFF81000180, 0xFFFFFFFF81000300]),
        ("in_module", [0xFFFFFFFFC0000000]),
        ("twice_module", [0xFFFFFFFFC0000100, 0xFFFFFFFFC0000200]),
        ("last", [0xFFFFFFFFC0000300]),
        ("read", []),
        ("eader", []),
        ("", []),
        ("t", []),
    ],
)
def test_addresses(symbols: Symbols, name: str, addresses: list[int]) -> None:
    assert symbols.addresses(name) == addresses
    assert symbols.has(name) is (len(addresses) == 1)
    assert symbols.address(name) == (addresses[0] if len(addresses) == 1 else None)


def test_room_ends_at_the_next_address(symbols: Symbols) -> None:
    assert symbols.room_after("reader") == 0x80
    assert symbols.room_after("after") == 0x100
    for name in ("twice", "none", "last"):
        assert symbols.room_after(name) == 0


def test_a_table_that_hides_its_addresses(tmp_path: Path) -> None:
    hidden = kallsyms(tmp_path / "k", "0000000000000000 t reader\n0000000000000000 t after\n")
    with pytest.raises(SymbolError, match="root"):
        hidden.address("reader")


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(SymbolError, match="CONFIG_KALLSYMS"):
        Symbols(tmp_path / "none")


# ---- the plan --------------------------------------------------------------------

# Functions of a kernel that has all of the table's first choices.
_ALL = {
    candidate.function: candidate.parameters
    for row in TABLE
    for candidate in reversed(row.candidates)
    if candidate.where is Where.ENTRY and candidate.parameters
}


class FakeBtf:
    def __init__(
        self,
        functions: dict[str, tuple[str, ...]],
        by_value: tuple[str, ...] = (),
        declared: tuple[str, ...] = (),
    ) -> None:
        self._functions, self._by_value, self._declared = functions, by_value, declared

    def function(self, name: str) -> Function | None:
        parameters = self._functions.get(name)
        if parameters is None:
            return None
        places = frozenset(range(len(parameters)) if name in self._declared else ())
        return Function(name, parameters, name in self._by_value, places)


class FakeSymbols:
    def __init__(self, btf: FakeBtf, ambiguous: tuple[str, ...] = ()) -> None:
        self._btf, self._ambiguous = btf, ambiguous

    def has(self, name: str) -> bool:
        return self._btf.function(name) is not None and name not in self._ambiguous


def served(
    without: tuple[str, ...] = (),
    by_value: tuple[str, ...] = (),
    ambiguous: tuple[str, ...] = (),
    declared: tuple[str, ...] = (),
    wanted: Backend = Backend.AUTO,
    preemptible: bool = False,
    sessions: bool = False,
    **changed: tuple[str, ...],
) -> dict[str, list[Attachment]]:
    functions = {**_ALL, "add_wait_queue": ("wq_head", "wq_entry"), **changed}
    btf: Any = FakeBtf({name: value for name, value in functions.items() if name not in without}, by_value, declared)
    symbols: Any = FakeSymbols(btf, ambiguous)
    found: dict[str, list[Attachment]] = {}
    for attachment in plan(btf, symbols, wanted, preemptible, sessions):
        found.setdefault(attachment.row.name, []).append(attachment)
    return found


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Callers whose call is found, with its offset."""
    known = {"userfaultfd_read_iter": 0x123}
    monkeypatch.setattr(probes, "find_call", lambda _, caller, __: (caller, known[caller]) if caller in known else None)
    monkeypatch.setattr(probes, "ahead_of", lambda _, __, offset, ___: offset - 8)
    return known


def test_every_row_is_served_by_fentry_where_nothing_speaks_against_it() -> None:
    found = served()
    assert set(found) == {row.name for row in TABLE}
    kprobes = {name for name, rows in found.items() if not all(row.fentry for row in rows)}
    # A call inside a function takes no fentry.
    assert kprobes == {"messages"}
    assert all(len(rows) == 1 for rows in found.values())
    (messages,) = found["messages"]
    assert (messages.place, messages.offset) == ("userfaultfd_read_iter+0x11b", 0x123)


def test_do_anonymous_page_inlined() -> None:
    (one,) = served(without=("do_anonymous_page",))["anonymous-faults"]
    assert (one.candidate.function, one.candidate.handler) == ("handle_mm_fault", "on_mm_fault")
    (one,) = served(ambiguous=("do_anonymous_page",))["anonymous-faults"]
    assert one.candidate.function == "handle_mm_fault"


def test_a_struct_by_value_takes_a_kprobe() -> None:
    found = served(by_value=("change_protection",))
    for name in ("protection", "protection-returns"):
        (one,) = found[name]
        assert not one.fentry and "by value" in one.exception
    assert found["faults"][0].fentry


def test_a_struct_that_btf_does_not_describe_takes_a_kprobe() -> None:
    """The verifier refuses the argument (5.10, 6.12), but a return needs none."""
    found = served(declared=("__x64_sys_mremap",))
    (one,) = found["remaps"]
    assert not one.fentry and "does not describe" in one.exception
    assert found["remap-returns"][0].fentry


@pytest.mark.parametrize("wanted", Backend)
@pytest.mark.parametrize("preemptible", [False, True])
def test_the_kind_of_probe(wanted: Backend, preemptible: bool) -> None:
    (one,) = served(wanted=wanted, preemptible=preemptible)["faults"]
    assert one.fentry is (wanted is Backend.FENTRY or (wanted is Backend.AUTO and not preemptible))
    assert one.exception == ""


def test_both_kinds_where_either_may_lose() -> None:
    assert [one.fentry for one in served(preemptible=True)["fault-returns"]] == [False, True]
    assert [one.fentry for one in served()["fault-returns"]] == [True]
    assert [one.fentry for one in served(preemptible=True, wanted=Backend.KPROBE)["fault-returns"]] == [False]


def test_a_session_sees_entry_and_return() -> None:
    found = served(preemptible=True, sessions=True)
    kinds = {name: [one.kind for one in rows] for name, rows in found.items()}
    for name in ("faults", "fault-returns", "ioctls", "ioctl-returns", "protection", "protection-returns"):
        assert kinds[name] == [ProbeKind.SESSION]
    # An entry alone; a call within a function.
    assert kinds["wakes"] == kinds["unprotected-writes"] == [ProbeKind.MULTI]
    assert kinds["messages"] == [ProbeKind.KPROBE]


@pytest.mark.parametrize("wanted", Backend)
@pytest.mark.parametrize("preemptible", [False, True])
def test_sessions_are_kprobes(wanted: Backend, preemptible: bool) -> None:
    (one,) = served(wanted=wanted, preemptible=preemptible, sessions=True)["faults"]
    kprobes = wanted is Backend.KPROBE or (wanted is Backend.AUTO and preemptible)
    assert one.kind is (ProbeKind.SESSION if kprobes else ProbeKind.FENTRY)
    assert one.backend is (Backend.KPROBE if kprobes else Backend.FENTRY)


def test_a_return_that_no_entry_goes_with_keeps_its_kretprobe() -> None:
    (one,) = served(preemptible=True, sessions=True, zap_vma_range_batched=("vma",))["zap-returns"]
    assert one.kind is ProbeKind.KPROBE


def test_a_function_has_one_row_for_its_entry_and_one_for_its_return() -> None:
    """A session's program has a handler for each."""
    rows = [(one.candidate.function, one.candidate.where) for some in served().values() for one in some]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize(
    ("symbol", "function", "refused", "expected"),
    [
        (True, True, None, True),
        (True, True, errno.EINVAL, False),
        # Who may load no program is told what others get.
        (True, True, errno.EPERM, True),
        (False, True, None, False),
        (True, False, None, False),
    ],
)
def test_where_there_are_sessions(
    symbol: bool, function: bool, refused: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> int:
        if refused is not None:
            raise OSError(refused, "")
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(preflight, "load_program", load)
    names = {
        name: () for name, there in (("fprobe_ftrace_entry", symbol), ("bpf_session_is_return", function)) if there
    }
    btf: Any = FakeBtf(names)
    symbols: Any = FakeSymbols(btf)
    assert preflight.has_sessions(btf, symbols) is expected


def test_every_row_has_handlers_of_its_own() -> None:
    """The program has a function of the handler's name for each attachment by kprobe."""
    rows: dict[str, set[str]] = {}
    for row in TABLE:
        for candidate in row.candidates:
            rows.setdefault(candidate.handler, set()).add(row.name)
    assert not {handler: names for handler, names in rows.items() if len(names) > 1}


def test_a_struct_by_value_takes_no_second_kind() -> None:
    (one,) = served(preemptible=True, by_value=("change_protection",))["protection-returns"]
    assert not one.fentry


def test_the_reader_before_6_10(calls: dict[str, int]) -> None:
    calls.clear()
    calls["userfaultfd_read"] = 0x44
    (one,) = served()["messages"]
    assert one.place == "userfaultfd_read+0x3c"


def test_the_last_resort_for_messages(calls: dict[str, int]) -> None:
    calls.clear()
    (one,) = served()["messages"]
    assert (one.place, one.fentry, one.positions) == ("add_wait_queue", True, (1,))


def test_a_return_that_asks_for_an_argument() -> None:
    """Behind the function's result; a kretprobe is given none."""
    (one,) = served(change_protection=("tlb", "vma", "start", "end", "cp_flags"))["protection-returns"]
    assert "on_protect_return(true, ctx[5], ctx[4])" in _entry_point([one], X86_64)
    (one,) = served(wanted=Backend.KPROBE)["protection-returns"]
    assert "on_protect_return(false, ctx->ax, UNTOLD)" in _entry_point([one], X86_64)


def test_the_program_of_a_session() -> None:
    """Its entry says whether the return is wanted: 1 leaves it alone."""
    found = served(preemptible=True, sessions=True)
    lines = _entry_point([*found["protection-returns"], *found["protection"]], X86_64).splitlines()
    assert [line.strip() for line in lines[2:-1]] == [
        "if (session_is_return(ctx))",
        "return tell_stack(ctx, on_protect_return(false, ctx->ax, UNTOLD));",
        "tell_stack(ctx, on_protect(false, ctx->di, ctx->si, ctx->dx, ctx->cx));",
        "return !is_arming(false, ctx->di, ctx->si, ctx->dx, ctx->cx);",
    ]
    assert "return 0;" in _entry_point([*found["ioctls"], *found["ioctl-returns"]], X86_64)


def test_positions_are_this_kernels() -> None:
    (one,) = served(handle_userfault=("reason", "other", "vmf"))["faults"]
    assert (one.positions, one.parameter_count) == ((2, 0), 3)


def test_an_argument_that_is_not_in_a_register() -> None:
    seven = ("a", "b", "c", "d", "e", "f", "vmf")
    (one,) = served(do_anonymous_page=seven)["anonymous-faults"]
    assert one.candidate.function == "handle_mm_fault"


def test_the_handler_that_fits_the_arguments() -> None:
    (one,) = served(userfaultfd_unmap_prep=("vma", "start", "end", "unmaps"))["unmaps"]
    assert one.candidate.handler == "on_unmap_vma"
    (one,) = served(userfaultfd_unmap_prep=("mm", "start", "end", "unmaps"))["unmaps"]
    assert one.candidate.handler == "on_unmap"


@pytest.mark.parametrize(
    "missing", [("handle_userfault",), ("folio_add_new_anon_rmap", "page_add_new_anon_rmap"), ("exit_mmap",)]
)
def test_a_required_function_that_is_missing_is_named(missing: tuple[str, ...]) -> None:
    with pytest.raises(ProbeError) as caught:
        served(without=missing)
    assert all(name in str(caught.value) for name in missing)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("has", [False, True])
def test_what_the_kernel_does_not_have_need_not_be_observed(
    has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PREEMPT_RT has no transparent huge pages, and no functions for them."""
    functions = ("do_huge_pmd_anonymous_page", "do_huge_pmd_wp_page")
    rows = [row for row in TABLE if row.only_with is not None]
    assert {row.candidates[0].function for row in rows} == set(functions)
    changed = tuple(
        replace(row, only_with=tmp_path if has else tmp_path / "no") if row in rows else row for row in TABLE
    )
    monkeypatch.setattr(probes, "TABLE", changed)
    if has:
        with pytest.raises(ProbeError, match="do_huge_pmd_anonymous_page"):
            served(without=functions)
    else:
        assert not {row.name for row in rows} & set(served(without=functions))


@pytest.mark.parametrize(
    "name", [candidate.function for row in TABLE if row.required for candidate in row.candidates[-1:]]
)
def test_no_error_names_nothing(name: str, calls: dict[str, int]) -> None:
    calls.clear()
    alternatives = tuple(
        candidate.function for row in TABLE if row.candidates[-1].function == name for candidate in row.candidates
    )
    with pytest.raises(ProbeError, match=name) as caught:
        served(without=alternatives)
    # What rests on it must be said, or the sentence has a hole.
    assert ", and  rest" not in str(caught.value)


def test_the_window_is_bounded() -> None:
    assert callsite._WINDOW >= 4096


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel whose preemption mode can be changed, and where nothing tells it yet."""
    monkeypatch.setattr(preflight.platform, "version", lambda: "#1 SMP PREEMPT_DYNAMIC Debian 6.12")
    monkeypatch.setattr(preflight.platform, "release", lambda: "6.12")
    monkeypatch.setattr(preflight, "_PREEMPT", tmp_path / "preempt")
    monkeypatch.setattr(preflight, "_CMDLINE", tmp_path / "cmdline")
    monkeypatch.setattr(preflight, "_CONFIG", str(tmp_path / "config-{release}"))
    (tmp_path / "cmdline").write_text("quiet root=/dev/sda1\n")
    return tmp_path


CONFIG = "# CONFIG_PREEMPT_NONE is not set\nCONFIG_PREEMPT_VOLUNTARY=y\n# CONFIG_PREEMPT is not set\n"


@pytest.mark.parametrize(
    ("files", "preempted"),
    [
        ({"preempt": "none (voluntary) full \n", "cmdline": "preempt=full"}, False),
        ({"preempt": "none voluntary (full) \n"}, True),
        ({"preempt": "full (lazy) \n"}, True),
        # debugfs is closed under lockdown.
        ({}, None),
        ({"cmdline": "quiet preempt=none\n", "config-6.12": "CONFIG_PREEMPT=y\n"}, False),
        ({"cmdline": "preempt=none preempt=full quiet\n"}, True),
        ({"cmdline": "preempt=none preempt=fast\n"}, False),
        ({"cmdline": "nopreempt=none\n"}, None),
        ({"config-6.12": CONFIG}, False),
        ({"config-6.12": "CONFIG_PREEMPT_LAZY=y\nCONFIG_PREEMPT_COUNT=y\n"}, True),
        ({"config-6.12": "CONFIG_PREEMPT=y\n"}, True),
        ({"config-6.12": "CONFIG_PREEMPT_DYNAMIC=y\n"}, None),
    ],
)
def test_the_preemption_mode(dynamic: Path, files: dict[str, str], preempted: bool | None) -> None:
    for name, text in files.items():
        (dynamic / name).write_text(text)
    assert preflight.preemption() is preempted
    # What is not known costs speed, not events.
    assert preflight.preemptible() is (preempted is not False)


def test_the_first_namespaces_are_no_obstacle() -> None:
    preflight.check_namespaces()


@pytest.mark.parametrize(("name", "remedy"), [("pid", "--pid=host"), ("time", "nsenter --time")])
def test_another_namespace_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, remedy: str) -> None:
    _, kind, why = preflight._FIRST[name]
    monkeypatch.setitem(preflight._FIRST, name, (1, kind, why))
    with pytest.raises(preflight.Refusal, match=remedy) as caught:
        preflight.check_namespaces()
    assert "\n" not in str(caught.value)


def test_a_kernel_without_time_namespaces_has_one_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pid").touch()
    monkeypatch.setattr(preflight, "_NAMESPACES", tmp_path)
    monkeypatch.setitem(preflight._FIRST, "pid", ((tmp_path / "pid").stat().st_ino, "", ""))
    preflight.check_namespaces()


class RingOf:
    """A BTF that knows one member's type."""

    def __init__(self, lock: str) -> None:
        self.lock = lock

    def member_type(self, structure: str, member: str) -> str | None:
        return self.lock if (structure, member) == ("bpf_ringbuf", "spinlock") else None


@pytest.mark.parametrize(
    ("version", "lock", "refused"),
    [
        ("#1 SMP PREEMPT_RT Debian 6.1.52-1", "spinlock_t", True),
        ("#1 SMP PREEMPT_RT Debian 6.1.176-1", "raw_spinlock_t", False),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1", "spinlock_t", False),
    ],
)
def test_a_ring_that_sleeps_is_refused(monkeypatch: pytest.MonkeyPatch, version: str, lock: str, refused: bool) -> None:
    monkeypatch.setattr(preflight.platform, "version", lambda: version)
    btf: Any = RingOf(lock)
    if not refused:
        preflight.check_ring(btf)
        return
    with pytest.raises(preflight.Refusal, match="real-time") as caught:
        preflight.check_ring(btf)
    assert "\n" not in str(caught.value)


def test_the_last_resort_says_what_it_costs() -> None:
    (row,) = [row for row in TABLE if row.name == "messages"]
    assert [bool(candidate.caveat) for candidate in row.candidates] == [False, False, True]
