"""Ending with the parent process; imports nothing heavy, so that it can be asked for first."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def die_with_parent() -> None:
    """Under DVC, end when DVC is killed: otherwise the stage would go on as an orphan.

    Only there: a run that a person started under nohup must outlive the shell.
    """
    if "DVC_ROOT" not in os.environ or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() == 1:
        # The parent was gone before we asked.
        sys.exit(128 + signal.SIGTERM)
