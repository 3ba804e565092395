"""Lost pages by the virtual machine's own addresses, and what monitors tell of their machines' memory."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from unit.events import BASE, Events
from unit.traces import write

from uffdtrace.cli import main
from uffdtrace.collect import machine
from uffdtrace.collect.machine import MachineError
from uffdtrace.model.diagnosis.guest_memory import (
    MOST_ALIASES,
    MOST_BLOCKS,
    Block,
    GuestMemory,
    MapError,
    parsed,
    written,
)

PAGE = 4096
# What QEMU 7.2 says of a machine of 256 MiB.
MTREE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "VGA", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000
  00000000000cb000-000000000fffffff (prio 0, ram): pc.ram @00000000000cb000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios

FlatView #3
 AS "piix3-ide", root: bus master container
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
"""
RAM, BIOS = 0x7F3A00000000, 0x7F3B00000000


def hmp(line: str) -> str:
    if line == "info mtree -f":
        return MTREE
    address = int(line.removeprefix("gpa2hva "), 16)
    if address == 0xC0000:
        # As of a device's own memory.
        return "Memory at address 0xc0000is not RAM\r\n"
    name, host = ("pc.bios", BIOS) if address >= 0xFFFC0000 else ("pc.ram", RAM + address)
    return f"Host virtual address for {address:#x} ({name}) is {host:#x}\r\n"


# ---- maps ------------------------------------------------------------------------------

numbers = st.integers(0, 64)
blocks = st.lists(
    st.builds(
        lambda host, length, guest, name: Block(host * PAGE, length * PAGE, guest * PAGE, name),
        numbers,
        st.integers(1, 16),
        numbers,
        st.sampled_from(["ram", "rom", "vga"]),
    ),
    min_size=1,
    max_size=MOST_ALIASES,
)


@given(blocks)
def test_a_map_is_read_as_it_was_written(found: list[Block]) -> None:
    assert parsed(written(found)) == found


@given(blocks, numbers, st.integers(1, 40))
def test_each_page_is_where_its_blocks_say(found: list[Block], first: int, pages: int) -> None:
    """Page by page, without the edges."""
    expected = set()
    for page in range(first, first + pages):
        for block in set(found):
            if block.host <= page * PAGE < block.host + block.length:
                expected.add((block, page * PAGE - block.host + block.guest))
    pieces = GuestMemory(found).pieces(first * PAGE, (first + pages) * PAGE)
    told = [
        (one["block"], address) for one in pieces for address in range(int(one["start"], 16), int(one["end"], 16), PAGE)
    ]
    assert sorted(told) == sorted((block.name, address) for block, address in expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no block"),
        ("# nothing\n\n", "no block"),
        ("ram 0x1000 0x1000\n", "line 1 is not NAME"),
        ("ram 0x0 0x1000 0x0\nram 0x1000 many 0x0\n", "line 2 is not NAME"),
        ("ram 0x1000 0 0\n", "line 1 reaches beyond"),
        ("ram -1 1 0\n", "line 1 reaches beyond"),
        ("ram 0xffffffffffffffff 0x2 0\n", "line 1 reaches beyond"),
        ("ram 0 4096 0\n" * (MOST_BLOCKS + 1), "one block too many"),
        ("ram " + "9" * 5000 + " 1 1", "line 1 is not NAME"),
    ],
)
def test_what_is_no_map_is_told(text: str, said: str) -> None:
    with pytest.raises(MapError, match=said):
        parsed(text)


def test_more_aliases_than_a_machine_has() -> None:
    with pytest.raises(MapError, match="more than 16 blocks"):
        GuestMemory([Block(0, PAGE, number * PAGE, "ram") for number in range(MOST_ALIASES + 1)])


# ---- reports ---------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Eight armed pages: two of them lost, three apart."""
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8, 6)
    for page in (1, 4):
        events.fresh(page)
    write(tmp_path / "trace.data", events.array())
    (tmp_path / "vm.map").write_text(
        f"# by hand\nlow {BASE:#x} {4 * PAGE} 0x100000\nhigh {BASE + 4 * PAGE:#x} {2 * PAGE} 0x100000000\n"
        f"alias {BASE + 4 * PAGE:#x} {PAGE} 0xfffff000\n"
    )
    return tmp_path


