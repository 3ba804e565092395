"""A tracked process that hands its userfaultfd to a monitor over a socket, as Firecracker does.

    handoff.py monitor SOCKET OUT       serves whoever connects, until SIGTERM
    handoff.py tracked SOCKET PAGES     prints its PID, waits for a line, writes

The tracked process registers MISSING and WP, sends the descriptor and closes
its own. Its first write of each page is missing; then the monitor arms them
all, and every other page is written again. The monitor counts what it reads:
OUT is JSON, {PID: {"missing", "wp", "start", "pages"}} of those that have ended. Only
the standard library.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from uffd import MISSING, PAGE, WP, copy, mapping, messages, protect, register, userfaultfd, write_pages

ended: dict[int, Any] = {}
ending = threading.Lock()


def serve(connection: socket.socket, out: Path) -> None:
    said, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    (fd,) = fds
    hello = json.loads(said)
    mine = {"missing": 0, "wp": 0, **hello}
    source = mapping(PAGE)
    write_pages(source, range(1))
    served = 0
    while True:
        ready = select.select([fd, connection], [], [])[0]
        if fd in ready:
            for message in messages(os.read(fd, 16 * 32)):
                mine["wp" if message.wp else "missing"] += 1
                if message.wp:
                    protect(fd, message.address, 0, 1, on=False)
                else:
                    copy(fd, message.address, source)
                    served += 1
            if served == hello["pages"]:
                served = 0
                protect(fd, hello["start"], 0, hello["pages"])
                connection.send(b"armed")
        elif ready:
            break
    os.close(fd)
    with ending:
        ended[hello["pid"]] = mine
        part = out.with_suffix(".part")
        part.write_text(json.dumps(ended))
        part.replace(out)


def monitor(path: str, out: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(os.getpid(), flush=True)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection, out), daemon=True).start()


def tracked(path: str, pages: int) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    start = mapping(pages * PAGE)
    fd = userfaultfd()
    register(fd, start, pages * PAGE, MISSING | WP)
    hello = {"pid": os.getpid(), "start": start, "pages": pages}
    socket.send_fds(connection, [json.dumps(hello).encode()], [fd])
    os.close(fd)
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    write_pages(start, range(pages))
    assert connection.recv(16) == b"armed"
    write_pages(start, range(0, pages, 2))


if __name__ == "__main__":
    if sys.argv[1] == "monitor":
        monitor(sys.argv[2], Path(sys.argv[3]))
    else:
        tracked(sys.argv[2], int(sys.argv[3]))
