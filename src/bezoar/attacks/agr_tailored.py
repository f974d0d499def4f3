"""As far from the honest mean as the server's own rule allows: the rule is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import Aggregate, Columnwise, Pipeline, Rule, check_count
from bezoar.aggregation.krum import Krum
from bezoar.aggregation.multi_krum import MultiKrum
from bezoar.attacks._directions import Direction, check_direction, spread
from bezoar.attacks._probe import SAMPLE, Probe
from bezoar.attacks.base import AttackContext, Knowledge, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked

#: The way that is tried first is the root mean squared distance of the honest rows from their mean, times this.
_FIRST = 2.0**-4

#: Ways that are tried by doubling: the last one is 2^12 times the honest rows' distance from their mean.
_DOUBLINGS = 17

#: A larger way counts as better only if it moves the answer by more than this share.
_BETTER = 1e-6

#: Below this share of the rows' size the spread of the honest rows is rounding.
_NONE = 1e-12


@dataclass(frozen=True)
class AGRTailored(UpdateAttack):
    r"""Untargeted: leave the honest mean as far as pays off against the rule that the server uses.

    .. math:: u = \bar x_S - \gamma p, \quad \gamma = \max\{\gamma : \text{all attackers are selected}\}
              \quad\text{or}\quad \gamma = \arg\max_\gamma \|F(x_S, u, \dots, u) - \bar x_S\|

    The first for rules that select, Krum and Multi-Krum, also after clipping: where the rule selects fewer rows than
    there are attackers, all that it selects must be theirs. The second for all others (the
    ``objective`` "auto"; it can be set to "selection", where a rule tells what it selects or weighs, or to
    "deviation"). F is the server's own rule with its memory and all that it knows, asked on a copy of both. p is the
    ``direction``: "unit" the mean over its norm, "sign" the signs of the mean, "std" the standard deviations by
    coordinate (ddof 1). gamma is doubled from a small multiple of the honest spread, 2^12 times the spread at most (a
    plain mean would have no maximum), and then found to a share of ``tolerance``, by halving ("selection") or by golden
    section ("deviation": the least of those as good). If there is no gamma with which all attackers are selected, they
    send the mean. All send the same vector; the record tells ``gamma``, the ``deviation`` and how often the rule was
    asked (``evaluations``).

    For "deviation", rules that read columns are asked on ``sample`` of them, so that gamma is an estimate for more
    columns than that; rules that read named layers or have a memory of clients are asked on whole updates, less often
    and to a share of 0.3 only. What is told of the chosen gamma is exact.

    Knows: every honest update of the round, and the rule.
    Cost: one pass over the columns, one Gram matrix that all questions share, and the rule some 40 times in n x n space
        or on ``sample`` columns.
    Peers: none of ByzFL, Blades and FLPoison tailors to a rule like this; ByzFL's Optimal_ALIE and Optimal_IPM search a
        factor in the same way.
    Reference: Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
        Federated Learning, NDSS 2021.
    """

    least: ClassVar[Knowledge] = Knowledge.DEFENCE

    direction: Direction = "unit"
    objective: Literal["auto", "selection", "deviation"] = "auto"
    tolerance: float = 1e-3
    sample: int = SAMPLE

    needs: ClassVar[Needs] = Needs.GRAM | Needs.BLOCKS

    def __post_init__(self) -> None:
        check_direction("agr-tailored", self.direction)
        if self.objective not in ("auto", "selection", "deviation"):
            raise ConfigError(
                f"agr-tailored: objective must be 'auto', 'selection' or 'deviation', got {self.objective!r}"
            )
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"agr-tailored: tolerance must be above 0 and below 1, got {self.tolerance}")
        check_count("agr-tailored", "sample", self.sample, least=1)

    def check(self, defence: Rule) -> None:
        end = defence.rule if isinstance(defence, Pipeline) else defence
        if self.objective == "selection" and isinstance(end, Columnwise):
            raise ConfigError(
                f"agr-tailored: objective 'selection' is for rules that select or weigh rows; {end.name} works by "
                "coordinates: take 'deviation'"
            )

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest, q = usable(view), len(context.clients)
        if not honest.finite().all():
            return Sent(stack(view, honest_mean(honest)[None], context.clients), context.state)
        about = spread(honest, self.direction)
        radius = float(about.squared.mean().sqrt())
        if not radius > _NONE * float(honest.squared_norms().max().sqrt()) or not about.length > 0:
            # Equal rows give no scale to search on, and a mean of zero no direction: what they send is that mean.
            return Sent(stack(view, about.mean[None], context.clients), context.state, {"gamma": 0.0})
        # A basis of the rows' own size, so that its coefficients are, too.
        step = (about.direction * radius).to(view.dtype)
        start = Stacked.by_client(view, _moved(q, 0.0), torch.stack([about.mean.to(view.dtype), step]), context.clients)
        if self.objective == "selection" or (self.objective == "auto" and selects(defence)):
            way, asked = self._selected(start, defence, context)
            rows = start.with_coefficients(_moved(q, way))
            return Sent(rows, context.state, {"gamma": about.gamma(way * radius), "evaluations": asked})
        probe = Probe(view, step[None], defence, context, importance=about.direction.square(), sample=self.sample)
        seen: dict[float, float] = {}

        def deviation(way: float) -> float:
            if way not in seen:
                seen[way] = probe.deviation(probe.mean - way * probe.unit(0))
            return seen[way]

        way = best(deviation, self.tolerance) if probe.cheap else best(deviation, max(self.tolerance, 0.3), 4.0)
        rows = start.with_coefficients(_moved(q, way))
        report = {"deviation": probe.whole_deviation(rows), "evaluations": float(len(seen))}
        return Sent(rows, context.state, {"gamma": about.gamma(way * radius), **report})

    def _selected(self, start: Stacked, defence: Rule, context: AttackContext) -> tuple[float, float]:
        """The largest way with which all attackers are selected, and how often the rule was asked."""
        asked: dict[float, float] = {}

        def value(way: float) -> float:
            if way not in asked:
                trial = start.with_coefficients(_moved(len(context.clients), way))
                try:
                    answer = defence.aggregate(trial, context.rule_state, context.server_context)
                except HostileRowsError:
                    asked[way] = 0.0
                else:
                    asked[way] = float(_all_selected(answer, trial))
            return asked[way]

        return last_true(value, self.tolerance), float(len(asked))


def _all_selected(answer: Aggregate, trial: Stacked) -> bool:
    """Whether the attackers have all places in the answer that they can have."""
    bad = trial.malicious.to(trial.device)
    if answer.selected is not None:
        taken, places = int(answer.selected[bad].sum()), int(answer.selected.sum())
        return places > 0 and taken >= min(int(bad.sum()), places)
    if answer.weights is None:
        raise ConfigError(
            "agr-tailored: objective 'selection' is for rules that select or weigh rows; this one does not say whom it "
            "trusts: take 'deviation'"
        )
    # Copies are one vector to a rule that picks one row: it is enough that it picks one of them.
    return bool(answer.weights[bad].sum() > 0.5 * answer.weights.sum())


def selects(rule: Rule) -> bool:
    """Whether ``rule`` is Krum or Multi-Krum, after nothing but clipping."""
    if isinstance(rule, Pipeline):
        return isinstance(rule.rule, Krum | MultiKrum) and not any(
            part.regroups or Needs.GRAM in part.needs for part in rule.mixings
        )
    return isinstance(rule, Krum | MultiKrum)


def _moved(q: int, way: float) -> Tensor:
    return torch.tensor([[1.0, -way]], dtype=torch.float64).repeat(q, 1)


def last_true(value: Callable[[float], float], tolerance: float) -> float:
    """The largest way of those doubled at which ``value`` is positive, refined by halving; 0 if there is none."""
    ways = [0.0] + [_FIRST * 2.0**k for k in range(_DOUBLINGS)]
    good = [i for i, way in enumerate(ways) if value(way) > 0]
    if not good:
        return 0.0
    low = ways[good[-1]]
    if good[-1] + 1 == len(ways):
        return low
    high = ways[good[-1] + 1]
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) > 0 else (low, middle)
    return low


def best(value: Callable[[float], float], tolerance: float, ratio: float = 2.0) -> float:
    """The way of largest ``value`` in steps of ``ratio``, refined by golden section; the least of those as good."""
    ways = [_FIRST * ratio**k for k in range(_DOUBLINGS) if ratio**k <= 2.0 ** (_DOUBLINGS - 1)]
    found = 0.0
    for way in ways:
        if value(way) > value(found) * (1 + _BETTER):
            found = way
    low, high = found / ratio, min(found * ratio, ways[-1])
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    while high - low > tolerance * high and found > 0:
        for way in (left, right):
            if value(way) > value(found) * (1 + _BETTER):
                found = way
        if value(left) >= value(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    # Beyond some way many rules answer the same: there is no need to stand out more than that.
    low, high = found / ratio, found
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if value(middle) >= value(found) * (1 - _BETTER) else (middle, high)
    return high
