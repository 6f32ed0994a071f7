"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from capsrepro.models.convolution import set_convolution_precision
from capsrepro.schema.base import Precision
from capsrepro.schema.params import Recipe
from capsrepro.training.graph import Stream, make_step
from capsrepro.training.optimisation import learning_rate, set_learning_rate, spread_margin
from capsrepro.training.state import REPLAY_STEPS, TrainingState

# A non-finite loss is looked for this often: asking at every step would stall a GPU.
_CHECK_EVERY = 50


class DivergedError(Exception):
    """The loss is no longer a finite number.

    Attributes:
        step: The step at which it was found, at most 50 after it happened.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss was not finite by step {step}")
        self.step = step


class Watcher(Protocol):
    """What the loop tells the outside while it runs."""

    def on_step(self, state: TrainingState) -> bool:
        """After every step; false asks the loop to stop here."""

    def on_epoch(self, entry: dict[str, float]) -> None:
        """After every epoch, with its entry of the history."""


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Apply a named precision to convolutions alone: float32, tf32 (on a GPU) or bf16."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    set_convolution_precision(model, precision)


Probe = Callable[[nn.Module], dict[str, float]]
Enough = Callable[[dict[str, float]], bool]


def _nothing(model: nn.Module) -> dict[str, float]:
    return {}


def _never(entry: dict[str, float]) -> bool:
    return False


def train(
    state: TrainingState,
    stream: Stream,
    recipe: Recipe,
    watcher: Watcher,
    probe: Probe = _nothing,
    enough: Enough = _never,
) -> bool:
    """Train from `state.step` up to `recipe.steps`.

    Args:
        state: Model, optimiser and position; changed in place.
        stream: Batches by step.
        recipe: How to train.
        watcher: Told about every step and epoch.
        probe: Looks at the model after every epoch; what it returns goes into the history. It
            must not change the model nor draw random numbers.
        enough: Asked after every epoch, with its entry, whether the training may end here.

    Returns:
        True when all steps are done or it was enough, false when the watcher asked to stop.

    Raises:
        DivergedError: The loss is not finite.
    """
    state.model.train()
    started = time.perf_counter() - state.wall_time_s
    epoch_started, epoch_step = time.perf_counter(), state.step
    if state.history and enough(state.history[-1]):  # killed between its last step and its record
        return True
    take_step = make_step(state, stream)
    while state.step < recipe.steps:
        _follow_schedules(state, recipe)
        loss = take_step()
        state.step += 1
        state.images += stream.batch_size
        state.wall_time_s = time.perf_counter() - started
        if state.step <= REPLAY_STEPS:
            state.first_losses.append(float(loss))
        last = state.step == recipe.steps
        if (state.step % _CHECK_EVERY == 0 or last) and not math.isfinite(float(loss)):
            raise _diverged(state, state.step * stream.batch_size / stream.items)
        done = state.step * stream.batch_size
        if done % stream.items < stream.batch_size or last:
            entry = _close_epoch(state, recipe, done / stream.items)
            # Only now are the steps done: a GPU is asked to, and goes on by itself.
            state.wall_time_s = time.perf_counter() - started
            seconds = time.perf_counter() - epoch_started
            entry["images_per_s"] = (state.step - epoch_step) * stream.batch_size / seconds
            entry.update(probe(state.model))
            state.model.train()
            watcher.on_epoch(entry)
            epoch_started, epoch_step = time.perf_counter(), state.step
            if enough(entry):
                return True
        if not watcher.on_step(state) and not last:
            return False
    return True


def _follow_schedules(state: TrainingState, recipe: Recipe) -> None:
    """Set what changes with the step alone: learning rate and margin."""
    set_learning_rate(state.optimizer, learning_rate(recipe, state.step))
    margin = spread_margin(recipe, state.step)
    # Baselines share the recipe, but have other losses.
    if margin is not None and isinstance(here := getattr(state.model, "margin", None), Tensor):
        here.fill_(margin)


def _close_epoch(state: TrainingState, recipe: Recipe, epoch: float) -> dict[str, float]:
    """Turn the totals into an entry of the history and start the next epoch."""
    entry = _means(state)
    if not all(map(math.isfinite, entry.values())):
        raise _diverged(state, epoch)
    entry = {"step": state.step, "epoch": epoch} | entry
    entry["learning_rate"] = learning_rate(recipe, state.step - 1)
    state.history.append(entry)
    state.clear_totals()
    return entry


def _means(state: TrainingState) -> dict[str, float]:
    """Of all that was summed up since the epoch began."""
    return {name: float(total) / state.images for name, total in state.totals.items()}


def _diverged(state: TrainingState, epoch: float) -> DivergedError:
    """The end of a run whose loss went away; what is finite of its last epoch stays on record."""
    finite = {name: value for name, value in _means(state).items() if math.isfinite(value)}
    state.history.append({"step": state.step, "epoch": epoch} | finite)
    return DivergedError(state.step)
