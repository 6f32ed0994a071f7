"""The training loop on problems small enough to count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from watching import Watcher

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import TrainingStream
from capsrepro.data.examples import StoredExamples
from capsrepro.models.predictions import correct
from capsrepro.running.assembly import build_model
from capsrepro.schema.augmentation import Augmentation
from capsrepro.training.loop import (
    DivergedError,
    set_precision,
    train,
)
from capsrepro.training.optimisation import learning_rate, make_optimizer
from capsrepro.training.state import REPLAY_STEPS, TrainingState
from capsrepro.training.step import train_step

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")
RECIPE = PARAMS.protocols["digits"].recipe
MODELS = ["cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon"]


def new_state(model: str = "capsnet-r3-recon") -> TrainingState:
    network = build_model(resolve_run(PARAMS, f"digits/{model}/seed-0"), CPU)
    return TrainingState(network, make_optimizer(network, RECIPE))


def new_stream(items: int = 20, batch_size: int = 8) -> TrainingStream:
    """Images whose class can be seen: row `label` of pixels is bright."""
    labels = (np.arange(items, dtype=np.uint8) % 8).reshape(items, 1)
    images = np.random.default_rng(0).integers(0, 60, (items, 1, 8, 8), np.uint8)
    images[np.arange(items), 0, labels[:, 0]] = 255
    return TrainingStream(
        StoredExamples(images, labels, CPU),
        batch_size=batch_size,
        augmentation=Augmentation(shift_px=0),
        order_seed=1,
        augmentation_seed=2,
    )


def recipe(steps: int, **changes: float):
    return RECIPE.model_copy(update={"steps": steps, **changes})


def test_learning_rate_is_that_of_the_authors() -> None:
    # paper_spec A1: 0.001·0.96^(step/2000), continuous, not below 1e-6.
    mnist = PARAMS.protocols["mnist"].recipe
    assert learning_rate(mnist, 0) == 0.001
    assert learning_rate(mnist, 2000) == pytest.approx(0.00096)
    assert learning_rate(mnist, 1000) == pytest.approx(0.001 * math.sqrt(0.96))
    assert learning_rate(mnist, 300_000) == pytest.approx(2.19e-6, rel=1e-3)
    assert learning_rate(mnist, 338_433) > 1e-6
    assert learning_rate(mnist, 338_434) == 1e-6
    assert learning_rate(mnist, 10**7) == 1e-6


def test_the_short_protocol_decays_as_far_as_the_full_one() -> None:
    full, short = (PARAMS.protocols[name].recipe for name in ("mnist", "mnist-short"))
    for share in (0, 0.25, 0.5, 1):
        there = learning_rate(full, round(share * full.steps))
        assert learning_rate(short, round(share * short.steps)) == pytest.approx(there)


def test_every_step_uses_its_own_learning_rate() -> None:
    # After one step of Adam a weight has moved by the learning rate (up to its epsilon).
    state, rate = new_state("cnn-baseline"), recipe(5, decay_steps=1)
    watcher = Watcher()
    rates = []
    watcher.on_step = lambda s: rates.append(s.optimizer.param_groups[0]["lr"]) or True
    train(state, new_stream(), rate, watcher)
    assert rates == [learning_rate(rate, step) for step in range(5)]
    assert rates[1] == pytest.approx(0.96 * rates[0])


def test_adam_is_the_recipes() -> None:
    changed = recipe(1, adam_betas=(0.8, 0.9), adam_epsilon=1e-4, learning_rate=0.5)
    network = new_state().model
    optimizer = make_optimizer(network, changed)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.9), 1e-4)
    assert group["weight_decay"] == 0
    assert len(group["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("model", MODELS)
def test_loss_decreases(model: str) -> None:
    state, watcher = new_state(model), Watcher()
    assert train(state, new_stream(32, 16), recipe(80), watcher)
    losses = [entry["train_loss"] for entry in watcher.entries]
    assert losses[-1] < 0.2 * losses[0]
    assert watcher.entries[-1]["train_error_pct"] < 10 < watcher.entries[0]["train_error_pct"]


@pytest.mark.parametrize("model", MODELS)
def test_history_equals_a_count_by_hand(model: str) -> None:
    # 20 items in batches of 8: an epoch ends within a batch, so entries cover 3, 2 and 3 batches.
    state, watcher, stream = new_state(model), Watcher(), new_stream()
    state.model.eval()  # as after a test; training must switch dropout on again
    train(state, stream, recipe(8), watcher)
    assert watcher.steps == list(range(1, 9))
    assert [entry["step"] for entry in watcher.entries] == [3, 5, 8]
    assert [entry["epoch"] for entry in watcher.entries] == [1.2, 2.0, 3.2]
    assert state.history == watcher.entries

    twin = new_state(model)
    twin.model.train()
    for entry, steps in zip(watcher.entries, ([0, 1, 2], [3, 4], [5, 6, 7]), strict=True):
        wrong, losses = 0, []
        for step in steps:
            batch = stream.batch(step)
            loss, _, scores = twin.model.objective(*batch)
            wrong += np.count_nonzero(scores.detach().argmax(1) != batch.labels[:, 0])
            losses.append(loss.item())
            twin.optimizer.zero_grad()
            loss.backward()
            twin.optimizer.param_groups[0]["lr"] = learning_rate(RECIPE, step)
            twin.optimizer.step()
        assert entry["train_error_pct"] == pytest.approx(100 * wrong / (8 * len(steps)))
        assert entry["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert entry["learning_rate"] == learning_rate(RECIPE, steps[-1])
        assert entry["images_per_s"] > 0


def test_terms_of_the_loss_add_up() -> None:
    state = new_state()
    train(state, new_stream(), recipe(5), Watcher())
    for entry in state.history:
        total = entry["margin_loss"] + 0.0005 * entry["reconstruction_sse"]
        assert entry["train_loss"] == pytest.approx(total, rel=1e-6)


def test_the_last_step_closes_an_unfinished_epoch() -> None:
    state = new_state()
    train(state, new_stream(), recipe(4), Watcher())
    assert [entry["epoch"] for entry in state.history] == [1.2, 1.6]
    assert state.images == 0
    assert {float(total) for total in state.totals.values()} == {0}


def test_first_losses_are_kept_for_a_replay() -> None:
    state = new_state("cnn-baseline")
    train(state, new_stream(), recipe(REPLAY_STEPS + 3), Watcher())
    again = new_state("cnn-baseline")
    train(again, new_stream(), recipe(3), Watcher())
    assert len(state.first_losses) == REPLAY_STEPS
    assert state.first_losses[:3] == again.first_losses


def poison_before(step: int) -> Callable[[TrainingState], bool]:
    def on_step(training: TrainingState) -> bool:
        if training.step == step - 1:
            with torch.no_grad():
                next(training.model.parameters()).view(-1)[0] = math.nan
        return True

    return on_step


@pytest.mark.parametrize(
    ("items", "found", "share_pct"),
    [
        (20, 15, 100),  # at the end of its epoch, which is steps 14 and 15
        (4000, 50, 100 * 37 / 50),  # in a long epoch: at most 50 steps later
    ],
)
def test_nan_stops_training(items: int, found: int, share_pct: float) -> None:
    state, watcher = new_state("cnn-baseline"), Watcher()
    watcher.on_step = poison_before(14)
    with pytest.raises(DivergedError, match=f"not finite by step {found}") as caught:
        train(state, new_stream(items), recipe(200), watcher)
    assert caught.value.step == state.step == found
    assert all(math.isfinite(x) for entry in state.history for x in entry.values())
    *earlier, last = state.history
    assert last["step"] == found
    assert last["non_finite_steps_pct"] == pytest.approx(share_pct)
    assert "train_loss" not in last
    assert all(entry["non_finite_steps_pct"] == 0 for entry in earlier)


def test_nan_in_the_last_step_is_found() -> None:
    state, watcher = new_state("cnn-baseline"), Watcher()
    watcher.on_step = poison_before(7)
    with pytest.raises(DivergedError, match="by step 7"):
        train(state, new_stream(4000), recipe(7), watcher)


def test_a_watcher_can_stop_and_training_goes_on_from_there() -> None:
    straight, stopped = new_state("capsnet-r3-recon"), new_state("capsnet-r3-recon")
    assert train(straight, new_stream(), recipe(6), Watcher())
    assert not train(stopped, new_stream(), recipe(6), Watcher(stop_at=4))
    assert stopped.step == 4
    assert train(stopped, new_stream(), recipe(6), Watcher())
    assert all(map(torch.equal, straight.model.parameters(), stopped.model.parameters()))


def test_stopping_at_the_last_step_is_finishing() -> None:
    assert train(new_state("cnn-baseline"), new_stream(), recipe(3), Watcher(stop_at=3))


@pytest.mark.parametrize("model", MODELS)
def test_batches_of_one_work(model: str) -> None:
    state = new_state(model)
    assert train(state, new_stream(3, 1), recipe(6), Watcher())
    assert [entry["epoch"] for entry in state.history] == [1, 2]
    assert all(math.isfinite(entry["train_loss"]) for entry in state.history)


@pytest.mark.parametrize("model", MODELS)
def test_batches_larger_than_the_split_work(model: str) -> None:
    state = new_state(model)
    assert train(state, new_stream(3, 8), recipe(2), Watcher())
    assert [entry["epoch"] for entry in state.history] == pytest.approx([8 / 3, 16 / 3])


@pytest.mark.parametrize("model", MODELS)
def test_scores_do_not_depend_on_the_batch(model: str) -> None:
    state = new_state(model)
    train(state, new_stream(), recipe(5), Watcher())
    network = state.model.eval()
    images = new_stream().batch(0).images
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_the_mean_over_the_batch(model: str) -> None:
    network = new_state(model).model.eval()  # without dropout
    batch = new_stream().batch(0)

    def gradient(images: slice) -> torch.Tensor:
        network.zero_grad()
        network.objective(*(part[images] for part in batch)).loss.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    mean = torch.stack([gradient(slice(i, i + 1)) for i in range(8)]).mean(0)
    torch.testing.assert_close(gradient(slice(None)), mean, rtol=1e-3, atol=1e-6)


def test_a_step_returns_the_loss_before_its_update() -> None:
    state, batch = new_state(), new_stream().batch(0)
    with torch.no_grad():
        before = state.model.objective(*batch)
    loss = train_step(state, batch)
    assert float(loss) == pytest.approx(before.loss.item(), rel=1e-6)
    assert not loss.requires_grad
    wrong = 8 - int(correct(before.scores, batch.labels).sum())
    assert float(state.totals["train_error_pct"]) == 100 * wrong
    assert state.totals["train_error_pct"].dtype == torch.float64


def test_precisions_are_named() -> None:
    network = new_state().model
    images = new_stream().batch(0).images
    exact = network(images)
    set_precision(network, "bf16")
    assert not torch.equal(network(images), exact)
    set_precision(network, "float32")
    assert torch.equal(network(images), exact)
    assert torch.get_float32_matmul_precision() == "highest"
