"""The answer in six lines: were writes lost, why, what to change, where, by whom, and how far that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.text import Text

from uffdtrace.model.diagnosis.case import LOST
from uffdtrace.model.diagnosis.document import FindingDict, RangeDict, ReportDict, RunDict
from uffdtrace.model.diagnosis.rules import MEANINGS, SEVERITIES
from uffdtrace.reporters.grouped import grouped
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.options import Color
from uffdtrace.reporters.stacks import of_run, of_sleeper, where
from uffdtrace.reporters.terminal import STYLES, console_for, plain
from uffdtrace.reporters.words import add, alternatives, doubt, guest_addresses, lost_pages, name, noun, size, thread

_MOST_WHY = 3
_MOST_NAME = 40
_INDENT = 10


@dataclass(frozen=True)
class Answer:
    """What it says first, in a word and a sentence, and the lines below it: (what, text).

    `fix` is the remedy that they name.
    """

    word: str
    sentence: str
    lines: list[tuple[str, str]]
    fix: str | None = None


def answer(report: ReportDict) -> Answer:
    word, sentence = _headline(report)
    findings = _findings(report)
    lines = [("why", f"[{finding['id']}] {_meaning(finding, len(findings) > 1)}") for finding in findings[:_MOST_WHY]]
    if len(findings) > _MOST_WHY:
        lines.append(("why", f"and {noun(len(findings) - _MOST_WHY, 'more finding')}: see the whole report"))
    fix = findings[0]["remedy"] if findings else None
    lines += [("fix", one) for one in alternatives(fix or "") if one]
    lines += [(what, said) for what, said in (("where", _where(report)), ("who", _who(report))) if said]
    return Answer(word, sentence, [*lines, ("trust", _trust(report))], fix)


def _pages(ranges: list[RangeDict], pages: int) -> str:
    """`12 MiB`: that many pages of these ranges."""
    return size(pages, ranges[0]["page_size"])


def _headline(report: ReportDict) -> tuple[str, str]:
    ranges, verdict = report["ranges"], report["verdict"]
    if verdict in LOST:
        return "CORRUPT", _lost([found for found in ranges if lost_pages(found)])
    if verdict == "never-armed":
        bare = [found for found in ranges if found["verdict"] == verdict]
        pages = sum(found["pages"] for found in bare)
        are = "page is" if pages == 1 else "pages are"
        return (
            "UNARMED",
            f"{pages:,} {are} registered for write protection ({_pages(bare, pages)}), and nothing ever protected them",
        )
    if verdict == "pending":
        waiting = sum(found["pending"] or 0 for found in ranges)
        who = noun(waiting, "fault") if waiting else "threads"
        return "STUCK", f"{who} still waited for the monitor when the trace ended{doubt(report)}"
    if any(lost_pages(found) is None for found in ranges):
        return "UNKNOWN", f"whether writes were lost is not known: {_unknown(ranges)}"
    if why := doubt(report):
        return "UNKNOWN", f"no lost write was seen{why}"
    if verdict == "async":
        return "ASYNC", "the kernel notes writes by itself (UFFD_FEATURE_WP_ASYNC): no message is due for any"
    armed = sum(found["armed_pages"] or 0 for found in ranges)
    if verdict == "ok" and armed:
        are = "page is" if armed == 1 else "pages are"
        return "OK", f"no write was lost: {armed:,} armed {are} accounted for ({_pages(ranges, armed)})"
    if verdict == "ok":
        return "OK", "what was to be told was told; nothing was armed"
    if ranges:
        return "IDLE", "memory was registered, and nothing happened there while we watched"
    return "IDLE", "no memory was registered with userfaultfd while we watched"


def _unknown(ranges: list[RangeDict]) -> str:
    ids = {finding["id"] for found in ranges for finding in found["findings"]}
    if "not-tracked" in ids:
        return "more was registered than can be tracked"
    return "memory may have been armed before the trace, and was populated without protection in it"


def _lost(ranges: list[RangeDict]) -> str:
    if not ranges:
        # Seen, in memory of which not all is known.
        return "writes to armed pages were lost; how many is not known"
    lost = sum(lost_pages(found) or 0 for found in ranges)
    armed = add(*(found["armed_pages"] for found in ranges))
    # A page that is armed again can be lost again.
    whole = None if armed is None or armed < lost else armed
    of_all, of_size = ("", "") if whole is None else (f" of {whole:,}", f" of {_pages(ranges, whole)}")
    were = "was" if lost == 1 else "were"
    seen = any(found["lost"]["observed"] for found in ranges)
    how = f"{were} written without a message" if seen else "became writable: no write there can be seen"
    noun_ = "page" if (whole or lost) == 1 else "pages"
    return f"{lost:,}{of_all} armed {noun_} ({_pages(ranges, lost)}{of_size}) {how}"


def _findings(report: ReportDict) -> list[FindingDict]:
    """Errors, each once, with its pages added up, the most first; warnings where there is no error."""
    found = grouped([*report["ranges"], *report["userfaultfds"]])
    for severity in SEVERITIES[:2]:
        chosen: list[FindingDict] = [{**one.worst, "pages": one.total} for one in found if one.severity == severity]
        if chosen:
            return sorted(chosen, key=lambda finding: -finding["pages"])
    return []


def _meaning(finding: FindingDict, counted: bool) -> str:
    meaning = MEANINGS.get(finding["id"], finding["message"])
    unit = finding["unit"]
    return f"{meaning} ({noun(finding['pages'], unit[:-1])})" if counted else meaning


def _called(found: RangeDict) -> str:
    """`guest-ram (16 MiB shmem at 7f29cb4c3000)`."""
    what = f"{size(found['pages'], found['page_size'])} {found['memory'] or 'of unknown kind'} at {found['start'][2:]}"
    called = name(found, _MOST_NAME)
    return f"{called} ({what})" if called else what


def _runs(report: ReportDict) -> list[tuple[RangeDict, RunDict]]:
    """(range, run of lost pages) for all that are listed."""
    return [(found, run) for found in report["ranges"] for run in found["lost"]["runs"] or []]


def _where(report: ReportDict) -> str:
    runs = _runs(report)
    if runs:
        found, run = max(runs, key=lambda one: int(one[1]["pages"]))
        start = int(found["start"], 16)
        more = len(runs) - 1 + sum(found["lost"]["runs_left_off"] for found in report["ranges"])
        rest = f", and {noun(more, 'more place')}" if more else ""
        offsets = f"offset {int(run['start'], 16) - start:#x}-{int(run['end'], 16) - start:#x}"
        pieces = guest_addresses(run.get("guest", []))
        guest = f", guest-physical {pieces}" if pieces else ""
        return f"{offsets} of {_called(found)}{guest}{rest}"
    wrong = [found for found in report["ranges"] if found["findings"]]
    if not wrong:
        return ""
    rest = f", and {noun(len(wrong) - 1, 'more range')}" if len(wrong) > 1 else ""
    return _called(wrong[0]) + rest


def _who(report: ReportDict) -> str:
    if runs := _runs(report):
        _, first = min(runs, key=lambda one: float(one[1]["first_s"]))
        threads = len({run["tid"] for _, run in runs})
        rest = f", and {noun(threads - 1, 'more thread')}" if threads > 1 else ""
        stack = of_run(report, first["tid"], first["first_s"])
        how = f" {where(stack)}".rstrip() if stack else ""
        return f"thread {thread(first)}{how}, first {first['first_s']:.3f} s into the trace{rest}"
    waits = [wait for found in report["ranges"] for wait in found["waiting"] or []]
    if not waits:
        return ""
    longest = max(waits, key=lambda wait: float("inf") if wait["for_s"] is None else float(wait["for_s"]))
    since = "since before the trace" if longest["for_s"] is None else f"for {longest['for_s']:.3f} s"
    rest = f", and {len(waits) - 1:,} more" if len(waits) > 1 else ""
    stack = of_sleeper(report, longest["tid"])
    how = f" {where(stack)}".rstrip() if stack else ""
    return f"thread {thread(longest)}{how} waits {since}{rest}"


def _trust(report: ReportDict) -> str:
    loss, said = report["loss"], []
    if loss["events_dropped"]:
        said.append(f"{noun(loss['events_dropped'], 'event')} dropped")
    if loss["probes_missed"]:
        said.append(f"{noun(loss['probes_missed'], 'run')} of the probes skipped by the kernel")
    if loss["probes_missed"] is None:
        said.append("the trace has no end: what came last is not known")
    if report["trace"]["file_ended"]:
        said.append("the file took no more events before the trace ended")
    if loss["lower_bounds"]:
        said.append(f"lower bounds, not exact: {', '.join(loss['lower_bounds'])}")
    if any(lost_pages(found) is None for found in report["ranges"]):
        said.append("of some memory it is not known what was lost")
    if not said and report["trace"]["unproven_probes"] is None:
        return "every event recorded; whether each probe fires on this kernel was not tried"
    return "; ".join(said) if said else "every event recorded"


def render(report: ReportDict, stream: TextIO, color: Color = Color.AUTO) -> None:
    """Write the answer: each line as long as it is where nobody's terminal has an edge."""
    console = console_for(stream, color)
    put(answer(report), doubt(report), report["verdict"], console, console.width if console.is_terminal else None)


def put(told: Answer, unproven: str, verdict: str, console: Console, columns: int | None) -> None:
    """An answer in so many columns, or each line as long as it is."""
    width = columns and columns - _INDENT
    style = "yellow" if unproven else STYLES.get(verdict, "")
    last = ""
    for what, said in [(told.word, told.sentence), *told.lines]:
        label, last = ("" if what == last else what), what
        text = printable(plain(said, console))
        parts = Text(text).wrap(console, width) if width else [Text(text)]
        for place, part in enumerate(parts):
            part.rstrip()
            first = Text((label if not place else "").ljust(_INDENT), style=style if what == told.word else "")
            console.print(Text.assemble(first, part), soft_wrap=True)
