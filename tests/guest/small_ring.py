"""uffdtrace with a ring of one page and lanes of a few records, so that most events find no room."""

from __future__ import annotations

from uffdtrace.cli import main
from uffdtrace.collect import program

SLOTS = 16

if __name__ == "__main__":
    program.RING_PAGES = 1
    program.lane_slots = lambda cpus: SLOTS
    main()
