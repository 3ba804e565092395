"""Attaches and detaches again and again, in one process; a line of JSON about it each time.

    attaching.py PID TIMES TRACE

What a trace holds of the kernel and of itself is taken and given back TIMES times, with all
that attach does but to give its privileges up, after which there would be no second time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from uffdtrace.collect import found, proof
from uffdtrace.collect.session import Options, load
from uffdtrace.model.records.events import Type

TRACED_SECONDS = 0.2


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """KiB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


def main() -> None:
    pid, times, output = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    for _ in range(times):
        loaded = load(Options(output=output), lambda _: None)
        try:
            loaded.program.attach()
            stream = loaded.program.stream()
            proved = proof.prove(loaded.program, stream)
            loaded.program.follow(pid)
            found.LookBack(loaded.program, stream).start([pid])
            time.sleep(TRACED_SECONDS)
            stream.fetch()
            messages = int((stream.held["type"] == Type.MESSAGE).sum())
            # Their maps of the ring hold it.
            del stream
        finally:
            loaded.close()
        unproven = proof.unproven(loaded.program.attachments, proved)
        said = {"descriptors": descriptors(), "resident_kb": resident(), "messages": messages, "unproven": unproven}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
