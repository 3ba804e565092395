"""What scripts/bench measured, as rows and tables. Only the standard library.

Of each kernel: the fastest round of each kind under each tracer, in instructions, and
its ratio to the same without one. Of the accounting on this machine: a median, the
lowest and the highest, and their ratios to something measured in the same run.
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
# By the names of tests/programs/rounds.c.
KINDS = {
    "wp": "WP fault, released",
    "missing": "MISSING fault, COPY",
    "hole": "write into an armed hole",
    "released": "write to a released page",
    "fresh": "page fault of another process",
}

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


def traced_part(found: Json) -> Json:
    """A kernel's rows: what, then by condition the instructions and their ratio to the untraced ones."""
    untraced = {kind: min(found["untraced_ns"][kind], found["untraced_again_ns"][kind]) for kind in KINDS}
    rows = []
    for kind, what in KINDS.items():
        cells = {UNTRACED: [round(untraced[kind]), None]}
        for condition, one in found["conditions"].items():
            value = one["fastest_ns"][kind]
            cells[condition] = [round(value), round(value / untraced[kind], 3)]
        rows.append({"what": what, "cells": cells})
    base = found["conditions"][BASE_OF_STARTS]["start_cpu_s"]
    starts = {
        name: [round(one[when] / base, 2) for when in ("first_start_cpu_s", "start_cpu_s")]
        for name, one in found["conditions"].items()
    }
    faults = found["rounds"] * found["pages"]
    return {
        **{name: found[name] for name in ("kernel", "cpus", "rounds", "pages", "one_liner")},
        "rows": rows,
        "starts": starts,
        "breakpoints": {name: one["breakpoints"] for name, one in found["conditions"].items() if "breakpoints" in one},
        "programs": {
            name: _programs(one["programs"]) for name, one in found["conditions"].items() if "programs" in one
        },
        "saw_less": {name: [one["seen"], faults] for name, one in found["conditions"].items() if one["seen"] < faults},
    }


def _programs(found: list[Json]) -> list[Json]:
    """What each takes for one fault of each kind, the dearest first; what runs now and then is left out."""
    rows = []
    for one in found:
        row = {"name": one["name"], "type": one["type"]}
        for kind in ("wp", "fresh"):
            each, runs = one[kind]["each"], one[kind]["runs"]
            row[kind] = [round(runs, 2), round(each)] if runs >= 0.05 else [0, 0]
        if row["wp"][0] or row["fresh"][0]:
            rows.append(row)
    return sorted(rows, key=lambda row: -row["wp"][0] * row["wp"][1] - row["fresh"][0] * row["fresh"][1])


def accounting_part(found: Json) -> Json:
    """The host's rows, those of shapes and starts apart: of these nobody compares one with the other."""
    rows = []
    for name, runs in found["account"].items():
        condition = f"{runs[0]['acts'] / 1e6:.3g} million {name}"
        rates = [run["acts"] / 1e6 / run["cpu_s"] for run in runs]
        rows.append(
            _timed("accounting while it traces, one core", condition, "million/s", rates, runs, "copying the events")
        )
        rows.append(_memory("the same, peak memory", condition, runs))
    for runs in found["report"].values():
        condition = f"{runs[0]['acts']:,} served faults"
        seconds = [run["cpu_s"] for run in runs]
        rows.append(_timed("report, CPU time", condition, "s", seconds, runs, "reading the file"))
        rows.append(_memory("the same, peak memory", condition, runs))
    rows.append(row("trace file", "a served fault", "bytes", 1, [found["bytes"]] * 3, [], ""))
    return {**machine(), "rows": rows, **{name: _plain(found[name]) for name in ("shapes", "starts")}}


def _timed(what: str, condition: str, unit: str, values: Sequence[float], runs: list[Json], base: str) -> Json:
    ratios = [run["cpu_s"] / run["reference_s"] for run in runs]
    return row(what, condition, unit, len(runs), spread(values), ratios, base)


def _mebibytes(runs: list[Json]) -> list[float]:
    return [run["max_rss_kib"] / 1024 for run in runs]


def _memory(what: str, condition: str, runs: list[Json]) -> Json:
    return row(what, condition, "MiB", len(runs), spread(_mebibytes(runs)), [], "")


def _plain(found: dict[str, list[Json]]) -> list[Json]:
    """CPU time and peak memory of each."""
    return [
        {
            "what": name,
            "cpu_s": [_short(value) for value in spread([run["cpu_s"] for run in runs])],
            "mib": _short(median(_mebibytes(runs))),
            "n": len(runs),
        }
        for name, runs in found.items()
    ]


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


