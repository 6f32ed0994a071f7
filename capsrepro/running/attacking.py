"""An attack of a protocol made on one of its runs: its full description, its source, its loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from capsrepro.config import RunSpec
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
    source = _source(spec, name)
    loss = _followed(source or spec, attack)
    document = {
        "name": name,
        **attack.model_dump(mode="json", exclude={"models", "loss", "source"}),
        "loss": loss,
        "split": attacked_split(spec),
    }
    if attack.epsilon_unit != "raw-pixels":  # fifths are no bytes here
        document["epsilons"] = [f"{float(epsilon):g}" for epsilon in attack.epsilons]
    if loss == "spread":
        document["spread_margin"] = _spread_margin(spec)
    if source is not None:
        document |= {"source": source.name, "source_model": source.model_name}
        document |= {"white_box_loss": _followed(spec, attack)}
    return document


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


def source_inputs(project: Project, spec: RunSpec, name: str) -> dict[str, str]:
    """SHA-256 of the weights that images are made on, by run; empty for an attack on itself.

    Raises:
        CapsreproError: That run is not trained, or its record is not current.
    """
    source = spec.sources.get(name)
    if source is None:
        return {}
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
    source = _source(spec, name)
    crafted_on = None
    if source is not None:
        crafted_on = (_trained_model(project, source, device), _loss(source, attack))
    metrics, curves = measure_attack(model, split, attack, _loss(spec, attack), crafted_on)
    attacked = int(metrics["test_images"]) * len(attack.epsilons)
    return Measured(metrics, curves, classified=attacked)


def _source(spec: RunSpec, name: str) -> RunSpec | None:
    source = spec.sources.get(name)
    if source is not None and source.name == spec.name:
        raise UsageError(
            f"{name} makes its images on another seed of {spec.model_name}, and there is only "
            f"seed {spec.seed}; add one to protocols.{spec.protocol_name}.run_seeds in params.yaml."
        )
    return source


def _trained_model(project: Project, source: RunSpec, device: torch.device) -> nn.Module:
    model = assembly.build_model(source, device)
    trained, stale = current_record(project, source)
    assert trained is not None and stale is None, "source_inputs has looked"
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
