"""The geometric median: the point of least sum of distances to all updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from bezoar.aggregation._gram import TIE, check_stopping, distances_from_sum, normalised, rounding
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State, Sums
from bezoar.errors import ConfigError
from bezoar.kernels.gram import products_about
from bezoar.updates.base import Needs, Updates

#: Rows whose sum of distances exceeds the least one by at most this share are asked whether they are medians.
NEARLY = 1e-5

#: Pulls of other rows, sums over them, are compared up to this many times what single values lose by rounding.
PULL = 10

#: Multiples of the identity that are tried in turn until rounding leaves the Hessian positive.
RIDGES = tuple(1 + 10.0**power for power in range(-15, 1, 3))

#: Distances below this share of the usual one count as this large: their cubes must be legal numbers.
LEAST = 1e-100

#: Along a step the slope is brought down to this share of the first one, in so many attempts.
FLAT, SEARCHES = 0.1, 60

#: Rows whose squared distance is at most this share of the median one are one row: 1e-7 of the distance.
COPIES = 1e-14


@dataclass(frozen=True)
class GeometricMedian(Rule):
    r"""The point with the least (weighted) sum of distances to the updates.

    .. math:: F(x) = \arg\min_z \sum_i \alpha_i \|x_i - z\|,\qquad
        z \leftarrow \frac{\sum_i \beta_i x_i}{\sum_i \beta_i},\quad \beta_i = \frac{\alpha_i}{\|x_i - z\|}

    A row is the median if the others do not pull harder than its own weight. If none is, the step of Vardi and Zhang
    leads away from the row with the least sum of distances, and Newton's steps in the space of the n weights follow,
    each as far as the sum decreases; the last step is Weiszfeld's. So the answer is the median itself, not that of a
    smoothed sum, as exactly as the squared distances tell: in float64 to about 1e-8 of the usual distance, also with
    far outliers and with rows within 1e-3 of a line (1e-6 of it with rows within 1e-4). It stops when a step of
    Newton's is below ``tolerance``; after ``max_iterations`` steps, or where rounding hides the way down, without a
    word at the best point so far. A row nearer than ``smoothing`` is the answer. Both are shares of the median
    distance of the rows from the answer. Rows nearer to each other than 1e-7 of the usual distance count as one row.

    Where the median is not unique (rows on a line) it is the mean of the rows that are medians, copies of a row
    counted once. Pulls are compared up to 1e-11 of the sum of weights, 1e-5 if the rows are not float64: so rows that
    are about 3e-6 (3e-3) of their distances off a line count as on it. Float32 distances may be too coarse to see that
    a row is a median as well (many columns, or gaps of very different size); the answer is then one or some of them.
    ``weighted=True`` takes alpha from ``Context.client_weights`` (RFA); otherwise alpha is 1/n.

    Tolerates: q <= (n-1)/2 bad rows; with weights, less than half of their sum.
    Sums: one a step of Weiszfeld's, of the unit vectors to the rows and of 1/distance, from a point that is public
        (RFA); clients would have to prove the length of the vector, and still could misstate the distance.
    Cost: one Gram matrix, O(n^2 d), and O(n^3) a step, of which there are usually three to five.
    Constant: 4 (1 + q/(n-2q))^2, published; none with weights.
    Peers: ByzFL takes 3 steps from zero, smoothed by an absolute 0.1, which makes it the mean of small updates; Blades
        at most 100 steps from the mean; FLPoison 3 steps from zero.
    Reference: Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE TSP 2022; Vardi, Zhang:
        The multivariate L1-median and associated data depth, PNAS 2000.

    >>> GeometricMedian()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2.0204, 1.9460])
    """

    tolerance: float = 1e-8
    max_iterations: int = 1000
    smoothing: float = 1e-8
    weighted: bool = False
    needs: ClassVar[Needs] = Needs.GRAM
    sums: ClassVar[Sums | None] = Sums.TURNS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stopping(self.name, self.tolerance, self.max_iterations)
        smoothing = self.smoothing
        if isinstance(smoothing, bool) or not isinstance(smoothing, int | float) or not 0 <= smoothing < math.inf:
            raise ConfigError(f"GeometricMedian: smoothing must be a number >= 0, got {smoothing!r}")
        if not isinstance(self.weighted, bool):
            raise ConfigError(f"GeometricMedian: weighted must be true or false, got {self.weighted!r}")

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.weighted:
            return ()
        value = 4 * (1 + q / (n - 2 * q)) ** 2 if 2 * q < n else math.inf
        return (Constant(value, "4 (1 + q/(n-2q))^2", "published"),)

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        distances = normalised(rows.squared_distances())
        share = torch.full_like(distances[0], 1 / len(rows))
        if self.weighted:
            assert context.client_weights is not None
            share = context.client_weights.detach().to(distances)
            share = share / share.max()
            share = share / share.sum()
        # Many small steps, each of which would wait for an accelerator.
        weights = self._median(distances.cpu(), share.cpu(), PULL * rounding(rows.dtype)).to(distances.device)
        return Aggregate(rows.combine(weights), weights=weights)

    def _median(self, distances: Tensor, share: Tensor, tie: float) -> Tensor:
        """Weights [n] of the median, of rows with the weights ``share`` [n]."""
        # Copies of a row are one row of their joint mass, and so are rows that only differ by rounding: between them
        # every step is short, and the search would take that for its end.
        first = (distances <= COPIES).to(torch.int8).argmax(1)
        mass = torch.zeros_like(share).index_add(0, first, share)
        rows = (mass > 0).nonzero().flatten()
        mass, distances = mass[rows], distances[rows][:, rows]
        weights = torch.zeros_like(share)
        sums = distances.sqrt() @ mass
        best = int(sums.argmin())
        candidates = (sums <= sums[best] * (1 + NEARLY)).nonzero().flatten()
        medians = candidates[_forces(distances[candidates], distances, mass) <= mass[candidates] + tie]
        if len(medians):
            weights[rows[medians]] = 1 / len(medians)
            return weights
        found, away = self._search(distances, mass, best)
        near = int(away.argmin())
        if float(away[near]) <= self.smoothing * _typical(away, mass):
            weights[rows[near]] = 1.0
            return weights
        alone = torch.zeros_like(share)
        alone[rows] = found / mass
        return share * alone[first]

    def _search(self, distances: Tensor, mass: Tensor, best: int) -> tuple[Tensor, Tensor]:
        """Weights [m] of the median that is no row, and the distances [m] of all rows from it."""
        place = _Place.beside(distances, mass, best)
        for _ in range(self.max_iterations - 1):
            step = place.newton()
            length = math.sqrt(max(float(step @ place.products @ step), 0.0))
            if length <= self.tolerance * _typical(place.away, mass):
                place = place.at(distances, mass, place.weights + step, place.centre, place.products)
                break
            further = place.moved(step)
            if further is None:
                break
            place = further
        # A last step of Weiszfeld's never leads away, and its weights are those of the median.
        pull = mass / place.away
        return pull / pull.sum(), place.away


def _typical(away: Tensor, mass: Tensor) -> float:
    """The median of the distances ``away`` [m], by mass: fewer than half can not spoil it."""
    order = away.argsort(stable=True)
    return float(away[order[int((mass[order].cumsum(0) < 0.5 * mass.sum()).sum())]])


def _forces(distances: Tensor, between: Tensor, mass: Tensor) -> Tensor:
    """Lengths [k] of the pull of all other rows on k rows with these squared ``distances`` [k, m] from them."""
    pull = torch.where(distances > 0, mass / distances.sqrt(), 0.0)
    squares = (pull * distances).sum(1) * pull.sum(1) - 0.5 * ((pull @ between) * pull).sum(1)
    return squares.clamp(min=0).sqrt()


@dataclass(frozen=True)
class _Place:
    """A point, as the sum of the rows with ``weights`` [m] that add up to one.

    Attributes:
        distances: squared distances of all pairs of rows [m, m].
        mass: weights of the rows in the sum of distances [m].
        centre: the row nearest to the point, or one about as near.
        products: inner products of the rows minus that row [m, m]: next to it they keep all digits.
        away: distances of the rows from the point [m].
    """

    distances: Tensor
    mass: Tensor
    weights: Tensor
    centre: int
    products: Tensor
    away: Tensor

    @classmethod
    def at(cls, distances: Tensor, mass: Tensor, weights: Tensor, centre: int, products: Tensor) -> Self:
        """The point with these weights, seen from the row nearest to it."""
        away = distances_from_sum(products, weights)
        near = int(away.argmin())
        if near != centre:
            centre, products = near, products_about(distances, near)
            away = distances_from_sum(products, weights)
        return cls(distances, mass, weights, centre, products, away.sqrt().clamp(min=LEAST))

    @classmethod
    def beside(cls, distances: Tensor, mass: Tensor, row: int) -> Self:
        """The point that the step of Vardi and Zhang leads to from ``row``, with a smaller sum of distances."""
        products = products_about(distances, row)
        pull = torch.where(distances[row] > 0, mass / distances[row].sqrt(), 0.0)
        force = math.sqrt(max(float(pull @ products @ pull), 0.0))
        share = max(1 - float(mass[row]) / force, 0.0) if force > 0 else 0.0
        weights = pull / pull.sum() * share
        weights[row] = 1 - share
        return cls.at(distances, mass, weights, row, products)

    def newton(self) -> Tensor:
        """Newton's step, as a change [m] of the weights."""
        pull = self.mass / self.away
        total = float(pull.sum())
        at = self.products @ self.weights
        seen = self.products - at[:, None] - at + self.weights @ at
        # The Hessian is total I - V V^T, with the columns (x_i - z) root_i of V.
        root = pull.sqrt() / self.away
        inner = -(root[:, None] * seen * root)
        against = -root * (seen @ pull)
        along = torch.zeros_like(root)
        for ridge in RIDGES:
            factor, flaw = torch.linalg.cholesky_ex(inner + torch.eye(len(inner), dtype=inner.dtype) * total * ridge)
            if not flaw:
                along = root * torch.cholesky_solve(against[:, None], factor).flatten()
                break
        gradient = total * self.weights - pull
        return -(gradient + along - along.sum() * self.weights) / total

    def moved(self, step: Tensor) -> Self | None:
        """The point with about the least sum of distances along ``step`` [m]; None if there is no better one."""
        change = self.products @ step
        square = max(float(step @ change), 0.0)
        toward = self.weights @ change - change
        start = self.away.square()

        longest = math.sqrt(square)

        def look(t: float) -> tuple[float, float]:
            away = (start + 2 * t * toward + t * t * square).clamp(min=0).sqrt()
            rates = ((toward + t * square) / away).nan_to_num(nan=0.0).clamp(-longest, longest)
            return float(self.mass @ away), float(self.mass @ rates)

        sum_here, steepest = look(0.0)
        low, high, t = 0.0, math.inf, 1.0
        for _ in range(SEARCHES):
            total, slope = look(t)
            if abs(slope) <= -FLAT * steepest and total <= sum_here * (1 + TIE / 1000):
                low = t
                break
            if slope <= 0:
                low = t
            else:
                high = t
            t = 2 * t if high == math.inf else (low + high) / 2
        if not low > 0 or not steepest < 0:
            return None
        return self.at(self.distances, self.mass, self.weights + low * step, self.centre, self.products)
