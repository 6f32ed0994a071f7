"""Layers of matrix capsules: Hinton, Sabour, Frosst 2018 (EM18), Section 4.

Shape suffixes: see `capsrepro.models.votes`; H, W rows and columns of images, X places and I types
of children, F = R·C numbers of a pose.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from capsrepro.models.convolution import Conv2d
from capsrepro.models.cpu.threads import can_compile
from capsrepro.models.cpu.votes_cpu import CompiledVotes
from capsrepro.models.em_routing import EMRouting, Parents, em_routing
from capsrepro.models.gpu.em_launches import TILES, Tiles
from capsrepro.models.gpu.em_routing_cuda import fused_em_routing, supported
from capsrepro.models.receptive_fields import ReceptiveFields
from capsrepro.models.votes import FactoredVotes, Votes, WrittenVotes

Pose = Literal["matrix", "vector"]

POSES: dict[Pose, tuple[int, int]] = {"matrix": (4, 4), "vector": (1, 16)}
"""Rows and columns of a pose of 16 numbers."""


class Capsules(NamedTuple):
    """A layer of capsules.

    Attributes:
        poses: Shape (B, X, I, R, C).
        activations: In [0, 1], shape (B, X, I).
    """

    poses: Tensor
    activations: Tensor


class MatrixPrimaryCapsules(nn.Module):
    """1×1 convolutions to poses, linear, and to activations, through a sigmoid (EM18 §4).

    Neither has a bias: A·B·(16+1) weights. `shift` is added to the logits of the activations; the
    authors' program has −1.
    """

    def __init__(self, inputs: int, types: int, pose: Pose, shift: float) -> None:
        super().__init__()
        self.types, self.shape, self.shift = types, POSES[pose], shift
        self.poses = Conv2d(inputs, types * math.prod(self.shape), 1, bias=False)
        self.activations = Conv2d(inputs, types, 1, bias=False)

    def forward(self, features_BCHW: Tensor) -> Capsules:
        """Capsules at every place of the features."""
        B, _, H, W = features_BCHW.shape
        poses = self.poses(features_BCHW).view(B, self.types, *self.shape, H * W)
        activations = torch.sigmoid(self.activations(features_BCHW) + self.shift)
        return Capsules(poses.permute(0, 4, 1, 2, 3), activations.flatten(2).transpose(1, 2))


class RoutedCapsules(nn.Module):
    """A layer of capsules routed by EM from those that its kernels see: ConvCaps or class capsules.

    Args:
        fields: What each place of parents sees.
        children: Types I below.
        parents: Types J here.
        pose: Layout of the poses.
        how: Routing.
        shared_beta: Whether all types share β_a and β_u.
        shared_transforms: Whether all places of a kernel share theirs, as in the class layer.
        offsets_KRC: Added to the votes from each place of the kernel (Coordinate Addition).

    Attributes:
        factored: Whether votes are made again at each use; False writes them out, which is the
            reference.
    """

    offsets: Tensor | None

    def __init__(
        self,
        fields: ReceptiveFields,
        children: int,
        parents: int,
        pose: Pose,
        how: EMRouting,
        shared_beta: bool,
        *,
        shared_transforms: bool = False,
        offsets_KRC: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.fields, self.types, self.how = fields, parents, how
        self.shape = POSES[pose]
        side = self.shape[1]
        kernel = 1 if shared_transforms else fields.windows.shape[1]
        self.transforms_KIKJC = nn.Parameter(torch.empty(kernel, children, side, parents, side))
        betas = 1 if shared_beta else parents
        self.beta_a_J = nn.Parameter(torch.empty(betas))
        self.beta_u_J = nn.Parameter(torch.empty(betas))
        offsets = None if offsets_KRC is None else offsets_KRC.repeat_interleave(children, 0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.factored = True

    def votes(self, children: Capsules) -> Votes:
        """Votes of N = K·I children for each type of parent at T = B·L places."""
        L, K = self.fields.windows.shape
        B, _, I, R, C = children.poses.shape
        N = K * I
        patches_BLKF = self.fields.patches(children.poses.flatten(2))
        patches_NTRK = patches_BLKF.view(B * L, N, R, C).transpose(0, 1)
        transforms_NKJC = self.transforms_KIKJC.expand(K, -1, -1, -1, -1).flatten(0, 1)
        factors = patches_NTRK, transforms_NKJC, self.offsets
        if not self.factored:
            return WrittenVotes(*factors)
        return (CompiledVotes if can_compile(patches_NTRK) else FactoredVotes)(*factors)

    def route(self, children: Capsules) -> list[Parents]:
        """What every iteration of the routing fits to these children."""
        activations_TN = self.fields.patches(children.activations).flatten(0, 1).flatten(1)
        betas = self._betas()
        return em_routing(self.votes(children), activations_TN, self.fields, *betas, self.how)

    def route_fused(self, children: Capsules, tiles: Tiles = TILES) -> Capsules:
        """The last capsules of `route`, by the kernels for GPUs."""
        transforms_KIKJC = self.transforms_KIKJC.expand(self.fields.windows.shape[1], *[-1] * 4)
        parents = fused_em_routing(
            *children, transforms_KIKJC, self.offsets, self._betas(), self.fields, self.how, tiles
        )
        return Capsules(*parents)

    def _betas(self) -> tuple[Tensor, Tensor]:
        """β_a and β_u of each type."""
        return self.beta_a_J.expand(self.types), self.beta_u_J.expand(self.types)

    def capsules_of(self, parents: Parents, images: int) -> Capsules:
        """The parents of one iteration as a layer of capsules of `images` images."""
        shape = images, len(self.fields.windows), self.types
        poses = parents.poses.transpose(1, 2).reshape(*shape, *self.shape)
        return Capsules(poses, parents.activations.view(shape))

    def forward(self, children: Capsules) -> Capsules:
        """Capsules at every place of parents."""
        poses, fields = children.poses, self.fields
        if self.factored and supported(poses, self.types, fields, self.how):
            return self.route_fused(children)
        return self.capsules_of(self.route(children)[-1], len(poses))
