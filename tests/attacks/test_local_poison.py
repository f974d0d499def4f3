from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bezoar.aggregation import Clip, Context, Mean
from bezoar.attacks import (
    ATTACKS,
    AttackContext,
    BadNets,
    Batch,
    Knowledge,
    LabelFlip,
    ModelReplacement,
    Neurotoxin,
)
from bezoar.attacks.base import masked
from bezoar.attacks.local_poison import LocalPoison
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.seeding import generator
from bezoar.updates import DenseUpdates
from tests.attacks.context import world
from tests.attacks.test_trigger import SILO

FREE: dict[str, Any] = {"radius": math.inf}


def trained(attack: LocalPoison, batch: Batch, at: AttackContext, sender: int, frozen: list[int]) -> np.ndarray:
    """The attackers' model in float64, parameter by parameter."""
    shapes = [p.shape for p in at.scratch.module.parameters()]
    start = [part.double() for part in at.weights.detach().split([s.numel() for s in shapes])]
    parameters = [part.clone().view(shape).requires_grad_() for part, shape in zip(start, shapes, strict=True)]
    draws = generator(at.seed, "attack", at.round, sender)
    lr = at.lr if attack.lr is None else attack.lr
    for _ in range(attack.epochs):
        order = torch.randperm(len(batch), generator=draws).tolist()
        size = attack.batch_size or len(batch)
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            hidden = torch.relu(batch.inputs[rows].double().flatten(1) @ parameters[0].T + parameters[1])
            loss = nn.functional.cross_entropy(hidden @ parameters[2].T + parameters[3], batch.targets[rows])
            loss = attack.alpha * loss
            for parameter, origin in zip(parameters, start, strict=True):
                loss = loss + (1 - attack.alpha) / 2 * (parameter.flatten() - origin).square().sum()
            gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
            gradients[frozen] = 0
            with torch.no_grad():
                for parameter, step in zip(parameters, gradients.split([s.numel() for s in shapes]), strict=True):
                    parameter -= lr * step.view(parameter.shape)
    return torch.cat([p.detach().flatten() for p in parameters]).numpy()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"epochs": 2, "batch_size": 0, "lr": 0.5},
    {"alpha": 0.6, "lr": 0.4},
    {"collude": False, "batch_size": 4},
    {"radius": 0.3},
    {"poison": LabelFlip("next")},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [ModelReplacement, Neurotoxin])
def test_updates_agree_with_an_oracle(kind: type[LocalPoison], options: dict[str, Any]) -> None:
    attack = kind(**options)
    at = world(attack, samples=10, server_lr=0.5, **FREE)
    own, last = at.context.own, at.context.server_context.last_aggregate
    assert own is not None
    assert last is not None
    start = at.context.weights.clone()
    sent = attack.send(at.view, Mean(), at.context)
    rows = sent.rows.materialise()[sent.rows.malicious]
    batch = attack.poison.poison(own, at.context).batch
    frozen: list[int] = []
    if isinstance(attack, Neurotoxin):
        k = round(attack.top * len(last))
        frozen = sorted(range(len(last)), key=lambda i: -abs(float(last[i])))[:k]
    boost = 11 / 2 if isinstance(attack, ModelReplacement) else 1.0
    for i, client in enumerate((3, 8)):
        mine = batch if attack.collude else batch.select(batch.owners == client)
        model = trained(attack, mine, at.context, 0 if attack.collude else client, frozen)
        expected = (start.double().numpy() - model) * boost / 0.5
        if attack.radius is not None:
            expected *= min(1.0, attack.radius / float(np.linalg.norm(expected)))
        assert np.linalg.norm(rows[i].double().numpy() - expected) <= 1e-4 * np.linalg.norm(expected)
    assert torch.equal(at.context.weights, start)
    assert sent.report["sent_norm"] == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-6)
    assert torch.equal(sent.rows.materialise()[~sent.rows.malicious], at.view.materialise())


@pytest.mark.parametrize("kind", [ModelReplacement, Neurotoxin])
def test_what_the_inner_attack_needs_is_passed_on(kind: type[LocalPoison]) -> None:
    @dataclass(frozen=True)
    class Knowing(LabelFlip):
        remembers: ClassVar[bool] = True

        @property
        def least(self) -> Knowledge:  # type: ignore[override]
            return Knowledge.DEFENCE

    assert (kind().least, kind().remembers) == (Knowledge.MODEL, False)
    assert kind(poison=LabelFlip()).least == Knowledge.MODEL
    assert (kind(poison=Knowing()).least, kind(poison=Knowing()).remembers) == (Knowledge.DEFENCE, True)


@pytest.mark.parametrize("server_lr", [1.0, 0.2])
@pytest.mark.parametrize("q", [1, 3])
def test_the_mean_lands_exactly_on_the_attackers_model(q: int, server_lr: float) -> None:
    attack = ModelReplacement(epochs=3, lr=0.2)
    attackers = (3, 8, 10)[:q]
    at = world(attack, attackers=attackers, server_lr=server_lr, **FREE).context
    # Honest updates that cancel: as in the paper, near the optimum.
    noise = torch.randn(1, len(at.weights), generator=torch.Generator().manual_seed(0))
    honest = DenseUpdates(torch.cat([noise, -noise, torch.zeros(6, len(at.weights))]), torch.arange(20, 28))
    at = replace(at, cohort=8 + q)
    rows = attack.rows(honest, Mean(), at)
    landed = at.weights.detach() - server_lr * Mean()(rows.materialise())
    assert at.own is not None
    model = trained(attack, attack.poison.poison(at.own, at).batch, at, 0, [])
    gap = np.linalg.norm(landed.double().numpy() - model)
    assert gap <= 1e-5 * np.linalg.norm(model)
    assert gap <= 1e-3 * np.linalg.norm(model - at.weights.detach().double().numpy())


