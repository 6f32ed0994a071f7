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
    "test_accuracy_pct": Metric("test accuracy", "%", "higher", proportion=True),
    "accuracy_pct": Metric("accuracy under attack", "%", "higher", proportion=True),
    "zero_gradient_pct": Metric("images with zero gradient", "%", "lower"),
    "parameters": Metric("parameters", "", "neither"),
    "test_loss": Metric("test loss", "", "lower"),
    "train_loss": Metric("training loss", "", "lower"),
    "train_error_pct": Metric("training error", "%", "lower"),
    "margin_loss": Metric("margin loss", "", "lower"),
    "reconstruction_sse": Metric("reconstruction, sum of squared differences", "", "lower"),
    "cross_entropy": Metric("cross-entropy", "nat", "lower"),
    "learning_rate": Metric("learning rate", "", "neither"),
    "images_per_s": Metric("training speed", "images/s", "higher"),
    "wall_time_s": Metric("wall time", "s", "lower"),
    "peak_memory_mib": Metric("peak memory", "MiB", "lower"),
}
