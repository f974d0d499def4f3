from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bezoar.aggregation import Clip, Mean
from bezoar.attacks import ATTACKS, PGD, AdaptivePGD, AttackContext, Goal
from bezoar.clients import Scratch
from bezoar.errors import ConfigError
from bezoar.experiments.setup import cross_entropy
from bezoar.models import flatten, make_model
from bezoar.seeding import generator
from bezoar.servers import SGD, Server, SparseFed
from bezoar.updates import DenseUpdates

DEFENCE = Clip(2.0) >> Mean()
HONEST = torch.tensor([0, 2, 4, 6, 9])


def context(
    server: Server | None = None, radius: float = 2.0, clients: tuple[int, ...] = (3, 8), lr: float = 0.4
) -> AttackContext:
    model = make_model("mlp", (1, 4, 4), 3, seed=0, hidden=[8])
    weights = flatten(model)
    draws = torch.Generator().manual_seed(1)
    goal = Goal(torch.randn(12, 1, 4, 4, generator=draws), torch.randint(3, (12,), generator=draws))
    d = len(weights)
    state = {"error": torch.randn(d, generator=draws) * 0.05, "momentum": torch.randn(d, generator=draws) * 0.05}
    return AttackContext(
        5,
        7,
        torch.tensor(clients),
        weights,
        Scratch(model),
        cross_entropy,
        radius,
        goal,
        7,
        server=SparseFed(k=20, momentum=0.9) if server is None else server,
        server_state=state,
        server_lr=lr,
    )


def honest(d: int) -> DenseUpdates:
    rows = torch.randn(5, d, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.02, 0.4, 5)[:, None]
    return DenseUpdates(rows, HONEST)


def clipped_mean(view: DenseUpdates, radius: float) -> np.ndarray[Any, Any]:
    total = np.zeros(view.shape[1])
    for row in view.values.double().numpy():
        total += row * min(1.0, radius / np.linalg.norm(row))
    return total / len(view)


