"""uffdtrace explain."""

from __future__ import annotations

import sys

import click

from uffdtrace.cli.common import errors_in_one_line
from uffdtrace.model.diagnosis.rules import RULES
from uffdtrace.reporters.explained import explain, render


@click.command("explain")
@click.argument("finding", required=False, metavar="[FINDING]")
@errors_in_one_line
def command(finding: str | None) -> None:
    """Explain a finding: how it comes about, on which kernels, with wrong and right C.

    FINDING is the word in brackets in a report; without one all are listed.

    \b
    Examples:
      uffdtrace explain
      uffdtrace explain unpopulated
    """
    if finding is not None:
        render(explain(finding), sys.stdout)
        return
    widest = max(len(rule.id) for rule in RULES)
    for rule in RULES:
        click.echo(f"{rule.id:{widest}}  {rule.severity:7}  {rule.meaning}")
