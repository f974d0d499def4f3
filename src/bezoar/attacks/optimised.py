"""ALIE and inner product manipulation with the scale that hurts a known defence most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule, check_count
from bezoar.attacks._probe import SAMPLE, Method, Probe, column_spread
from bezoar.attacks.base import AttackContext, Knowledge, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked

#: The smallest scale tried.
SMALLEST = 0.02

#: The steps of the grid, and how often it is zoomed in, by what a trial costs.
GRIDS: dict[Method, tuple[float, int]] = {"exact": (2**0.25, 5), "sampled": (2**0.5, 6), "whole": (10.0, 1)}


def strongest_scales(
    value: Callable[[float], float], largest: float, ratio: float, zooms: int
) -> list[tuple[float, float]]:
    """Of either sign the scale of largest ``value``, found on a geometric grid and by zooming in on its best point.

    The grid goes from ``largest`` down to :data:`SMALLEST` in steps of ``ratio`` (and holds 0); each of the ``zooms``
    takes the square root of the step. Returns (scale, value) of the better sign first; of equal values the smallest
    scale wins. A zoom that finds nothing better stays where it is, so that it closes in on the edge beyond which a
    rule throws the rows out.

    >>> [(round(scale, 2), round(best, 3)) for scale, best in strongest_scales(lambda x: 5 - (x - 3) ** 2, 10, 2, 6)]
    [(3.01, 5.0), (0.0, -4.0)]
    """
    steps = max(0, math.ceil(math.log(largest / SMALLEST) / math.log(ratio)))
    sizes = [max(largest / ratio**i, min(SMALLEST, largest)) for i in reversed(range(steps + 1))]
    at_zero = value(0.0)
    found = []
    for sign in (1.0, -1.0):
        best, reached = max(((sign * size, value(sign * size)) for size in sizes), key=lambda pair: pair[1])
        step = ratio
        for _ in range(zooms):
            step = math.sqrt(step)
            for near in (best * step, best / step):
                if abs(near) <= largest and (tried := value(near)) > reached:
                    best, reached = near, tried
                    break
        found.append((best, reached) if reached >= at_zero else (0.0, at_zero))
    return sorted(found, key=lambda pair: -pair[1])


@dataclass(frozen=True)
class _Optimised(UpdateAttack):
    """A line of vectors, start + scale * direction, of which the attackers send the one that hurts most."""

    least: ClassVar[Knowledge] = Knowledge.DEFENCE
    added: ClassVar[tuple[str, ...]] = ("refresh",)

    largest: float = 100.0
    sample: int = SAMPLE
    refresh: int = 1

    def __post_init__(self) -> None:
        if not (self.largest > 0 and math.isfinite(self.largest)):
            raise ConfigError(f"{type(self).__name__}: largest must be a positive number, got {self.largest}")
        check_count(type(self).__name__, "sample", self.sample, least=1)
        check_count(type(self).__name__, "refresh", self.refresh, least=1)

    def _line(self, view: Updates, defence: Rule, context: AttackContext) -> tuple[Probe, Tensor, Tensor]:
        """The probe, and the mixes that are start and direction."""
        raise NotImplementedError

    def _at(self, honest: Updates, scale: float) -> Tensor:
        """The vector [d] at ``scale`` on the line."""
        raise NotImplementedError

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        age = int(context.state.get("age", torch.tensor(self.refresh)))
        if age < self.refresh:
            chosen = float(context.state["scale"])
            older = {**context.state, "age": torch.tensor(age + 1)}
            return Sent(stack(view, self._at(usable(view), chosen)[None], context.clients), older, {"scale": chosen})
        probe, start, direction = self._line(view, defence, context)

        def value(scale: float) -> float:
            return probe.deviation(start + scale * direction)

        ratio, zooms = GRIDS[probe.method]
        scales = strongest_scales(value, self.largest, ratio, zooms)
        candidates = [(start + scale * direction, reached) for scale, reached in scales]
        rows, deviation, mix = probe.settle(candidates)
        chosen = next(scale for (scale, _), (tried, _) in zip(scales, candidates, strict=True) if tried is mix)
        after = context.state
        if self.refresh > 1:
            after = {"scale": torch.tensor(chosen, dtype=torch.float64), "age": torch.tensor(1)}
        return Sent(rows, after, {"scale": chosen, "deviation": deviation})


@dataclass(frozen=True)
class OptimisedALIE(_Optimised):
    r"""ALIE with the shift, of either sign, that drags the defence's answer farthest from the honest mean.

    .. math:: u = \bar x_S + z^* \sigma_S,\quad
              z^* = \arg\max_{|z| \le z_{\max}}
              \bigl\| F(x_S \cup q \text{ times } (\bar x_S + z \sigma_S)) - \bar x_S \bigr\|

    F is the defence; ``largest`` is z_max. sigma as in ``alie``. The shift is searched on a geometric grid of both
    signs and refined near the best points. Rules that read no columns are tried in n x n space, exactly; the others on
    ``sample`` columns, and the best shift of either sign is confirmed by whole aggregations, at most two. Rules with
    a memory of clients, or that read layers, are asked about a dozen times as they are. The search is repeated every
    ``refresh`` rounds, in between its last shift is used.

    Knows: every honest update of the round, the defence and its memory.
    Cost: ALIE's pass over the columns, one Gram matrix and one inner product for each row; then O(n^3) a trial. For
        rules that read columns also n x ``sample`` numbers a trial, and two more aggregations.
    Peers: ByzFL's Optimal_ALIE runs 20 whole aggregations a step and tries positive shifts only; Blades and FLPoison
        have none.
    Reference: Baruch, Baruch, Goldberg: A Little Is Enough, NeurIPS 2019, with the line search of Shejwalkar,
        Houmansadr: Manipulating the Byzantine, NDSS 2021.

    >>> from bezoar.aggregation import Mean
    >>> OptimisedALIE(largest=2.0)(torch.tensor([[1.0], [2.0], [3.0]]), n=4, q=1, defence=Mean())
    tensor([[4.]])
    """

    needs: ClassVar[Needs] = Needs.GRAM | Needs.BLOCKS

    def _line(self, view: Updates, defence: Rule, context: AttackContext) -> tuple[Probe, Tensor, Tensor]:
        spread = column_spread(usable(view))
        probe = Probe(view, spread[None], defence, context, importance=spread.double().square(), sample=self.sample)
        return probe, probe.mean, probe.unit(0)

    def _at(self, honest: Updates, scale: float) -> Tensor:
        limit = torch.finfo(honest.dtype).max
        moved = honest_mean(honest).double() + scale * column_spread(honest).double()
        return moved.clamp(-limit, limit).to(honest.dtype)


@dataclass(frozen=True)
class OptimisedIPM(_Optimised):
    r"""Inner product manipulation with the factor, of either sign, that drags the defence's answer farthest.

    .. math:: u = -\varepsilon^* \bar x_S,\quad
              \varepsilon^* = \arg\max_{|\varepsilon| \le \varepsilon_{\max}}
              \bigl\| F(x_S \cup q \text{ times } {-\varepsilon} \bar x_S) - \bar x_S \bigr\|

    F is the defence; ``largest`` is epsilon_max. The search is that of ``opt-alie``.

    Knows: every honest update of the round, the defence and its memory.
    Cost: one Gram matrix, then O(n^3) a trial; for rules that read columns also n x ``sample`` numbers a trial and two
        more aggregations.
    Peers: ByzFL's Optimal_InnerProductManipulation runs 20 whole aggregations a step and tries positive factors only;
        Blades and FLPoison have none.
    Reference: Xie, Koyejo, Gupta: Fall of Empires, UAI 2019, with the line search of Shejwalkar, Houmansadr:
        Manipulating the Byzantine, NDSS 2021.

    >>> from bezoar.aggregation import Mean
    >>> OptimisedIPM(largest=2.0)(torch.tensor([[1.0], [2.0], [3.0]]), n=4, q=1, defence=Mean())
    tensor([[-4.]])
    """

    needs: ClassVar[Needs] = Needs.GRAM

    def _line(self, view: Updates, defence: Rule, context: AttackContext) -> tuple[Probe, Tensor, Tensor]:
        honest = usable(view)
        # Columns are only sampled for rules that read them; the mean says which ones matter here.
        weight = honest_mean(honest).double().square()
        probe = Probe(view, weight.new_zeros(0, view.shape[1]), defence, context, importance=weight, sample=self.sample)
        return probe, torch.zeros_like(probe.mean), -probe.mean

    def _at(self, honest: Updates, scale: float) -> Tensor:
        limit = torch.finfo(honest.dtype).max
        return (-scale * honest_mean(honest).double()).clamp(-limit, limit).to(honest.dtype)
