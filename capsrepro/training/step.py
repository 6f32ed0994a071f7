"""One optimiser step: forward, losses, backward, update.

Shape suffixes: B images of a batch, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsrepro.data.batches import Batch
from capsrepro.models.predictions import correct
from capsrepro.training.state import TrainingState

NON_FINITE = "non_finite_steps_pct"
"""Share of an epoch's steps whose loss was not a finite number, in the history."""


def train_step(state: TrainingState, batch: Batch) -> Tensor:
    """Forward, losses, backward, update; adds to the epoch's totals.

    Nothing here asks the device for a number, and every shape is that of the batch, so that the
    whole of it can be captured as a CUDA graph.

    Returns:
        The loss before the update, a scalar on the device.
    """
    # First, so that the last step's gradients do not stand where this step's activations could.
    state.optimizer.zero_grad(set_to_none=True)
    loss, terms, scores_BK = state.model.objective(*batch)  # type: ignore[operator]
    loss.backward()
    state.optimizer.step()
    with torch.no_grad():
        B = len(batch.images)
        wrong = (~correct(scores_BK, batch.labels)).sum()
        unusable = 100.0 * B * ~torch.isfinite(loss)
        sums = {"train_loss": loss * B, "train_error_pct": 100.0 * wrong, NON_FINITE: unusable}
        sums |= {name: term * B for name, term in terms.items()}
        state.add_to_totals(sums)
    return loss.detach()  # type: ignore[no-any-return]
