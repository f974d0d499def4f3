"""Look-up tables: a client's gradient touches only the rows of its own tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezoar.kernels.gram import widened
from bezoar.updates.ghost.layer import GhostImpossibleError, Matrix


class EmbeddingLayer(Matrix):
    """A is the tokens [N, T], B is [N, T, P] (zero at the padding token)."""

    kind = nn.Embedding
    mergeable = True

    def __init__(self, module: nn.Embedding) -> None:
        self.units, self.width = module.num_embeddings, module.embedding_dim
        self.padding = module.padding_idx

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Embedding)
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(module, option):
                return f"an Embedding with {option}"
        return None

    def inputs(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), -1).long()

    def gradients(self, a: Tensor, b: Tensor) -> Tensor:
        b = b.reshape(*a.shape, self.width)
        return b if self.padding is None else b.masked_fill((a == self.padding)[..., None], 0)

    def bias_rows(self, b: Tensor, size: int) -> Tensor:
        raise GhostImpossibleError("an Embedding has no bias")

    def rows(self, a: Tensor, b: Tensor, size: int, first: int, last: int) -> Tensor:
        clients, units = len(a) // size, last - first
        inside = (a >= first) & (a < last)
        cells = _owners(a, size) * units + (a - first)
        out = b.new_zeros(clients * units, self.width)
        return out.index_add_(0, cells[inside], b[inside]).view(clients, -1)

    def total(self, a: Tensor, b: Tensor) -> Tensor:
        out = b.new_zeros(self.units, self.width)
        return out.index_add_(0, a.flatten(), b.flatten(0, 1)).flatten()

    def inner(self, a: Tensor, b: Tensor, vector: Tensor) -> Tensor:
        image = vector.view(self.units, self.width)[a]
        return (image.double() * b.double()).sum((1, 2))

    def prefers_ghost(self, a: Tensor, b: Tensor, size: int) -> bool:
        return True

    def ghost_norms(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        """Sums per pair of client and token that occurs, instead of a table per client."""
        cells, where = torch.unique(_owners(a, size) * self.units + a, return_inverse=True)
        sums = widened(b).new_zeros(len(cells), self.width)
        sums.index_add_(0, where.flatten(), widened(b).flatten(0, 1))
        out = torch.zeros(len(a) // size, dtype=torch.float64, device=b.device)
        return out.index_add_(0, cells // self.units, sums.double().square().sum(1))


def _owners(a: Tensor, size: int) -> Tensor:
    """The client (place within the group) of every token of ``a`` [N, T], as a column."""
    return (torch.arange(len(a), device=a.device) // size)[:, None]