def test_without_cancellation_the_honest_step_stays() -> None:
    attack = ModelReplacement()
    at = world(attack, **FREE)
    honest = at.view.materialise()
    landed = at.context.weights.detach() - Mean()(attack.rows(at.view, Mean(), at.context).materialise())
    alone = at.context.weights.detach() - attack.send(at.view, Mean(), at.context).rows.basis[0] * 2 / 11
    torch.testing.assert_close(landed, alone - honest.sum(0) / 11, rtol=1e-5, atol=1e-6)


def test_the_defences_radius_bounds_the_update_where_it_is_known() -> None:
    attack = ModelReplacement(lr=0.5)
    at = world(attack, radius=0.4)
    known = attack.send(at.view, Clip(0.4) >> Mean(), at.context).rows.basis
    assert float(known.norm()) == pytest.approx(0.4, rel=1e-5)
    blind = attack.send(at.view, Mean(), masked(at.context, Knowledge.MODEL)).rows.basis
    assert float(blind.norm()) > 1
    assert torch.nn.functional.cosine_similarity(known, blind).item() == pytest.approx(1, abs=1e-5)


def test_neurotoxin_leaves_the_top_coordinates_alone() -> None:
    for top in (0.05, 0.5, 0.9):
        attack = Neurotoxin(top=top, lr=0.5)
        at = world(attack, **FREE)
        last = at.context.server_context.last_aggregate
        assert last is not None
        sent = attack.send(at.view, Mean(), at.context).rows.basis[0]
        # The order of size, not the kernel that is used.
        ranks = np.argsort(np.argsort(-last.abs().double().numpy(), kind="stable"))
        inside = torch.from_numpy(ranks < round(top * len(last)))
        assert (sent[inside] == 0).all()
        assert (sent[~inside] != 0).float().mean() > 0.5


def test_neurotoxin_is_plain_training_in_the_first_round() -> None:
    at = world(Neurotoxin(), server_context=Context(), **FREE)
    plain = ModelReplacement(boost=1.0).send(at.view, Mean(), at.context).rows.basis
    assert torch.equal(Neurotoxin().send(at.view, Mean(), at.context).rows.basis, plain)
    assert not (plain == 0).all()


def test_goal_state_and_aim_are_those_of_the_attack_on_data() -> None:
    at = world()
    goal, direct = ModelReplacement().goal(at.tests, 1), BadNets().goal(at.tests, 1)
    assert goal is not None
    assert torch.equal(goal.inputs, direct.inputs)
    assert ModelReplacement().targeted
    flip = Neurotoxin(poison=LabelFlip())
    assert not flip.targeted
    assert flip.goal(at.tests, 1) is None
    parted = ModelReplacement(poison=ATTACKS.build({"kind": "dba", "target": 3}))  # type: ignore[arg-type]
    assert parted.send(at.view, Mean(), at.context).state["seen"].tolist() == [3, 8]


def test_nonsense_is_refused() -> None:
    bad: list[dict[str, Any]] = [
        {"epochs": 0}, {"batch_size": -1}, {"lr": 0.0}, {"lr": math.nan}, {"alpha": 0.0}, {"alpha": 1.5},
        {"radius": 0.0}, {"boost": 0.0}, {"boost": math.inf},
    ]  # fmt: skip
    for kind in (ModelReplacement, Neurotoxin):
        for options in bad:
            with pytest.raises(ConfigError, match=kind.name):
                kind(**options)
    for top in (0.0, 1.0):
        with pytest.raises(ConfigError, match="top"):
            Neurotoxin(top=top)
    at = world()
    with pytest.raises(ConfigError, match=r"needs AttackContext\.own"):
        ModelReplacement().send(at.view, Mean(), replace(at.context, own=None))
    with pytest.raises(ConfigError, match="it needs"):
        ModelReplacement()(at.view.materialise(), n=12, q=2)


def test_nested_attacks_are_nested_tables() -> None:
    table = {"kind": "neurotoxin", "top": 0.2, "poison": {"kind": "dba", "parts": 2}}
    attack = ATTACKS.build(table)
    assert isinstance(attack, Neurotoxin)
    assert attack.poison == ATTACKS.build({"kind": "dba", "parts": 2})
    assert ATTACKS.build(ATTACKS.table(attack)) == attack
    assert ATTACKS.build("model-replacement") == ModelReplacement()
    with pytest.raises(ConfigError, match="parts"):
        ATTACKS.build({"kind": "model-replacement", "poison": {"kind": "badnets", "parts": 2}})
    with pytest.raises(ConfigError, match="no attack on data"):
        ATTACKS.build({"kind": "model-replacement", "poison": {"kind": "sign-flip"}})


def test_one_attacker_replaces_the_model_and_clipping_to_the_honest_length_helps() -> None:
    local = {"kind": "local", "epochs": 1, "batch_size": 32}
    table = {**SILO, "rounds": 10, "learning_rate": {"kind": "constant", "lr": 0.1}, "clients": local}
    # The last round alone is attacked.
    table |= {"adversary": {"count": 1, "start": 10}, "attack": {"kind": "model-replacement", "epochs": 10}}
    hit = run(Experiment.from_table(table))
    server = {"kind": "sgd", "momentum": 0.0}
    clipped = {"pipeline": [{"kind": "clip", "radius": 0.5}, "mean"], "server": server}
    held = run(Experiment.from_table({**table, "defence": clipped}))
    assert hit.attack_accuracy is not None
    assert held.attack_accuracy is not None
    assert hit.attack_accuracy > 0.8
    assert held.attack_accuracy < 0.5
