"""The one place that makes text harmless for a terminal. Light: what speaks before a verb is imported needs it."""

from __future__ import annotations


def printable(text: object) -> str:
    """Text from a target, a trace file or the command line: what could steer a terminal becomes a question mark."""
    return "".join(one if one.isprintable() else "?" for one in str(text))
