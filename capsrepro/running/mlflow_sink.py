"""MLflow beside a run, in a process of its own: the run need not wait for its import.

Imports nothing heavy, so that the other process can start before torch is imported here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from capsrepro.project import Project


class Sink:
    """Where a run shows its curves while it trains, and is published at its end.

    Whatever goes wrong with MLflow is one line on stderr and never stops a run. The other process
    is killed at the end of the context if nothing was asked of it, and waited for otherwise; when
    this one dies, it still does what it was asked for.

    Args:
        project: Names the server; with tracking off nothing is started.
    """

    def __init__(self, project: Project) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._asked = False
        if project.tracking_uri == "off":
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "capsrepro.running.mlflow_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=project.root,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and not self._asked:
            # It has only been importing so far: nothing is left half-written.
            self._process.kill()
        self._finish()

    def connect(self) -> None:
        """Open the server meanwhile: something is going to be published."""
        self._ask("connect")

    def start(self, run: str, spec_digest: str, history: list[dict[str, float]]) -> None:
        """Show a run as running, with the epochs that it had before this process."""
        self._ask("start", run, spec_digest, history)

    def log_epoch(self, entry: dict[str, float]) -> None:
        """Show the figures of one epoch of the run that was started."""
        self._ask("log_epoch", entry)

    def publish(self, *runs: str) -> None:
        """Bring runs up to date with their records; the last thing asked, and waited for."""
        for run in runs:
            self._ask("publish", run)
        self._finish()

    def _ask(self, action: str, *arguments: Any) -> None:
        self._asked = True
        if self._process is not None and self._process.stdin is not None:
            # Whoever waits for it is told how it ended.
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps([action, *arguments]), file=self._process.stdin, flush=True)

    def _finish(self) -> None:
        """Let it do all it was asked for and end."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        if self._asked and process.returncode:
            print(
                f"warning: MLflow logging ended by itself (exit code {process.returncode}); the "
                "run is not affected, `capsrepro mlflow-sync` mends it later.",
                file=sys.stderr,
            )
