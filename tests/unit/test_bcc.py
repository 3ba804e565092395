"""BCC missing, broken, or PyPI's program of the same name: each is explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from uffdtrace.collect import bcc
from uffdtrace.kernel.preflight import Refusal


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sys.path on which nothing but this folder can offer a module called bcc."""
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "unset by load()")
    return tmp_path


def test_missing(only: Path) -> None:
    with pytest.raises(Refusal, match=r"BCC for .* is missing: install python3-bpfcc"):
        bcc.load()


def test_the_impostor(only: Path) -> None:
    (only / "bcc.py").write_text("VERSION = '0.1'\n")
    with pytest.raises(Refusal, match=r"is not BCC but another program .* pip uninstall bcc"):
        bcc.load()


def test_one_that_does_not_import(only: Path) -> None:
    (only / "bcc.py").write_text("raise OSError('libbcc.so.0: no such file')\n")
    with pytest.raises(Refusal, match=r"cannot be imported \(OSError: libbcc.so.0: no such file\)"):
        bcc.load()


def test_a_real_one_is_given_our_headers(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (only / "bcc.py").write_text("import os\nseen = os.environ['BCC_KERNEL_SOURCE']\nclass BPF: pass\n")
    assert (Path(bcc.load().seen) / "include" / "linux" / "kconfig.h").exists()


def test_its_version(only: Path) -> None:
    (only / "bcc.py").write_text("class BPF: pass\n")
    assert bcc.version(bcc.load()) is None
    del sys.modules["bcc"]
    (only / "bcc.py").write_text("class BPF: pass\n__version__ = '0.26.0'  # as Debian's has it\n")
    assert bcc.version(bcc.load()) == "0.26.0"
