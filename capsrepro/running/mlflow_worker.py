"""The process that writes MLflow for a run: `python -m capsrepro.running.mlflow_worker`.

It stands in the project's folder, and reads calls from stdin until its end: lines of JSON, each
with the name of an action and its arguments.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable

from capsrepro.imports import lasting_imports
from capsrepro.project import Project, find_project
from capsrepro.running.mlflow_mirror import Mirror, import_client


class Worker:
    """The other end of `mlflow_sink.Sink`, whose methods these are; trouble is said once.

    Args:
        project: Names the server, and where the records are.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._mirror: Mirror | None = None
        self._run_id = ""
        self._warned = False

    def do(self, action: str, *arguments: object) -> None:
        """One call; on any failure say so in one line and go on."""
        actions: dict[str, Callable[..., object]] = {
            "connect": self._connected,
            "start": self._start,
            "log_epoch": self._log_epoch,
            "publish": self._publish,
        }
        try:
            actions[action](*arguments)
        except Exception as error:
            self._run_id = ""
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if not self._warned:
                print(
                    f"warning: MLflow logging failed ({reason}); the run is not affected, "
                    "`capsrepro mlflow-sync` mends it later.",
                    file=sys.stderr,
                )
            self._warned = True

    def _connected(self) -> Mirror:
        self._mirror = self._mirror or Mirror(self._project)
        return self._mirror

    def _start(self, run: str, spec_digest: str, history: list[dict[str, float]]) -> None:
        run_id = self._connected().start(run, {"spec_digest": spec_digest})
        self._connected().log_epochs(run_id, history)
        self._run_id = run_id

    def _log_epoch(self, entry: dict[str, float]) -> None:
        """After a first failure, nothing."""
        if self._run_id:
            self._connected().log_epochs(self._run_id, [entry])

    def _publish(self, run: str) -> None:
        self._connected().publish(self._project.run_folder(run))


def main() -> None:
    """Do what is asked for until nobody can ask any more, whatever signals the group is sent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    worker = Worker(find_project())
    # While the run, too, is still importing.
    with lasting_imports():
        import_client()
    for line in sys.stdin:
        worker.do(*json.loads(line))


if __name__ == "__main__":
    main()
