"""What can go wrong without that anybody's code is wrong."""


class UffdtraceError(Exception):
    """A user, a target, a file or the kernel caused it: one line, with the cause and what to do."""
