"""What is looked at after every epoch, and when it is enough.

Nothing here changes the model or draws a random number: a run with probes has the same weights as
one without.
"""

from __future__ import annotations

import torch
from torch import nn

from capsrepro.config import RunSpec
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.loading import load_examples
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.routing_dynamics import measure_routing
from capsrepro.project import Project
from capsrepro.running import assembly
from capsrepro.training import loop

_PROBED = 128


def epoch_probe(project: Project, spec: RunSpec, device: torch.device) -> loop.Probe:
    """All that a run's protocol wants to know after every epoch, for its history."""
    probes = [*_validation(project, spec, device), *_routing(project, spec, device)]

    def probe(model: nn.Module) -> dict[str, float]:
        return {name: value for part in probes for name, value in part(model).items()}

    return probe


def enough(spec: RunSpec) -> loop.Enough:
    """Whether an epoch's accuracy is what the recipe's stop rule waits for; never without one."""
    rule = spec.protocol.recipe.stop
    if rule is None:
        return lambda entry: False
    return lambda entry: entry[f"{rule.split}_accuracy_pct"] >= rule.accuracy_pct


def _validation(project: Project, spec: RunSpec, device: torch.device) -> list[loop.Probe]:
    """Accuracy on the held-out images, and on whatever the stop rule looks at."""
    recipe = spec.protocol.recipe
    splits = {"validation"} if recipe.validation_images else set()
    if recipe.stop is not None:
        splits.add(recipe.stop.split)

    def probe_of(name: str) -> loop.Probe:
        split = assembly.evaluation_split(project, spec, name, device)
        return lambda model: {
            f"{name}_accuracy_pct": 100 - measure_accuracy(model, split)["test_error_pct"]
        }

    return [probe_of(name) for name in sorted(splits)]


def _routing(project: Project, spec: RunSpec, device: torch.device) -> list[loop.Probe]:
    """What routing changes at each iteration on the first training images, for Fig. A.1 (a)."""
    asked = spec.protocol.evaluations.routing
    if asked is None or spec.model_name not in asked.models:
        return []
    iterations = asked.iterations
    examples = load_examples(spec.protocol.dataset, "train", project.data, device)
    split = EvaluationSplit(
        examples,
        batch_size=_PROBED,
        operations=spec.protocol.recipe.operations,
        count=min(_PROBED, examples.items),
    )

    def probe(model: nn.Module) -> dict[str, float]:
        curves = measure_routing(model, split, iterations)
        steps = [int(step) for step in curves.pop("iteration")]
        return {
            f"{name}_{step}": value
            for name, values in curves.items()
            for step, value in zip(steps, values, strict=True)
        }

    return [probe]
