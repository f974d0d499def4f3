"""What a round's part of the certificate needs, and the two runs that it is measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bezoar.certify.lipschitz import products, softmax_growth, softmax_smoothness, with_bias
from bezoar.errors import BezoarError
from bezoar.experiments.certificates._covered import describe
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import Setup
from bezoar.experiments.work import Round, samples, updates_of
from bezoar.servers import SparseFed


@dataclass(frozen=True, eq=False)
class Regression:
    """What is proved of a cohort's loss if the model is softmax regression.

    Attributes:
        growth: by how much the gradients' mean changes on the server's width, l1 per unit of l1 distance.
        smoothness: beta of the cohort's mean loss, l2.
        own: beta_i of every client's own loss [n], l2.
        mixed: by how much a client's gradient changes in l2 per unit of l1 distance [n].
        ceiling: no gradient of the client is longer than this [n], l2.
        samples, features: how many the cohort holds, and how many entries each has with its bias entry.
    """

    growth: float
    smoothness: float
    own: Tensor
    mixed: Tensor
    ceiling: Tensor
    samples: int
    features: int


@dataclass(frozen=True, eq=False)
class Fact:
    """One round, from 1, as far as both runs share it.

    Attributes:
        radius: the clipping radius.
        start: l2 norm of the clean run's model where these facts were taken: before the round, or before the first.
        unit: largest relative error of one rounding of the model's numbers.
        norms: lengths of the clean run's updates before clipping [n], None where they were not computed.
        regression: None for other models.
        update, memory, length: l2 norms of the clean run's mean update, and of its error memory and model after the
            round; None where they were not measured.
    """

    round: int
    lr: float
    attackers: int
    cohort: int
    radius: float
    start: float
    unit: float
    norms: Tensor | None = None
    regression: Regression | None = None
    update: float | None = None
    memory: float | None = None
    length: float | None = None

    @property
    def honest(self) -> float:
        """The length of the clean run's longest clipped update, at most the radius."""
        if self.norms is None:
            return self.radius
        return min(self.radius, float(self.norms.max()) * (1 + 1e-6))


def is_softmax_regression(model: nn.Module) -> bool:
    """Whether the model is one linear layer with bias on the flattened sample."""
    layers = list(model.children())
    shapes = isinstance(model, nn.Sequential) and [type(layer) for layer in layers] == [nn.Flatten, nn.Linear]
    return shapes and isinstance(layers[1].bias, nn.Parameter)


def round_of(setup: Setup, t: int) -> tuple[Round, int]:
    """Round t of ``setup`` as if nobody attacked, and how many of its clients would."""
    experiment = setup.experiment
    lr = experiment.learning_rate.at(t, experiment.rounds)
    cohort = setup.draw(t)
    present = np.intersect1d(cohort, setup.malicious, assume_unique=True)
    attackers = len(present) if experiment.adversary.active(t) else 0
    nobody = np.empty(0, dtype=np.int64)
    return Round(setup, t, lr, cohort, nobody, experiment.defence.rule(lr), None, None), attackers


class Facts:
    """Makes the facts of one round after the other; what follows from the same samples is computed once."""

    def __init__(self, setup: Setup, lengths: bool) -> None:
        self._setup, self._lengths = setup, lengths
        experiment, clients = setup.experiment, setup.experiment.clients
        self._width = describe(experiment, len(setup.weights)).width
        self._decay = clients.weight_decay / (experiment.sampling.cohort if clients.split_decay else 1)
        self._known: tuple[bytes, Regression] | None = None

    def at(self, t: int) -> Fact:
        """The facts of round t, at the setup's present model."""
        at, attackers = round_of(self._setup, t)
        radius, weights = self._setup.experiment.defence.radius(at.lr), self._setup.weights
        unit = torch.finfo(weights.dtype).eps / 2
        fact = Fact(t, at.lr, attackers, len(at.cohort), radius, float(weights.double().norm()), unit)
        if not is_softmax_regression(self._setup.model):
            return fact
        batch, _ = samples(at)
        norms = updates_of(at, batch, {})[0].squared_norms().sqrt() if self._lengths else None
        key = b"" if batch.rows is None or self._setup.experiment.data.augment else batch.rows.numpy().tobytes()
        if self._known is None or not key or self._known[0] != key:
            self._known = key, _regression(with_bias(batch.inputs), batch.owners, self._width, self._decay)
        return replace(fact, norms=norms, regression=self._known[1])


