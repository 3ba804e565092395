"""The running kernel's symbol table, /proc/kallsyms."""

from __future__ import annotations

import re
from pathlib import Path

from uffdtrace.errors import UffdtraceError

KALLSYMS = Path("/proc/kallsyms")


class SymbolError(UffdtraceError):
    """The symbol table is missing or hides its addresses; the text says what to do."""


class Symbols:
    """Addresses by name, for a few names at a time: the table has 200,000 rows."""

    def __init__(self, path: Path = KALLSYMS) -> None:
        try:
            self._text = path.read_bytes()
        except OSError as error:
            raise SymbolError(f"{path}: {error.strerror}: the kernel needs CONFIG_KALLSYMS=y") from None
        self._found: dict[str, list[int]] = {}

    def addresses(self, name: str) -> list[int]:
        """Every address of that name: several where static functions share it."""
        if name not in self._found:
            found, needle = [], b" " + name.encode()
            # bytes.find: a pattern over 10 MB takes a hundred times as long.
            at = self._text.find(needle)
            while at >= 0:
                # A module's symbol has its module's name behind a tab.
                if self._text[at + len(needle) : at + len(needle) + 1] in (b"\n", b"\t"):
                    line = self._text.rfind(b"\n", 0, at) + 1
                    found.append(int(self._text[line:at].split()[0], 16))
                at = self._text.find(needle, at + 1)
            self._found[name] = found
        return self._found[name]

    def address(self, name: str) -> int | None:
        """Its address if it has exactly one, None where it is absent or ambiguous."""
        found = self.addresses(name)
        if len(found) != 1:
            return None
        if not found[0]:
            raise SymbolError("/proc/kallsyms shows no addresses: run as root, with kernel.kptr_restrict below 2")
        return found[0]

    def room_after(self, name: str) -> int:
        """Bytes from a symbol to the next one; 0 where it cannot be told."""
        start = self.address(name)
        at = self._text.find(b" " + name.encode() + b"\n")
        # The kernel's own symbols come in order of address (kernel/kallsyms.c).
        for line in self._text[at + 1 : at + 4096].split(b"\n")[1:-1]:
            address = int(line.split()[0], 16)
            if start is not None and address > start:
                return address - start
        return 0

    def cold_parts(self, name: str) -> list[str]:
        """The names of the parts of a function that the compiler took for unlikely."""
        found = re.findall(rb" (" + re.escape(name.encode()) + rb"\.cold[.\d]*)$", self._text, re.MULTILINE)
        return [one.decode() for one in found]

    def has(self, name: str) -> bool:
        """Whether a probe on the name would be unambiguous."""
        return len(self.addresses(name)) == 1
