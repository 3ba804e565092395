"""`python -m uffdtrace`."""

import sys

# Python puts the current directory first, where root may find modules that are somebody else's; the package itself is
# found by now. With -P or PYTHONSAFEPATH (3.11) Python does not.
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from uffdtrace.cli import main

main()
