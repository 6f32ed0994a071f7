"""Real records, claims and parameters in small: what the tests of the report are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from capsrepro.claims import Claim
from capsrepro.config import load_params, resolve_run
from capsrepro.records import (
    Budget,
    Code,
    Cost,
    Data,
    Environment,
    Failure,
    Record,
    read_records,
    write_record,
)
from capsrepro.schema.params import Params

ROOT = Path(__file__).parents[2]
CAPSNETS = ("cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon")


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's own models under two MNIST protocols, one full and one short."""
    real = load_params(ROOT / "params.yaml")
    mnist = real.protocols["mnist"]
    full = mnist.model_copy(
        update={
            "title": "MNIST, full recipe",
            "version": "1.0",
            "judged_as": "mnist",
            "run_models": CAPSNETS,
            "run_seeds": (0, 1, 2),
            "full_steps": 300_000,
            "recipe": mnist.recipe.model_copy(update={"steps": 300_000}),
        }
    )
    short = full.model_copy(
        update={
            "title": "MNIST, 1/150 of the budget",
            "recipe": full.recipe.model_copy(update={"steps": 2_000}),
        }
    )
    return real.model_copy(update={"protocols": {"mnist": full, "mnist-short": short}})


@pytest.fixture
def run_record(params: Params) -> Callable[..., Record]:
    """Make the record of one training run as `capsrepro run` would."""

    def make(run: str, metrics: dict[str, float] | None = None, **changes: Any) -> Record:
        spec = resolve_run(changes.pop("params", params), run)
        recipe = spec.protocol.recipe
        failure = changes.pop("failure", None)
        fields: dict[str, Any] = {
            "schema_version": 1,
            "kind": "train",
            "run": run,
            "protocol": spec.protocol_name,
            "protocol_version": spec.protocol.version,
            "model": spec.model_name,
            "seed": spec.seed,
            "status": "failed" if failure else "finished",
            "failure": Failure(reason=failure, step=120) if failure else None,
            "spec": spec.document(),
            "spec_digest": spec.digest,
            "data": Data(name="mnist", digest="d" * 64),
            "inputs": {"mnist.npz": "e" * 64},
            "outputs": {"weights.safetensors": f"{spec.seed:064d}"},
            "budget": Budget(
                steps=recipe.steps,
                full_steps=spec.protocol.full_steps,
                fraction=spec.protocol.budget,
            ),
            "metrics": metrics or {},
            "curves": {"epoch": [1.0], "train_loss": [0.5]},
            "code": Code(git_commit="c" * 40, git_dirty=False, science_digest="f" * 64),
            "environment": Environment(
                versions={"torch": "2.11"},
                platform="Linux",
                device="cpu",
                threads=2,
                precision="float32",
                deterministic=True,
            ),
            "cost": Cost(
                wall_time_s=1, images_per_s=1, peak_memory_mib=1, energy_j=None, sessions=1
            ),
            "created_at": "2026-01-01T00:00:00Z",
        }
        return Record(**{**fields, **changes}).sealed()

    return make


@pytest.fixture
def trained(run_record: Callable[..., Record]) -> Callable[..., list[Record]]:
    """Make one record per error, seeds 0, 1, …"""

    def make(model: str, errors: Sequence[float], **changes: Any) -> list[Record]:
        more = changes.pop("metrics", {})
        return [
            run_record(
                f"{model}/seed-{seed}" if "/" in model else f"mnist/{model}/seed-{seed}",
                {"test_error_pct": error, "test_images": 10_000.0, **more},
                **changes,
            )
            for seed, error in enumerate(errors)
        ]

    return make


@pytest.fixture
def attacked() -> Callable[..., Record]:
    """Make the record of an attack on a run: FGSM, but for the keys of `attack`."""

    def make(run: Record, accuracies: dict[float, float], **changes: Any) -> Record:
        attack = {
            "name": "fgsm",
            "method": "fgsm",
            "goal": "untargeted",
            "loss": changes.pop("loss", "margin"),
            "epsilons": [str(epsilon) for epsilon in accuracies],
            "epsilon_unit": "raw-pixels",
            "clip": "image-range",
            "steps": 1,
            "step_share": "1",
            "restarts": 1,
            "images": None,
            "split": "test",
            **changes.pop("attack", {}),
        }
        fields: dict[str, Any] = {
            "kind": attack["name"],
            "spec": {**run.spec, "attack": attack},
            "inputs": dict(run.outputs),
            "outputs": {},
            "metrics": {"zero_gradient_pct": 0.5, "test_images": 10_000.0},
            "curves": {
                "epsilon": list(accuracies),
                "accuracy_pct": list(accuracies.values()),
            },
        }
        return run.model_copy(update={**fields, **changes}).sealed()

    return make


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[[Sequence[Record]], list[Record]]:
    """Write records where they belong and read them back, as every command does."""

    def there_and_back(records: Sequence[Record]) -> list[Record]:
        for record in records:
            write_record(tmp_path / "results" / "runs" / record.run, record)
        return read_records(tmp_path / "results")

    return there_and_back


@pytest.fixture
def claim() -> Callable[..., Claim]:
    """Make a claim about capsnet-r3-recon on MNIST, or another; `kind` decides what it needs."""
    adapter: TypeAdapter[Claim] = TypeAdapter(Claim)

    def make(kind: str = "value", **changes: Any) -> Claim:
        fields: dict[str, Any] = {
            "id": f"sabour2017/mnist/{kind}",
            "kind": kind,
            "protocol": "mnist",
            "metric": "test_error_pct",
            "verbatim": "0.25 ± 0.005",
            "locator": "Table 1, row 5; §5",
            "source": "text",
        }
        fields |= {
            "value": {"model": "capsnet-r3-recon", "value": 0.25, "test_size": 10_000},
            "ordering": {"better": "capsnet-r3-recon", "worse": "capsnet-r1-recon"},
            "bound": {"model": "capsnet-r3-recon", "relation": "<=", "value": 0.3},
        }[kind]
        return adapter.validate_python({**fields, **changes})

    return make
