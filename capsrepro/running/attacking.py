"""An attack of a protocol made on one of its runs: its full description, its source, its loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from capsrepro.config import RunSpec, load_params, resolve_run
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.evaluation.attacked import Loss
from capsrepro.evaluation.robustness import measure_attack
from capsrepro.models.losses import ATTACKED_LOSSES, spread_loss
from capsrepro.project import Project
from capsrepro.running import assembly, weights
from capsrepro.running.experiment import current_record
from capsrepro.running.measures import Measured
from capsrepro.schema.attacks import AttackSpec


def attack_document(spec: RunSpec, name: str) -> dict[str, Any]:
    """Everything that decides what an attack finds, as it stands in its record.

    Raises:
        UsageError: The protocol asks for no such attack, or has no second seed to transfer from.
    """
    attack = asked_attack(spec, name)
    loss = _followed(spec, attack)
    return {
        "name": name,
        **attack.model_dump(mode="json", exclude={"models", "loss", "source"}),
        "loss": loss,
        **({"spread_margin": _spread_margin(spec)} if loss == "spread" else {}),
        "split": attacked_split(spec),
        **(
            {"source": source_name(spec, attack), "source_model": attack.source}
            if attack.source
            else {}
        ),
    }


def asked_attack(spec: RunSpec, name: str) -> AttackSpec:
    """The attack of that name in the run's protocol.

    Raises:
        UsageError: There is none.
    """
    attacks = spec.protocol.attacks
    if name not in attacks:
        known = f"it has {', '.join(attacks)}" if attacks else "it has none"
        raise UsageError(
            f"protocol {spec.protocol_name} asks for no attack {name!r}; {known}, and another one "
            f"can be added to protocols.{spec.protocol_name}.attacks in params.yaml."
        )
    return attacks[name]


def attacked_split(spec: RunSpec) -> str:
    """The split whose images are attacked: the test set, or the views that training had."""
    return "test" if "test" in assembly.measured_splits(spec) else "familiar"


def source_name(spec: RunSpec, attack: AttackSpec) -> str:
    """The run that transferred images are made on: of the next seed, so never the victim itself.

    All models of one seed see the images of the same run, and can be compared seed by seed.

    Raises:
        UsageError: The protocol has one seed alone.
    """
    seeds = spec.protocol.run_seeds
    place = seeds.index(spec.seed) + 1 if spec.seed in seeds else 0
    seed = seeds[place % len(seeds)]
    if seed == spec.seed:
        raise UsageError(
            f"a transferred attack takes its images from another seed, and {spec.protocol_name} "
            f"has {seed} alone; add one to protocols.{spec.protocol_name}.run_seeds in params.yaml."
        )
    return f"{spec.protocol_name}/{attack.source}/seed-{seed}"


def source_inputs(project: Project, spec: RunSpec, name: str) -> dict[str, str]:
    """SHA-256 of the weights that images are made on, by run; empty for an attack on itself.

    Raises:
        CapsreproError: That run is not trained, or its record is not current.
    """
    attack = spec.protocol.attacks.get(name)
    if attack is None or attack.source is None:
        return {}
    source = resolve_run(load_params(project.params), source_name(spec, attack))
    trained, stale = current_record(project, source)
    if trained is None or stale is not None or trained.failure is not None:
        why = stale or "its training failed"
        raise CapsreproError(
            f"{name} makes its images on {source.name}, which has no trained model ({why}); "
            f"run `capsrepro run {source.name}` first."
        )
    return {f"{source.name}/{weights.NAME}": trained.outputs[weights.NAME]}


def make_attack(
    project: Project, spec: RunSpec, name: str, model: nn.Module, device: torch.device
) -> Measured:
    """Attack a trained model.

    Args:
        project: Folders.
        spec: Its run.
        name: Of the attack.
        model: With its weights.
        device: Where it is.

    Raises:
        CapsreproError: The source's weights are not here, or the images cannot be attacked so.
    """
    attack = asked_attack(spec, name)
    split = assembly.evaluation_split(project, spec, attacked_split(spec), device)
    source = _source_model(project, spec, attack, device)
    metrics, curves = measure_attack(model, split, attack, _loss(spec, attack), source)
    attacked = int(metrics["test_images"]) * len(attack.epsilons)
    return Measured(metrics, curves, classified=attacked)


def _source_model(
    project: Project, spec: RunSpec, attack: AttackSpec, device: torch.device
) -> nn.Module | None:
    if attack.source is None:
        return None
    source = resolve_run(load_params(project.params), source_name(spec, attack))
    model = assembly.build_model(source, device)
    trained, _ = current_record(project, source)
    assert trained is not None, "source_inputs has looked"
    weights.load_weights(model, project.checkpoint_folder(source.name), trained)
    return model


def _followed(spec: RunSpec, attack: AttackSpec) -> str:
    return assembly.classification_loss(spec) if attack.loss == "own" else attack.loss


def _spread_margin(spec: RunSpec) -> float:
    """That of the end of training; EM18's text where the network was trained on another loss."""
    margin = spec.protocol.recipe.margin
    return margin.last if margin is not None else 0.9


def _loss(spec: RunSpec, attack: AttackSpec) -> Loss:
    name = _followed(spec, attack)
    if name == "spread":
        return partial(spread_loss, margin=_spread_margin(spec))
    return ATTACKED_LOSSES[name]