def _regression(x: Tensor, owners: Tensor, width: int, decay: float) -> Regression:
    """``decay`` is what every client adds of the model itself to its gradient."""
    ids, place, counts = torch.unique(owners.to(x.device), return_inverse=True, return_counts=True)
    n = len(ids)
    weights = 1 / (n * counts[place]).double()
    squares = x.square().sum(1)

    def of_client(values: Tensor) -> Tensor:
        totals = torch.zeros(n, dtype=torch.float64, device=x.device).index_add_(0, place, values)
        mean: Tensor = totals / counts
        return mean

    ceiling = of_client(math.sqrt(2) * squares.sqrt())
    return Regression(
        softmax_growth(products(x, weights), width) + decay,
        softmax_smoothness(x, weights) + decay,
        of_client(squares / 2) + decay,
        of_client(math.sqrt(2) / 4 * squares.sqrt() * x.abs().amax(1)) + decay,
        # A decayed gradient is as long as the model.
        torch.full_like(ceiling, math.inf) if decay else ceiling,
        len(x),
        x.shape[1],
    )


@dataclass(frozen=True, eq=False)
class Measured:
    """One round of a run.

    Attributes:
        weights: the model after it, flat [d] (the run's own, which the next round changes).
        loss_rate: what share of the l1 norm top-k left behind.
        attackers: how many attacked.
        update, memory: l2 norms of the mean update, and of the error memory after it.
    """

    weights: Tensor
    loss_rate: float
    attackers: int
    update: float
    memory: float


def rounds(setup: Setup) -> Iterator[Measured]:
    """Plays all rounds of ``setup``, whose model moves.

    Raises:
        BezoarError: the server gave up on a round, which no certificate covers.
    """
    state = State()
    for _ in range(setup.experiment.rounds):
        before = state
        state, record, _ = play(setup, state)
        if record["skipped"] is not None:
            raise BezoarError(f"round {state.round} was skipped ({record['skipped']}): no certificate covers that")
        attackers = record["attackers"] if record["attacking"] else 0
        update, memory = (_length(state.last["aggregate"]), _length(state.server.get("error")))
        yield Measured(setup.weights, _loss_rate(setup, before, state), attackers, update, memory)


def _length(vector: Tensor | None) -> float:
    return 0.0 if vector is None else float(vector.double().norm())


def _loss_rate(setup: Setup, before: State, after: State) -> float:
    """omega of the round that led from ``before`` to ``after``; 0 for a server that leaves nothing behind."""
    server = setup.experiment.defence.server
    if not isinstance(server, SparseFed):
        return 0.0
    entering = after.last["aggregate"]
    last, remembered = before.server.get("momentum"), before.server.get("error")
    fed = entering
    if last is not None and server.error_input == "momentum":
        fed = torch.add(entering, last, alpha=server.momentum)
    chosen_from = fed if remembered is None else remembered + fed
    whole = float(chosen_from.double().abs().sum())
    return float(after.server["error"].double().abs().sum()) / whole if whole else 0.0


def mean_update(setup: Setup, t: int = 1) -> Callable[[Tensor], Tensor]:
    """The field of the cohort of round t: the mean of clipped updates [d] at a model [d]."""
    at, _ = round_of(setup, t)
    batch, _ = samples(at)

    def field(weights: Tensor) -> Tensor:
        kept = setup.weights.clone()
        with torch.no_grad():
            setup.weights.copy_(weights)
        try:
            torch.manual_seed(0)
            answer: Any = at.rule.aggregate(updates_of(at, batch, {})[0])
            vector: Tensor = answer.vector
            return vector
        finally:
            with torch.no_grad():
                setup.weights.copy_(kept)

    return field
