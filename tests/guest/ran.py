"""Where the scenarios ran: the closing table, kept in tests/guest/ran.json, of which scripts/readme makes README's.

One row for each machine and backend; a run takes the place of the row that it repeats.
"""

from __future__ import annotations

import json
from pathlib import Path

from guest.features import SCENARIOS, expected, place
from guest.results import Guest, Json

RAN = Path(__file__).with_name("ran.json")


def row(cells: dict[tuple[str, str, str], str], guest: Guest, backend: str) -> Json:
    """A machine that the scenarios ran on with that backend; `cells` are the closing table's."""
    said, machine = guest.trace(backend).report["trace"], guest.step("guest")
    found = [cells.get((scenario, guest.suite, backend), "not run") for scenario in expected(guest.suite)]
    return {
        "machine": guest.suite,
        "backend": backend,
        "kernel": said["kernel"],
        "arch": said["arch"],
        "page_size": said["page_size"],
        "probes": said["backend"],
        "python": machine["python"],
        "bcc": machine["bcc"],
        "scenarios": len(found),
        "absent": len(SCENARIOS) - len(found),
        # The tests hold all others to their exact counts.
        "exact": found.count("ok"),
        "lower_bounds": found.count("lower bound"),
    }


def record(path: Path, cells: dict[tuple[str, str, str], str], guests: dict[str, Guest]) -> None:
    """Put what ran as a whole into the file, in the order of the machines."""
    rows = {(one["machine"], one["backend"]): one for one in read(path)}
    for suite, backend in dict.fromkeys((suite, backend) for _, suite, backend in cells):
        # Of a few chosen scenarios, or of a guest that died, nobody can say what that machine does.
        whole = all((scenario, suite, backend) in cells for scenario in expected(suite))
        if suite in guests and whole and "error" not in guests[suite].trace(backend).step:
            rows[suite, backend] = row(cells, guests[suite], backend)
    ordered = sorted(rows.values(), key=lambda one: (place(one["machine"]), one["backend"]))
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def read(path: Path = RAN) -> list[Json]:
    return list(json.loads(path.read_text())) if path.exists() else []


def markdown(rows: list[Json]) -> str:
    lines = [
        "| machine | kernel | pages | Python, BCC | probes | scenarios |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        counted = f"{one['exact']} of {one['scenarios']} exact"
        if one["lower_bounds"]:
            counted += f", {one['lower_bounds']} said to be lower bounds"
        if one["absent"]:
            counted += f"; {one['absent']} the kernel does not have"
        cells = (
            f"`{one['machine']}`",
            f"{one['kernel']} {one['arch']}",
            f"{one['page_size'] >> 10} KiB",
            f"{one['python']}, {one['bcc']}",
            f"{one['backend']}: {one['probes']}",
            counted,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