def _table(rows: list[list[str]]) -> str:
    """Markdown that is readable as it is; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |\n" for line in lines)


def _traced(part: Json) -> str:
    conditions = list(part["rows"][0]["cells"])
    rows = [["instructions", *conditions]]
    for one in part["rows"]:
        cells = [one["cells"][condition] for condition in conditions]
        rows.append([one["what"], *(f"{count:,}" + (f" ({ratio:.2f}x)" if ratio else "") for count, ratio in cells)])
    starts = ", ".join(
        f"{name} {later:.1f} times, the first time {first:.1f}"
        for name, (first, later) in part["starts"].items()
        if name.startswith("uffdtrace")
    )
    exceptions = "; ".join(f"{name}: {', '.join(found)}" for name, found in part["breakpoints"].items() if found)
    cpus = "one CPU" if part["cpus"] == 1 else f"{part['cpus']} CPUs"
    return (
        f"Linux {part['kernel']}, on {cpus}:\n\n{_table(rows)}\n"
        f"CPU time until it traces, beside {BASE_OF_STARTS}'s: {starts}.\n"
        f"Probes that are reached by an exception (int3): {exceptions or 'none'}.\n"
        + "".join(
            f"{name} saw {seen:,} of {faults:,} WP faults.\n" for name, (seen, faults) in part["saw_less"].items()
        )
    )


def _accounting(part: Json) -> str:
    rows = [["what", "", "value (spread)", "ratio (lowest to highest)", "n"]]
    for one in part["rows"]:
        ratio = _ratio(one, "x") if one["ratios"] else ""
        rows.append([one["what"], one["condition"], _spread(one["values"], " " + one["unit"]), ratio, str(one["n"])])
    text = (
        f"Accounting, on Linux {part['kernel']}, {part['cpus']} CPUs, {part['cpu']}, with a load of {part['load']}:\n\n"
        + _table(rows)
    )
    shapes = [["report of", "CPU time (spread)", "peak memory"]]
    shapes += [[one["what"], _spread(one["cpu_s"], " s"), f"{_number(one['mib'])} MiB"] for one in part["shapes"]]
    starts = [["start", "CPU time (spread)"]]
    starts += [[one["what"], _spread(one["cpu_s"], " s")] for one in part["starts"]]
    return (
        f"{text}\nTraces that have much of one thing, of {part['shapes'][0]['n']} runs each:\n\n{_table(shapes)}\n"
        f"What there is to start with, of {part['starts'][0]['n']} runs each:\n\n{_table(starts)}"
    )


def markdown(parts: Json) -> str:
    texts = [_traced(part) for part in parts.get("traced", {}).values()]
    texts += [_accounting(parts["accounting"])] if "accounting" in parts else []
    return "\n".join(texts)


def costs(parts: Json) -> str:
    """What uffdtrace makes of each act, by kernel: the instructions with it, times those without."""
    traced = list(parts.get("traced", {}).values())
    if not traced:
        return ""
    rows = [["times untraced", *(f"Linux {'.'.join(part['kernel'].split('.')[:2])}" for part in traced)]]
    for number, one in enumerate(traced[0]["rows"]):
        rows.append([one["what"], *(f"{part['rows'][number]['cells']['uffdtrace'][1]:.2f}" for part in traced)])
    return _table(rows)


def programs(part: Json, condition: str) -> str:
    """Instructions of each BPF program, for one WP round trip and one page fault of another process."""
    rows = [["program", "kind", "runs, WP", "each", "runs, other", "each"]]
    rows += [
        [one["name"], one["type"], *(f"{value:,}" for kind in ("wp", "fresh") for value in one[kind])]
        for one in part["programs"][condition]
    ]
    return f"Linux {part['kernel']}, {condition}:\n\n{_table(rows)}"


def sentences(parts: Json) -> Iterable[tuple[str, str]]:
    """What it is, and the ratio in words, for each row that has one."""
    for part in parts.get("traced", {}).values():
        series = ".".join(part["kernel"].split(".")[:2])
        for one in part["rows"]:
            ratios = [f"{name} {ratio:.2f}" for name, (_, ratio) in one["cells"].items() if ratio]
            yield f"{one['what']}, Linux {series}", f"times untraced: {', '.join(ratios)}"
    for one in parts.get("accounting", {}).get("rows", ()):
        if one["ratios"]:
            yield f"{one['what']}, {one['condition']}", f"{_ratio(one, 'times')}, of {one['n']}"


def _version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)[:3]]


def committed() -> Json:
    """The parts of the last run that was written; none before the first."""
    return dict(json.loads(COMMITTED.read_text())) if COMMITTED.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traced", type=Path, action="append", default=[], help="what in_guest.py left")
    parser.add_argument("--accounting", type=Path, help="what on_host.py printed")
    parser.add_argument("--write", action="store_true", help=f"into {COMMITTED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    # By suite: a kernel that was not measured today stays.
    traced = {path.stem: traced_part(json.loads(path.read_text())) for path in arguments.traced}
    parts: Json = {"traced": traced} if traced else {}
    if arguments.accounting:
        load = round(os.getloadavg()[2], 1)
        parts["accounting"] = {**accounting_part(json.loads(arguments.accounting.read_text())), "load": load}
    print(markdown(parts))
    for part in traced.values():
        for condition in part["programs"]:
            print(programs(part, condition))
    if arguments.write:
        before = committed()
        kernels = sorted({**before.get("traced", {}), **traced}.items(), key=lambda one: _version(one[1]["kernel"]))
        merged = {**before, **parts, "traced": dict(kernels)}
        COMMITTED.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main()
