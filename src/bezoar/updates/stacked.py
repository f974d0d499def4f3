"""Honest rows with malicious rows below them, the latter given as few basis vectors."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import CHUNK, NEAR, ranges
from bezoar.kernels.spread import Spread
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Updates, measure_from, row_norms
from bezoar.updates.dense import DenseUpdates


class Stacked(Updates):
    """``honest`` followed by the rows ``coefficients`` [q, k] @ ``basis`` [k, d].

    Colluding attackers that send one vector are one basis row. The Gram matrix of the honest rows is bordered by
    k dot products, so that an attack which searches over ``coefficients`` never touches the data again. A ``basis`` of
    the honest rows' type that is all finite is kept, not copied.

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
        self.basis = basis.detach().to(honest.device, honest.dtype)
        self._usable = _finite(self.basis)
        # Zero times a vector with NaN is no contribution; it must not spoil rows that do not use it.
        self._clean = self.basis if self._usable.all() else self.basis.masked_fill(~self._usable[:, None], 0.0)
        self._mix(coefficients)
        self._malicious = torch.full((q,), -1) if clients is None else clients
        if self._malicious.shape != (q,):
            raise ConfigError(f"clients must hold one id for each of the {q} malicious rows")
        n = len(honest) + q
        self.order = torch.arange(n) if order is None else order
        self.offers = honest.offers

    def _mix(self, coefficients: Tensor) -> None:
        self.coefficients = coefficients.to(self.honest.device, torch.float64)
        self._spoilt = (self.coefficients[:, ~self._usable] != 0).any(1)

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
        if coefficients.shape != self.coefficients.shape:
            wanted, got = list(self.coefficients.shape), list(coefficients.shape)
            raise ConfigError(f"coefficients must be {wanted} as before, got {got}")
        other = copy.copy(self)
        for answer in ("_norms_once", "_gram_once", "_distances_once"):
            other.__dict__.pop(answer, None)
        other._mix(coefficients)
        return other

    def sent(self) -> Tensor:
        """The malicious rows [q, d] in the order of ``coefficients``; copies of a basis row keep its infinities."""
        copies = ((self.coefficients != 0).sum(1) == 1) & (self.coefficients == 1).any(1)
        if copies.all():
            return self.basis[self.coefficients.argmax(1)]
        rows = self._spoil(self.coefficients.to(self.dtype) @ self._clean)
        rows[copies] = self.basis[self.coefficients[copies].argmax(1)]
        return rows

    def _borders(self) -> tuple[Tensor, Tensor]:
        """Inner products of honest rows with the basis [n_h, k] and of the basis with itself [k, k]."""
        if "_border" not in self.__dict__:
            cross = [self.honest.dot(row) for row in self._clean]
            empty = torch.zeros(len(self.honest), 0, dtype=torch.float64, device=self.device)
            self.__dict__["_border"] = torch.stack(cross, 1) if cross else empty
        border: Tensor = self.__dict__["_border"]
        return border, self._own()

    def _own(self) -> Tensor:
        """Inner products of the basis with itself [k, k]."""
        if "_corner" not in self.__dict__:
            k, d = self.basis.shape
            total = torch.zeros(k, k, dtype=torch.float64, device=self.device)
            for start, stop in ranges(d, CHUNK):
                part = self._clean[:, start:stop].double()
                total += part @ part.T
            self.__dict__["_corner"] = total
        corner: Tensor = self.__dict__["_corner"]
        return corner

    def _row(self, mix: Tensor) -> Tensor:
        """The row ``mix`` [k] of the basis [d], added up in float64."""
        used = mix.nonzero().flatten()
        if len(used) == 1 and float(mix[used[0]]) == 1.0:
            return self._clean[used[0]]
        row = torch.zeros(self.shape[1], dtype=self.dtype, device=self.device)
        for start, stop in ranges(len(row), CHUNK):
            row[start:stop] = mix[used] @ self._clean[used, start:stop].double()
        return row

    def _squared_norms(self) -> Tensor:
        malicious = ((self.coefficients @ self._own()) * self.coefficients).sum(1)
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
            near = side[:, j] < NEAR * (norms + sizes[j])
            if near.any():
                measure_from(self.honest, self._row(mix), side[:, j], near)
        side, corner = side[:, which], corner[which][:, which]
        side, corner = self._spoil(side.T).T, self._spoil(self._spoil(corner).T)
        whole = torch.cat([torch.cat([self.honest.squared_distances(), side], 1), torch.cat([side.T, corner], 1)])
        return whole[self.order][:, self.order]

    def dot(self, vector: Tensor) -> Tensor:
        products = torch.zeros(len(self.basis), dtype=torch.float64, device=self.device)
        for start, stop in ranges(self.shape[1], CHUNK):
            products += self._clean[:, start:stop].double() @ vector[start:stop].double()
        return torch.cat([self.honest.dot(vector), self._spoil(self.coefficients @ products)])[self.order]

    def distances_from(self, vector: Tensor, chosen: Tensor) -> Tensor:
        """Honest rows answer for themselves."""
        at = self.order.to(chosen.device)[chosen]
        honest = at < len(self.honest)
        found = torch.empty(len(chosen), dtype=torch.float64, device=self.device)
        if honest.any():
            found[honest] = self.honest.distances_from(vector, at[honest])
        for i in (~honest).nonzero().flatten().tolist():
            mix = int(at[i]) - len(self.honest)
            gap = self._row(self.coefficients[mix]) - vector
            found[i] = torch.nan if self._spoilt[mix] else row_norms(gap[None])[0]
        return found

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

    @property
    def spread(self) -> Spread:
        return self.honest.spread

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        return self._stacked(self.honest.blocks(self._room(max_bytes)))

    def share(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        return self._stacked(self.honest.share(self._room(max_bytes)))

    def _room(self, max_bytes: int) -> int:
        """How large the honest rows' blocks may be for ours not to exceed ``max_bytes``."""
        return max(1, max_bytes * len(self.honest) // max(1, len(self)))

    def _stacked(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
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
        basis = self.basis if used.all() else self.basis[used]
        return Stacked(honest, coefficients[:, used], basis, self._malicious[malicious_rows], place)

    def _stack(self, honest: Tensor, basis: Tensor) -> Tensor:
        return torch.cat([honest, self._spoil(self.coefficients.to(honest.dtype) @ basis)])[self.order]

    def _spoil(self, malicious: Tensor) -> Tensor:
        """NaN in the rows that use a basis vector with NaN or infinity."""
        return malicious.masked_fill(self._spoilt.view(-1, *[1] * (malicious.ndim - 1)), torch.nan)


def _finite(basis: Tensor) -> Tensor:
    """Which rows of ``basis`` hold finite numbers only: bool [k]."""
    finite = torch.ones(len(basis), dtype=torch.bool, device=basis.device)
    for start, stop in ranges(basis.shape[1], CHUNK):
        finite &= torch.isfinite(basis[:, start:stop]).all(1)
    return finite
