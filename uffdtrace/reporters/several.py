"""Several traces: a line for each, the worst first, then what was found in all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.model.diagnosis.document import FindingDict, ReportDict
from uffdtrace.model.diagnosis.rules import MEANINGS, SEVERITIES
from uffdtrace.reporters.grouped import grouped
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.options import Color
from uffdtrace.reporters.summary import answer
from uffdtrace.reporters.terminal import STYLES, console_for, plain
from uffdtrace.reporters.words import add, alternatives, lost_pages, noun


@dataclass(frozen=True)
class _Line:
    file: str
    word: str
    sentence: str
    verdict: str
    lost: int


@dataclass
class _Total:
    """A finding in all traces: how that trace has it which has the most of it, how much there is, in how many."""

    worst: FindingDict
    count: int = 0
    traces: int = 0


@dataclass
class Several:
    """Takes reports one after the other, and keeps of each what its line says."""

    _lines: list[_Line] = field(default_factory=list)
    _totals: dict[str, _Total] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst of all."""
        return min((line.verdict for line in self._lines), key=VERDICTS.index, default="idle")

    def take(self, report: ReportDict) -> None:
        told = answer(report)
        lost = add(*(lost_pages(found) for found in report["ranges"])) or 0
        self._lines.append(_Line(report["trace"]["file"], told.word, told.sentence, report["verdict"], lost))
        for one in grouped([*report["ranges"], *report["userfaultfds"]]):
            total = self._totals.setdefault(one.id, _Total(one.worst))
            if one.worst["pages"] > total.worst["pages"]:
                total.worst = one.worst
            total.count += one.total
            total.traces += 1

    def render(self, stream: TextIO, color: Color = Color.AUTO) -> None:
        """Write it: where nobody's terminal has an edge, each line as long as it is."""
        console = console_for(stream, color)
        lines = sorted(self._lines, key=lambda line: (VERDICTS.index(line.verdict), -line.lost, line.file))
        wide = max((len(printable(line.file)) for line in lines), default=0)
        for line in lines:
            self._line(console, line, wide)
        for severity in SEVERITIES:
            for total in self._totals.values():
                if total.worst["severity"] == severity:
                    self._finding(console, total)

    def _line(self, console: Console, line: _Line, wide: int) -> None:
        word = Text(line.word.ljust(8), style=STYLES.get(line.verdict, ""))
        said = Text(f"  {printable(line.file).ljust(wide)}  {printable(plain(line.sentence, console))}")
        console.print(Text.assemble(word, said), soft_wrap=True)

    def _finding(self, console: Console, total: _Total) -> None:
        worst = total.worst
        severity, unit = worst["severity"], worst["unit"]
        where = f" in {noun(total.traces, 'trace')}, {noun(total.count, unit[:-1])} in all"
        console.print()
        console.print(Text.assemble((severity, STYLES.get(severity, "")), f" [{worst['id']}]{where}"))
        meaning = MEANINGS.get(worst["id"], worst["message"])
        console.print(Padding(Text(printable(plain(meaning, console)) + "."), (0, 0, 0, 4)))
        for remedy in alternatives(worst["remedy"]):
            console.print(Padding(Text("Remedy: " + printable(plain(remedy, console))), (0, 0, 0, 4)))