def first_k(values: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    mask = np.zeros(len(values), dtype=bool)
    mask[sorted(range(len(values)), key=lambda j: (-abs(values[j]), j))[:k]] = True
    return mask


def oracle(attack: AdaptivePGD, at: AttackContext, view: DenseUpdates) -> Tensor:
    """Algorithm 12 spelt out in float64 on one flat vector; the support fixed or found anew."""
    server = at.server
    assert isinstance(server, SparseFed)
    mean = clipped_mean(view, at.radius)
    error, momentum = (at.server_state[name].double().numpy() for name in ("error", "momentum"))

    def coordinates(aggregate: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(first_k(error + server.momentum * momentum + aggregate, server.count(len(mean))))

    model = make_model("mlp", (1, 4, 4), 3, seed=0, hidden=[8]).double()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    now, q, h = start.clone(), len(at.clients), len(view)
    draws = generator(at.seed, "attack", at.round, 0)
    assert at.goal is not None
    for _ in range(attack.epochs):
        order = torch.randperm(len(at.goal.labels), generator=draws)
        for first in range(0, len(order), attack.batch_size):
            batch = order[first : first + attack.batch_size]
            nn.utils.vector_to_parameters(now, model.parameters())
            loss = nn.functional.cross_entropy(model(at.goal.inputs[batch].double()), at.goal.labels[batch])
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
            move = now - attack.lr * gradient - start
            aggregate = mean
            if attack.support == "iterate":
                factor = at.radius / float(move.norm())
                sent = -move * (factor if attack.rescale else min(1.0, factor))
                aggregate = (h * mean + q * sent.detach().numpy()) / (h + q)
            move = torch.where(coordinates(aggregate), move, 0.0)
            now = (start + move * min(1.0, at.radius / float(move.norm()))).detach()
    update = start - now
    return update * (at.radius / update.norm()) if attack.rescale else update


@pytest.mark.parametrize("support", ["honest", "iterate"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("radius", [0.3, 2.0])
def test_agrees_with_an_oracle(support: Any, rescale: bool, radius: float) -> None:
    attack = AdaptivePGD(aux=12, epochs=3, batch_size=5, lr=0.5, support=support, rescale=rescale)
    at = context(radius=radius)
    view = honest(len(at.weights))
    sent = attack.send(view, DEFENCE, at)
    expected = oracle(attack, at, view)
    assert (sent.rows.basis[0].double() - expected).norm() <= 1e-4 * expected.norm()
    assert sent.report["coordinates"] == float((expected != 0).sum())
    if support == "honest":
        assert sent.report["coordinates"] <= 20


def toy(row: list[float]) -> tuple[AttackContext, DenseUpdates]:
    """A linear model of zeros: with x = (1, 2) and the wrong label 0 its gradient is (-1, -2, 1, 2)/2."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    at = AttackContext(
        1,
        0,
        torch.tensor([1]),
        torch.zeros(4),
        Scratch(model),
        cross_entropy,
        1.0,
        Goal(torch.tensor([[1.0, 2.0]]), torch.tensor([0])),
        2,
        server=SparseFed(k=2),
    )
    return at, DenseUpdates(torch.tensor([row]), torch.tensor([0]))


def test_golden_toy_where_the_projection_changes_the_outcome() -> None:
    at, view = toy([0.3, 0.01, 0.2, 0.02])
    step: dict[str, Any] = {"aux": 1, "epochs": 1, "batch_size": 1, "lr": 0.1}
    plain = PGD(**step).rows(view, DEFENCE, at).basis[0]
    assert plain.tolist() == pytest.approx([-(0.1**0.5), -(0.4**0.5), 0.1**0.5, 0.4**0.5], rel=1e-5)
    masked = AdaptivePGD(**step).rows(view, DEFENCE, at).basis[0]
    assert masked.tolist() == pytest.approx([-(0.5**0.5), 0.0, 0.5**0.5, 0.0], rel=1e-5)
    # The attackers' pull, half of the aggregate, carries their two heaviest coordinates over the honest ones.
    moved = AdaptivePGD(**step, support="iterate").rows(view, DEFENCE, at).basis[0]
    assert moved.tolist() == pytest.approx([0.0, -(0.5**0.5), 0.0, 0.5**0.5], rel=1e-5)


def test_greedy_golden_toy() -> None:
    """k = 1, honest mean (0.3, 0, 0, 0): the threshold in the honest half is 0.15, and half of u must exceed it.

    The gradient asks for (-1, -2, 1, 2)/sqrt(10); coordinates 1 and 3 tie as the most useful, 1 comes first and gets
    -0.3 times 1.001. The rest of the budget would go to what else is in the support: nothing.
    """
    at, view = toy([0.3, 0.0, 0.0, 0.0])
    at = dataclasses.replace(at, server=SparseFed(k=1, momentum=0.0))
    attack = AdaptivePGD(aux=1, epochs=1, batch_size=1, lr=0.1, support="greedy", rescale=False)
    sent = attack.send(view, DEFENCE, at)
    assert sent.report == {"coordinates": 1.0, "lifted": 1.0}
    assert sent.rows.basis[0].tolist() == pytest.approx([0.0, -0.3 * 1.001, 0.0, 0.0], rel=1e-5)
    aggregate = (view.values[0] + sent.rows.basis[0]) / 2
    assert at.server.step(aggregate, 0.1, {}).index.tolist() == [1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "server",
    [
        SparseFed(k=20, momentum=0.9),
        SparseFed(k=20, momentum=0.5, error_input="update"),
        SparseFed(k="10%", momentum=0.9, lr_placement="inside", masking="subtract"),
        SparseFed(k=20, momentum=0.9, lr_placement="inside-momentum"),
    ],
    ids=str,
)
@pytest.mark.parametrize("lift", [0.2, 0.8])
@pytest.mark.parametrize("rescale", [True, False])
def test_greedy_pushes_honest_coordinates_out(server: SparseFed, lift: float, rescale: bool) -> None:
    attack = AdaptivePGD(aux=12, epochs=2, batch_size=6, lr=0.3, support="greedy", lift=lift, rescale=rescale)
    at = context(server, clients=(3, 8, 12, 13))
    view = honest(len(at.weights))
    sent = attack.send(view, DEFENCE, at)
    row = sent.rows.basis[0].double().numpy()
    assert np.linalg.norm(row) <= 2.0 * (1 + 1e-5)
    mean, h, q = clipped_mean(view, 2.0), 5, 4
    quiet = torch.from_numpy(h * mean / (h + q)).float()
    before = server.step(quiet, at.server_lr, at.server_state).index
    # What the server really does, from the rows as they are sent.
    aggregate = DEFENCE(sent.rows.materialise())
    after = server.step(aggregate, at.server_lr, at.server_state).index
    assert before is not None
    assert after is not None
    new = set(after.tolist()) - set(before.tolist())
    lifted = int(sent.report["lifted"])
    assert lifted > 0
    assert len(new) >= lifted
    assert new <= set(np.flatnonzero(row).tolist())
    assert sent.report["coordinates"] <= server.count(len(at.weights))


def test_greedy_spends_no_more_than_it_may() -> None:
    at = context(clients=(3, 8, 12, 13))
    view = honest(len(at.weights))
    counts = []
    for lift in (0.01, 0.1, 0.5, 0.99):
        attack = AdaptivePGD(aux=12, epochs=2, batch_size=6, lr=0.3, support="greedy", lift=lift)
        counts.append(attack.send(view, DEFENCE, at).report["lifted"])
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("support", ["honest", "iterate"])
@pytest.mark.parametrize("server", [SGD(), SparseFed(k="100%")], ids=str)
def test_where_every_coordinate_moves_it_is_pgd(support: Any, server: Server) -> None:
    options: dict[str, Any] = {"aux": 12, "epochs": 2, "batch_size": 5}
    at = context(server)
    view = honest(len(at.weights))
    state = {} if isinstance(server, SGD) else at.server_state
    at = dataclasses.replace(at, server_state=state)
    plain = PGD(**options).rows(view, DEFENCE, at).basis
    assert torch.equal(AdaptivePGD(**options, support=support).rows(view, DEFENCE, at).basis, plain)


def test_greedy_needs_sparsefed_and_room() -> None:
    attack = AdaptivePGD(aux=12, epochs=1, support="greedy")
    at = dataclasses.replace(context(SGD()), server_state={})
    with pytest.raises(ConfigError, match="SparseFed"):
        attack.send(honest(len(at.weights)), DEFENCE, at)
    at = context(SparseFed(k="100%"))
    assert attack.send(honest(len(at.weights)), DEFENCE, at).report["lifted"] == 0.0


def test_a_rate_of_zero_changes_no_support() -> None:
    attack = AdaptivePGD(aux=12, epochs=1, batch_size=6)
    one, none = context(lr=0.4), context(lr=0.0)
    view = honest(len(one.weights))
    assert torch.equal(attack.rows(view, DEFENCE, one).basis, attack.rows(view, DEFENCE, none).basis)


def test_hostile_honest_rows_and_no_clipping() -> None:
    values = honest(len(context().weights)).values.clone()
    values[1, 3] = torch.nan
    values[2] *= 1e20
    at = context(radius=math.inf)
    for support in ("honest", "iterate", "greedy"):
        attack = AdaptivePGD(aux=12, epochs=2, batch_size=6, lr=0.1, support=support)
        assert torch.isfinite(attack.rows(DenseUpdates(values, HONEST), DEFENCE, at).basis).all()
    spoilt = DenseUpdates(torch.full_like(values, torch.nan), HONEST)
    assert torch.isfinite(AdaptivePGD(aux=12, epochs=1).rows(spoilt, DEFENCE, at).basis).all()


def test_nothing_known_is_changed() -> None:
    at = context()
    before = {name: value.clone() for name, value in at.server_state.items()}
    weights = at.weights.clone()
    for support in ("honest", "iterate", "greedy"):
        attack = AdaptivePGD(aux=12, epochs=1, support=support)
        one = attack.rows(honest(len(weights)), DEFENCE, at).basis
        assert torch.equal(one, attack.rows(honest(len(weights)), DEFENCE, at).basis)
    assert torch.equal(at.weights, weights)
    assert all(torch.equal(before[name], at.server_state[name]) for name in before)


def test_nonsense_is_refused_and_tables_round_trip() -> None:
    attack = ATTACKS.build({"kind": "adaptive-pgd", "support": "greedy", "lift": 0.3, "epochs": 2})
    assert ATTACKS.build(ATTACKS.table(attack)) == attack
    for wrong in ({"support": "all"}, {"lift": 0.0}, {"lift": 1.0}, {"epochs": 0}):
        with pytest.raises(ConfigError):
            ATTACKS.build({"kind": "adaptive-pgd", **wrong})
