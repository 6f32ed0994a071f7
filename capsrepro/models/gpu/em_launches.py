"""Starts the kernels of EM routing: grids, tiles and the tensors they write.

Shape suffixes: see `capsrepro.models.gpu.em_kernels`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsrepro.models.em_routing import EMRouting
from capsrepro.models.receptive_fields import ReceptiveFields
from capsrepro.models.votes import MASS_EPSILON


class Tiles(NamedTuple):
    """What a program of a kernel takes on.

    Attributes:
        images: Q, a power of 2; also the order in memory.
        parents: Of a tile of the kernels that add over children, and its warps.
        children: Of a tile of the kernels that gather the gradients of votes, and its warps.
        programs: That fill the largest cards several times over.
    """

    images: int = 32
    parents: tuple[int, int] = (8, 4)
    children: tuple[int, int] = (8, 4)
    programs: int = 4096


TILES = Tiles()

# Parents of a program that only adds up what others wrote, and its warps.
_FEW = 4


class Coefficients(NamedTuple):
    """Every reading of the M-step as one formula.

    logit a = λ (beta_a β_a − m (beta_u β_u + log Σ_h ln σ_h²)), m the mass times `mass`.
    """

    beta_a: float
    beta_u: float
    log: float
    mass: float


def coefficients_of(
    how: EMRouting, fields: ReceptiveFields, children: int, parents: int
) -> Coefficients:
    """`Coefficients` for poses of 16 numbers and these numbers of types."""
    mass = 1.0
    if how.assignment == "mean":
        mass = len(fields.windows) * parents / (fields.seen_places * children)
    if how.activation == "released-code":
        return Coefficients(-5000.0, 16 * (math.log(2 * math.pi) + 1), 1.0, mass)
    return Coefficients(1.0, 16.0, 0.5, mass)


class Launcher:
    """Launches the kernels on the children and transforms of one layer.

    Args:
        factors: Poses (G, X, I, F, Q), transforms (N, J, F) and offsets (N, F) or None.
        active_HQ: Activations of the children.
        betas: β_a and β_u of each type of parent.
        fields: Which places of parents see which children.
        how: Routing.
        tiles: See `Tiles`.
    """

    def __init__(
        self,
        factors: tuple[Tensor, Tensor, Tensor | None],
        active_HQ: Tensor,
        betas: tuple[Tensor, Tensor],
        fields: ReceptiveFields,
        how: EMRouting,
        tiles: Tiles,
    ) -> None:
        # Triton exists on few machines; kernels are loaded where they run.
        from capsrepro.models.gpu import em_gradient_kernels, em_kernels, em_pull_kernels

        self.forwards: Any = em_kernels
        self.backwards: Any = em_gradient_kernels
        self.pulls: Any = em_pull_kernels
        poses_GXIFQ, transforms_NJF, offsets_NF = factors
        self.has_offsets = offsets_NF is not None
        offsets = transforms_NJF if offsets_NF is None else offsets_NF
        self.factors = poses_GXIFQ, transforms_NJF, offsets
        self.active_HQ, self.betas, self.fields, self.how = active_HQ, betas, fields, how
        self.G, self.X, self.I, _, self.Q = poses_GXIFQ.shape
        self.L, self.K = fields.windows.shape
        self.P, self.N, self.J = self.G * self.L, self.K * self.I, transforms_NJF.shape[1]
        self.H = self.G * self.X * self.I
        self.M = fields.slots.shape[1]
        self.shares_X = 1 / (self.J * fields.seen.clamp(min=1).to(poses_GXIFQ.dtype))
        most, warps = tiles.parents
        self.tile = min(most, 1 << (self.J - 1).bit_length())
        self.warps = max(1, warps * self.tile // most)
        self.tiles = tiles
        programs = self.P * -(-self.J // self.tile)
        self.parts, self.step = _split(self.K, programs, tiles.programs)
        self.coefficients = coefficients_of(how, fields, self.I, self.J)

    def new(self, *shape: int) -> Tensor:
        """Memory for a kernel to write, of this shape and Q."""
        return self.active_HQ.new_empty(*shape, self.Q)

    def m_step(
        self,
        iteration: int,
        logs_PNJQ: Tensor | None,
        over_HQ: Tensor | None,
        fits_EPJ4FQ: Tensor,
        scalars_EP2JQ: Tensor,
    ) -> None:
        """Write what parents make of their votes to `fits` and `scalars` of this iteration."""
        sums, first = self._partial_sums(), logs_PNJQ is None
        weights = (_or(logs_PNJQ, self.active_HQ), _or(over_HQ, self.active_HQ), self.active_HQ)
        self._over_children(
            self.forwards.fit, (*weights, self.shares_X, self.fields.windows), sums, FIRST=first
        )
        fits_PJ4FQ, scalars_P2JQ = fits_EPJ4FQ[iteration], scalars_EP2JQ[iteration]
        self._on_parents(
            self.forwards.conclude,
            (*sums, fits_EPJ4FQ[max(iteration - 1, 0)], *self.betas, fits_PJ4FQ, scalars_P2JQ),
            (*self._constants(iteration), self.how.variance_floor, self.how.new_share, 0, self.P),
            OLD=iteration > 0,
        )
        if self.how.activation == "mixing-proportion":
            log_GLJQ = scalars_P2JQ[:, 1].view(self.G, self.L, self.J, self.Q)
            log_GLJQ -= log_GLJQ.logsumexp((1, 2), keepdim=True)

    def e_step(
        self, fits_PJ4FQ: Tensor, scalars_P2JQ: Tensor, logs_PNJQ: Tensor, over_HQ: Tensor
    ) -> None:
        """Write log a_j p_j to `logs` and log Σ a_k p_k, over all who see a child, to `over`."""
        before = fits_PJ4FQ, scalars_P2JQ, self.fields.windows
        self._over_children(self.forwards.offer, before, (logs_PNJQ,))
        self._for_children(self.forwards.compete, (logs_PNJQ, self.fields.slots, over_HQ))

    def m_step_slopes(
        self,
        iteration: int,
        above: tuple[Tensor, Tensor],
        sums: tuple[Tensor, Tensor, Tensor] | None,
        before: tuple[Tensor, Tensor, Tensor],
        written: tuple[Tensor, ...],
    ) -> None:
        """Gradient of the arithmetic of an M-step and of the E-step that follows.

        Args:
            iteration: From 0.
            above: Gradients of poses and log activations, used in the last iteration alone.
            sums: What `e_step_slopes` gave; None in the last iteration.
            before: Fits and scalars of this iteration, gradient of its poses by the next.
            written: Lines of this use and of the E-step's, k and h, rest, gradients of the betas.
        """
        fits_PJ4FQ, scalars_P2JQ, d_before_PJFQ = before
        last = sums is None
        d_poses_PJFQ, d_logs_PJQ = above
        lost_GQ = d_logs_PJQ
        if self.how.activation == "mixing-proportion":
            d_here_PJQ = d_logs_PJQ if sums is None else sums[0].sum(0)
            lost_GQ = d_here_PJQ.view(self.G, self.L * self.J, self.Q).sum(1)
        parts = (d_logs_PJQ, d_poses_PJFQ, d_poses_PJFQ) if sums is None else sums
        self._on_parents(
            self.backwards.slope_fit,
            (
                fits_PJ4FQ, scalars_P2JQ, self.betas[1], d_poses_PJFQ, d_logs_PJQ, lost_GQ,
                *parts, d_before_PJFQ, *written,
            ),
            (*self._constants(iteration), self.how.new_share, 0, self.P, self.L),
            LAST=last,
        )  # fmt: skip

    def weights_slopes(
        self,
        logs_PNJQ: Tensor | None,
        over_HQ: Tensor | None,
        parents: tuple[Tensor, Tensor, Tensor],
        slopes_PNJQ: Tensor,
        d_here_HQ: Tensor,
        d_active_HQ: Tensor,
        *,
        last: bool,
    ) -> None:
        """Write R ∂w to `slopes`, sum it for each child and add that to `d_active`."""
        shares = _or(logs_PNJQ, self.active_HQ), _or(over_HQ, self.active_HQ), self.shares_X
        self._over_children(
            self.backwards.slope_weights,
            (*shares, self.fields.windows, *parents),
            (slopes_PNJQ,),
            FIRST=logs_PNJQ is None,
        )
        self._for_children(
            self.backwards.slope_children,
            (slopes_PNJQ, self.fields.slots, d_here_HQ, d_active_HQ),
            ADD=not last,
        )

    def e_step_slopes(
        self,
        logs_PNJQ: Tensor,
        over_HQ: Tensor,
        d_here_HQ: Tensor,
        fits_PJ4FQ: Tensor,
        slopes_PNJQ: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn `slopes` from R ∂w into the logs' gradient; gives its sums for `m_step_slopes`."""
        sums = self._partial_sums()
        children = logs_PNJQ, over_HQ, self.active_HQ, d_here_HQ
        self._over_children(
            self.backwards.slope_offers,
            (*children, self.fields.windows, fits_PJ4FQ),
            (slopes_PNJQ, *sums),
        )
        return sums

    def poses_slopes(self, *uses: Tensor) -> Tensor:
        """Gradient of the poses; `uses` are over, logs, slopes and lines of all uses."""
        d_patches_PNFQ = self.new(self.P, self.N, 16)
        at_once, warps = self.tiles.children
        self.pulls.pull_poses[-(-self.N // at_once), self.P](
            *self._uses(*uses), d_patches_PNFQ, 0, *self._sizes(), self.G,
            E=len(uses[0]), HAS=self.has_offsets, BN=at_once, Q=self.Q, num_warps=warps,
        )  # fmt: skip
        d_poses_GXIFQ = torch.empty_like(self.factors[0])
        self.pulls.gather_poses[self.H,](
            d_patches_PNFQ, self.fields.slots, d_poses_GXIFQ,
            self.L, self.K, self.X, self.I, self.M, BF=16, Q=self.Q, num_warps=4,
        )  # fmt: skip
        return d_poses_GXIFQ

    def transforms_slopes(self, *uses: Tensor) -> Tensor:
        """Gradient of the transforms; see `poses_slopes`."""
        at_once, warps = self.tiles.children
        blocks = -(-self.N // at_once)
        parts, step = _split(self.P, self.J * blocks, self.tiles.programs)
        d_transforms_SNJF = self.factors[1].new_empty(parts, *self.factors[1].shape)
        self.pulls.pull_transforms[self.J, blocks, parts](
            *self._uses(*uses), d_transforms_SNJF, 0, *self._sizes(), step, self.G,
            E=len(uses[0]), HAS=self.has_offsets, BN=at_once, Q=self.Q, num_warps=warps,
        )  # fmt: skip
        return d_transforms_SNJF.sum(0)

    def _uses(self, *uses: Tensor) -> tuple[Tensor, ...]:
        return self.active_HQ, *uses, self.shares_X, self.fields.windows, *self.factors

    def _sizes(self) -> tuple[int, ...]:
        return self.P, self.L, self.K, self.X, self.I, self.J

    def _constants(self, iteration: int) -> tuple[float, ...]:
        temperature = self.how.inverse_temperature * (1 - 0.95 ** (iteration + 1))
        return (MASS_EPSILON, *self.coefficients, temperature)

    def _partial_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.parts, self.P, self.J
        return self.new(*shape), self.new(*shape, 16), self.new(*shape, 16)

    def _over_children(self, kernel: Any, before: Any, after: Any, **options: Any) -> None:
        """Programs that each loop over a range of children."""
        kernel[-(-self.J // self.tile), self.P, self.parts](
            *before, *self.factors, *after, 0, *self._sizes(), self.step,
            HAS=self.has_offsets, BJ=self.tile, Q=self.Q, num_warps=self.warps, **options,
        )  # fmt: skip

    def _for_children(self, kernel: Any, tensors: Any, **options: Any) -> None:
        """A program for each child, with all of its parents at a place in one tile."""
        kernel[self.H,](
            *tensors, self.L, self.K, self.X, self.I, self.J, self.M,
            BJ=1 << (self.J - 1).bit_length(), Q=self.Q, num_warps=1, **options,
        )  # fmt: skip

    def _on_parents(self, kernel: Any, tensors: Any, numbers: Any, **options: Any) -> None:
        """A program for each few parents."""
        kernel[-(-self.J // _FEW), self.P](
            *tensors, *numbers, self.J, self.parts,
            BLEND=self.how.new_share != 1, MIXING=self.how.activation == "mixing-proportion",
            BJ=_FEW, Q=self.Q, num_warps=_FEW, **options,
        )  # fmt: skip


def _or(tensor: Tensor | None, unused: Tensor) -> Tensor:
    return unused if tensor is None else tensor


def _split(length: int, programs: int, most: int) -> tuple[int, int]:
    """How many ranges to split a loop into, and the steps of each; by shapes alone."""
    step = min(length, max(1, -(-length * programs // most)))
    return -(-length // step), step
