"""A small project of its own for every test, and the command line called inside it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from capsrepro.cli.main import _run

ROOT = Path(__file__).parents[1]
RUN = "digits/capsnet-r3-recon/seed-0"
_PROGRAM = [sys.executable, "-c", "from capsrepro.cli.main import main; main()"]


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def is_refusal(self, code: int, *words: str) -> bool:
        """One sentence on stderr that holds all the words, and the right exit code."""
        lines = self.err.splitlines()
        assert self.code == code, self
        assert len(lines) == 1, self
        assert lines[0].startswith("capsrepro: "), self
        assert lines[0].endswith("."), self
        assert [word for word in words if word not in lines[0]] == [], self
        return True


@dataclass
class Workplace:
    """A folder with a params.yaml, and the machine's settings for it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env = {
            "CAPSREPRO_DATA": str(self.root / "data"),
            "CAPSREPRO_RESULTS": str(self.root / "results"),
            "CAPSREPRO_CHECKPOINTS": str(self.root / "checkpoints"),
            "CAPSREPRO_MIRROR": "",
            "CAPSREPRO_DEVICE": "cpu",
            "CAPSREPRO_TRACEBACK": "",
            "MLFLOW_TRACKING_URI": "off",
        }

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change params.yaml."""
        document = yaml.safe_load((self.root / "params.yaml").read_text())
        change(document)
        (self.root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def record(self, kind: str = "train", run: str = RUN) -> Path:
        """Where a record stands."""
        return self.root / "results" / "runs" / run / f"{kind}.json"

    def call(self, *arguments: str) -> Result:
        """The command line in this process; an unforeseen error is a refusal like any other."""
        out, err = io.StringIO(), io.StringIO()
        with (
            self.inside(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = _run(list(arguments))
        return Result(code, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Be in the folder and have its settings."""
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.root):
            for name, value in self.env.items():
                patch.setenv(name, value)
            yield

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        return subprocess.Popen(
            [*_PROGRAM, *arguments],
            cwd=self.root,
            env={**os.environ, **self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def spawn(self, *arguments: str, **env: str) -> Result:
        """The same, waited for."""
        return self.finish(self.start(*arguments, **env))

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> Result:
        """Wait for a process."""
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)

    def copy(self, folder: Path) -> Workplace:
        """Another workplace with the same files."""
        return Workplace(shutil.copytree(self.root, folder))


def _fresh(folder: Path) -> Workplace:
    """The shipped params.yaml, with digits cut to 40 steps."""
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    workplace = Workplace(folder)

    def cut(document: dict[str, Any]) -> None:
        digits = document["protocols"]["digits"]
        digits["full_steps"] = 40
        digits["recipe"] = digits["recipe"] | {"steps": 40}

    workplace.edit(cut)
    return workplace


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = _fresh(tmp_path_factory.mktemp("prepared") / "project")
    result = workplace.call("datasets", "prepare", "digits")
    assert result.code == 0, result
    return workplace


@pytest.fixture(scope="session")
def trained_once(prepared_once: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = prepared_once.copy(tmp_path_factory.mktemp("trained") / "project")
    for arguments in (("run", RUN), ("attack", "fgsm", RUN)):
        result = workplace.call(*arguments)
        assert result.code == 0, result
    return workplace


@pytest.fixture
def empty(tmp_path: Path) -> Workplace:
    """Nothing but params.yaml."""
    return _fresh(tmp_path / "empty")


@pytest.fixture
def prepared(prepared_once: Workplace, tmp_path: Path) -> Workplace:
    """The digits are prepared, nothing is trained."""
    return prepared_once.copy(tmp_path / "prepared")


@pytest.fixture
def trained(trained_once: Workplace, tmp_path: Path) -> Workplace:
    """One run is trained for 40 steps and attacked."""
    return trained_once.copy(tmp_path / "trained")
