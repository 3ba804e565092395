"""What stands in the directory from which root starts uffdtrace is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import uffdtrace

PACKAGE = Path(uffdtrace.__file__).parents[1]


def test_modules_of_the_current_directory_are_not_imported(tmp_path: Path) -> None:
    for name in ("click", "numpy", "json", "difflib"):
        (tmp_path / f"{name}.py").write_text("print('planted')\n")
    done = subprocess.run(
        [sys.executable, "-m", "uffdtrace", "report", "nothing"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("uffdtrace: no trace file nothing:")
