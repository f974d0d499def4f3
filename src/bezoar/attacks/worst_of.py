"""The strongest of a family of vectors, found by asking the actual rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule, check_count
from bezoar.attacks.base import AttackContext, Knowledge, Sent, UpdateAttack, stack, usable
from bezoar.errors import DivergedError, HostileRowsError
from bezoar.seeding import generator
from bezoar.updates.base import Needs, Updates
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.stacked import Stacked

#: Multiples of a direction that are tried, of either sign: in units of the honest rows' root mean square distance.
SCALES = (0.3, 1.0, 2.0, 5.0, 30.0)


#: Deviations that differ by less, relatively, are equal.
SAME = 1e-6


@dataclass(frozen=True)
class WorstOf(UpdateAttack):
    r"""Of many vectors the one that drags the defence's answer farthest from the honest mean.

    .. math:: \arg\max_{v \in V} \bigl\| F(x_S \cup q \text{ times } v) - \bar x_S \bigr\|

    V holds :math:`\bar x_S \pm s \cdot r \cdot d` for ten scales (s of either sign, r the root mean square distance of
    honest rows from their mean) along five directions d: the mean itself, the coordinates' standard deviations, the
    principal axis of the honest rows, the honest row farthest from the mean, and a random one, drawn anew each time;
    besides, every honest row (mimic), its mirror image at the mean, and zero; and all honest rows shifted by one scale
    of the first two directions, each attacker sending another one. Every one is tried by a whole aggregation on a copy
    of the rule's memory, every ``refresh`` rounds; in between the same choice is made from the round's own rows.

    Knows: every honest update of the round, the defence and its memory.
    Cost: 50 aggregations and two for every honest row, every ``refresh`` rounds.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: none; it makes rules comparable under attackers who choose.

    >>> from bezoar.aggregation import Mean
    >>> WorstOf()(torch.tensor([[1.0], [2.0], [3.0]]), n=4, q=1, defence=Mean()).abs().round().tolist()
    [[26.0]]
    """

    refresh: int = 1
    least: ClassVar[Knowledge] = Knowledge.DEFENCE
    needs: ClassVar[Needs] = Needs.BLOCKS

    def __post_init__(self) -> None:
        check_count("worst-of", "refresh", self.refresh, least=1)

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest = usable(view)
        values = honest.materialise().double()
        mean = values.mean(0)
        age = int(context.state.get("age", torch.tensor(self.refresh)))
        draws = int(context.state.get("draws", torch.tensor(0))) + (1 if age >= self.refresh else 0)
        q = len(context.clients)
        random = generator(context.seed, "worst of", draws)
        limit = torch.finfo(view.dtype).max
        family = (v.clamp(-limit, limit).to(view.dtype) for v in _family(values, mean, q, random))
        if age < self.refresh:
            # Fewer rows may be honest than when the choice was made; the last of the family is then as good as any.
            *_, chosen = itertools.islice(family, int(context.state["choice"]) + 1)
            rows = stack(view, chosen, context.clients)
            return Sent(rows, {**context.state, "age": torch.tensor(age + 1)})
        choice, reached, best = 0, -1.0, mean.to(view.dtype)[None]
        for i, vectors in enumerate(family):
            moved = _deviation(view, vectors, mean, defence, context)
            # Of equals the first, whatever rounding makes of them.
            if moved > reached + SAME * abs(reached):
                choice, reached, best = i, moved, vectors
        state = {"age": torch.tensor(1), "choice": torch.tensor(choice), "draws": torch.tensor(draws)}
        return Sent(stack(view, best, context.clients), state, {"choice": choice, "deviation": reached})


def _family(values: Tensor, mean: Tensor, q: int, draws: torch.Generator) -> Iterator[Tensor]:
    """The vectors that are tried, each [1, d] or [q, d], float64 as the honest rows ``values`` [h, d]."""
    away = values - mean
    radius = float(away.square().sum(1).mean().sqrt())
    spread = away.square().mean(0).sqrt()
    random = torch.randn(values.shape[1], generator=draws, dtype=torch.float64).to(values.device)
    farthest = away[int(away.square().sum(1).argmax())]
    directions = [mean, spread, _principal(away), farthest, random]
    unit = [d / norm if (norm := float(d.norm())) > 0 else d for d in directions]
    for direction in unit:
        for scale in SCALES:
            for sign in (1.0, -1.0):
                yield (mean + sign * scale * radius * direction)[None]
    for row in values:
        yield row[None]
    for row in values:
        yield (2 * mean - row)[None]
    yield torch.zeros_like(mean)[None]
    places = torch.arange(q, device=values.device) % len(values)
    for direction in unit[:2]:
        for sign in (1.0, -1.0):
            yield values[places] + sign * radius * direction


def _principal(away: Tensor) -> Tensor:
    """The axis along which rows [h, d] that add up to zero lie farthest apart [d]; from the h x h products."""
    vector = torch.linalg.eigh(away @ away.T).eigenvectors[:, -1]
    # Its sign is the solver's choice, both are tried.
    axis: Tensor = vector @ away
    return axis


def _deviation(view: Updates, vectors: Tensor, mean: Tensor, defence: Rule, context: AttackContext) -> float:
    """How far the rule's answer is from the honest mean; -1 where it would give up on the round."""
    rows = DenseUpdates(*_merged(view, vectors, context.clients), layout=view.layout)
    try:
        answer = defence.aggregate(
            rows, dict(context.rule_state), context.server_context, generator(context.seed, "worst of", context.round)
        )
    except (HostileRowsError, DivergedError):
        return -1.0
    moved = float((answer.vector.double() - mean).norm())
    return moved if math.isfinite(moved) else -1.0


def _merged(view: Updates, vectors: Tensor, clients: Tensor) -> tuple[Tensor, Tensor]:
    """All rows in the order of client ids, and these."""
    stacked = stack(view, vectors, clients)
    rows = torch.empty(stacked.shape, dtype=view.dtype, device=view.device)
    bad = stacked.malicious
    rows[~bad] = view.materialise()
    rows[bad] = stacked.sent()
    return rows, stacked.clients
