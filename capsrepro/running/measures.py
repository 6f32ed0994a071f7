"""The evaluations there are: what each measures, and which networks it can be made on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.errors import CapsreproError
from capsrepro.evaluation.digit_width import measure_width
from capsrepro.evaluation.distortions import measure_distortions
from capsrepro.evaluation.multicrop import measure_crops
from capsrepro.evaluation.overlap import measure_crowding, measure_overlap, measure_segmentation
from capsrepro.evaluation.reconstruction import (
    draw_examples,
    draw_perturbations,
    measure_reconstruction,
)
from capsrepro.evaluation.routing_dynamics import measure_routing
from capsrepro.evaluation.scores import measure_scores
from capsrepro.evaluation.vote_summary import measure_votes


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        metrics: Numbers by name.
        curves: Equally long lists by name.
        arrays: Pictures to draw figures from, or scores, kept beside the record; mostly none.
        classified: How many images were classified; None: every image of the split once.
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    classified: int | None = None


def _reconstruct(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics = measure_reconstruction(model, split)
    examples = draw_examples(model, split, settings["examples_right"], settings["examples_wrong"])
    digits = settings["perturbed_digits"]
    if not digits:
        return Measured(metrics | measure_segmentation(model, split), arrays=examples)
    perturbed = draw_perturbations(model, split, digits)
    return Measured(metrics | measure_width(model, split), arrays={**examples, **perturbed})


def _overlap(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics, curves = measure_overlap(model, split)
    return Measured(metrics | measure_crowding(model, split), curves)


def _routing(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    part = EvaluationSplit(
        split.examples,
        batch_size=100,  # all votes of a batch are written out
        operations=split.operations,
        count=min(settings["images"], split.items),
    )
    return Measured({}, measure_routing(model, part, settings["iterations"]))


def _scores(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics, arrays = measure_scores(model, split)
    return Measured(metrics, arrays=arrays)


def _votes(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    asked = {name: settings[name] for name in ("right", "wrong", "windows", "bins")}
    return Measured(*measure_votes(model, split, **asked))


def _distortions(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    sweeps = {name: values for name, values in settings.items() if name not in ("name", "images")}
    part = split.first(settings["images"] or split.items)
    metrics, curves = measure_distortions(model, part, **sweeps)
    points = len(curves["distorted_accuracy_pct"])
    return Measured(metrics, curves, classified=points * part.items)


def _crops(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics, curves = measure_crops(model, split, settings["offsets_px"])
    return Measured(metrics, curves, classified=split.items * int(curves["crops"][-1]))


Measure = Callable[[nn.Module, EvaluationSplit, Mapping[str, Any]], Measured]

EVALUATIONS: dict[str, Measure] = {
    "reconstruct": _reconstruct,
    "overlap": _overlap,
    "routing": _routing,
    "scores": _scores,
    "votes": _votes,
    "crops": _crops,
    "distortions": _distortions,
}


# What a kind cannot do without, in words and as the model's attribute: any of them is enough.
# Scores are lengths: what other networks give is of another scale, and summing it would be another
# ensemble. Several crops are summed as shares of the whole, and so need what is never negative.
_NEEDED = {
    "reconstruct": ("decoder", ("decoder",)),
    "routing": ("routing by agreement", ("transforms_KEID",)),
    "scores": ("class capsules", ("transforms_KEID",)),
    "votes": ("EM routing", ("routed_layers",)),
    "crops": ("class capsules", ("transforms_KEID", "class_caps")),
}


def measure(
    model: nn.Module,
    model_name: str,
    split: EvaluationSplit,
    kind: str,
    settings: Mapping[str, Any],
) -> Measured:
    """Evaluate a trained model.

    Args:
        model: With its weights.
        model_name: As in params.yaml.
        split: The test images.
        kind: A key of `EVALUATIONS`.
        settings: Of this evaluation.

    Raises:
        CapsreproError: The model, or its images, cannot be evaluated this way.
    """
    what, needed = _NEEDED.get(kind, ("", ()))
    if needed and all(getattr(model, name, None) is None for name in needed):
        raise CapsreproError(
            f"model {model_name} has no {what}, so `{kind}` has nothing to show; "
            "choose a run of another model."
        )
    return EVALUATIONS[kind](model, split, settings)
