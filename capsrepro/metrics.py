"""Every number a record or a claim may hold: its unit, its meaning, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Attributes:
        title: As it heads a column.
        unit: `%`, `s`, … or empty for a pure number.
        better: Which direction is an improvement; `neither` for plain facts.
        proportion: Whether it is a share of test images, in percent, so that a test set's size
            limits its resolution.
    """

    title: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    proportion: bool = False


METRICS: dict[str, Metric] = {
    "test_error_pct": Metric("test error", "%", "lower", proportion=True),
    "novel_test_error_pct": Metric("error, novel views", "%", "lower", proportion=True),
    "familiar_test_error_pct": Metric("error, familiar views", "%", "lower", proportion=True),
    "novel_error_reduction_pct": Metric("fewer errors on novel views", "%", "higher"),
    "error_reduction_pct": Metric("fewer errors", "%", "higher"),
    "test_accuracy_pct": Metric("test accuracy", "%", "higher", proportion=True),
    "affnist_accuracy_pct": Metric("accuracy, affNIST", "%", "higher", proportion=True),
    "expanded_mnist_accuracy_pct": Metric(
        "accuracy, expanded MNIST", "%", "higher", proportion=True
    ),
    "validation_error_pct": Metric("validation error", "%", "lower", proportion=True),
    "validation_accuracy_pct": Metric("validation accuracy", "%", "higher", proportion=True),
    "matched_accuracy_pct": Metric("accuracy to reach", "%", "neither"),
    "train_accuracy_pct": Metric("training accuracy", "%", "higher", proportion=True),
    "accuracy_advantage_pp": Metric("accuracy advantage", "pp", "higher"),
    "accuracy_pct": Metric("accuracy under attack", "%", "higher", proportion=True),
    "clean_accuracy_pct": Metric("accuracy without attack", "%", "higher", proportion=True),
    "noise_accuracy_pct": Metric("accuracy under random signs", "%", "higher", proportion=True),
    "fgsm_accuracy_pct": Metric("accuracy under one step", "%", "higher", proportion=True),
    "first_start_accuracy_pct": Metric(
        "accuracy, first random start alone", "%", "higher", proportion=True
    ),
    "full_range_accuracy_pct": Metric(
        "accuracy when pixels may be anything", "%", "higher", proportion=True
    ),
    "transfer_accuracy_pct": Metric(
        "accuracy under transferred attack", "%", "higher", proportion=True
    ),
    "white_box_accuracy_pct": Metric(
        "accuracy under the same attack on itself", "%", "higher", proportion=True
    ),
    "targeted_success_pct": Metric("targeted attack success", "%", "lower", proportion=True),
    "wrong_target_success_pct": Metric(
        "the same, true class left out", "%", "lower", proportion=True
    ),
    "fgsm_targeted_success_pct": Metric("the same by one step", "%", "lower", proportion=True),
    "transfer_fooling_pct": Metric("fooled by transferred attacks", "%", "lower", proportion=True),
    "black_box_accuracy_advantage_pp": Metric("accuracy advantage, black box", "pp", "higher"),
    "perturbation_l2_mean": Metric("mean L2 norm of the perturbation", "", "higher"),
    "gradient_orders_of_magnitude_smaller": Metric("smaller gradients", "decades", "neither"),
    "zero_gradient_pct": Metric("images with zero gradient", "%", "lower"),
    "zero_gradient_pixels_pct": Metric("zeros in a gradient", "%", "lower"),
    "gradient_l2_mean": Metric("mean L2 norm of the gradient", "", "neither"),
    "gradient_l2_median": Metric("median L2 norm of the gradient", "", "neither"),
    "distorted_accuracy_pct": Metric("accuracy, distorted images", "%", "higher", proportion=True),
    "parameter_ratio": Metric("parameters, ratio", "", "neither"),
    "capsules_per_layer": Metric("capsules per layer", "", "neither"),
    "train_size": Metric("training images", "", "neither"),
    "test_size": Metric("test images", "", "neither"),
    "overlap_pct": Metric("overlap of bounding boxes", "%", "neither"),
    "width_dimensions": Metric("capsule dimensions that encode width", "", "neither"),
    "logit_change": Metric("mean change of a routing logit", "", "lower"),
    "agreement_change": Metric("mean change of the agreement", "", "lower"),
    "coupling_change": Metric("mean change of a coupling", "", "lower"),
    "coupling_entropy_nat": Metric("mean entropy of the couplings", "nat", "neither"),
    "true_vote_distance": Metric("median distance of votes, true class", "", "neither"),
    "other_vote_distance": Metric("median distance of votes, other classes", "", "neither"),
    "true_class_share_pct": Metric("votes assigned to the true class", "%", "higher"),
    "assignment_entropy_nat": Metric("mean entropy of the assignments", "nat", "neither"),
    "label_error_pct": Metric("error, mean over labels", "%", "lower", proportion=True),
    "both_wrong_pct": Metric("both labels wrong", "%", "lower", proportion=True),
    "error_pct": Metric("error in this group", "%", "lower"),
    "segmentation_iou": Metric("segmentation, intersection over union", "", "higher"),
    "segmentation_iou_found": Metric("the same, digits that were found", "", "higher"),
    "crowded_top1_pct": Metric("two of one class: class found", "%", "higher"),
    "crowded_length": Metric("two of one class: longest capsule", "", "neither"),
    "crowded_second_length": Metric("two of one class: second capsule", "", "neither"),
    "separate_second_length": Metric("two classes: second capsule", "", "neither"),
    "digit_sse": Metric("reconstruction error of a digit", "", "lower"),
    "target_energy": Metric("sum of squared pixels, target", "", "neither"),
    "present_energy": Metric("sum of squared pixels, present digit", "", "neither"),
    "absent_energy": Metric("sum of squared pixels, absent digit", "", "lower"),
    "absent_energy_pct": Metric("energy of absent digits", "%", "lower"),
    "empty_energy": Metric("sum of squared pixels, drawn from zeros", "", "neither"),
    "present_change": Metric("what a present digit adds to that", "", "neither"),
    "absent_change": Metric("what an absent digit adds to that", "", "lower"),
    "absent_change_pct": Metric("added by absent digits", "%", "lower"),
    "width_r2_best_dimension": Metric("width explained by one dimension, R²", "", "higher"),
    "width_r2_best_dimension_lowest": Metric("the same, lowest class", "", "higher"),
    "width_r2_all_dimensions": Metric("width explained by all dimensions, R²", "", "higher"),
    "parameters": Metric("parameters", "", "neither"),
    "test_loss": Metric("test loss", "", "lower"),
    "train_loss": Metric("training loss", "", "lower"),
    "train_error_pct": Metric("training error", "%", "lower"),
    "non_finite_steps_pct": Metric("steps without a finite loss", "%", "lower"),
    "margin_loss": Metric("margin loss", "", "lower"),
    "spread_loss": Metric("spread loss", "", "lower"),
    "reconstruction_sse": Metric("reconstruction, sum of squared differences", "", "lower"),
    "cross_entropy": Metric("cross-entropy", "nat", "lower"),
    "learning_rate": Metric("learning rate", "", "neither"),
    "images_per_s": Metric("training speed", "images/s", "higher"),
    "wall_time_s": Metric("wall time", "s", "lower"),
    "peak_memory_mib": Metric("peak memory", "MiB", "lower"),
}


UNDISTORTED: dict[str, float] = {
    "rotation_deg": 0.0,
    "translation_px": 0.0,
    "scale": 1.0,
    "affine_share": 0.0,
    "noise_sd": 0.0,
}
"""The curves that say how images were distorted, and where each leaves an image as it is."""


def is_proportion(metric: str) -> bool:
    """Whether a metric is known and a share of test images; see `Metric`."""
    return metric in METRICS and METRICS[metric].proportion


def stem_of(metric: str) -> str:
    """What the counts behind an error or an accuracy begin with: test_errors, test_images."""
    return metric.removesuffix("_error_pct").removesuffix("_accuracy_pct")
