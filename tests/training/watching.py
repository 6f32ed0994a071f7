"""What the loop tells between its steps, noted down."""

from __future__ import annotations

from capsrepro.training.state import TrainingState


class Watcher:
    """Notes what it is told, and may ask to stop after a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.steps: list[int] = []
        self.entries: list[dict[str, float]] = []

    def on_step(self, state: TrainingState) -> bool:
        """Called after each step; false stops the training."""
        self.steps.append(state.step)
        return state.step != self.stop_at

    def on_epoch(self, entry: dict[str, float]) -> None:
        """Called with the figures of each epoch."""
        self.entries.append(entry)
