"""uffdtrace with rows of the probe table on a function that never runs: `silenced.py ROW,ROW... ARGUMENTS...`."""

from __future__ import annotations

import sys
from dataclasses import replace

from uffdtrace.cli import main
from uffdtrace.kernel import probes

# Only a panic with panic= or a magic key calls it.
NEVER_RUN = "emergency_restart"

if __name__ == "__main__":
    rows = set(sys.argv.pop(1).split(","))
    plan = probes.plan

    def silenced(*arguments: object) -> list[probes.Attachment]:
        planned = plan(*arguments)  # type: ignore[arg-type]
        assert rows <= {one.row.name for one in planned}
        return [
            replace(one, fentry=False, candidate=replace(one.candidate, function=NEVER_RUN))
            if one.row.name in rows
            else one
            for one in planned
        ]

    probes.plan = silenced
    main()
