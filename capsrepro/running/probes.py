"""What is looked at after every epoch, and when it is enough.

Nothing here changes the model or draws a random number: a run with probes has the same weights as
one without.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from capsrepro.config import RunSpec
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.loading import load_examples
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.routing_dynamics import measure_routing
from capsrepro.evaluation.stability import measure_stability
from capsrepro.models.matrix_capsules import MatrixCapsNet
from capsrepro.project import Project
from capsrepro.running import assembly
from capsrepro.schema.params import StopRule
from capsrepro.training import loop, state

_PROBED = 128
_WATCHED = 16
"""Images whose gradients are taken after every epoch: of the full network they need 1 GB."""


def epoch_probe(project: Project, spec: RunSpec, training: state.TrainingState) -> loop.Probe:
    """All that a run's protocol wants to know after every epoch, for its history."""
    probes = [
        *_accuracies(project, spec, training),
        *_routing(project, spec, training.device),
        *_stability(project, spec, training.device),
    ]

    def probe(model: nn.Module) -> dict[str, float]:
        return {name: value for part in probes for name, value in part(model).items()}

    return probe


def enough(rule: StopRule | None) -> loop.Enough:
    """Whether an epoch's accuracy is what a settled stop rule waits for; never without one."""
    if rule is None or rule.accuracy_pct is None:
        return lambda entry: False
    name, wanted = f"{rule.split}_accuracy_pct", rule.accuracy_pct
    return lambda entry: name in entry and entry[name] >= wanted


def _accuracies(project: Project, spec: RunSpec, training: state.TrainingState) -> list[loop.Probe]:
    """Accuracy on the held-out images, and on what the stop rule looks at, as often as it does."""
    recipe = spec.protocol.recipe
    every_epochs = {"validation": 1} if recipe.validation_images else {}
    if recipe.stop is not None:
        every_epochs[recipe.stop.split] = recipe.stop.every_epochs

    def probe_of(name: str, epochs: int) -> loop.Probe:
        split = assembly.evaluation_split(project, spec, name, training.device)

        def probe(model: nn.Module) -> dict[str, float]:
            # The history has this epoch already. Whatever comes last is looked at too.
            if len(training.history) % epochs and training.step < recipe.steps:
                return {}
            return {f"{name}_accuracy_pct": 100 - measure_accuracy(model, split)["test_error_pct"]}

        return probe

    return [probe_of(name, epochs) for name, epochs in sorted(every_epochs.items())]


def _routing(project: Project, spec: RunSpec, device: torch.device) -> list[loop.Probe]:
    """What routing changes at each iteration on the first training images, for Fig. A.1 (a)."""
    asked = spec.protocol.evaluations.routing
    if asked is None or spec.model_name not in asked.models:
        return []
    iterations = asked.iterations
    split = _first_of_training(project, spec, device, _PROBED)

    def probe(model: nn.Module) -> dict[str, float]:
        curves = measure_routing(model, split, iterations)
        steps = [int(step) for step in curves.pop("iteration")]
        return {
            f"{name}_{step}": value
            for name, values in curves.items()
            for step, value in zip(steps, values, strict=True)
        }

    return [probe]


def _stability(project: Project, spec: RunSpec, device: torch.device) -> list[loop.Probe]:
    """Variances, activations, assignments and gradients of a network that is routed by EM."""
    if spec.model.family != "matrix-capsules":
        return []
    (batch,) = _first_of_training(project, spec, device, _WATCHED)
    return [lambda model: measure_stability(cast(MatrixCapsNet, model), batch)]


def _first_of_training(
    project: Project, spec: RunSpec, device: torch.device, most: int
) -> EvaluationSplit:
    """The first training images without anything random, at most so many, as one batch."""
    examples = load_examples(spec.protocol.dataset, "train", project.data, device)
    return EvaluationSplit(
        examples,
        batch_size=most,
        operations=spec.protocol.recipe.operations,
        count=min(most, examples.items),
    )
