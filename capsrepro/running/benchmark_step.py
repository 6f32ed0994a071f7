"""The step that a benchmark times, as it runs in training, on made-up images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from capsrepro.config import RunSpec
from capsrepro.data.batches import TrainingStream
from capsrepro.data.composites import CANVAS_PX, MARGIN_PX
from capsrepro.data.dataset import Split
from capsrepro.data.examples import Examples, StoredExamples
from capsrepro.data.multimnist import composites_of, reading_of
from capsrepro.data.preparation import find_dataset
from capsrepro.running import assembly
from capsrepro.training import graph, state
from capsrepro.training.optimisation import make_optimizer

Step = Callable[[], None]

_MOST_ITEMS = 60_000


def make_step(spec: RunSpec, device: torch.device) -> Step:
    """One training step of a run after the other, set up as `run_experiment` does it.

    Returns:
        A function that makes one step: batch, augmentation, forward, losses, backward, update;
        on a GPU all but the batch as one graph.
    """
    state.keep_freed_memory()
    state.make_deterministic()
    model = assembly.build_model(spec, device)
    training = state.TrainingState(model, make_optimizer(model, spec.protocol.recipe))
    stream = made_up_stream(spec, device)
    model.train()
    take_step = graph.make_step(training, stream)

    def step() -> None:
        take_step()
        training.step += 1

    return step


def made_up_stream(spec: RunSpec, device: torch.device) -> TrainingStream:
    """Batches of random bytes, as many and as large as the real ones, augmented alike."""
    recipe = spec.protocol.recipe
    return TrainingStream(
        _made_up_examples(spec, device),
        batch_size=recipe.batch_size,
        augmentation=recipe,
        order_seed=state.stream_seed(spec.seed, "order"),
        augmentation_seed=state.stream_seed(spec.seed, "augmentation"),
    )


def _made_up_examples(spec: RunSpec, device: torch.device) -> Examples:
    dataset = find_dataset(spec.protocol.dataset)
    pairs = dataset.labels_per_image > 1
    # What is stored of composites are the single digits.
    side = CANVAS_PX - 2 * MARGIN_PX
    shape = (1, side, side) if pairs else dataset.image_shape
    items = min(dataset.counts["train"], _MOST_ITEMS)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (items, *shape), dtype=np.uint8)
    labels = random.integers(0, len(dataset.classes), (items, 1), dtype=np.uint8)
    if pairs:
        reading = reading_of({**dataset.parameters, **spec.dataset_parameters})
        return composites_of(Split(images, labels), reading, "train", device)
    return StoredExamples(images, labels, device)
