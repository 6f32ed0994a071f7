"""The two kinds of trouble a user meets; the command line prints either as one sentence."""


class CapsreproError(Exception):
    """Something went wrong while working: what, where, and what to do next, in one sentence."""

    exit_code = 1


class UsageError(CapsreproError):
    """The request itself cannot be understood: an unknown name, a wrong key, a wrong type."""

    exit_code = 2
