"""Centred clipping: the mean of updates clipped around the previous answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.aggregation._gram import distances_from_vector
from bezoar.aggregation.base import Aggregate, Context, Rule, State, Sums, check_count, check_vector
from bezoar.errors import ConfigError
from bezoar.kernels.gram import wide_type
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class CenteredClipping(Rule):
    r"""Move the centre by the mean of the clipped differences from it, a few times.

    .. math:: v \leftarrow v + \frac1n \sum_i (x_i - v) \min\Bigl(1, \frac{\tau}{\|x_i - v\|}\Bigr)

    The first centre is the previous answer: that of the state, else ``Context.last_aggregate``, else zero. ``radius``
    is tau and has the unit of the updates; for momentum that is a sum, not a mean, times 1/(1-beta). The steps are
    taken in the space of the n weights; with one iteration no Gram matrix is needed. Rows beyond a million times the
    usual length are excluded only where there is one. The answer is the weighted sum of rows plus what is left to
    one times the first centre.

    Tolerates: no f is declared; a bad row adds at most radius/n an iteration; proved to learn for q up to about n/10.
    Sums: one an iteration, of the clipped differences from a centre that is public; clients would have to prove that
        what they send is no longer than ``radius``.
    Cost: one pass, O(n d), with one iteration; otherwise one Gram matrix, O(n^2 d).
    Constant: none known of this kind: it is a (delta, c)-robust aggregator, given a good centre and radius.
    Peers: ByzFL has tau 100 and one iteration, Blades 5 and 5, FLPoison 100 and 1; ByzFL's fails if given a centre.
    Reference: Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021.

    >>> CenteredClipping(radius=1.0, iterations=3)(
    ...     torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
    ... )
    tensor([1.7640, 1.2591])
    """

    radius: float = 10.0
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        radius, iterations = self.radius, self.iterations
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not radius > 0:
            raise ConfigError(f"CenteredClipping: radius must be a positive number, got {radius!r}")
        check_count(self.name, "iterations", iterations, least=1)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.NORMS | Needs.DOT | (Needs.GRAM if self.iterations > 1 else Needs.NONE)

    @property
    def sums(self) -> Sums | None:  # type: ignore[override]
        return Sums.ONE if self.iterations == 1 else Sums.TURNS

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        d = rows.shape[1]
        centre = state.get("centre", context.last_aggregate)
        if centre is None:
            from_centre = rows.squared_norms()
        else:
            check_vector(self.name, "the previous answer", centre, d)
            centre = centre.detach().to(rows.device)
            from_centre = distances_from_vector(rows, centre)
        weights = self._steps(from_centre, rows.squared_distances() if self.iterations > 1 else None)
        vector = rows.combine(weights)
        rest = 1 - float(weights.sum())
        if centre is not None and rest != 0:
            wide = wide_type(rows.dtype)
            vector = (vector.to(wide) + rest * centre.to(wide)).to(rows.dtype)
        # A copy: the caller may go on with the answer in place.
        return Aggregate(vector, state={"centre": vector.clone()}, weights=weights)

    def _steps(self, from_centre: Tensor, distances: Tensor | None) -> Tensor:
        """Weights [n] of the rows' differences from the first centre, given squared distances from it."""
        n = len(from_centre)
        weights, away = torch.zeros_like(from_centre), from_centre
        for step in range(self.iterations):
            if step > 0 and distances is not None:
                products = (from_centre[:, None] + from_centre[None, :] - distances) * 0.5
                at = products @ weights
                away = (from_centre - 2 * at + weights @ at).clamp(min=0)
            # The factor is one for a row in the ball, also for one in its middle.
            lengths = away.sqrt()
            factors = torch.where(lengths <= self.radius, 1.0, self.radius / lengths.clamp(min=math.ulp(0.0)))
            weights = weights * (1 - factors.sum() / n) + factors / n
        return weights
