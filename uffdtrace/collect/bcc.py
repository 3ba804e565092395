"""BCC's Python module: found, or explained."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from uffdtrace.kernel.preflight import Refusal

# The stub headers that stand for the kernel's (bpf/include).
STUB_ROOT = Path(__file__).resolve().parent.parent / "bpf"

_INSTALL = "install python3-bpfcc (Debian, Ubuntu), python3-bcc (Fedora, RHEL) or python-bcc (Arch)"
_VENV = ", and make the virtual environment with --system-site-packages"


def load() -> ModuleType:
    """Import BCC, with our headers in place of the kernel's.

    Raises Refusal where it is missing, or is PyPI's `bcc`, which is another program.
    """
    if not STUB_ROOT.is_dir():
        raise Refusal(
            "uffdtrace runs from a zip file, where BCC finds no BPF source: install it with pip or the Debian package"
        )
    # BCC reads it when it compiles.
    os.environ["BCC_KERNEL_SOURCE"] = str(STUB_ROOT)
    remedy = _INSTALL + (_VENV if sys.prefix != sys.base_prefix else "")
    if importlib.util.find_spec("bcc") is None:
        raise Refusal(f"BCC for {sys.executable} is missing: {remedy}")
    try:
        module = importlib.import_module("bcc")
    except Exception as error:  # noqa: BLE001 - whatever a foreign module raises means the same here
        raise Refusal(f"BCC cannot be imported ({type(error).__name__}: {error}): {remedy}") from None
    if not hasattr(module, "BPF"):
        where = getattr(module, "__file__", None) or "a namespace package"
        raise Refusal(
            f"the module bcc at {where} is not BCC but another program of that name from PyPI: "
            f"pip uninstall bcc, then {_INSTALL}"
        )
    return module


# What BCC's Python module leaves undeclared.
_DECLARED = {
    "bpf_num_tables": (ctypes.c_size_t, [ctypes.c_void_p]),
    "bpf_table_name": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]),
    "bpf_table_fd_id": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t]),
    "bcc_create_map": (ctypes.c_int, [ctypes.c_int, ctypes.c_char_p, *4 * [ctypes.c_int]]),
}


def library() -> Any:
    """BCC's library in C, as its Python module loaded it."""
    lib: Any = importlib.import_module("bcc.libbcc").lib
    for name, (result, arguments) in _DECLARED.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def version(module: ModuleType) -> str | None:
    found = getattr(module, "__version__", None)
    return None if found is None else str(found)
