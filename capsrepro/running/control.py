"""One copy of a run at a time, a clean stop on Ctrl-C and SIGTERM, and progress for a person."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from capsrepro.errors import CapsreproError
from capsrepro.files import sweep
from capsrepro.running.parent import has_submitter
from capsrepro.schema.params import Recipe


class InterruptedRunError(CapsreproError):
    """A signal stopped the run after its checkpoint was saved.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def exclusive(folder: Path, run: str) -> Iterator[None]:
    """Hold the lock of a run; the kernel releases it however the process ends.

    Raises:
        CapsreproError: Another process holds it, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise CapsreproError(
            f"cannot write to {folder}: {error.strerror}; make it writable or point "
            "CAPSREPRO_CHECKPOINTS elsewhere."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise CapsreproError(
                f"{run} is already being worked on here by process {holder}; "
                "wait for it to end, or stop it and run this again to resume."
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        sweep(folder)
        yield


@contextmanager
def explained(run: str, device: str) -> Iterator[None]:
    """Turn a lack of memory, wherever torch meets it, into one sentence.

    Raises:
        CapsreproError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        # Only here, so that what keeps an eye on runs need not wait for torch.
        import torch

        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise CapsreproError(
            f"{run} does not fit into the memory of {device}; free some, use a larger device "
            "(--device), or lower batch_size in a protocol of your own."
        ) from error


class StopSignals:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once.

    Not so under `capsrepro submit`: a cluster sends the signal to all processes of a job and submit
    passes it on, so that the second may be the same one again, while a checkpoint is written.

    Attributes:
        received: The signal's number, 0 while there was none.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> StopSignals:
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        if self.received and has_submitter():
            return  # what is left to do is to say that a checkpoint is saved
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not has_submitter():
            signal.signal(number, signal.SIG_DFL)


class Progress:
    """A bar on a terminal, one plain line per epoch elsewhere."""

    def __init__(self, run: str, recipe: Recipe, done: int) -> None:
        self.run, self.recipe = run, recipe
        self.bar = tqdm(
            total=recipe.steps * recipe.batch_size,
            initial=done * recipe.batch_size,
            desc=run,
            unit=" images",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )

    def step(self) -> None:
        """One more batch."""
        self.bar.update(self.recipe.batch_size)

    def epoch(self, entry: dict[str, float]) -> None:
        """Show the epoch's figures."""
        figures = f"loss {entry['train_loss']:.4f}, error {entry['train_error_pct']:.2f} %"
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            left = (self.recipe.steps - entry["step"]) * self.recipe.batch_size
            minutes = left / entry["images_per_s"] / 60
            print(
                f"{self.run}: step {entry['step']:,} of {self.recipe.steps:,}, {figures}, "
                f"{entry['images_per_s']:.0f} images/s, {minutes:.1f} min left",
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
