"""The rules that average the most harmonious n-f updates: least diameter, least variance, least top eigenvalue."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._gram import TIE, centred_products, mask, normalised, subsets, uniform
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates

#: Rules that go through all subsets refuse more than this many.
MANY = 5_000_000

#: MDA refuses a search that may visit more than this many nodes for one diameter.
MANY_NODES = 1_000_000

#: MDA's search branches at a row of three far pairs or more: T(f) = T(f-1) + T(f-3) nodes, this to the power f.
_GROWTH = 1.4656


@dataclass(frozen=True)
class _Subset(Rule):
    """The mean of the n-f rows that ``choose`` picks."""

    f: int
    needs: ClassVar[Needs] = Needs.GRAM

    @abstractmethod
    def choose(self, distances: Tensor) -> Tensor:
        """Indices [n-f] of the chosen rows, given squared distances [n, n] of a median of about one."""

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        n = len(rows)
        if self.f == 0:
            chosen = torch.arange(n, device=rows.device)
        else:
            chosen = self.choose(normalised(rows.squared_distances().cpu())).to(rows.device)
        weights = uniform(n, chosen)
        return Aggregate(rows.combine(weights), weights=weights, selected=mask(n, chosen))


@dataclass(frozen=True)
class _Enumerated(_Subset):
    """A subset rule that goes through all of them."""

    def check(self, n: int) -> None:
        super().check(n)
        count = math.comb(n, self.f)
        if count > MANY:
            raise ConfigError(
                f"{self.name}: n={n} rows with f={self.f} have {count} subsets, more than the {MANY} it goes through; "
                f"use MultiKrum(f={self.f}), CAF(f={self.f}) or NNM(f={self.f}) >> TrimmedMean(f={self.f})"
            )


@dataclass(frozen=True)
class MDA(_Subset):
    r"""The mean of the n-f updates of least diameter.

    .. math:: F(x) = \frac{1}{n-f} \sum_{i \in T} x_i,\quad
        T = \arg\min_{|T| = n-f} \max_{i, j \in T} \|x_i - x_j\|

    Exact: n-f rows have a diameter of at most t if and only if f rows touch all pairs farther apart than t, which
    branching decides; t is found by bisection. Ties go to the lexicographically first subset.

    Tolerates: f <= (n-1)/2; refused where the search may take more than a million nodes (f > 36).
    Cost: one Gram matrix, O(n^2 d), and O(1.47^f n^2 log n), far less unless rows are made for it.
    Constant: 8f^2/(n-f), proved.
    Peers: ByzFL goes through all subsets, held in memory at once; Blades and FLPoison have none.
    Reference: El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault: Genuinely Distributed Byzantine Machine Learning,
        PODC 2020.

    >>> import torch
    >>> MDA(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    def check(self, n: int) -> None:
        super().check(n)
        nodes = _GROWTH**self.f
        if nodes > MANY_NODES:
            raise ConfigError(
                f"MDA: the search for n={n} rows with f={self.f} may take {nodes:.1e} steps of the "
                f"{math.comb(n, self.f):.1e} subsets; use MultiKrum(f={self.f}), CAF(f={self.f}) or "
                f"NNM(f={self.f}) >> TrimmedMean(f={self.f})"
            )

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        return (Constant(8 * f * f / (n - f), "8f^2/(n-f)", "proved"),)

    def choose(self, distances: Tensor) -> Tensor:
        n, f = len(distances), self.f
        candidates = sorted({0.0, *distances.triu(1).flatten().tolist()})
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            if _coverable(_far_pairs(distances, candidates[middle]), f):
                high = middle
            else:
                low = middle + 1
        far = _far_pairs(distances, candidates[low])
        chosen: list[int] = []
        gone = 0
        for row in range(n):
            if gone >> row & 1:
                continue
            # To keep a row is to drop all that are far from it.
            rest, dropped = _drop(far, far[row])
            if dropped <= f and _coverable(rest, f - dropped):
                chosen.append(row)
                gone |= far[row]
                far, f = rest, f - dropped
            else:
                far, f = _drop(far, 1 << row)[0], f - 1
            if len(chosen) == n - self.f:
                break
        return torch.tensor(chosen)


def _far_pairs(distances: Tensor, limit: float) -> list[int]:
    """For every row the rows farther away than ``limit``, as bits."""
    far = distances.triu(1) > limit * (1 + TIE)
    bits = [0] * len(far)
    for i, j in far.nonzero().tolist():
        bits[i] |= 1 << j
        bits[j] |= 1 << i
    return bits


def _drop(far: list[int], rows: int) -> tuple[list[int], int]:
    """The far pairs without those of the ``rows`` (bits), and how many rows these are."""
    return [0 if rows >> i & 1 else bits & ~rows for i, bits in enumerate(far)], rows.bit_count()


def _coverable(far: list[int], f: int) -> bool:
    """Whether f rows touch all far pairs (a vertex cover of size f)."""
    stack = [(far, f)]
    while stack:
        far, f = stack.pop()
        counts = [bits.bit_count() for bits in far]
        most = max(counts)
        if most == 0:
            return True
        # Every row touches ``most`` pairs at best.
        if sum(counts) > 2 * f * most:
            continue
        lone = counts.index(1) if 1 in counts else -1
        if lone >= 0 and most <= f:
            # The far row touches that pair and perhaps more.
            rest, dropped = _drop(far, far[lone])
            stack.append((rest, f - dropped))
            continue
        row = counts.index(most)
        if most <= f:
            rest, dropped = _drop(far, far[row])
            stack.append((rest, f - dropped))
        stack.append((_drop(far, 1 << row)[0], f - 1))
    return False


@dataclass(frozen=True)
class MVA(_Enumerated):
    r"""The mean of the n-f updates of least variance.

    .. math:: F(x) = \bar x_T,\quad T = \arg\min_{|T| = n-f} \sum_{i \in T} \|x_i - \bar x_T\|^2

    Exact, by going through all subsets. Ties go to the lexicographically first.

    Tolerates: f <= (n-1)/2; more than 5,000,000 subsets are refused.
    Cost: one Gram matrix, O(n^2 d), and C(n, f) n^2.
    Constant: (sqrt f + sqrt q)^2/(n-q-f), that is 4f/(n-2f) for q = f, proved.
    Peers: none has it.
    Reference: the 1-mean with outliers of clustering (arXiv 2312.12835), used as a rule.

    >>> MVA(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        value = (math.sqrt(f) + math.sqrt(q)) ** 2 / (n - q - f)
        return (Constant(value, "(sqrt f + sqrt q)^2/(n-q-f)", "proved"),)

    def choose(self, distances: Tensor) -> Tensor:
        n = len(distances)

        def scored() -> Iterable[tuple[Tensor, Tensor]]:
            for chunk in subsets(n, n - self.f):
                members = torch.zeros(len(chunk), n, dtype=torch.float64).scatter_(1, chunk, 1.0)
                yield chunk, ((members @ distances) * members).sum(1)

        return _first_least(scored())


@dataclass(frozen=True)
class SMEA(_Enumerated):
    r"""The mean of the n-f updates whose covariance has the least top eigenvalue.

    .. math:: F(x) = \bar x_T,\quad T = \arg\min_{|T| = n-f}
        \lambda_{\max}\Bigl(\frac{1}{n-f} \sum_{i \in T} (x_i - \bar x_T)(x_i - \bar x_T)^\top\Bigr)

    Exact: eigenvalues are those of the n x n inner products. A few power steps bound every subset's from below, and
    a Cholesky factor shows which of the remaining are below the least one found; only these are computed. Ties go to
    the lexicographically first.

    Tolerates: f <= (n-1)/2; more than 5,000,000 subsets are refused.
    Cost: one Gram matrix, O(n^2 d), and C(n, f) n^2, plus n^3 for the few subsets that bounds do not rule out.
    Constant: (sqrt f + sqrt(q (n-q)/(n-f)))^2/(n-q-f), that is 4f/(n-2f) for q = f, proved; published
        4f/(n-f) (1 + f/(n-2f))^2, unverified.
    Peers: ByzFL takes one power step from a random start, so that its answers are random and mostly not of the least
        subset; Blades and FLPoison have none.
    Reference: Allouah, Guerraoui, Gupta, Pinot, Stephan: On the Privacy-Robustness-Utility Trilemma in Distributed
        Learning, ICML 2023.

    >>> SMEA(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        value = (math.sqrt(f) + math.sqrt(q * (n - q) / (n - f))) ** 2 / (n - q - f)
        published = 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2
        return (
            Constant(value, "(sqrt f + sqrt(q (n-q)/(n-f)))^2/(n-q-f)", "proved"),
            Constant(published, "4f/(n-f) (1 + f/(n-2f))^2", "unverified"),
        )

    def choose(self, distances: Tensor) -> Tensor:
        n = len(distances)
        return _first_least(_eigenvalues(distances, subsets(n, n - self.f)))


def _first_least(scored: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The first subset of least score in chunks of subsets [m, k] with scores [m], up to rounding."""
    best, chosen = math.inf, torch.empty(0, dtype=torch.int64)
    for chunk, scores in scored:
        if not len(scores):
            continue
        least = float(scores.min())
        if least < best * (1 - TIE) or not len(chosen):
            first = int((scores <= least * (1 + TIE)).nonzero()[0])
            best, chosen = float(scores[first]), chunk[first]
    return chosen


def _eigenvalues(distances: Tensor, chunks: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    """Subsets [m, k] that may be the first of least top eigenvalue, with these eigenvalues [m], chunk by chunk."""
    best = math.inf
    for chunk in chunks:
        bounds = _lower_bounds(distances, chunk)
        left = bounds <= best * (1 + TIE)
        found = torch.full((len(chunk),), torch.inf, dtype=torch.float64)
        if left.any() and math.isinf(best):
            start = bounds.argmin()
            found[start] = _top(_products(distances, chunk[start : start + 1]))[0]
            best = float(found[start])
            left = (bounds <= best * (1 + TIE)) & torch.isinf(found)
        # In the order of their bounds, so that the first few lower the limit for the rest.
        promising = bounds.masked_fill(~left, torch.inf).argsort(stable=True)[: int(left.sum())]
        for part in torch.split(promising, 512):
            some = part[bounds[part] <= best * (1 + TIE)]
            if len(some):
                products = _products(distances, chunk[some])
                low = _may_be_below(products, best)
                if low.any():
                    found[some[low]] = _top(products[low])
                    best = min(best, float(found[some[low]].min()))
        seen = torch.isfinite(found)
        yield chunk[seen], found[seen]


def _products(distances: Tensor, chunk: Tensor) -> Tensor:
    """Inner products [m, k, k] of every subset's rows minus their mean."""
    return centred_products(distances[chunk[:, :, None], chunk[:, None, :]])


def _top(products: Tensor) -> Tensor:
    """Largest eigenvalues [m]."""
    values: Tensor = torch.linalg.eigvalsh(products)
    return values[:, -1].clamp(min=0)


def _may_be_below(products: Tensor, limit: float) -> Tensor:
    """Which of ``products`` [m, k, k] may have a top eigenvalue of at most ``limit``: limit I - P is positive."""
    # The least positive slack is for subsets of identical rows, whose eigenvalues are all zero.
    slack = torch.eye(products.shape[-1], dtype=products.dtype) * max(limit * (1 + 1e-9), 1e-300)
    failed: Tensor = torch.linalg.cholesky_ex(slack - products).info
    return failed == 0


def _lower_bounds(distances: Tensor, chunk: Tensor, steps: int = 8) -> Tensor:
    """Lower bounds [m] of the top eigenvalues: Rayleigh quotients after a few power steps."""
    n, k = len(distances), chunk.shape[1]
    members = torch.zeros(len(chunk), n, dtype=torch.float64).scatter_(1, chunk, 1.0)

    def centred(vectors: Tensor) -> Tensor:
        return (vectors - vectors.sum(1, keepdim=True) / k) * members

    def step(vectors: Tensor) -> Tensor:
        return centred((vectors @ distances).mul_(-0.5).mul_(members))

    size = (members @ distances).mul_(members)
    # The row farthest from the subset's mean points along the top direction, if any does.
    vectors = step(centred(torch.zeros_like(members).scatter_(1, size.argmax(1, keepdim=True), 1.0)))
    for _ in range(steps):
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        vectors = step(vectors / torch.where(length > 0, length, torch.ones_like(length)))
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    vectors = vectors / torch.where(length > 0, length, torch.ones_like(length))
    # Rounding must not lift a bound above the eigenvalue.
    return ((step(vectors) * vectors).sum(1) - 1e-12 * size.amax(1)).clamp(min=0)
