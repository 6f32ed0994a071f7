"""The optimiser step as one CUDA graph.

A step of a capsule network is some hundred small kernels, and launching them one by one takes the
CPU longer than running them takes the GPU. A graph is launched as a whole. It reads its batch, the
learning rate and the margin of the loss from tensors that stay where they are, and runs the very
kernels that the eager step runs: both give the same bits, so a run may be resumed with either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from capsrepro.data.batches import Batch
from capsrepro.errors import CapsreproError
from capsrepro.training.state import TrainingState
from capsrepro.training.step import train_step

SWITCH = "CAPSREPRO_CUDA_GRAPH"
"""Environment variable; `off` runs every step eagerly."""

# Real steps, taken eagerly: libraries load kernels and set up workspaces at their first calls.
_WARM_UP = 3

# Batches made at a time: a batch takes some fifty kernels, which cost as much for sixteen of them.
_AHEAD = 16


class Stream(Protocol):
    """Where batches come from: a pure function of the step, see `capsrepro.data.batches`."""

    batch_size: int

    @property
    def items(self) -> int:
        """Items per epoch."""

    def batches(self, step: int, count: int) -> Batch:
        """The batches of `count` optimiser steps, one behind the other."""


def make_step(state: TrainingState, stream: Stream) -> Callable[[], Tensor]:
    """What takes the step at `state.step` and returns its loss; captured where there is a GPU."""
    if state.device.type == "cuda" and os.environ.get(SWITCH, "") != "off":
        return CapturedStep(state, stream)
    return lambda: train_step(state, stream.batches(state.step, 1))


class CapturedStep:
    """A step that is eager a few times, then captured, then replayed.

    Args:
        state: On a GPU. Model, optimiser and totals must stay the same tensors from here on.
        stream: Batches by step.

    Raises:
        CapsreproError: Something in the step cannot be captured, such as asking for a number that
            is on the GPU.
    """

    def __init__(self, state: TrainingState, stream: Stream) -> None:
        self.state, self.batches = state, BatchesAhead(stream)
        self._eager_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        # Of the graph: where it reads its batch and leaves its loss.
        self._batch: Batch
        self._loss: Tensor

    def __call__(self) -> Tensor:
        """Take the step at `state.step`.

        Returns:
            The loss before the update; the next call overwrites it.
        """
        batch = self.batches.at(self.state.step)
        if self._eager_steps < _WARM_UP:
            self._eager_steps += 1
            return self._eagerly(batch)
        if self._graph is None:
            self._graph = self._capture(batch)
        _copy(batch, self._batch)
        self._graph.replay()
        return self._loss

    def _eagerly(self, batch: Batch) -> Tensor:
        """A step on a side stream, as a graph's warm-up must be."""
        side = torch.cuda.Stream(self.state.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = train_step(self.state, batch)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def _capture(self, batch: Batch) -> torch.cuda.CUDAGraph:
        self._batch = _alike(batch)
        graph = torch.cuda.CUDAGraph()
        # The gradients of the eager steps lie outside the graph's memory.
        self.state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        try:
            with torch.cuda.graph(graph):
                self._loss = train_step(self.state, self._batch)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CapsreproError(
                f"the step of {type(self.state.model).__name__} cannot be captured as a CUDA "
                f"graph ({str(error).splitlines()[0]}); make it free of .item() and of shapes that "
                f"depend on data, or set {SWITCH}=off."
            ) from error
        return graph


class BatchesAhead:
    """Batches by step, several made at a time.

    Which are made together depends on the step alone: a resumed run makes them as before.
    """

    def __init__(self, stream: Stream, ahead: int = _AHEAD) -> None:
        self.stream, self.ahead = stream, ahead
        self._block: int | None = None
        self._made: Batch

    def at(self, step: int) -> Batch:
        """The batch of this step, a view of all that were made with it."""
        block, place = divmod(step, self.ahead)
        if block != self._block:
            self._block, self._made = block, self.stream.batches(block * self.ahead, self.ahead)
        B = self.stream.batch_size
        return Batch(*(part[place * B : (place + 1) * B] for part in self._made))


def _alike(batch: Batch) -> Batch:
    """Memory for such a batch; targets that are the images stay the images."""
    images = torch.empty_like(batch.images)
    labels = torch.empty_like(batch.labels)
    if _draws_its_images(batch):
        return Batch(images, labels, images.unsqueeze(1))
    return Batch(images, labels, torch.empty_like(batch.targets))


def _copy(source: Batch, target: Batch) -> None:
    target.images.copy_(source.images)
    target.labels.copy_(source.labels)
    if not _draws_its_images(source):
        target.targets.copy_(source.targets)


def _draws_its_images(batch: Batch) -> bool:
    return batch.targets.data_ptr() == batch.images.data_ptr()
