"""Mimic: copies of one honest client, so that it counts too much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class Mimic(UpdateAttack):
    r"""Untargeted: all attackers send a copy of one honest client's update; no rule can tell them from it.

    .. math:: u = x_{i^*}, \quad i^* = \arg\max_{i \in S} \langle x_i, z \rangle, \quad
              s_t = \sum_{i \in S} \langle x_i - \mu_t, z_{t-1} \rangle (x_i - \mu_t), \quad
              z_t \propto \tfrac{t-1}{t} z_{t-1} + \tfrac1t \frac{s_t}{\|s_t\|}

    Whom to copy is learnt for ``warmup`` rounds: mu_t is the mean of the honest means so far, and one power step a
    round turns z towards the direction in which honest clients differ most (z_0 is random). In these rounds i* is the
    best of the round; afterwards the client chosen last is copied for good, and where it is not in the round, the best
    of the round. Ties go to the lowest row. With ``client`` nothing is learnt: the client of that id is copied, and
    where it is not among the honest ones of the round, the next one by id (after the last comes the first). Hurts
    where clients hold different data: the copied one's data then weigh (1 + q)-fold.

    Knows: every honest update of the round.
    Cost: one weighted sum, and in warm-up rounds two more and two passes of dot products.
    Peers: ByzFL copies a fixed client; FLPoison copies a fixed one that by default is an attacker itself.
    Reference: Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022.
        There s_t is added without being brought to length one, so that how fast z turns depends on the unit of the
        updates.
    """

    warmup: int = 20
    client: int | None = None

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ConfigError(f"mimic: warmup must be at least 1 round, got {self.warmup}")
        if self.client is not None and self.client < 0:
            raise ConfigError(f"mimic: client must be a client id, got {self.client}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest = usable(view)
        ids, state = honest.clients.cpu(), context.state
        if self.client is not None:
            after = ids - self.client
            chosen = _first(-torch.where(after < 0, after + ids.max() + 1 + self.client, after))
        elif not honest.finite().all():
            chosen = 0
        else:
            learning = int(state.get("rounds", 0)) < self.warmup
            state = _learn(honest, context) if learning else state
            chosen = _first(honest.dot(state["direction"].to(honest.device, honest.dtype)))
            if learning:
                state = {**state, "client": ids[chosen].clone()}
            elif (ids == state["client"].cpu()).any():
                chosen = _first(ids == state["client"].cpu())
        copy = torch.zeros(len(honest), dtype=torch.float64, device=honest.device)
        copy[chosen] = 1.0
        rows = stack(view, honest.combine(copy)[None], context.clients)
        return Sent(rows, state, {"copied_client": float(ids[chosen])})


def _first(scores: Tensor) -> int:
    """Where the largest of ``scores`` is, the first of several."""
    return int((scores == scores.max()).nonzero()[0])


def _learn(honest: Updates, context: AttackContext) -> dict[str, Tensor]:
    """One power step: what is remembered after one more round of warm-up."""
    state = context.state
    t = int(state.get("rounds", 0)) + 1
    mean = honest_mean(honest)
    if t > 1:
        old = state["mean"].to(mean)
        # Old share first: neither term leaves the range of the numbers.
        mean = old * ((t - 1) / t) + mean * (1 / t)
        z = state["direction"].to(mean)
    else:
        draws = generator(context.seed, "mimic direction")
        z = torch.randn(honest.shape[1], generator=draws).to(mean)
    along = honest.dot(z) - float(mean.double() @ z.double())
    size = along.abs().max()
    step = torch.zeros_like(mean, dtype=torch.float64)
    if size > 0:
        weights = along / size
        step = honest.combine(weights).double() - weights.sum() * mean.double()
        length = step.norm()
        step = step / length if length > 0 else step
    turned = step if t == 1 else z.double() * ((t - 1) / t) + step / t
    length = turned.norm()
    turned = turned / length if length > 0 else z.double() / z.double().norm().clamp(min=1e-300)
    return {
        "rounds": torch.tensor(t),
        "mean": mean,
        "direction": turned.to(mean.dtype),
    }
