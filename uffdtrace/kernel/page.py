"""The pages of this machine. Those of a trace are in its head, and may be others."""

from __future__ import annotations

import os

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
