"""Ending with the parent process; imports nothing heavy, so that it can be asked for first."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SUBMITTER = "CAPSREPRO_SUBMITTER"


def child_environment() -> dict[str, str]:
    """The environment of a run that is to end with this process."""
    return {**os.environ, _SUBMITTER: str(os.getpid())}


def has_submitter() -> bool:
    """Whether `capsrepro submit` started this process and passes signals on to it."""
    return _SUBMITTER in os.environ


def die_with_parent() -> None:
    """Under DVC and `capsrepro submit`, end when they are killed and leave no orphan.

    Only there: a run that a person started under nohup must outlive the shell.
    """
    if not (has_submitter() or "DVC_ROOT" in os.environ) or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    submitter = os.environ.get(_SUBMITTER)
    gone = str(os.getppid()) != submitter if submitter else os.getppid() == 1
    if gone:
        # The parent was gone before we asked.
        sys.exit(128 + signal.SIGTERM)
