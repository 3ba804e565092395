"""Loading by bpf(2), as far as this machine's kernel allows: it need not."""

from __future__ import annotations

import errno
import os
import re

import pytest

from uffdtrace.kernel import architecture
from uffdtrace.kernel.bpf import Kind, load_program

# r0 = 0; exit
NOTHING = bytes.fromhex("b700000000000000 9500000000000000")
# exit, without a value
NO_VALUE = bytes.fromhex("9500000000000000")


def test_a_program_is_loaded_or_refused_with_its_reason() -> None:
    try:
        fd = load_program(Kind.KPROBE, NOTHING, "with_a_name_of_more_than_15_letters")
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES)
        return
    try:
        with open(f"/proc/self/fdinfo/{fd}") as fdinfo:
            assert re.search(r"^prog_type:\t2$", fdinfo.read(), re.MULTILINE)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match=r"Permission denied|Invalid argument") as caught:
        load_program(Kind.KPROBE, NO_VALUE)
    # The verifier's own words.
    assert "R0 !read_ok" in str(caught.value)


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture.platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="Function not implemented"):
        load_program(Kind.KPROBE, NOTHING)
