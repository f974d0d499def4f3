"""Safe-interval projection: another rule's answer, moved to where every candidate honest set allows it to be."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from bezoar.aggregation._candidates import (
    Candidates,
    about,
    candidates,
    check_prior,
    check_sets,
    needed,
    present,
    prior_field,
    support,
)
from bezoar.aggregation._holding import Holding, for_rest
from bezoar.aggregation.base import COLUMN_BYTES, Aggregate, Box, Constant, Context, Rule, State
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.errors import ConfigError
from bezoar.kernels.boxes import Intervals, common_box
from bezoar.priors import Family
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class SIP(Holding):
    r"""Another rule's answer, projected into the box that all candidate honest sets have in common.

    .. math:: [F(x)]_j = \min(\max([P(x)]_j, L_j), U_j),\quad
        [L_j, U_j] = \bigcap_{S \in \mathcal F} [\bar x_{S,j} \pm \sqrt{\rho_S} \operatorname{sd}_{S,j}],\quad
        \rho_S = \max_{T \in \mathcal F} \frac{|S \setminus T|}{|S \cap T|}

    ``prior`` tells which sets of clients may be the honest ones: a prior, whose support up to the probability ``delta``
    they are, or a family; an experiment's own prior if left out. The box is never empty, and whatever ``base`` answers,
    the error is at most rho_S times the variance of S, for all candidates S at once; no rule does better for any of
    them (docs/sip.md). What is bad is a question of the sets: 12 of 20 clients may be, if any two candidates share a
    client. ``base`` decides how good the answer is on usual inputs. The default is the geometric median: it needs no f,
    which few such priors have one number for, is not tied to the axes as the box is, and did best under the worst
    attacks where that was tried. Candidates that share no client can not be served together: that is an error, or the
    less likely of them is left out (``disjoint="drop"``). It reads the rows it is given: clip before it, mix in
    ``base``. Clients are told by the ids of rows. Candidates with an unusable row are dropped, and the base runs with
    an f reduced by the number of these rows.

    Tolerates: the bad clients of any candidate set; any number of unusable rows.
    Cost: that of the base, and a pass of O(K n d) for K sets; rho once per cohort, O(K^2 n).
    Constant: rho_S for every candidate S, the best possible for all at once (exact); none for other sets.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: new to our knowledge. Cousins: interval and hyperbox agreement against a threshold (2504.01504), and the
        adversary structures of Hirt and Maurer, PODC 1997.

    >>> from bezoar.priors import Explicit
    >>> rule = SIP(Explicit(5, bad=((), (4,)), p=(0.5, 0.5)))
    >>> rule(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    prior: Candidates | None = prior_field()  # noqa: RUF009
    base: Rule = field(default_factory=GeometricMedian)
    delta: float = 0.0
    disjoint: Literal["error", "drop"] = "error"
    wants: ClassVar[Needs] = Needs.BLOCKS
    spare: ClassVar[bool] = True
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)
        if not isinstance(self.base, Rule):
            raise ConfigError(f"SIP: base must be a rule, for example GeometricMedian(), got {self.base!r}")
        check_sets(self.name, self.delta, self.disjoint)

    @property
    def huge(self) -> float | None:
        # The base leaves huge rows out where it has to; here a row is bad only if it holds no number.
        return None

    def check(self, n: int) -> None:
        self.base.check(n)

    def within(self, kept: Tensor, n: int) -> Self:
        return dataclasses.replace(self, base=for_rest(self.base, kept, n))

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.prior is None or (self.prior.n is not None and self.prior.n != n):
            return ()
        family = self.family(n)
        rho, bad = family.rho(), n - family.sizes
        # What holds for all sets with more bad rows holds with fewer (L3 of docs/robustness.md).
        full = [k for k in range(q, n) if int((bad == k).sum()) == math.comb(n, k)]
        if not full:
            return ()
        value, k = min((float(rho[bad == k].max()), k) for k in full)
        return (Constant(value, "max rho_S over |S| = n-q", "exact" if k == q else "proved"),)

    def family(self, n: int) -> Family:
        """The candidate sets of n clients that all take part."""
        known = support(about(self.name, needed(self.name, self.prior), n), self.delta)
        return known.intersecting() if self.disjoint == "drop" else known

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        prior, clients, hostile = present(self.name, self.prior, rows, context)
        _, intervals = candidates(prior, self.delta, self.disjoint == "drop", clients, hostile)
        # A base without a prior of its own is told this one.
        answer = self.base.given(prior).aggregate(rows, state, context, generator)
        vector, box = project(rows, intervals, answer.vector)
        weights = answer.weights if box.moved == 0 else None
        return dataclasses.replace(answer, vector=vector, weights=weights, box=box)


def project(rows: Updates, intervals: Intervals, vector: Tensor) -> tuple[Tensor, Box]:
    """``vector`` [d] moved into the box that the intervals of the rows' sets have in common; NaN goes to its middle.

    What lies outside by rounding only stays.
    """
    rounding = 4 * torch.finfo(vector.dtype).eps
    projected = torch.empty_like(vector)
    moved, squares = 0, 0.0
    for block in rows.share(COLUMN_BYTES):
        low, high = common_box(block.values, intervals)
        # Intervals that meet in a point may have changed ends by rounding.
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        here = slice(block.start, block.stop)
        given = vector[here].to(low.device, torch.float64)
        given = torch.where(given.isnan(), low / 2 + high / 2, given)
        inside = given.clamp(low, high)
        outside = (inside - given).abs() > rounding * inside.abs()
        outside |= vector[here].isnan().to(low.device)
        projected[here] = torch.where(outside, inside, given)
        moved += int(outside.sum())
        squares += float((high - low).square().sum())
    found = rows.spread.total(torch.tensor([float(moved), squares], dtype=torch.float64))
    return rows.spread.join(projected), Box(math.sqrt(float(found[1])), int(found[0]))
