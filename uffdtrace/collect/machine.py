"""Where virtual machine monitors say that their machines' memory lies.

QEMU tells it on its monitor: `info mtree -f` which guest-physical addresses are
memory, `gpa2hva` where one of them is in its own address space. Firecracker sends
it with the userfaultfd, to the process that shall serve its page faults.
"""

from __future__ import annotations

import json
import platform
import re
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from uffdtrace.errors import UffdtraceError
from uffdtrace.model.diagnosis.guest_memory import MOST_BLOCKS, Block

_WAIT_S = 10.0
_MOST_BYTES = 16 << 20
# "  0000000000000000-00000000000bffff (prio 0, ram): pc.ram @0000000000000000 KVM" (QEMU's system/memory.c).
_MEMORY = re.compile(r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?(?:ram|rom|ramd|romd)\): (\S+)")
_VIEW = re.compile(r'^ AS "memory",')
# "Host virtual address for 0x0 (pc.ram) is 0x7f5fb3e00000" (QEMU's monitor/hmp-cmds-target.c).
_HOST = re.compile(r"^Host virtual address for 0x[0-9a-f]+ \((.*)\) is (?:0x)?([0-9a-f]+)\s*$", re.MULTILINE)
# Where the parts of a Firecracker machine's memory begin, in their order (arch/x86_64/layout.rs and
# arch/aarch64/layout.rs): x86-64 has a hole for devices below 4 GiB. Parts behind a second hole, which machines
# of hundreds of GiB have, begin elsewhere in each of its versions.
_FIRECRACKER: dict[str, tuple[int, ...]] = {"x86_64": (0, 4 << 30), "aarch64": (2 << 30,)}

Ask = Callable[[str], str]


class MachineError(UffdtraceError):
    """A monitor does not tell where its machine's memory is."""


class Qmp:
    """A connection to QEMU's machine protocol. MachineError where nobody answers as QEMU does."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_WAIT_S)
        self._path = path
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            why = error.strerror or str(error)
            remedy = "name the socket of QEMU's option -qmp unix:SOCKET,server=on,wait=off"
            raise MachineError(f"{path}: {why}: {remedy}") from None
        self._held = b""
        try:
            self._read()
            self._call("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, line: str) -> str:
        """What QEMU's human monitor answers to that line."""
        return str(self._call("human-monitor-command", **{"command-line": line}))

    def _call(self, command: str, **arguments: str) -> Any:
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"{self._path}: {error.strerror or error}: is that QEMU's QMP socket?") from None
        while True:
            message = self._read()
            if "event" in message:
                continue
            if "return" not in message:
                raise MachineError(f"{self._path}: QEMU refused {command}: {message.get('error')}")
            return message["return"]

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._held:
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                why = "nobody answered for ten seconds" if isinstance(error, TimeoutError) else error.strerror
                raise MachineError(
                    f"{self._path}: {why}: a QMP socket takes one client at a time (libvirt holds its own:"
                    " use --hmp 'virsh qemu-monitor-command DOMAIN --hmp')"
                ) from None
            self._held += data
            if not data or len(self._held) > _MOST_BYTES:
                raise MachineError(f"{self._path}: what answers there is not QEMU's QMP")
        line, _, self._held = self._held.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise MachineError(f"{self._path}: what answers there is not QEMU's QMP")
        return message


def by_command(command: Sequence[str]) -> Ask:
    """The human monitor behind a command, which takes a line for it as its last argument and prints the answer."""

    def ask(line: str) -> str:
        try:
            done = subprocess.run(
                [*command, line], stdin=subprocess.DEVNULL, capture_output=True, timeout=_WAIT_S, check=False
            )
        except OSError as error:
            raise MachineError(f"{command[0]}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise MachineError(f"{command[0]} did not end in ten seconds") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it gives no reason"]
            raise MachineError(f"{command[0]} ended with status {done.returncode}: {said[0]}")
        return done.stdout[:_MOST_BYTES].decode(errors="replace")

    return ask


def _joined(blocks: list[Block]) -> list[Block]:
    """Parts of a block that follow each other on both sides are one."""
    found: list[Block] = []
    for block in blocks:
        if found:
            last = found[-1]
            follows = (last.name, last.host + last.length, last.guest + last.length)
            if follows == (block.name, block.host, block.guest):
                found[-1] = Block(last.host, last.length + block.length, last.guest, last.name)
                continue
        found.append(block)
    return found


def qemu(ask: Ask) -> list[Block]:
    """The memory of a QEMU machine, by its human monitor; MachineError where it tells of none."""
    inside = False
    spans: list[tuple[int, int, str]] = []
    for line in ask("info mtree -f").splitlines():
        if line.startswith("FlatView"):
            if spans:
                break
            inside = False
        inside = inside or bool(_VIEW.match(line))
        if inside and (found := _MEMORY.match(line)):
            spans.append((int(found[1], 16), int(found[2], 16) + 1, found[3]))
    if not spans or len(spans) > MOST_BLOCKS:
        raise MachineError("the monitor's answer to `info mtree -f` tells of no memory: is that QEMU's human monitor?")
    blocks = []
    for start, end, name in spans:
        # What is no memory of QEMU's own (a device's, passed through) has no address there.
        if host := _HOST.search(ask(f"gpa2hva {start:#x}")):
            blocks.append(Block(int(host[2], 16), end - start, start, name))
    if not blocks:
        raise MachineError("the monitor answers gpa2hva for none of the machine's memory: QEMU has it since 2.10")
    return _joined(blocks)


def firecracker(text: str, machine: str | None = None) -> list[Block]:
    """The memory of a Firecracker machine, by the JSON that comes with its userfaultfd; MachineError if it is none.

    [{"base_host_virt_addr": ..., "size": ..., "offset": ..., ...}, ...], where `offset` is that in the snapshot.
    """
    where = _FIRECRACKER.get(machine or platform.machine(), ())
    try:
        listed = json.loads(text)
        parts = sorted((int(one["offset"]), int(one["base_host_virt_addr"]), int(one["size"])) for one in listed)
    except (ValueError, TypeError, KeyError):
        raise MachineError(
            'that is not what Firecracker sends with its userfaultfd: [{"base_host_virt_addr": ..., "size": ...,'
            ' "offset": ...}, ...]'
        ) from None
    if not 0 < len(parts) <= len(where):
        raise MachineError(f"where {len(parts)} parts of a Firecracker machine's memory begin is not known")
    return [
        Block(host, size, guest, f"memory{number}") for number, ((_, host, size), guest) in enumerate(zip(parts, where))
    ]
