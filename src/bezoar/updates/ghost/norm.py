"""Layers that normalise each sample on its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.updates.ghost.layer import Affine, GhostImpossibleError, by_client


class LayerNormLayer(Affine):
    """A is the normalised input; positions before the normalised dimensions are summed over."""

    kind = nn.LayerNorm

    def __init__(self, module: nn.LayerNorm) -> None:
        self.shape, self.eps = tuple(module.normalized_shape), module.eps

    def inputs(self, a: Tensor) -> Tensor:
        if a.ndim <= len(self.shape):
            raise GhostImpossibleError("a LayerNorm normalises over the sample dimension")
        return F.layer_norm(a, self.shape, eps=self.eps).reshape(len(a), -1, *self.shape)

    def gradients(self, a: Tensor, b: Tensor) -> Tensor:
        return b.reshape(a.shape)

    def weight_rows(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        return self.bias_rows(a * b, size)

    def bias_rows(self, b: Tensor, size: int) -> Tensor:
        return b.reshape(-1, size * b.shape[1], *self.shape).sum(1).flatten(1)


class GroupNormLayer(Affine):
    """A is the normalised input [N, C, positions]."""

    kind = nn.GroupNorm

    def __init__(self, module: nn.GroupNorm) -> None:
        self.groups, self.eps = module.num_groups, module.eps

    def inputs(self, a: Tensor) -> Tensor:
        return F.group_norm(a, self.groups, eps=self.eps)

    def gradients(self, a: Tensor, b: Tensor) -> Tensor:
        return b

    def weight_rows(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        return self.bias_rows(a * b, size)

    def bias_rows(self, b: Tensor, size: int) -> Tensor:
        per_sample = b if b.ndim == 2 else b.sum(tuple(range(2, b.ndim)))
        return by_client(per_sample, size).sum(1)
