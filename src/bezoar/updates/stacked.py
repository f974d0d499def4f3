"""Honest rows with malicious rows below them, the latter given as few basis vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import NEAR
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Updates, measure_from
from bezoar.updates.dense import DenseUpdates


class Stacked(Updates):
    """``honest`` followed by the rows ``coefficients`` [q, k] @ ``basis`` [k, d].

    Colluding attackers that send one vector are one basis row. The Gram matrix of the honest rows is bordered by
    k dot products, so that an attack which searches over ``coefficients`` never touches the data again.

    ``order`` [n] puts the rows in another order (row i is the stacked row ``order[i]``), for example that of the
    client ids, so that a rule can not tell attackers by their place.
    """

    def __init__(
        self,
        honest: Updates,
        coefficients: Tensor,
        basis: Tensor,
        clients: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        q, k = coefficients.shape
        if basis.shape != (k, honest.shape[1]):
            raise ConfigError(f"basis must be [{k}, {honest.shape[1]}], got {list(basis.shape)}")
        self.honest = honest
        self.coefficients = coefficients.to(honest.device, torch.float64)
        self.basis = basis.detach().to(honest.device, honest.dtype)
        self._usable = torch.isfinite(self.basis).all(1)
        # Zero times a vector with NaN is no contribution; it must not spoil rows that do not use it.
        self._spoilt = (self.coefficients[:, ~self._usable] != 0).any(1)
        self._clean = torch.where(self._usable[:, None], self.basis, torch.zeros_like(self.basis))
        self._malicious = torch.full((q,), -1) if clients is None else clients
        if self._malicious.shape != (q,):
            raise ConfigError(f"clients must hold one id for each of the {q} malicious rows")
        n = len(honest) + q
        self.order = torch.arange(n) if order is None else order
        self.offers = honest.offers

    @classmethod
    def by_client(cls, honest: Updates, coefficients: Tensor, basis: Tensor, clients: Tensor) -> Stacked:
        """Stack and put the rows in the order of their client ids."""
        ids = torch.cat([honest.clients.cpu(), clients.cpu()])
        return cls(honest, coefficients, basis, clients, torch.argsort(ids, stable=True))

    @property
    def malicious(self) -> Tensor:
        """Which rows are malicious: bool [n]."""
        return self.order >= len(self.honest)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.order), self.honest.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.honest.dtype

    @property
    def device(self) -> torch.device:
        return self.honest.device

    @property
    def clients(self) -> Tensor:
        return torch.cat([self.honest.clients.cpu(), self._malicious.cpu()])[self.order]

    @property
    def layout(self) -> Layout:
        return self.honest.layout

    def with_coefficients(self, coefficients: Tensor) -> Stacked:
        """The same stack with other ``coefficients`` [q, k]; answers about honest rows and basis are shared."""
        other = Stacked(self.honest, coefficients, self.basis, self._malicious, self.order)
        if "_border" in self.__dict__:
            other.__dict__["_border"] = self.__dict__["_border"]
        return other

    def sent(self) -> Tensor:
        """The malicious rows [q, d] in the order of ``coefficients``; copies of a basis row keep its infinities."""
        rows = (self.coefficients.to(self.dtype) @ self._clean).masked_fill(self._spoilt[:, None], torch.nan)
        copies = ((self.coefficients != 0).sum(1) == 1) & (self.coefficients == 1).any(1)
        rows[copies] = self.basis[self.coefficients[copies].argmax(1)]
        return rows

    def _borders(self) -> tuple[Tensor, Tensor]:
        """Inner products of honest rows with the basis [n_h, k] and of the basis with itself [k, k]."""
        if "_border" not in self.__dict__:
            cross = [self.honest.dot(row) for row in self._clean]
            wide = self._clean.double()
            empty = torch.zeros(len(self.honest), 0, dtype=torch.float64, device=self.device)
            self.__dict__["_border"] = (torch.stack(cross, 1) if cross else empty, wide @ wide.T)
        cross_products, own = self.__dict__["_border"]
        return cross_products, own

    def _squared_norms(self) -> Tensor:
        wide = self._clean.double()
        malicious = ((self.coefficients @ (wide @ wide.T)) * self.coefficients).sum(1)
        return torch.cat([self.honest.squared_norms(), self._spoil(malicious.clamp(min=0))])[self.order]

    def _gram(self) -> Tensor:
        cross, own = self._borders()
        side = self._spoil((cross @ self.coefficients.T).T).T
        corner = self._spoil(self._spoil(self.coefficients @ own @ self.coefficients.T).T)
        whole = torch.cat([torch.cat([self.honest.gram(), side], 1), torch.cat([side.T, corner], 1)])
        return whole[self.order][:, self.order]

    def _squared_distances(self) -> Tensor:
        """Honest rows answer for themselves; each distinct malicious row is measured once."""
        cross, own = self._borders()
        distinct, which = torch.unique(self.coefficients, dim=0, return_inverse=True)
        gaps = distinct[:, None] - distinct[None]
        corner = ((gaps @ own) * gaps).sum(2).clamp(min=0)
        sizes = ((distinct @ own) * distinct).sum(1)
        norms = self.honest.squared_norms()
        side = (norms[:, None] + sizes - 2 * cross @ distinct.T).clamp(min=0)
        for j, mix in enumerate(distinct):
            row = (mix @ self._clean.double()).to(self.dtype)
            measure_from(self.honest, row, side[:, j], side[:, j] < NEAR * (norms + sizes[j]))
        side, corner = side[:, which], corner[which][:, which]
        side, corner = self._spoil(side.T).T, self._spoil(self._spoil(corner).T)
        whole = torch.cat([torch.cat([self.honest.squared_distances(), side], 1), torch.cat([side.T, corner], 1)])
        return whole[self.order][:, self.order]

    def dot(self, vector: Tensor) -> Tensor:
        malicious = self.coefficients @ (self._clean.double() @ vector.double())
        return torch.cat([self.honest.dot(vector), self._spoil(malicious)])[self.order]

    def combine(self, weights: Tensor) -> Tensor:
        weights = weights.to(self.device, torch.float64)
        stacked = torch.zeros_like(weights)
        stacked[..., self.order] = weights
        split = len(self.honest)
        sent = stacked[..., split:]
        answer = self.honest.combine(stacked[..., :split]) + (sent @ self.coefficients).to(self.dtype) @ self._clean
        spoilt = (sent[..., self._spoilt] != 0).any(-1)
        return answer.masked_fill(spoilt[..., None], torch.nan)

    def columns(self, index: Tensor) -> Tensor:
        return self._stack(self.honest.columns(index), self._clean[:, index])

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        share = max_bytes * len(self.honest) // max(1, len(self))
        for block in self.honest.blocks(max(1, share)):
            yield Block(block.start, block.stop, self._stack(block.values, self._clean[:, block.start : block.stop]))

    def select(self, rows: Tensor) -> Updates:
        chosen = self.order[rows.cpu()]
        split = len(self.honest)
        is_honest = chosen < split
        honest_rows, malicious_rows = chosen[is_honest], chosen[~is_honest] - split
        if not len(malicious_rows):
            everyone = torch.equal(honest_rows, torch.arange(split))
            return self.honest if everyone else self.honest.select(honest_rows)
        if not len(honest_rows):
            return DenseUpdates(self.sent()[malicious_rows], self._malicious[malicious_rows], self.layout)
        coefficients = self.coefficients[malicious_rows]
        used = (coefficients != 0).any(0)
        if not used.any():
            # Rows of zeros are still a mix of something.
            used[:1] = True
        place = torch.empty(len(chosen), dtype=torch.int64)
        place[is_honest] = torch.arange(len(honest_rows))
        place[~is_honest] = torch.arange(len(malicious_rows)) + len(honest_rows)
        honest = self.honest
        if not torch.equal(honest_rows, torch.arange(split)):
            honest = honest.select(honest_rows)
        return Stacked(honest, coefficients[:, used], self.basis[used], self._malicious[malicious_rows], place)

    def _stack(self, honest: Tensor, basis: Tensor) -> Tensor:
        return torch.cat([honest, self._spoil(self.coefficients.to(honest.dtype) @ basis)])[self.order]

    def _spoil(self, malicious: Tensor) -> Tensor:
        """NaN in the rows that use a basis vector with NaN or infinity."""
        return malicious.masked_fill(self._spoilt.view(-1, *[1] * (malicious.ndim - 1)), torch.nan)
