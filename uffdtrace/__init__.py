"""uffdtrace: why a userfaultfd write-protect tracker misses writes."""

__version__ = "0.1.0"
