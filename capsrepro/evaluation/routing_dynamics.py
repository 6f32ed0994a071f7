"""How much routing still changes at each iteration (DR17 Appendix A, Fig. A.1).

The paper plots the "average change of each routing logit (b_ij) by each routing iteration" and does
not say more. Procedure 1 adds û_{j|i}·v_j to b_ij in every iteration, and that does not shrink when
routing has settled: v_j stays what it is, and b_ij grows by the same amount again. The published
curves fall by four orders of magnitude from iteration 2 to 10. So three changes are measured, all
as means of absolute values over images, children and parents: of the logit, of the agreement (the
change of the change), and of the coupling.

Shape suffixes: B images, I child capsules, J parents, E dimensions of a child, D of a parent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from capsrepro.data.batches import EvaluationSplit
from capsrepro.models.routing import squash

_SLICE = 25
"""Images at a time: 18 MB of votes of 1,152 capsules, faster than 184 MB for 250 images."""

MEASURED = ("logit_change", "agreement_change", "coupling_change", "coupling_entropy_nat")


def routing_changes(
    children_BEI: Tensor,
    transforms_JEID: Tensor,
    iterations: int,
    bias_JD: Tensor | None = None,
    *,
    none_of_the_above: bool = False,
) -> Tensor:
    """Procedure 1, looking at what changes, whatever number of iterations the network trained with.

    Args:
        children_BEI: Poses u_i.
        transforms_JEID: Matrices W_ij.
        iterations: How often v is evaluated.
        bias_JD: Added to s_j.
        none_of_the_above: Whether the softmax has one more parent with the logit 0.

    Returns:
        One row per iteration r = 1, 2, …, shape (iterations, 4): mean |û_ij·v_j(r)|, by which the
        logits change; mean |û_ij·(v_j(r) − v_j(r−1))| with v_j(0) = 0; mean |c_ij(r) − c_ij(r−1)|,
        0 for r = 1; and the mean entropy in nats of a child's coupling, that to the additional
        parent included.
    """
    votes_BIJD = torch.einsum("bei,jeid->bijd", children_BEI, transforms_JEID)
    logits_BIJ = votes_BIJD.new_zeros(votes_BIJD.shape[:3])
    agreement_before = torch.zeros_like(logits_BIJ)
    coupling_before: Tensor | None = None
    rows = []
    for _ in range(iterations):
        scores = logits_BIJ
        if none_of_the_above:
            scores = torch.cat([logits_BIJ, torch.zeros_like(logits_BIJ[..., :1])], dim=2)
        shares = scores.softmax(2)
        coupling_BIJ = shares[..., : logits_BIJ.shape[2]]
        sums_BJD = torch.einsum("bij,bijd->bjd", coupling_BIJ, votes_BIJD)
        parents_BJD = squash(sums_BJD if bias_JD is None else sums_BJD + bias_JD)
        agreement_BIJ = torch.einsum("bijd,bjd->bij", votes_BIJD, parents_BJD)
        moved = coupling_BIJ - (coupling_BIJ if coupling_before is None else coupling_before)
        entropy = -torch.special.xlogy(shares, shares).sum(2)
        measured = (agreement_BIJ, agreement_BIJ - agreement_before, moved, entropy)
        rows.append(torch.stack([x.abs().mean() for x in measured]))
        logits_BIJ = logits_BIJ + agreement_BIJ
        agreement_before, coupling_before = agreement_BIJ, coupling_BIJ
    return torch.stack(rows)


def measure_routing(model: Any, split: EvaluationSplit, iterations: int) -> dict[str, list[float]]:
    """What `routing_changes` gives, averaged over a whole split.

    Args:
        model: A CapsNet.
        split: Images.
        iterations: How often to route; DR17 Fig. A.1 goes to 10.

    Returns:
        Curves `iteration`, `logit_change`, `agreement_change`, `coupling_change` and
        `coupling_entropy_nat`, one entry per iteration.
    """
    model.eval()
    sums = torch.zeros(iterations, 4, dtype=torch.float64)
    with torch.inference_mode():
        for batch in split:
            for children_BEI in model.primary_capsules(batch.images).split(_SLICE):
                rows = routing_changes(
                    children_BEI,
                    model.transforms_KEID,
                    iterations,
                    model.bias_KD,
                    none_of_the_above=model.none_of_the_above,
                )
                sums += rows.cpu().double() * len(children_BEI)
    curves = (sums / split.items).T.tolist()
    steps = [float(step) for step in range(1, iterations + 1)]
    return {"iteration": steps, **dict(zip(MEASURED, curves, strict=True))}
