"""Projected gradient descent that knows which coordinates the server will move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.aggregation.clip import clip_factors
from bezoar.attacks.base import AttackContext, Goal, Knowledge, Sent, usable
from bezoar.attacks.pgd import PGD, Keep, project, rescale
from bezoar.errors import ConfigError
from bezoar.kernels.topk import top_k
from bezoar.servers import FetchSGD, SparseFed
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked

#: Lifted coordinates end this share above what they must exceed.
MARGIN = 1e-3


@dataclass(frozen=True)
class AdaptivePGD(PGD):
    r"""PGD on the coordinates that SparseFed's server is about to move, and no others.

    .. math:: K = \operatorname{supp} \operatorname{top}_k |W + \rho R + \bar u|, \quad
              M \leftarrow M_0 + \operatorname{clip}_L\bigl((M - M_0)_K\bigr) \text{ after each step}

    u is the mean of the honest updates as the server clips them, W its error feedback and R its momentum: K is where
    the server would step if nobody attacked. It is asked from the server's own code, so that all of its options are
    taken into account. Servers that move every coordinate make K the whole model: the attack is then ``pgd``.

    ``support="iterate"`` finds K anew after every step of training with the attackers' vector as they would send it
    then among the honest ones, before it is masked: coordinates on which they push hard enough join.
    ``support="greedy"`` trains once without a mask, g, and then pushes honest coordinates out of K: with B the server's
    memory and the honest part of this round's aggregate, and a the attackers' share of it, lifting coordinate j over
    the threshold t costs :math:`c_j = (t - \operatorname{sign}(g_j) B_j)^2 / a^2` of the squared norm. The m
    coordinates of largest :math:`|g_j| / c_j` outside K replace the m smallest in it, with the largest m that costs at
    most the share ``lift`` of :math:`L^2`; what is left of the budget goes to a second training on the new support. It
    needs a SparseFed server. ``support="unused"`` projects onto nothing, which is ``pgd``: the authors' code computes K
    and then does not use it.

    Args:
        support: ``"honest"`` (as printed), ``"iterate"``, ``"greedy"`` or ``"unused"``.
        lift: share of the squared norm that ``"greedy"`` may spend on lifting.

    The other parameters are those of ``pgd``. The round's record gets the number of ``coordinates`` that are sent and,
    for ``"greedy"``, how many of them were ``lifted``.

    Knows: the honest updates, the defence, its server and what that remembers.
    Cost: that of ``pgd``, twice for ``"greedy"``, and one top-k; for ``"iterate"`` one top-k a batch.
    Peers: none of ByzFL, Blades and FLPoison has it; the authors' code computes the projection and does not use it.
    Reference: Panda et al.: SparseFed, AISTATS 2022, Algorithm 12 (with the sign of Algorithm 6 repaired; K from the
        server's whole memory, as its text says).
    """

    least: ClassVar[Knowledge] = Knowledge.DEFENCE

    support: Literal["honest", "iterate", "greedy", "unused"] = "honest"
    lift: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.support not in ("honest", "iterate", "greedy", "unused"):
            raise ConfigError(
                f"adaptive-pgd: support must be 'honest', 'iterate', 'greedy' or 'unused', got {self.support!r}"
            )
        if not 0 < self.lift < 1:
            raise ConfigError(f"adaptive-pgd: lift must be above 0 and below 1, got {self.lift}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        if self.support == "unused":
            return Sent(self.made_by(self.vector, view, context), context.state)
        forecast = _Forecast(view, context)
        lifted = [0]

        def make(context: AttackContext, goal: Goal, radius: float, draws: torch.Generator) -> Tensor:
            # What the server will see of a vector of norm L.
            factor = self.update_boost if math.isinf(radius) else min(self.update_boost, context.radius / radius)
            if self.support == "greedy":
                wanted = self.vector(context, goal, radius, draws)
                swap = forecast.swap(wanted, factor, math.sqrt(self.lift) * radius)
                trained = self.trained(context, goal, radius, draws, _only(swap.support))
                lifted[0] = len(swap.lifted)
                return swap.apply(trained, radius)
            fixed = None if self.support == "iterate" else forecast.support(None)

            def keep(displacement: Tensor) -> Tensor:
                sent = -(rescale if self.rescales(context.lr) else project)(displacement, radius) * factor
                return _only(forecast.support(sent) if fixed is None else fixed)(displacement)

            return self.trained(context, goal, radius, draws, keep)

        rows = self.made_by(make, view, context)
        report = {"coordinates": float((rows.basis != 0).sum(1).double().mean())}
        if self.support == "greedy":
            report["lifted"] = float(lifted[0])
        return Sent(rows, context.state, report)


def _only(support: Tensor) -> Keep:
    """Zero outside of ``support`` (bool [d])."""
    return lambda displacement: torch.where(support, displacement, torch.zeros_like(displacement))


@dataclass(frozen=True)
class _Swap:
    """Coordinates to send on (bool [d]); those of them that are ``lifted`` [m] get at least ``least`` [m]."""

    support: Tensor
    lifted: Tensor
    least: Tensor

    def apply(self, vector: Tensor, radius: float) -> Tensor:
        """``vector`` [d] lifted, the rest of it shortened to what is left of ``radius``."""
        if not len(self.lifted):
            return vector
        own = vector[self.lifted]
        raised = torch.where(own * self.least.sign() > self.least.abs(), own, self.least)
        rest = vector.index_fill(0, self.lifted, 0.0)
        if not math.isinf(radius):
            # Training may want more of a lifted coordinate than it needs; the budget has the last word.
            raised = raised if float(raised.double().square().sum()) <= radius**2 else self.least
            left = max(radius**2 - float(raised.double().square().sum()), 0.0)
            rest = project(rest, math.sqrt(left)) if left > 0 else torch.zeros_like(rest)
        return rest.index_copy(0, self.lifted, raised)


class _Forecast:
    """What the server will do with this round's aggregate, before the attackers have sent anything."""

    def __init__(self, view: Updates, context: AttackContext) -> None:
        honest = usable(view)
        norms = honest.squared_norms().sqrt()
        self.honest = honest.combine(clip_factors(norms, context.radius) / len(honest))
        q = len(context.clients)
        self.share = q / (len(honest) + q)
        self.context, self.d = context, view.shape[1]
        self.everything = torch.ones(self.d, dtype=torch.bool, device=view.device)
        server = context.server
        # Where the rate only enters the step, the choice of coordinates does not depend on it (it may be zero).
        inside = isinstance(server, SparseFed | FetchSGD) and server.lr_placement != "outside"
        self.lr = context.server_lr if inside else 1.0

    def support(self, sent: Tensor | None) -> Tensor:
        """Which coordinates move (bool [d]): without attackers, or if all of them send ``sent`` [d]."""
        aggregate = self.honest if sent is None else (1 - self.share) * self.honest + self.share * sent
        if not torch.isfinite(aggregate).all():
            return self.everything
        index = self.context.server.step(aggregate, self.lr, self.context.server_state).index
        if index is None:
            return self.everything
        moved = torch.zeros_like(self.everything)
        moved[index] = True
        return moved

    def memory(self) -> Tensor:
        """W of this round [d] if the attackers send nothing, before the server takes its coordinates out of it."""
        aggregate = (1 - self.share) * self.honest
        step = self.context.server.step(aggregate, self.lr, self.context.server_state)
        error = step.state["error"].double()
        if step.index is not None:
            error[step.index] = step.values.double()
        return error

    def swap(self, wanted: Tensor, factor: float, budget: float) -> _Swap:
        """Lift coordinates of ``wanted`` [d] over the threshold, for an l2 norm of at most ``budget``."""
        server = self.context.server
        if not isinstance(server, SparseFed):
            raise ConfigError(
                f"adaptive-pgd: support='greedy' swaps coordinates of a SparseFed server, this one is "
                f"{type(server).__name__}; use support='honest'"
            )
        nothing = torch.zeros(0, dtype=torch.int64, device=wanted.device)
        k, reach = server.count(self.d), self.share * self.lr * factor
        if k >= self.d or reach <= 0 or not torch.isfinite(self.honest).all():
            return _Swap(self.support(None), nothing, nothing.to(wanted.dtype))
        memory = self.memory()
        inside = torch.zeros_like(self.everything)
        inside[top_k(memory, k)] = True
        sign = wanted.double().sign()
        along = sign * memory
        levels = memory[inside].abs().sort().values
        needed = ((levels[0] - along) / reach).clamp(min=1e-300)
        worth = torch.where(inside | (sign == 0), -1.0, wanted.double().abs() / needed.square())
        m = min(k, int((worth >= 0).sum()))
        if m == 0:
            return _Swap(inside, nothing, nothing.to(wanted.dtype))
        order = worth.argsort(descending=True, stable=True)[:m]
        # To be among the k largest with m - 1 others, a coordinate has to exceed the m-th smallest that is there now.
        reached = levels[:m] * (1 + MARGIN)
        first, second = along[order].cumsum(0), memory[order].square().cumsum(0)
        every = torch.arange(1, m + 1, dtype=torch.float64, device=wanted.device)
        cost = (every * reached.square() - 2 * reached * first + second) / reach**2
        affordable = int((cost <= budget**2).sum())
        lifted = order[:affordable]
        if not affordable:
            return _Swap(inside, nothing, nothing.to(wanted.dtype))
        level = reached[affordable - 1]
        support = memory.abs() > levels[affordable - 1]
        support &= inside
        support[lifted] = True
        least = sign[lifted] * (level - along[lifted]) / reach
        return _Swap(support, lifted, least.to(wanted.dtype))
