"""Real programs under trace, in the guest: each is judged by its own account of what it did.

That account: the messages that it read from its userfaultfds (uffd_log.so in the
program itself), and what it reports and traces of itself. Only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import uffd_log
from steps import FINISH_SECONDS, Guest, Result, answered, attached, finish, started, until

# On a file system that can map files shared, which 9p cannot.
SCRATCH = Path("/run/uffdtrace-programs")
MEMORY_MB = 32
# Bytes per second; so slow that the machine meets most pages before the migration does.
PRECOPY_BANDWIDTH = 256 << 10
POSTCOPY_BANDWIDTH = 4 << 20
SLICES = 10
PAGE = 4096
# Of what boot.S writes after a key, more than a sweep.
WIDE_SLICES = 100
# MIG_RP_MSG_REQ_PAGES_ID and MIG_RP_MSG_REQ_PAGES.
REQUEST_PAGES = "[34]"
MIGRATED = ("completed", "failed", "cancelled")


class Qmp:
    """QEMU's machine protocol. A refused command is a RuntimeError."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(FINISH_SECONDS)

        def connects() -> bool:
            """The socket has its name before anybody listens there."""
            try:
                self._socket.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        if not until(connects, FINISH_SECONDS):
            raise RuntimeError(f"QEMU listens on no {path.name} after {FINISH_SECONDS:.0f} s")
        self._lines = self._socket.makefile("r")
        self.events: list[dict[str, Any]] = []
        self._answer()
        self("qmp_capabilities")

    def __call__(self, command: str, /, **arguments: Any) -> Any:
        """The command's return; an underscore in an argument's name is a dash."""
        message = {"execute": command, "arguments": {name.replace("_", "-"): arguments[name] for name in arguments}}
        self._socket.sendall(json.dumps(message).encode())
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"QEMU refused {command}: {answer['error']['desc']}")
        return answer["return"]

    def event(self, name: str) -> None:
        """Wait until it has come."""
        while not any(event["event"] == name for event in self.events):
            self._read()

    def _answer(self) -> dict[str, Any]:
        while (message := self._read()) is None:
            pass
        return message

    def _read(self) -> dict[str, Any] | None:
        """The next message, or None where it was an event."""
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU closed its QMP socket")
        message: dict[str, Any] = json.loads(line)
        if "event" not in message:
            return message
        self.events.append({"event": message["event"], **message.get("data", {})})
        return None

    def migrated(self) -> dict[str, Any]:
        """query-migrate's answer when the migration is over."""
        answer: dict[str, Any] = {}

        def over() -> bool:
            nonlocal answer
            answer = self("query-migrate")
            return answer.get("status") in MIGRATED

        if not until(over, FINISH_SECONDS):
            raise RuntimeError(f"the migration is not over after {FINISH_SECONDS:.0f} s: {answer}")
        return answer

    def enable(self, *capabilities: str) -> None:
        states = [{"capability": name, "state": True} for name in capabilities]
        self("migrate-set-capabilities", capabilities=states)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Machine:
    """A QEMU that runs boot.S, and its own account of itself."""

    def __init__(self, folder: Path, name: str) -> None:
        self.slices_file = folder / f"{name}.slices"
        self.log = folder / f"{name}.log"
        self.stderr = folder / f"{name}.stderr"
        self.qmp_path = folder / f"{name}.qmp"
        # A socket takes one client at a time.
        self.second_qmp_path = folder / f"{name}.qmp2"
        self.log_folder = folder / f"{name}.uffd"
        self.log_folder.mkdir()
        self.process: subprocess.Popen[str]
        self.qmp: Qmp

    def slices(self) -> int:
        return self.slices_file.stat().st_size if self.slices_file.exists() else 0

    def go_on(self, more: int = SLICES) -> int:
        """The slices of pages that it wrote so far, after some more."""
        enough = self.slices() + more
        if not until(lambda: self.slices() >= enough, FINISH_SECONDS):
            raise RuntimeError(f"the machine does not run: {self.slices()} slices: {self.stderr.read_text()[-2000:]}")
        return self.slices()

    def widen(self) -> None:
        """Let it write faster, and where it never wrote before."""
        self.qmp("send-key", keys=[{"type": "qcode", "data": "spc"}])

    def quit(self) -> int | None:
        """QEMU's exit status, after an orderly end."""
        self.qmp("quit")
        return finish(self.process, FINISH_SECONDS)

    def traced(self, pattern: str) -> list[tuple[str, ...]]:
        """The groups of every line of QEMU's trace that matches."""
        return [found.groups() for found in re.finditer(pattern, self.log.read_text(), re.MULTILINE)]

    def account(self) -> Result:
        return {
            "pid": self.process.pid,
            "counts": uffd_log.counts(self.log_folder, self.process.pid),
            "events": self.qmp.events,
            "stderr": self.stderr.read_text()[-2000:],
        }


