"""The table of all findings, in Markdown, as the README has it."""

from __future__ import annotations

from uffdtrace.model.diagnosis.rules import RULES, SEVERITIES, plain_remedy

BEGIN, END = "<!-- findings -->", "<!-- /findings -->"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def table() -> str:
    rules = sorted(RULES, key=lambda rule: SEVERITIES.index(rule.severity))
    lines = ["| finding | severity | meaning | remedy |", "|---|---|---|---|"]
    lines += [
        f"| `{rule.id}` | {rule.severity} | {_cell(rule.meaning)} | {_cell(plain_remedy(rule))} |" for rule in rules
    ]
    return "\n".join(lines) + "\n"


def put(page: str) -> str:
    """The page with today's table between its markers; ValueError where they are not there once, in order."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head + tail:
        raise ValueError(f"needs {BEGIN} and after it {END}, each once")
    return f"{head}{BEGIN}\n{table()}{END}{tail}"
