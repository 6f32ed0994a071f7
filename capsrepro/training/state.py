"""Seeds, determinism, and the state that a killed run resumes from, bit for bit."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import write_atomically

# How many of the first losses a record keeps, so that `capsrepro verify` can replay them.
REPLAY_STEPS = 20

# What torch.load and zipfile raise, depending on where a file is damaged.
_DAMAGED = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def stream_seed(seed: int, stream: str) -> int:
    """The seed of a named stream (init, order, augmentation, dropout) of a run, 63 bits.

    Streams are independent: adding one, or drawing more from one, leaves the others alone.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "big") >> 1


def make_deterministic() -> None:
    """Ask torch for algorithms that give the same bits every time on the same hardware."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as torch.use_deterministic_algorithms(True), which also tells the compiler of torch
    # and imports it to do so: a second at every start, for what nothing here uses.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads memory before writing it, and filling it all with NaN costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed memory back after every step.

    Otherwise each step asks the kernel for gigabytes of fresh pages and spends up to half of its
    time having them zeroed (measured: docs/performance.md). Elsewhere than on glibc, nothing is
    done.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 256 * 2**20)


@dataclass
class TrainingState:
    """Everything that changes while a run trains.

    Attributes:
        model: The network.
        optimizer: Its optimiser.
        step: Optimiser steps done.
        totals: Sums over the steps of the epoch so far, by metric name, on the device.
        images: Images behind `totals`.
        history: One entry per finished epoch.
        first_losses: Losses of the first steps, for `capsrepro verify`.
        wall_time_s: Training time so far, of earlier sessions too.
        sessions: 1, and one more for each resume.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    wall_time_s: float = 0.0
    sessions: int = 1

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def add_to_totals(self, sums: Mapping[str, Tensor]) -> None:
        """Add to the epoch's totals, in place: a captured step knows where they are."""
        # float64, so that an epoch's sum is as exact as its parts.
        values = torch.stack([value.float() for value in sums.values()]).double()
        for name, value in zip(sums, values, strict=True):
            if name not in self.totals:
                self.totals[name] = torch.zeros_like(value)
        torch._foreach_add_([self.totals[name] for name in sums], list(values))

    def clear_totals(self) -> None:
        """Start another epoch."""
        for total in self.totals.values():
            total.zero_()
        self.images = 0

    def document(self, key: str) -> dict[str, Any]:
        """What goes into a checkpoint: tensors and plain values only."""
        document = {
            "key": key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "totals": self.totals,
            "images": self.images,
            "history": self.history,
            "first_losses": self.first_losses,
            "wall_time_s": self.wall_time_s,
            "sessions": self.sessions,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            document["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return document

    def restore(self, document: dict[str, Any]) -> None:
        """Take over a checkpoint's contents."""
        self.model.load_state_dict(document["model"])
        self.optimizer.load_state_dict(document["optimizer"])
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # the moments move by themselves
                group["lr"] = group["lr"].to(self.device)
        for name in ("step", "images", "history", "first_losses", "wall_time_s"):
            setattr(self, name, document[name])
        self.totals = {name: total.to(self.device) for name, total in document["totals"].items()}
        self.sessions = document["sessions"] + 1
        torch.set_rng_state(document["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(document["cuda_rng"], self.device)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, state: TrainingState, key: str) -> Path:
    """Write a checkpoint and keep the last two: a full disk must not destroy the good one.

    Checkpoints of later steps go too: they are damaged or of another key, or this run would have
    resumed from them.

    Args:
        folder: Of the run.
        state: What to save.
        key: Stands for all that must be the same for the rest of the run to be its rest.

    Raises:
        CapsreproError: The folder cannot be written to.
    """
    path = folder / f"step-{state.step:09d}.pt"
    document = state.document(key)

    def write(file: BinaryIO) -> None:
        try:
            torch.save(document, file)
        except RuntimeError as error:
            # torch speaks of a wrong position in the file; that the disk is full stands behind it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write)
    earlier = [old for old in checkpoint_paths(folder) if old < path]
    for old in checkpoint_paths(folder):
        if old not in (path, *earlier[:1]):
            old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path, key: str) -> dict[str, Any] | None:
    """The newest readable checkpoint of this very key, or None.

    A damaged one is passed over for the one before it; one of another key is ignored, because
    params.yaml, the program, the data or the machine is not what it was.
    """
    for path in checkpoint_paths(folder):
        try:
            # torch.load does not look at the checksums that torch.save wrote.
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    continue
            document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except _DAMAGED:
            continue
        if document.get("key") == key:
            return document
    return None


def choose_device(request: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Raises:
        UsageError: This is no device that training runs on.
        CapsreproError: The device does not exist on this machine.
    """
    if request == "auto":
        request = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|cuda(:\d{1,2})?", request) is None:
        raise UsageError(f"{request!r} is no device; use auto, cpu, cuda or cuda:N with --device.")
    device = torch.device(request)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CapsreproError(
            f"device {request} is not here ({torch.cuda.device_count()} CUDA devices found); "
            "use --device cpu, or see `capsrepro doctor`."
        )
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device does not have and torch would quietly replace by float32.

    bf16 is everywhere: without such instructions rounded factors are multiplied in float32.

    Raises:
        UsageError: tf32, and the device is no NVIDIA GPU since Ampere (compute capability 8.0).
    """
    if precision != "tf32":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError(
            f"device {device} has no TF32 and would multiply in float32; use --device with an "
            "NVIDIA GPU of compute capability 8.0 or more, or a protocol of another precision."
        )