@contextlib.contextmanager
def machine(guest: Guest, folder: Path, name: str, trace: list[str], *options: str) -> Iterator[Machine]:
    made = Machine(folder, name)
    command = uffd_log.preloaded(guest.programs, made.log_folder)
    command += ["qemu-system-x86_64", "-accel", "tcg,tb-size=16", "-m", str(MEMORY_MB), "-nodefaults"]
    command += ["-display", "none", "-qmp", f"unix:{made.qmp_path},server=on,wait=off"]
    command += ["-qmp", f"unix:{made.second_qmp_path},server=on,wait=off"]
    command += ["-drive", f"if=floppy,format=raw,readonly=on,file={guest.programs}/boot.img", "-boot", "a"]
    command += ["-debugcon", f"file:{made.slices_file}", "-D", str(made.log)]
    for event in trace:
        command += ["-trace", event]
    with open(made.stderr, "w") as err, started(guest, [*command, *options], subprocess.DEVNULL, err) as process:
        made.process = process
        made.qmp = Qmp(made.qmp_path)
        with contextlib.closing(made.qmp):
            yield made


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    folder = SCRATCH / name
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def mapped(guest: Guest, source: Machine, folder: Path) -> Result:
    """What `uffdtrace map` says of a machine that stands still, and whether the bytes there are the machine's."""
    source.qmp("stop")
    said = answered(guest, [*guest.uffdtrace, "map", "--qmp", str(source.second_qmp_path)])
    same = []
    with open(f"/proc/{source.process.pid}/mem", "rb", buffering=0) as memory:
        for line in said["stdout"].splitlines()[1:]:
            name, host, length, guest_physical = line.split()
            # The machine's word: QEMU saves what the machine has at that address.
            saved = folder / "page"
            source.qmp("pmemsave", val=int(guest_physical, 0), size=PAGE, filename=str(saved))
            memory.seek(int(host, 0))
            same.append(
                [name, int(host, 0), int(length, 0), int(guest_physical, 0), memory.read(PAGE) == saved.read_bytes()]
            )
    source.qmp("cont")
    return {"exit_status": said["exit_status"], "stderr": said["stderr"], "blocks": same}


def qemu_snapshot(guest: Guest) -> Result:
    """Background snapshot: QEMU protects its memory and saves it while the machine goes on."""
    name = "qemu-snapshot"
    began = time.monotonic()
    with scratch(name) as folder:
        saved = folder / "saved"
        with machine(guest, folder, "source", ["ram_write_tracking_ramblock_start"]) as source:
            before = source.go_on()
            with attached(guest, name, str(source.process.pid)) as collector:
                source.qmp.enable("background-snapshot")
                source.widen()
                source.go_on()
                source.qmp("migrate", uri=f"exec:cat > {saved}")
                # Its memory is protected now, pages that were never touched too.
                source.qmp.event("RESUME")
                source.widen()
                answer = source.qmp.migrated()
                after = source.go_on()
                memory = mapped(guest, source, folder)
                qemu_status = source.quit()
                status = finish(collector, FINISH_SECONDS)
            blocks = source.traced(r"ram_write_tracking_ramblock_start (\S+): page_size: \d+ addr: (\S+) length: (\d+)")
            return {
                "exit_status": status,
                "seconds": round(time.monotonic() - began, 1),
                "qemu_exit_status": qemu_status,
                "migrate": answer,
                "slices": [before, after],
                "saved_bytes": saved.stat().st_size,
                "map": memory,
                "blocks": [[block, start, int(length)] for block, start, length in blocks],
                "source": source.account(),
            }


def qemu_postcopy(guest: Guest) -> Result:
    """Postcopy: the destination runs at once, and fetches each page when it is missing."""
    name = "qemu-postcopy"
    began = time.monotonic()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    events = ["postcopy_init_range", "postcopy_ram_fault_thread_request", "migrate_send_rp_message"]
    with scratch(name) as folder:
        with machine(guest, folder, "source", []) as source:
            with machine(guest, folder, "destination", events, "-incoming", "defer") as destination:
                source.go_on()
                with attached(guest, name, str(destination.process.pid)) as collector:
                    source.widen()
                    before = source.go_on(WIDE_SLICES)
                    for end in (source, destination):
                        end.qmp.enable("postcopy-ram")
                    bandwidths = {"max_bandwidth": PRECOPY_BANDWIDTH, "max_postcopy_bandwidth": POSTCOPY_BANDWIDTH}
                    source.qmp("migrate-set-parameters", **bandwidths)
                    destination.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
                    port = destination.qmp("query-migrate")["socket-address"][0]["port"]
                    source.qmp("migrate", uri=f"tcp:127.0.0.1:{port}")
                    if not until(lambda: source.qmp("query-migrate").get("status") == "active", FINISH_SECONDS):
                        raise RuntimeError(f"the migration did not start: {source.qmp('query-migrate')}")
                    source.qmp("migrate-start-postcopy")
                    answer = source.qmp.migrated()
                    arrived = destination.qmp.migrated()
                    after = destination.go_on()
                    statuses = [end.quit() for end in (source, destination)]
                    status = finish(collector, FINISH_SECONDS)
                blocks = destination.traced(r"postcopy_init_range (\S+): (\S+) offset=0x\w+ length=0x(\w+)")
                requests = destination.traced(r"postcopy_ram_fault_thread_request Request for HVA=(0x\w+)")
                return {
                    "exit_status": status,
                    "seconds": round(time.monotonic() - began, 1),
                    "qemu_exit_statuses": statuses,
                    "migrate": answer,
                    "arrived": arrived,
                    "slices": [before, after],
                    "blocks": [[block, start, int(length, 16)] for block, start, length in blocks],
                    "requested": len(requests),
                    "requested_pages": len(set(requests)),
                    "requests_sent": len(destination.traced(rf"migrate_send_rp_message ({REQUEST_PAGES}): ")),
                    "source": source.account(),
                    "destination": destination.account(),
                }


STEPS: dict[str, Callable[[Guest], Result]] = {"qemu-snapshot": qemu_snapshot, "qemu-postcopy": qemu_postcopy}
