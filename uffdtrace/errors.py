"""What goes wrong though no code is wrong."""


class UffdtraceError(Exception):
    """A user, a target, a file or the kernel caused it: one line, with the cause and what to do."""
