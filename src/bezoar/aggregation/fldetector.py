"""FLDetector: clients whose updates do not follow from their own past are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._features import Features, check_features, check_memory, features, merge, widen
from bezoar.aggregation.base import Aggregate, Context, Rule, State, check_count, check_vector, draws
from bezoar.updates.base import Needs, Updates
from bezoar.updates.dense import DenseUpdates

#: Reference samples of the gap statistic.
REFERENCES = 20


@dataclass(frozen=True)
class FLDetector(Rule):
    r"""Predict every client's update from its previous one; average those whose predictions were not too bad.

    .. math:: \hat x_i^t = x_i^{t-1} + \hat H^t (w^t - w^{t-1}),\quad
        d_i^t = \frac{\|\hat x_i^t - x_i^t\|}{\frac1n \sum_j \|\hat x_j^t - x_j^t\|},\quad
        s_i = \frac{1}{N} \sum_{r=t-N+1}^{t} d_i^r

    H is the L-BFGS estimate (compact form of Byrd, Nocedal, Schnabel) from the last N = ``window`` steps of the
    model and changes of the aggregate; pairs without positive curvature are left out. If the gap statistic finds
    more than one cluster in the scores s of the clients that have N of them, those in the upper of two clusters
    (exact 2-means in one dimension) are dropped; otherwise it is the mean. So the first N + 1 rounds are plain means.
    Needs ``Context.model``, w. A client that was away is predicted from the round it was last seen in, which the
    paper (everybody takes part) does not consider; nor does it continue after a detection, it restarts training.

    The history keeps, for every client ever seen, its last update and the model then, as random projections to ``size``
    numbers in which all products are taken (``features="projection"``: estimates, as good as 1/sqrt(size)), for
    the last layer only, or in full (exact); beyond ``memory`` bytes it is refused. Unverified reading of the paper,
    from memory.

    Tolerates: f < n/2 (heuristic): attackers whose updates do not vary as a gradient does.
    Cost: one pass over the columns and O((n + window) window size).
    Constant: none known.
    Peers: FLPoison has it; ByzFL and Blades lack it.
    Reference: Zhang, Cao, Jia, Gong: FLDetector: Defending Federated Learning Against Model Poisoning Attacks via
        Detecting Malicious Clients, KDD 2022.

    >>> rule, state = FLDetector(window=3), {}
    >>> for t in range(8):
    ...     model = torch.full((2,), 0.5**t)
    ...     honest = [(model + torch.tensor([0.1 * i, 0.0])).tolist() for i in range(4)]
    ...     rows = torch.tensor([*honest, [(-3.0) ** t, 0.0]])
    ...     answer = rule.aggregate(rows, state, Context(round=t, model=model))
    ...     state = answer.state
    >>> answer.selected
    tensor([ True,  True,  True,  True, False])
    """

    window: int = 10
    features: Features = "projection"
    size: int = 1024
    memory: int = 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.name, "window", self.window, least=1)
        check_features(self.name, self.features, self.size, self.memory)

    by_client: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.LAYOUT | Needs.COLUMNS if self.features == "last-layer" else Needs.BLOCKS

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        check_vector(self.name, "Context.model", context.model, rows.shape[1])
        assert context.model is not None
        clients, old, here = merge(state.get("clients", rows.clients[:0].cpu()), rows.clients.cpu())
        if self.features == "full":
            check_memory(self.name, 2 * (len(clients) + self.window), rows.shape[1], self.memory)
        now = features(rows, self.features, self.size, self.seed, self.name).cpu()
        width = now.shape[1]
        check_memory(self.name, 2 * (len(clients) + self.window), width, self.memory)
        model = DenseUpdates(context.model.detach()[None].to(rows.device), layout=rows.layout)
        at = features(model, self.features, self.size, self.seed, self.name).cpu()

        updates = widen(state.get("updates"), len(clients), old, width, torch.nan)
        models = widen(state.get("models"), len(clients), old, width, torch.nan)
        record = widen(state.get("record"), len(clients), old, self.window, torch.nan)
        steps, changes = state.get("steps", now[:0]), state.get("changes", now[:0])
        if len(steps):
            error = now - updates[here] - hessian_product(steps, changes, at - models[here])
            fresh = torch.isfinite(error).all(1)
            record[here[fresh]] = torch.cat([record[here[fresh], 1:], _relative(error[fresh])[:, None]], dim=1)
        scores = record[here].mean(1)
        kept = self._unsuspicious(scores, draws(generator, self.seed, "fldetector", context))

        weights = kept / kept.sum(dtype=torch.float64)
        aggregate = weights[None] @ now
        if "model" in state:
            step, change = at - state["model"], aggregate - state["aggregate"]
            if _curved(step, change):
                steps = torch.cat([steps, step])[-self.window :]
                changes = torch.cat([changes, change])[-self.window :]
        updates[here], models[here] = now, at.expand_as(now)
        memory = {"clients": clients, "updates": updates, "models": models, "record": record}
        memory |= {"steps": steps, "changes": changes, "model": at, "aggregate": aggregate}
        weights, kept = weights.to(rows.device), kept.to(rows.device)
        excluded = dict.fromkeys((~kept).nonzero().flatten().tolist(), "does not follow from its own past")
        return Aggregate(rows.combine(weights), memory, weights, scores.to(rows.device), kept, excluded)

    def _unsuspicious(self, scores: Tensor, source: torch.Generator) -> Tensor:
        """Which rows are not in an upper cluster of ``scores`` [n] (NaN: not judged yet): bool [n], never none."""
        kept = torch.ones(len(scores), dtype=torch.bool)
        judged = torch.isfinite(scores).nonzero().flatten()
        values = scores[judged]
        if len(judged) < 3 or values.max() - values.min() <= 1e-9 * values.max():
            return kept
        unit = (values - values.min()) / (values.max() - values.min())
        shape = (REFERENCES, len(unit))
        random = torch.rand(shape, generator=source, dtype=torch.float64, device=source.device).cpu()
        one, two, last = two_means(unit[None])
        reference_one, reference_two, _ = two_means(random)
        gap_one = reference_one.log().mean() - one.log()
        gap_two = reference_two.log().mean() - two.log()
        error = reference_two.log().std(correction=0) * (1 + 1 / REFERENCES) ** 0.5
        if gap_one < gap_two - error:
            kept[judged[unit > last]] = False
        return kept


def _relative(error: Tensor) -> Tensor:
    """Lengths of the rows of ``error`` [m, k] over their mean: [m]."""
    size = error.abs().max() if error.numel() else error.new_zeros(())
    if size == 0:
        return torch.zeros(len(error), dtype=torch.float64)
    lengths: Tensor = torch.linalg.vector_norm(error / size, dim=1)
    return lengths / lengths.mean()


def _curved(step: Tensor, change: Tensor) -> bool:
    """Whether the aggregate grew along the step of the model, and by more than rounding errors."""
    if not step.any() or not change.any():
        return False
    step, change = step / step.abs().max(), change / change.abs().max()
    return bool((step * change).sum() > 1e-8 * step.norm() * change.norm())


def hessian_product(steps: Tensor, changes: Tensor, vectors: Tensor) -> Tensor:
    """The L-BFGS Hessian of ``steps`` and ``changes`` [p, k] (oldest first) times every row of ``vectors`` [n, k]."""
    by, to = steps.abs().max(), changes.abs().max()
    s, y = steps / by, changes / to
    products, squares = s @ y.T, s @ s.T
    sigma = products[-1, -1] / squares[-1, -1]
    lower = products.tril(-1)
    middle = torch.cat(
        [torch.cat([-products.diagonal().diag(), lower.T], 1), torch.cat([lower, sigma * squares], 1)], 0
    )
    sides = torch.cat([y, sigma * s])
    solved = torch.linalg.pinv(middle, hermitian=True) @ (sides @ vectors.T)
    product: Tensor = (sigma * vectors - solved.T @ sides) * (to / by)
    return product


def two_means(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row of ``values`` [b, m]: squares around one mean, around the best two, and the lower group's top."""
    ordered = values.sort(dim=1).values
    m = ordered.shape[1]
    count = torch.arange(1, m + 1, dtype=torch.float64)
    sums, squares = ordered.cumsum(1), ordered.square().cumsum(1)
    left = squares - sums.square() / count
    right = (squares[:, -1:] - squares) - (sums[:, -1:] - sums).square() / (m - count).clamp(min=1)
    best, split = (left + right)[:, :-1].min(dim=1)
    # Two points fit two means exactly; the floor keeps logarithms finite.
    return left[:, -1].clamp(min=1e-12), best.clamp(min=1e-12), ordered[torch.arange(len(ordered)), split]
