"""The findings: what can be wrong with a tracker, and what to change."""

from __future__ import annotations

import re

from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.document import FindingDict
from uffdtrace.model.diagnosis.rule import Rule
from uffdtrace.model.diagnosis.rules_calls import CALL_RULES
from uffdtrace.model.diagnosis.rules_loss import LOSS_RULES
from uffdtrace.model.diagnosis.rules_memory import MEMORY_RULES
from uffdtrace.model.diagnosis.rules_monitor import FASTER, MONITOR_RULES, NO_READER

SEVERITIES = ("error", "warning", "note")
RULES: tuple[Rule, ...] = (*LOSS_RULES, *CALL_RULES, *MONITOR_RULES, *MEMORY_RULES)
_WORST_FIRST = sorted(RULES, key=lambda rule: SEVERITIES.index(rule.severity))


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit[:-1] if number == 1 else unit}"


def _written(template: str, rule: Rule, number: int, case: Case) -> str:
    one = number == 1
    return template.format(
        count=_count(number, rule.unit),
        were="was" if one else "were",
        are="is" if one else "are",
        wait="waits" if one else "wait",
        they_are="it is" if one else "they are",
        they="it" if one else "they",
        their="its" if one else "their",
        them="it" if one else "them",
        **{name: word(case) for name, word in rule.words.items()},
    )


def findings(case: Case) -> list[FindingDict]:
    """The findings that apply, worst first, in the form of the report (design.md section 4)."""
    found: list[FindingDict] = []
    for rule in _WORST_FIRST:
        if number := rule.count(case):
            found.append(
                {
                    "id": rule.id,
                    "severity": rule.severity,
                    "pages": number,
                    "unit": rule.unit,
                    "message": _written(rule.message, rule, number, case),
                    "remedy": _written(rule.remedy, rule, number, case) + ".",
                }
            )
    return found


# By id: what a finding is, in a few words.
MEANINGS = {rule.id: rule.meaning for rule in RULES}
# In a list of all findings a remedy speaks of every mode that a range may have.
_PLAIN = {
    "unpopulated": "; or ask for UFFD_FEATURE_WP_UNPOPULATED (Linux 6.4)",
    "answers": "UFFDIO_COPY, ZEROPAGE, WRITEPROTECT without MODE_WP, CONTINUE or WAKE",
    "and_arm": " and arm",
    "protect": ", and UFFDIO_WRITEPROTECT the page if it must be protected",
    "reader": NO_READER,
    "faster": "; ".join(FASTER.values()),
}


def plain_remedy(rule: Rule) -> str:
    """The remedy for a list of all findings, where no case fills in its words."""
    return re.sub(r"\{(\w+)\}", lambda found: _PLAIN[found[1]], rule.remedy)
