"""Capabilities: which are there, which are missing, and what is said of it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uffdtrace.kernel import preflight, privileges
from uffdtrace.kernel.privileges import HELPFUL, KEPT, NEEDED, Capability

ALL = (1 << 41) - 1


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What the kernel says of us; it has capabilities up to CAP_CHECKPOINT_RESTORE."""
    last, file = tmp_path / "cap_last_cap", tmp_path / "status"
    last.write_text("40\n")
    monkeypatch.setattr(privileges, "_LAST", last)
    monkeypatch.setattr(privileges, "_STATUS", file)
    return file


def say(status: Path, effective: int) -> None:
    status.write_text(f"Name:\tpython3\nCapInh:\t{0:016x}\nCapPrm:\t{ALL:016x}\nCapEff:\t{effective:016x}\n")


def bits(*capabilities: Capability) -> int:
    return sum(1 << capability for capability in capabilities)


@pytest.mark.parametrize("lacking", NEEDED)
def test_the_missing_one_is_named(status: Path, monkeypatch: pytest.MonkeyPatch, lacking: Capability) -> None:
    say(status, bits(*NEEDED) & ~bits(lacking))
    assert privileges.missing() == [lacking]
    monkeypatch.setattr(privileges, "is_root", lambda: False)
    with pytest.raises(preflight.Refusal, match=rf"^tracing needs {lacking.label}, too: use sudo "):
        preflight.check_privileges()


def test_with_those_alone_nothing_is_refused(status: Path) -> None:
    say(status, bits(*NEEDED))
    assert privileges.missing() == []
    preflight.check_privileges()


def test_cap_sys_admin_stands_for_the_two_that_came_out_of_it(status: Path) -> None:
    say(status, bits(*NEEDED, Capability.SYS_ADMIN) & ~bits(Capability.BPF, Capability.PERFMON))
    assert privileges.missing() == []


def test_before_5_8_there_is_cap_sys_admin_alone(status: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    privileges._LAST.write_text("37\n")
    say(status, bits(*NEEDED) & ~bits(Capability.BPF, Capability.PERFMON))
    assert privileges.missing() == [Capability.SYS_ADMIN]


def test_root_is_not_told_to_use_sudo(status: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(status, 0)
    monkeypatch.setattr(privileges, "is_root", lambda: True)
    with pytest.raises(preflight.Refusal) as refused:
        preflight.check_privileges()
    assert "sudo" not in str(refused.value)
    assert "--cap-add=BPF --cap-add=PERFMON --cap-add=SYS_PTRACE" in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("but", [(), (Capability.SYS_ADMIN,)])
def test_what_is_not_needed_is_given_up(but: tuple[Capability, ...]) -> None:
    code = "from uffdtrace.kernel import privileges as p; p.drop({}); print(p._sets()['Eff'], p._sets()['Prm'])"
    before = privileges._sets()["Eff"]
    command = [sys.executable, "-c", code.format([int(one) for one in but])]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert done.stdout.split() == [str(before & bits(*KEPT, *but))] * 2


def test_a_kernel_that_asks_for_more_is_told_of(status: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Debian's, at kernel.perf_event_paranoid=3."""
    say(status, bits(*NEEDED))
    paranoid = tmp_path / "paranoid"
    paranoid.write_text("3\n")
    monkeypatch.setattr(preflight, "_PARANOID", paranoid)
    monkeypatch.setattr(preflight, "_KPROBE_PMU", paranoid)
    monkeypatch.setattr(privileges, "is_root", lambda: False)
    preflight.check_kprobes()
    monkeypatch.setattr(preflight, "try_event", lambda: errno.EACCES)
    with pytest.raises(preflight.Refusal, match=r"\(kernel.perf_event_paranoid is 3\): set it to 2 .*, or use sudo$"):
        preflight.check_kprobes()
    say(status, bits(*NEEDED, Capability.SYS_ADMIN))
    with pytest.raises(preflight.Refusal, match=r"seccomp profile"):
        preflight.check_kprobes()
    # Who has no CAP_PERFMON hears of that first.
    say(status, 0)
    preflight.check_kprobes()


class Kernel:
    """Only whether its maps count as locked memory."""

    def __init__(self, counts: bool) -> None:
        self._counts = counts

    def member_type(self, structure: str, member: str) -> str | None:
        return "bpf_map_memory" if self._counts and (structure, member) == ("bpf_map", "memory") else None


@pytest.mark.parametrize(
    ("counts", "most", "capable", "refused"),
    [
        (True, 65536, False, True),
        (True, 65536, True, False),
        (True, -1, False, False),
        (True, 1 << 40, False, False),
        (False, 65536, False, False),
    ],
)
def test_where_maps_are_locked_memory(
    status: Path, monkeypatch: pytest.MonkeyPatch, counts: bool, most: int, capable: bool, refused: bool
) -> None:
    """Up to 5.10."""
    say(status, bits(*NEEDED) | (bits(Capability.SYS_RESOURCE) if capable else 0))
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda _: (0, most))
    if refused:
        with pytest.raises(preflight.Refusal, match=r"65,536 bytes: raise it \(ulimit -l unlimited\)"):
            preflight.check_memory(Kernel(counts))  # type: ignore[arg-type]
    else:
        preflight.check_memory(Kernel(counts))  # type: ignore[arg-type]


def test_guests_try_what_the_code_needs() -> None:
    """What runs in a guest imports nothing of ours."""
    text = (Path(__file__).resolve().parents[1] / "guest" / "unprivileged.py").read_text()
    for name, wanted in (("NEEDED", NEEDED), ("HELPFUL", HELPFUL)):
        told = re.search(rf"^{name} = \((.*)\)$", text, re.MULTILINE)
        assert told and re.findall(r"\w+", told[1]) == [capability.name.lower() for capability in wanted]
