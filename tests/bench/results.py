"""What scripts/bench measured, as rows and tables. Only the standard library.

A row has what was measured, under which condition, its value and spread, and its
ratios to something measured nearby in the same run. Of faults the value is the
fastest round, and the spread goes to the median round; of all else they are the
median, the lowest and the highest. `n` counts blocks, starts or runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "scripts" / "bench.json"
UNTRACED = "untraced"
BASE_OF_STARTS = "bpftrace"
ROUND_TRIP = "WP fault round trip"
FRESH = "page fault of another process"
START = "start until tracing"

Json = dict[str, Any]


def model_name() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def machine() -> Json:
    # Without what its builder called it.
    return {"kernel": platform.release().partition("-")[0], "cpu": model_name(), "cpus": os.cpu_count()}


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [median(values), min(values), max(values)]


def row(
    what: str, condition: str, unit: str, n: int, values: Sequence[float], ratios: Sequence[float], base: str
) -> Json:
    """`values` are the one to tell, and its spread; `ratios` are to `base`, and may be none."""
    return {
        "what": what,
        "condition": condition,
        "unit": unit,
        "values": [_short(value) for value in values],
        "ratios": [_short(ratio) for ratio in spread(ratios)] if ratios else None,
        "base": base,
        "n": n,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# ---- from what was measured ------------------------------------------------------


def _block_rows(blocks: list[Json], what: str, member: str) -> Iterable[Json]:
    # A block's fastest round, a mean of many faults: what other load takes only adds.
    times = [min(block[member]) for block in blocks]
    for condition in dict.fromkeys(block["condition"] for block in blocks):
        # The untraced blocks nearest to it, on both sides; untraced itself shows the noise.
        reach = 2 if condition == UNTRACED else 1
        rounds, ratios, n = [], [], 0
        for number, block in enumerate(blocks):
            if block["condition"] == condition:
                n += 1
                rounds += [ns / 1000 for ns in block[member]]
                # The first block and the last have but one.
                near = [times[at] for at in (number - reach, number + reach) if 0 <= at < len(blocks)]
                if near:
                    ratios.append(times[number] / min(near))
        yield row(what, condition, "µs", n, (min(rounds), min(rounds), median(rounds)), ratios, UNTRACED)


def traced_part(found: Json) -> Json:
    blocks = [block for block in found.pop("blocks") if block["condition"] != "warm-up"]
    rows = [*_block_rows(blocks, ROUND_TRIP, "wp_ns"), *_block_rows(blocks, FRESH, "fresh_ns")]
    starts: dict[str, list[float]] = {}
    for block in blocks:
        if "start_s" in block:
            starts.setdefault(block["condition"], []).append(block["start_s"])
    for condition, seconds in starts.items():
        # The n-th start of each belongs to the n-th cycle.
        bases = [] if condition == BASE_OF_STARTS else starts.get(BASE_OF_STARTS, [])
        ratios = [mine / base for mine, base in zip(seconds, bases)]
        rows.append(row(START, condition, "s", len(seconds), spread(seconds), ratios, BASE_OF_STARTS))
    faults = found["rounds"] * found["wp_pages"]
    saw = {block["condition"]: block["seen"] for block in blocks if block.get("seen", faults) < faults}
    return {**found, "saw_less": {name: [seen, faults] for name, seen in saw.items()}, "rows": rows}


def accounting_part(found: Json) -> Json:
    rows = []
    for what, base in (("account", "copying the events"), ("report", "reading the file")):
        runs = found[what]
        events = runs[0]["events"] / 1e6
        condition = f"{events:.3g} million events"
        ratios = [run["cpu_s"] / run["reference_s"] for run in runs]
        memory = [run["max_rss_kib"] / 1024 for run in runs]
        if what == "account":
            rates = [run["events"] / 1e6 / run["cpu_s"] for run in runs]
            rows.append(
                row("decode and account, one core", condition, "million/s", len(runs), spread(rates), ratios, base)
            )
        else:
            seconds = [run["cpu_s"] for run in runs]
            rows.append(row("report, CPU time", condition, "s", len(runs), spread(seconds), ratios, base))
            rows.append(
                row("report, by the clock", condition, "s", len(runs), spread([run["wall_s"] for run in runs]), [], "")
            )
        rows.append(row(f"{what}, peak memory", condition, "MiB", len(runs), spread(memory), [], ""))
    return {**machine(), "rows": rows}


# ---- for readers -----------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _spread(values: Sequence[float], unit: str) -> str:
    middle, low, high = map(_number, values)
    return f"{middle}{unit} ({low} to {high})" if low != high else f"{middle}{unit}"


def _ratio(one: Json, times: str) -> str:
    middle, low, high = one["ratios"]
    seen = f" ({low:.2f} to {high:.2f})" if low != high else ""
    return f"{middle:.2f} {times} {one['base']}{seen}"


def where(part: Json) -> str:
    # The name that QEMU gives a CPU of its own.
    emulated = "an emulated guest (QEMU's TCG, no hardware virtualisation)" if "TCG" in part["cpu"] else part["cpu"]
    rounds = ""
    if "rounds" in part:
        rounds = (
            f", blocks of {part['rounds']} rounds of {part['wp_pages']} round trips or {part['fresh_pages']:,} faults"
        )
    return (
        f"Linux {part['kernel']}, {part['cpus']} CPUs, {emulated}, on a machine with a load of {part['load']}{rounds}"
    )


def table(part: Json) -> str:
    """Markdown that is readable as it is."""
    rows = [["what", "", "value (spread)", "ratio (lowest to highest)", "n"]]
    for one in part["rows"]:
        ratio = _ratio(one, "x") if one["ratios"] else ""
        rows.append([one["what"], one["condition"], _spread(one["values"], " " + one["unit"]), ratio, str(one["n"])])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    return "".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |\n" for line in rows)


def markdown(parts: Json) -> str:
    return "\n".join(f"{where(part)}:\n\n{table(part)}{_saw_less(part)}" for part in parts.values())


def _saw_less(part: Json) -> str:
    return "".join(
        f"\nIn one block {name} saw {seen:,} of {faults:,} faults.\n"
        for name, (seen, faults) in part.get("saw_less", {}).items()
    )


def sentences(parts: Json) -> Iterable[tuple[str, str]]:
    """What it is, and the ratio in words, for each row that has one."""
    for part in parts.values():
        for one in part["rows"]:
            if one["ratios"]:
                name = f"{one['what']}, {one['condition']}"
                yield name, f"{_ratio(one, 'times')}, of {one['n']}"


def committed() -> Json:
    """The parts of the last run that was written; none before the first."""
    return dict(json.loads(COMMITTED.read_text())) if COMMITTED.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traced", type=Path, help="what in_guest.py left")
    parser.add_argument("--accounting", type=Path, help="what on_host.py printed")
    parser.add_argument("--write", action="store_true", help=f"into {COMMITTED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    parts: Json = {}
    if arguments.traced:
        parts["traced"] = traced_part(json.loads(arguments.traced.read_text()))
    if arguments.accounting:
        parts["accounting"] = accounting_part(json.loads(arguments.accounting.read_text()))
    for part in parts.values():
        # Of the last quarter of an hour, which is what a run takes.
        part["load"] = round(os.getloadavg()[2], 1)
    print(markdown(parts))
    if arguments.write:
        # A part that was not measured today stays.
        merged = {**committed(), **parts}
        COMMITTED.write_text(json.dumps({name: merged[name] for name in sorted(merged, reverse=True)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
