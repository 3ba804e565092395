"""What a finding means: the mechanism, the kernels that have it, wrong and right C, and where to read on."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from uffdtrace.errors import UffdtraceError
from uffdtrace.model.diagnosis.rule import Rule
from uffdtrace.model.diagnosis.rules import RULES, plain_remedy
from uffdtrace.reporters.words import alternatives

SOURCE = Path(__file__).with_name("explanations.txt")
LINKS = {
    "userfaultfd": "https://docs.kernel.org/admin-guide/mm/userfaultfd.html",
    "pagemap": "https://docs.kernel.org/admin-guide/mm/pagemap.html",
    "ksm": "https://docs.kernel.org/admin-guide/mm/ksm.html",
}
_LABELS = ("kernels", "wrong", "right", "see")
_COLUMNS = 80


class UnknownFinding(UffdtraceError):
    """There is no finding of that name."""


@dataclass(frozen=True)
class Explained:
    """`wrong` and `right` are C, empty where no code shows it; `link` is kernel documentation, empty for none."""

    rule: Rule
    mechanism: str
    kernels: str
    wrong: str
    right: str
    link: str

    @property
    def remedy(self) -> str:
        return f"{plain_remedy(self.rule)}."


def _parts(text: str) -> dict[str, str]:
    """What stands before the first label, as `mechanism`, and behind each."""
    found = re.split(rf"^({'|'.join(_LABELS)}):", text, flags=re.MULTILINE)
    named = dict(zip(found[1::2], found[2::2]))
    return {"mechanism": found[0], **dict.fromkeys(_LABELS, ""), **named}


def everything() -> dict[str, Explained]:
    """By id, in the order of the rules; UnknownFinding where one is not explained."""
    found = re.split(r"^\[([a-z-]+)\]$", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    texts = dict(zip(found[1::2], found[2::2]))
    made = {}
    for rule in RULES:
        if rule.id not in texts:
            raise UnknownFinding(f"{rule.id} is not explained: write what it is into {SOURCE.name}")
        parts = _parts(texts[rule.id])
        wrong, right = (textwrap.dedent(parts[name].strip("\n")).rstrip() for name in ("wrong", "right"))
        mechanism, kernels = (" ".join(parts[name].split()) for name in ("mechanism", "kernels"))
        made[rule.id] = Explained(rule, mechanism, kernels, wrong, right, LINKS.get(parts["see"].strip(), ""))
    return made


def explain(name: str) -> Explained:
    """That finding; UnknownFinding says which there are."""
    found = everything()
    if name not in found:
        # As the report prints it.
        bare = name.strip("[]")
        if bare not in found:
            raise UnknownFinding(f"no finding is called {name}: uffdtrace explain lists them all")
        name = bare
    return found[name]


def render(found: Explained, stream: TextIO) -> None:
    """For a person, in 80 columns: C is not folded."""

    def paragraph(text: str, indent: str = "") -> str:
        return textwrap.fill(text, _COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

    lines = [f"{found.rule.id} ({found.rule.severity}): {found.rule.meaning}", "", paragraph(found.mechanism), ""]
    lines += [paragraph(f"Kernels: {found.kernels}"), ""]
    for word, code in (("Wrong", found.wrong), ("Right", found.right)):
        if code:
            lines += [f"{word}:", "", textwrap.indent(code.replace("\t", "    "), "    "), ""]
    first, *others = alternatives(found.remedy)
    lines += [paragraph(f"Remedy: {first}"), *map(paragraph, others)]
    if found.link:
        lines += ["", f"See {found.link}"]
    stream.write("\n".join(lines) + "\n")
