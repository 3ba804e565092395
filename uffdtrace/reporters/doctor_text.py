"""What doctor found, for a person: one screen."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.model.records.events import Feature
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.options import DEFAULT, TextOptions
from uffdtrace.reporters.terminal import console_for, table
from uffdtrace.reporters.words import noun, size

_WORDS = {True: "yes", False: "no", None: "?"}
_STYLES = {True: "green", False: "bold red", None: "yellow"}
_CHECKS = {
    "privileges": "root",
    "namespaces": "namespaces",
    "programs": "BPF programs",
    "kprobes": "kprobes",
    "bcc": "BCC",
    "btf": "BTF",
    "kallsyms": "kallsyms",
    "plan": "probe points",
    "layout": "layout",
    "trial": "attached",
    "proof": "fire",
}
_ACCESS = {"full": "all faults", "user-mode-only": "user space's faults only", None: "none for this user"}


def _word(works: bool | None) -> Text:
    return Text(_WORDS[works], style=_STYLES[works])


def _grid() -> Table:
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    return made


def _detail(name: str, found: dict[str, Any]) -> str:
    check = found["checks"][name]
    if name == "programs":
        return f"lockdown {found['kernel']['lockdown'] or 'not told'}"
    if name == "bcc" and check["path"]:
        return f"{check['version'] or 'of unknown version'} {check['path']}"
    if name == "btf" and check["bytes"]:
        return f"{size(check['bytes'], 1)} {check['path']}"
    if name == "plan":
        served = {one["row"] for one in found["probes"] if one["place"]}
        return f"{len(served)} of {len({one['row'] for one in found['probes']})}"
    if name == "proof" and check["proven"]:
        rest = f", not tried: {', '.join(check['not_tried'])}" if check["not_tried"] else ""
        return f"{noun(len(check['proven']), 'probe')}{rest}"
    return ""


def _checks(found: dict[str, Any]) -> Table:
    made = _grid()
    for name, title in _CHECKS.items():
        check = found["checks"][name]
        detail = _detail(name, found)
        # Why a failure is one stands below, with its remedy.
        if check["ok"] is None:
            detail = f"{check['problem']}; {detail}" if detail else check["problem"]
        made.add_row(f"  {title}", _word(check["ok"]), printable(detail))
    return made


def _probes(probes: list[dict[str, Any]]) -> Table:
    made = table()
    for header in ("Probe", "Function", "Kind"):
        made.add_column(header, no_wrap=True)
    kinds: dict[tuple[str, str], list[str]] = {}
    for one in probes:
        if one["place"]:
            kinds.setdefault((one["row"], one["place"]), []).append(one["kind"] or "?")
    # Entry and return of one function share a line: the entry's kind, then the return's if it is another.
    lines: dict[str, list[tuple[str, str, str]]] = {}
    for (row, place), found in kinds.items():
        kind = "both" if len(set(found)) > 1 else found[0]
        lines.setdefault(place.split("%")[0], []).append((row, place, kind))
    for rows in lines.values():
        said = list(dict.fromkeys(kind for _, _, kind in rows))
        entries = [row for row, place, _ in rows if "%" not in place]
        name = ", ".join(entries) + " and returns" * (len(entries) < len(rows)) if entries else rows[0][0]
        made.add_row(name, printable(rows[0][1]), ", ".join(said))
    return made


def _unserved(console: Console, probes: list[dict[str, Any]]) -> None:
    why: dict[str, list[dict[str, Any]]] = {}
    for one in probes:
        if not one["place"]:
            why.setdefault(one["problem"], []).append(one)
    for problem, rows in why.items():
        style = "yellow" if any(one["required"] for one in rows) else ""
        names = ", ".join(one["row"] + ("" if one["required"] else " (optional)") for one in rows)
        if len(rows) == len(probes):
            names = f"all {len(rows)}"
        console.print(Padding(Text(printable(f"{names}: {problem}"), style=style), (0, 0, 0, 2), expand=False))


def _features(names: list[str] | None) -> str:
    """Those that are missing, or new: 17 names would be half the screen."""
    if names is None:
        return "?"
    known = [str(one.name) for one in Feature]
    lacking = [name for name in known if name not in names]
    more = [f"and {printable(name)}" for name in names if name not in known]
    return ", ".join([f"all but {', '.join(lacking)}" if lacking else f"all {len(known)}", *more])


def _offers(offers: dict[str, Any]) -> Table:
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    sysctl = {None: "", True: " (vm.unprivileged_userfaultfd=1)", False: " (vm.unprivileged_userfaultfd=0)"}
    made.add_row("  opens for", _ACCESS[offers["access"]] + sysctl[offers["unprivileged_userfaultfd"]])
    made.add_row("  features", _features(offers["features"]))
    protects: list[Text | str] = []
    for kind, works in offers["write_protect"].items():
        protects += [", " * bool(protects), f"{kind} ", _word(works)]
    made.add_row("  write-protects", Text.assemble(*protects))
    tells = _word(offers["pagemap_tells_protection"])
    made.add_row(
        "  pagemap", Text.assemble("tells protection ", tells, ", PAGEMAP_SCAN ", _word(offers["pagemap_scan"]))
    )
    return made


def render(found: dict[str, Any], stream: TextIO, options: TextOptions = DEFAULT) -> None:
    console = console_for(stream, options.color)
    kernel, checkup = found["kernel"], found["checkup"]
    console.print(Text(printable(f"Linux {kernel['release']} {kernel['arch']}, uffdtrace {checkup['uffdtrace']}")))
    console.print("\nTo trace" + f" (--backend {checkup['backend']})" * (checkup["backend"] != "auto"))
    console.print(_checks(found))
    console.print()
    if any(one["place"] for one in found["probes"]):
        console.print(_probes(found["probes"]))
    else:
        console.print("Probes")
    _unserved(console, found["probes"])
    console.print("\nUserfaultfd")
    console.print(_offers(found["offers"]))
    console.print()
    for problem in found["problems"]:
        console.print(Text(printable(f"{problem['what']}:"), style="red" if problem["blocks_attach"] else "yellow"))
        console.print(Padding(Text(printable(problem["remedy"])), (0, 0, 0, 4), expand=False))
    blocking = sum(problem["blocks_attach"] for problem in found["problems"])
    if found["attach_works"]:
        console.print(Text.assemble(("attach works here", "green"), "."))
    else:
        console.print(Text.assemble(("attach does not work here", "bold red"), f": {noun(blocking, 'reason')} above."))
