"""`python -m uffdtrace`."""

from uffdtrace.cli import main

main()
