"""What a guest left in its folder, as the host reads it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from guest.belief import replay

from uffdtrace.kernel.probes import Backend
from uffdtrace.model.account.model import Model

Json = dict[str, Any]


def read_json(path: Path) -> Json | None:
    """The JSON document in a file, or None where there is none."""
    try:
        document = json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


@dataclass(frozen=True)
class Trace:
    """One run or attach: its report, the workload's own account, and how it ended."""

    name: str
    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / f"trace-{self.name}.data"

    @cached_property
    def stderr(self) -> str:
        path = self.folder / f"stderr-{self.name}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @cached_property
    def step(self) -> Json:
        for step in (f"run-{self.name}", self.name):
            if result := read_json(self.folder / f"{step}.json"):
                return result
        return {"error": "the guest never came to this step"}

    @cached_property
    def report(self) -> Json:
        """The report as printed; a failed assertion says why there is none."""
        assert "error" not in self.step, self.step["error"]
        # A scenario that the workload could not finish fails its own test.
        good = (0, 1) if self.name in [backend.value for backend in Backend] else (0,)
        assert self.step["exit_status"] in good, f"exit status {self.step['exit_status']}: {tail(self.stderr)}"
        report = read_json(self.folder / f"report-{self.name}.json") or self._report_on_stderr()
        assert report is not None, f"no report on standard output or error: {tail(self.stderr)}"
        return report

    def _report_on_stderr(self) -> Json | None:
        """`run` leaves standard output to its command."""
        found = re.search(r"^\{.*\}$", self.stderr, re.MULTILINE | re.DOTALL)
        return json.loads(found[0]) if found else None

    @cached_property
    def model(self) -> Model:
        return replay(self.data)

    @cached_property
    def truth(self) -> dict[str, Json]:
        """The workload's lines by scenario."""
        path = self.folder / f"truth-{self.name}.jsonl"
        assert path.exists(), f"the workload wrote nothing: {self.step}: {tail(self.stderr)}"
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return {line["scenario"]: line for line in lines}


@dataclass(frozen=True)
class Guest:
    """A suite's kernel after its boot."""

    suite: str
    folder: Path
    output: str = field(repr=False)
    # Why there is nothing to judge, where the boot itself failed.
    error: str | None = None
    _traces: dict[str, Trace] = field(default_factory=dict, repr=False)

    def trace(self, name: str) -> Trace:
        return self._traces.setdefault(name, Trace(name, self.folder))

    def step(self, name: str) -> Json:
        """The result of one of in_guest.py's steps."""
        result = read_json(self.folder / f"{name}.json")
        assert result is not None, f"the guest never came to this step: {tail(self.output)}"
        assert "error" not in result, result["error"]
        return result

    @property
    def release(self) -> str:
        return str((read_json(self.folder / "guest.json") or {}).get("release", "did not boot"))
