"""The step that is captured on a GPU, and what of it can be tried without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from watching import Watcher

from capsrepro.config import RunSpec, load_params, resolve_run
from capsrepro.data.augmentation import seen_shape
from capsrepro.data.batches import Batch, TrainingStream
from capsrepro.data.examples import StoredExamples
from capsrepro.data.preparation import find_dataset
from capsrepro.errors import CapsreproError
from capsrepro.models import capsule_layers
from capsrepro.models.gpu import routing_cuda
from capsrepro.running.assembly import build_model
from capsrepro.schema.augmentation import Augmentation
from capsrepro.training import graph
from capsrepro.training.loop import train
from capsrepro.training.optimisation import make_optimizer
from capsrepro.training.state import TrainingState, make_deterministic
from capsrepro.training.step import train_step

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")

# Each would have the CPU wait for the GPU, or make a shape out of numbers that are there.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten._unique2.default,
    # What torch.tensor and torch.as_tensor call: a number of the CPU, to be copied.
    torch.ops.aten.lift_fresh.default,
}

RUNS = [
    "digits/capsnet-r3-recon/seed-0",
    "digits/cnn-baseline/seed-0",
    "mnist-short/cnn-pooled/seed-0",
    "multimnist-short/capsnet-r3-recon-code/seed-0",
    "matcaps-mnist-short/matcaps-small-em3/seed-0",
    "matcaps-mnist-short/matcaps-small-em3-code/seed-0",
]


class NeverWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITING, f"{func} in a step"
        return func(*args, **(kwargs or {}))


def batch_for(spec: RunSpec, size: int, device: torch.device = CPU) -> Batch:
    dataset = find_dataset(spec.protocol.dataset)
    shape = seen_shape(dataset.image_shape, spec.protocol.recipe.operations)
    images = torch.rand(size, *shape, device=device)
    labels = torch.arange(dataset.labels_per_image, device=device).repeat(size, 1)
    return Batch(images, labels, images.unsqueeze(1).expand(-1, labels.shape[1], *shape))


@pytest.mark.parametrize("run", RUNS)
def test_a_step_never_waits_for_the_device(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Loops compiled for the processor run on no GPU.
    for module in (capsule_layers, routing_cuda):
        monkeypatch.setattr(module, "can_compile", lambda _: False)
    spec = resolve_run(PARAMS, run)
    model = build_model(spec, CPU)
    # The optimiser of a GPU cannot be tried here; plain descent never waits either.
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False))
    batch = batch_for(spec, 2)
    with NeverWaiting():
        train_step(state, batch)
    assert float(state.totals["train_loss"]) > 0


def test_waiting_would_be_noticed() -> None:
    with NeverWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(3).sum().item()


def stream_of(device: torch.device = CPU, items: int = 50, batch_size: int = 8) -> TrainingStream:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (items, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (items, 1), generator=generator, dtype=torch.uint8)
    return TrainingStream(
        StoredExamples(images.numpy(), labels.numpy(), device),
        batch_size=batch_size,
        augmentation=Augmentation(shift_px=1),
        order_seed=1,
        augmentation_seed=2,
    )


@pytest.mark.parametrize("ahead", [1, 3, 16])
def test_batches_made_ahead_are_those_made_one_by_one(ahead: int) -> None:
    stream = stream_of()
    made = graph.BatchesAhead(stream, ahead)
    for step in [*range(40), 7, 100]:  # in order, back, and far ahead, as after a resume
        for part, want in zip(made.at(step), stream.batch(step), strict=True):
            assert torch.equal(part, want)


def test_without_a_gpu_a_step_is_eager() -> None:
    model = build_model(resolve_run(PARAMS, RUNS[0]), CPU)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    step = graph.make_step(state, stream_of())
    assert not isinstance(step, graph.CapturedStep)
    assert float(step()) == pytest.approx(float(state.totals["train_loss"]) / 8, rel=1e-6)


def trained_on_gpu(run: str, *stops: int) -> TrainingState:
    """Nine steps of a digits run, stopped and resumed where asked."""
    device, spec = torch.device("cuda"), resolve_run(PARAMS, run)
    make_deterministic()
    recipe = spec.protocol.recipe.model_copy(update={"steps": 9})
    document = None
    for stop in (*stops, None):
        model = build_model(spec, device)
        state = TrainingState(model, make_optimizer(model, recipe))
        if document is not None:
            state.restore(document)
        train(state, stream_of(device), recipe, Watcher(stop))
        document = state.document("key")
    return state


def assert_same(one: TrainingState, other: TrainingState) -> None:
    assert one.first_losses == other.first_losses
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("run", RUNS[:2])
def test_a_captured_step_has_the_bits_of_an_eager_one(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = trained_on_gpu(run)
    resumed = trained_on_gpu(run, 2, 6)
    monkeypatch.setenv(graph.SWITCH, "off")
    eager = trained_on_gpu(run)
    assert_same(captured, eager)
    assert_same(captured, resumed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_what_cannot_be_captured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    device, spec = torch.device("cuda"), resolve_run(PARAMS, RUNS[0])
    model = build_model(spec, device)
    monkeypatch.setattr(model, "margin_loss_reduction", _Asking())
    state = TrainingState(model, make_optimizer(model, spec.protocol.recipe))
    step = graph.make_step(state, stream_of(device))
    with pytest.raises(CapsreproError, match=f"captured as a CUDA graph .*{graph.SWITCH}=off"):
        for state.step in range(5):
            step()


class _Asking(str):
    """A reduction that asks the GPU for a number whenever it is compared."""

    def __eq__(self, other: object) -> bool:
        return bool(torch.ones((), device="cuda").item() == 1) and other == "sum"

    __hash__ = str.__hash__
