"""Attacks made for one rule each: Krum, the trimmed mean and the median."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import COLUMN_BYTES, Rule
from bezoar.aggregation.krum import krum_scores
from bezoar.attacks.base import AttackContext, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class FangKrum(UpdateAttack):
    r"""Untargeted: as far against the honest mean as Krum still picks.

    .. math:: u = -\lambda \operatorname{sign}(\bar x_S), \quad \lambda = \max\{\lambda_0 2^{-k} : \mathrm{Krum}
              \text{ picks } u\}, \quad
              \lambda_0 = \sqrt{\frac{\min_{i \in S} s(i)}{(n - 2f - 1)\, d}} + \frac{\max_{i \in S} \|x_i\|}{\sqrt d}

    s(i) is Krum's score of x_i among the honest updates, n - f - 2 others counting, and lambda_0 a bound above which
    Krum does not pick u (the paper has it for distances that are not squared; with n - 2f - 1 < 1 there is none, and
    the divisor is 1). lambda is halved until Krum picks u, or until it is below ``threshold`` times the median honest
    norm over sqrt(d); the record tells ``lambda`` and whether u was ``picked``. In the paper's terms u leads away from
    the model before the round. ``f`` is Krum's (None: the number of attackers), brought into the range that n allows.
    All attackers send the same vector; the paper also spreads them a little.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one Gram matrix, O(n^2 d), one pass over the honest rows, and O(n^2) for every lambda.
    Peers: FLPoison's FangAttack.
    Reference: Fang, Cao, Jia, Gong: Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, USENIX
        Security 2020. The threshold is absolute there, 1e-5.
    """

    f: int | None = None
    threshold: float = 1e-5

    needs: ClassVar[Needs] = Needs.GRAM

    def __post_init__(self) -> None:
        if self.f is not None and self.f < 1:
            raise ConfigError(f"fang-krum: f must be at least 1 (None: the number of attackers), got {self.f}")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"fang-krum: threshold must be above 0 and below 1, got {self.threshold}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest, q = usable(view), len(context.clients)
        signs = honest_mean(honest).sign()[None]
        if not honest.finite().all() or not signs.any():
            return Sent(stack(view, signs, context.clients), context.state, {"lambda": 0.0, "picked": 0.0})
        n = len(honest) + q
        f = max(0, min(q if self.f is None else self.f, n - 3))
        largest, typical = _sizes(honest)
        scores = _scores(honest.squared_distances(), n - f - 2)
        scale = math.sqrt(float(scores.min()) / max(1, n - 2 * f - 1) / honest.shape[1]) + largest
        trial = Stacked.by_client(honest, torch.full((q, 1), -scale), signs, context.clients)
        picked = self._picks(trial, f)
        while not picked and scale > self.threshold * typical:
            scale /= 2
            trial = trial.with_coefficients(torch.full((q, 1), -scale, dtype=torch.float64))
            picked = self._picks(trial, f)
        rows = stack(view, signs * -scale, context.clients)
        return Sent(rows, context.state, {"lambda": scale, "picked": float(picked)})

    def _picks(self, trial: Stacked, f: int) -> bool:
        # Two rows have no others left to count: Krum is not defined for them, and any of them may be taken.
        if len(trial) < 3:
            return True
        scores = krum_scores(trial.squared_distances(), f, "blanchard")
        return bool(trial.malicious[int((scores == scores.min()).nonzero()[0])])


def _sizes(honest: Updates) -> tuple[float, float]:
    """The largest and the median norm, as the length of one coordinate."""
    norms = (honest.squared_norms() / honest.shape[1]).sqrt()
    return float(norms.max()), float(norms.median())


def _scores(distances: Tensor, others: int) -> Tensor:
    """Sums of every row's least squared distances to ``others`` other rows, or to all there are."""
    return distances.sort(dim=1).values[:, 1 : max(others, 0) + 1].sum(1)


@dataclass(frozen=True)
class FangTrimmedMean(UpdateAttack):
    r"""Untargeted: every coordinate just outside the honest range, on the side against the honest mean.

    .. math:: u_j \sim U\bigl[\min(m_j b^{-1}, m_j b),\, m_j\bigr] \text{ if } \bar x_j > 0, \quad
              u_j \sim U\bigl[M_j,\, \max(M_j b^{-1}, M_j b)\bigr] \text{ if } \bar x_j < 0, \quad
              m_j = \min_{i \in S} x_{ij},\ M_j = \max_{i \in S} x_{ij}

    b = 2 as in the paper; a coordinate of mean 0 gets 0. Each attacker draws its own numbers. A trimmed mean that
    drops as many values as there are attackers then drops the honest ones on the other side.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one pass over the columns of the honest rows, and q d random numbers.
    Peers: Blades' AdaptiveAdversary; in the code of the NDSS 2021 attacks the second case is never met.
    Reference: Fang, Cao, Jia, Gong: Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, USENIX
        Security 2020, who scale the range of local models; here it is that of the updates.
    """

    b: float = 2.0

    needs: ClassVar[Needs] = Needs.BLOCKS

    def __post_init__(self) -> None:
        if not (self.b > 1 and math.isfinite(self.b)):
            raise ConfigError(f"{self._who}: b must be a number above 1, got {self.b}")

    @property
    def _who(self) -> str:
        return "fang-trimmed-mean"

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        near, far = self._range(usable(view))
        limit = torch.finfo(view.dtype).max
        vectors = torch.empty(len(context.clients), view.shape[1], dtype=view.dtype, device=view.device)
        for row, client in zip(vectors, context.clients.tolist(), strict=True):
            draws = generator(context.seed, "attack", context.round, client)
            share = torch.rand(view.shape[1], generator=draws, dtype=torch.float64).to(near.device)
            row.copy_((near * (1 - share) + far * share).clamp(-limit, limit))
        return stack(view, vectors, context.clients)

    def _range(self, honest: Updates) -> tuple[Tensor, Tensor]:
        """The honest extreme against the mean, and how far beyond it attackers go: [d] each, float64."""
        near, far = (torch.empty(honest.shape[1], dtype=torch.float64, device=honest.device) for _ in range(2))
        for block in honest.share(COLUMN_BYTES):
            values = block.values.double()
            side = values.mean(0).sign()
            extreme = torch.where(side > 0, values.amin(0), values.amax(0)) * side.abs()
            # Away from the honest values: an extreme on their side of zero is divided by b, one beyond it multiplied.
            beyond = torch.where(extreme * side > 0, extreme / self.b, extreme * self.b)
            near[block.start : block.stop], far[block.start : block.stop] = extreme, beyond
        return honest.spread.join(near), honest.spread.join(far)


@dataclass(frozen=True)
class FangMedian(FangTrimmedMean):
    r"""Untargeted: the attack on the trimmed mean, under the name of the other rule that the paper makes it for.

    .. math:: u_j \sim U\bigl[\min(m_j b^{-1}, m_j b),\, m_j\bigr] \text{ if } \bar x_j > 0, \quad
              u_j \sim U\bigl[M_j,\, \max(M_j b^{-1}, M_j b)\bigr] \text{ if } \bar x_j < 0

    With q values beyond the honest ones, the median moves by q/2 places towards them. Everything else is as in
    ``fang-trimmed-mean``.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one pass over the columns of the honest rows, and q d random numbers.
    Peers: Blades' AdaptiveAdversary.
    Reference: Fang, Cao, Jia, Gong: Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, USENIX
        Security 2020.
    """

    @property
    def _who(self) -> str:
        return "fang-median"
