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
        functions = {one.candidate.function for one in planned if one.row.name in rows}

        def kept(one: probes.Attachment) -> probes.Attachment:
            if one.kind is not probes.ProbeKind.SESSION or one.candidate.function not in functions:
                return one
            # What is left of a session is a probe of its own.
            entry = one.candidate.where is probes.Where.ENTRY
            return replace(one, kind=probes.ProbeKind.MULTI if entry else probes.ProbeKind.KPROBE)

        return [
            replace(one, kind=probes.ProbeKind.KPROBE, candidate=replace(one.candidate, function=NEVER_RUN))
            if one.row.name in rows
            else kept(one)
            for one in planned
        ]

    probes.plan = silenced
    main()