def report(folder: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["report", str(folder / "trace.data"), "--map", str(folder / "vm.map"), *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_lost_pages_have_the_machines_addresses(trace: Path) -> None:
    made: dict[str, Any] = json.loads(report(trace, "--format", "json"))
    first, second = made["ranges"][0]["lost"]["runs"]
    assert first["guest"] == [{"block": "low", "start": "0x101000", "end": "0x102000"}]
    assert sorted(one["block"] for one in second["guest"]) == ["alias", "high"]
    assert {one["block"]: one["lost_pages"] for one in made["guest_memory"]} == {"low": 1, "high": 1, "alias": 1}
    text = report(trace)
    assert "guest-physical low 0x101000-0x102000" in " ".join(text.split())
    assert "Guest-physical addresses" in text and "0x100000000-0x100002000" in text
    listed = report(trace, "--pages")
    assert "Guest addresses" in listed and "high 0x100000000-0x100001000" in " ".join(listed.split())
    assert "<h2>Guest memory</h2>" in report(trace, "--format", "html")


def test_a_map_that_is_none_is_one_line(trace: Path) -> None:
    (trace / "vm.map").write_text("nothing\n")
    done = CliRunner().invoke(main, ["report", str(trace / "trace.data"), "--map", str(trace / "vm.map")])
    (line,) = done.output.splitlines()
    assert done.exit_code == 1 and "line 1 is not NAME HOST-ADDRESS LENGTH GUEST-ADDRESS" in line


# ---- monitors --------------------------------------------------------------------------


def test_what_qemu_says() -> None:
    assert machine.qemu(hmp) == [
        Block(RAM, 0xA0000, 0, "pc.ram"),
        Block(RAM + 0xCB000, 0x10000000 - 0xCB000, 0xCB000, "pc.ram"),
        Block(BIOS, 0x40000, 0xFFFC0000, "pc.bios"),
    ]


@pytest.mark.parametrize("answer", ["", "unknown command: 'info'", MTREE])
def test_a_monitor_that_does_not_tell(answer: str) -> None:
    with pytest.raises(MachineError):
        machine.qemu(lambda line: answer)


class Qemu(threading.Thread):
    """Answers one client with these lines, whatever it says; an event goes before each."""

    def __init__(self, path: Path, *lines: bytes) -> None:
        super().__init__(daemon=True)
        self.lines = lines
        self.heard = b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.start()

    def run(self) -> None:
        client, _ = self.socket.accept()
        with client:
            for line in self.lines:
                client.sendall(b'{"event": "RESUME"}\n' * (line is not self.lines[0]) + line)
                self.heard += client.recv(1 << 16)


GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'


def test_a_conversation_with_qmp(tmp_path: Path) -> None:
    qemu = Qemu(tmp_path / "qmp", GREETING, b'{"return": {}}\n', b'{"return": "yes\\r\\n"}\n')
    with machine.Qmp(tmp_path / "qmp") as monitor:
        assert monitor.ask("info mtree -f") == "yes\r\n"
    qemu.join(10)
    said = [json.loads(line) for line in qemu.heard.splitlines()]
    assert [one["execute"] for one in said] == ["qmp_capabilities", "human-monitor-command"]
    assert said[1]["arguments"] == {"command-line": "info mtree -f"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "is not QEMU's QMP"),
        ([b"[1]\n"], "is not QEMU's QMP"),
        ([], "is not QEMU's QMP"),
        ([GREETING, b'{"error": {"desc": "busy"}}\n'], "refused qmp_capabilities: .*busy"),
    ],
)
def test_whoever_is_not_qemu(tmp_path: Path, lines: list[bytes], said: str) -> None:
    listening = Qemu(tmp_path / "qmp", *lines)
    with pytest.raises(MachineError, match=said):
        machine.Qmp(tmp_path / "qmp")
    listening.join(10)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="No such file or directory: name the socket"):
        machine.Qmp(tmp_path / "qmp")
    # Another client holds it.
    monkeypatch.setattr(machine, "_WAIT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(tmp_path / "qmp"))
        held.listen()
        with pytest.raises(MachineError, match="one client at a time"):
            machine.Qmp(tmp_path / "qmp")


def test_a_command_that_asks_the_monitor(tmp_path: Path) -> None:
    script = tmp_path / "virsh"
    script.write_text('#!/bin/sh\n[ "$1" = vm1 ] || { echo no such domain >&2; exit 1; }\nprintf \'asked: %s\' "$2"\n')
    script.chmod(0o755)
    assert machine.by_command([str(script), "vm1"])("info mtree -f") == "asked: info mtree -f"
    with pytest.raises(MachineError, match="ended with status 1: no such domain"):
        machine.by_command([str(script), "vm2"])("info mtree -f")
    with pytest.raises(MachineError, match="No such file"):
        machine.by_command([str(tmp_path / "missing")])("info")


def test_what_firecracker_sends() -> None:
    parts = [
        {"base_host_virt_addr": RAM + (3 << 30), "size": 1 << 30, "offset": 3 << 30, "page_size_kib": 4},
        {"base_host_virt_addr": RAM, "size": 3 << 30, "offset": 0, "page_size_kib": 4},
    ]
    assert machine.firecracker(json.dumps(parts), "x86_64") == [
        Block(RAM, 3 << 30, 0, "memory0"),
        Block(RAM + (3 << 30), 1 << 30, 4 << 30, "memory1"),
    ]
    assert machine.firecracker(json.dumps(parts[1:]), "aarch64") == [Block(RAM, 3 << 30, 2 << 30, "memory0")]
    with pytest.raises(MachineError, match="where 2 parts"):
        machine.firecracker(json.dumps(parts), "aarch64")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"size": 1}]', '[{"base_host_virt_addr": "x", "size": 1, "offset": 0}]']
)
def test_what_firecracker_does_not_send(text: str) -> None:
    with pytest.raises(MachineError):
        machine.firecracker(text, "x86_64")


def test_one_of_three_is_asked() -> None:
    done = CliRunner().invoke(main, ["map"])
    assert done.exit_code == 2 and "give one of --qmp SOCKET" in done.output
    done = CliRunner().invoke(
        main, ["map", "--firecracker", "-"], input='[{"base_host_virt_addr": 1, "size": 2, "offset": 0}]'
    )
    assert done.exit_code == 0 and done.output.splitlines()[1].startswith("memory0 0x1 0x2 0x")
