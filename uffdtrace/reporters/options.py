"""What a text report shows, and in which colours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# More than a screen helps nobody: the worst come first, the rest is summed up.
MOST_RANGES = 20
MOST_PROCESSES = 10


class Color(Enum):
    """AUTO is for terminals, unless NO_COLOR is set."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class TextOptions:
    color: Color = Color.AUTO
    # Lists of the lost pages and of the faults that wait.
    pages: bool = False
    histogram: bool = False
    all_ranges: bool = False
    # Stacks of who wrote, populated or armed.
    stacks: bool = False

    @property
    def most_ranges(self) -> int | None:
        """How many ranges of a process are shown one by one; None for all."""
        return None if self.all_ranges else MOST_RANGES

    @property
    def most_processes(self) -> int | None:
        # --pages lists every page that was lost, whose ever it is.
        return None if self.all_ranges or self.pages else MOST_PROCESSES


DEFAULT = TextOptions()
