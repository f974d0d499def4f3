from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bezoar.attacks._target_model as target_model
import bezoar.attacks.virtual_data as virtual_data
from bezoar import Experiment, run
from bezoar.attacks import ATTACKS, AttackContext, BadNets, Batch, LabelFlip, LabelNoise, Semantic, VirtualData
from bezoar.attacks._target_model import honest_shift, mean_loss, noted, train
from bezoar.attacks.gradient_to_data import Found, GradientMatching
from bezoar.attacks.virtual_data import distinct
from bezoar.clients import LocalSGD
from bezoar.errors import ConfigError
from bezoar.experiments import rounds
from bezoar.models import flat_copy, make_model
from bezoar.seeding import generator
from tests.attacks.context import CLASSES, SHAPE, make_dataset, world

SMALL: dict[str, Any] = {"points": 4, "steps": 6, "restarts": 1, "epochs": 2, "offline_epochs": 3, "batch_size": 5}


def own(context: AttackContext) -> Batch:
    assert context.own is not None
    return context.own


def model_at(weights: Tensor) -> nn.Module:
    model = make_model("mlp", SHAPE, CLASSES, seed=0, hidden=[8])
    with torch.no_grad():
        nn.utils.vector_to_parameters(weights.clone(), model.parameters())
    return model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients that the attack looked for."""
    wanted: list[Tensor] = []
    find = GradientMatching.find

    def spy(self: GradientMatching, model: nn.Module, gradient: Tensor, *rest: Any) -> Found:
        wanted.append(gradient.clone())
        return find(self, model, gradient, *rest)

    monkeypatch.setattr(GradientMatching, "find", spy)
    return wanted


def rounds_of_means(n: int, m: int, server_lr: float, honest: bool = False) -> tuple[AttackContext, Tensor]:
    """The round after one in which the mean of n rows moved the model, and by how much the honest ones alone would."""
    d = 7
    draws = torch.Generator().manual_seed(n + m)
    rows, before = torch.randn(n, d, generator=draws), torch.randn(d, generator=draws)
    sent = rows[:m].sum(0)
    after = before - server_lr * rows.mean(0)
    at = world().context
    last = replace(at, round=4, clients=torch.arange(m), server_lr=server_lr)
    state = {} if honest else noted(last)
    context = replace(
        at,
        weights=after,
        state=state,
        server_lr=3 * server_lr,  # this round's rate says nothing of the last one's
        previous_weights=before,
        previous_sent=torch.zeros(d) if honest else sent,
        previous_cohort=n,
    )
    return context, -server_lr * (rows if honest else rows[m:]).mean(0)


@pytest.mark.parametrize(("n", "m", "server_lr"), [(10, 3, 0.2), (26, 8, 1.0), (5, 4, 0.01), (6, 1, 2.0)])
@pytest.mark.parametrize("honest", [False, True])
def test_the_honest_move_follows_from_two_models_and_what_was_sent(
    n: int, m: int, server_lr: float, honest: bool
) -> None:
    context, expected = rounds_of_means(n, m, server_lr, honest)
    assert torch.allclose(honest_shift(context), expected, atol=1e-5)


def test_the_honest_move_of_a_round_without_a_contribution_of_sybils() -> None:
    context, _ = rounds_of_means(10, 4, 0.5)
    assert context.previous_weights is not None
    silent = replace(context, previous_sent=torch.zeros(7))
    assert torch.allclose(honest_shift(silent), 10 * (context.weights - context.previous_weights) / 6, atol=1e-6)
    # What is remembered of an older round does not count: in the last one the attackers were honest.
    stale = replace(silent, round=9)
    assert torch.allclose(honest_shift(stale), context.weights - context.previous_weights, atol=1e-6)


def test_nothing_is_known_of_the_others_at_first_or_without_them() -> None:
    context, _ = rounds_of_means(10, 4, 0.5)
    assert not honest_shift(replace(context, previous_weights=None, previous_cohort=0)).any()
    alone, _ = rounds_of_means(4, 4, 0.5)
    assert not honest_shift(alone).any()
    broken = replace(context, previous_sent=torch.full((7,), torch.nan))
    assert not honest_shift(broken).any()


def test_target_models_are_trained_as_usual() -> None:
    context = world().context
    batch = own(context)
    start = context.weights + 0.01
    found = train(context, start, batch, epochs=3, lr=0.3, batch_size=5)
    model = model_at(start)
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    draws = generator(context.seed, "target model", context.round)
    for _ in range(3):
        order = torch.randperm(len(batch), generator=draws)
        for first in range(0, len(batch), 5):
            rows = order[first : first + 5]
            sgd.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs[rows]), batch.targets[rows]).backward()
            sgd.step()
    assert torch.allclose(found, flat_copy(model), atol=1e-6)
    expected = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
    assert mean_loss(context, found, batch) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.equal(start, context.weights + 0.01)


def test_a_target_model_that_explodes_is_the_last_finite_one() -> None:
    context = world().context
    found = train(context, context.weights, own(context), epochs=50, lr=1e25, batch_size=50)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("base", ["data", "poisoned", "noise"])
@pytest.mark.parametrize("mode", ["direction", "exact"])
def test_every_attacker_gets_the_same_few_samples(base: Any, mode: Any) -> None:
    context = world(attackers=(3, 8, 21)).context
    batch = own(context)
    before, inputs = context.weights.clone(), batch.inputs.clone()
    attack = VirtualData(base=base, mode=mode, **SMALL)
    made = attack.poison(batch, context)
    assert made.batch.owners.tolist() == [3] * 4 + [8] * 4 + [21] * 4
    parts = made.batch.inputs.split(4)
    assert torch.equal(parts[0], parts[1])
    assert torch.equal(parts[0], parts[2])
    assert torch.equal(made.batch.targets[:4], made.batch.targets[8:])
    assert context.low is not None
    assert context.high is not None
    assert bool((made.batch.inputs >= context.low).all())
    assert bool((made.batch.inputs <= context.high).all())
    assert torch.equal(context.weights, before)
    assert torch.equal(batch.inputs, inputs)
    again = attack.poison(batch, context)
    assert torch.equal(again.batch.inputs, made.batch.inputs)
    assert again.report == made.report
    assert set(made.report) == {"cosine", "norm_ratio", "reach", "target_loss"}


def nearest(x: Tensor, batch: Batch) -> tuple[float, int]:
    gaps = (batch.inputs - x).abs().flatten(1).amax(1)
    return float(gaps.min()), int(batch.targets[gaps.argmin()])


def test_samples_stay_near_real_ones_and_keep_their_labels() -> None:
    context = world().context
    batch = own(context)
    assert context.low is not None
    assert context.high is not None
    bound = 16 / 255 * float(context.high - context.low)
    for base, labels in (("data", batch.targets), ("poisoned", 9 - batch.targets)):
        made = VirtualData(base=base, **SMALL).poison(batch, context).batch  # type: ignore[arg-type]
        moved = 0.0
        for x, y in zip(made.inputs[:4], made.targets[:4].tolist(), strict=True):
            gap, label = nearest(x, Batch(batch.inputs, labels, batch.owners))
            assert gap <= bound + 1e-5
            assert label == y
            moved = max(moved, gap)
        assert moved > bound / 3
    noise = VirtualData(base="noise", **SMALL).poison(batch, context).batch
    assert noise.targets[:4].tolist() == [0, 1, 2, 3]
    assert min(nearest(x, batch)[0] for x in noise.inputs) > 2 * bound


def test_noise_tells_copies_apart_and_stays_in_range() -> None:
    context = world().context
    batch = own(context)
    plain = VirtualData(**SMALL).poison(batch, context).batch
    noisy = VirtualData(noise=0.05, **SMALL).poison(batch, context).batch
    assert context.low is not None
    assert context.high is not None
    assert not torch.equal(noisy.inputs[:4], noisy.inputs[4:])
    assert bool((noisy.inputs >= context.low).all())
    assert bool((noisy.inputs <= context.high).all())
    gap = (noisy.inputs - plain.inputs).abs()
    inside = (plain.inputs > context.low + 0.5) & (plain.inputs < context.high - 0.5)
    width = float(context.high - context.low)
    assert float(gap[inside].square().mean().sqrt()) == pytest.approx(0.05 * width, rel=0.2)


def test_where_training_for_the_target_starts(asked: list[Tensor]) -> None:
    context = world().context
    batch = own(context)
    flipped = Batch(batch.inputs, 9 - batch.targets, batch.owners)
    copied = distinct(flipped, context)
    shift = honest_shift(context)
    assert shift.norm() > 0
    for acquisition, start, epochs in (
        ("offline", context.weights, 3),
        ("online-local", context.weights, 2),
        ("online-global", context.weights + shift, 2),
    ):
        attack = VirtualData(acquisition=acquisition, **SMALL)  # type: ignore[arg-type]
        made = attack.poison(batch, context)
        target = train(context, start, copied, epochs, attack.lr, attack.batch_size)
        assert torch.allclose(asked[-1], context.weights - target, atol=1e-7), acquisition
        assert made.report["target_loss"] == pytest.approx(mean_loss(context, target, copied))
        assert ("target" in made.state) == (acquisition == "offline")


def test_an_offline_target_stays(asked: list[Tensor]) -> None:
    context = world().context
    attack = VirtualData(acquisition="offline", **SMALL)
    first = attack.poison(own(context), context)
    later = world(round=6, samples=9, state=first.state).context
    later = replace(later, weights=later.weights + 0.1)
    second = attack.poison(own(later), later)
    assert torch.equal(second.state["target"], first.state["target"])
    assert torch.allclose(asked[1], later.weights - first.state["target"])


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(("update_lr", "server_lr"), [(1.0, 0.3), (0.3, 0.25), (0.1, 1.0)])
def test_exact_rows_bring_the_mean_to_the_target(
    update_lr: float, server_lr: float, local_steps: int, asked: list[Tensor]
) -> None:
    context = world(attackers=(3, 8, 21), lr=0.3, update_lr=update_lr, server_lr=server_lr).context
    attack = VirtualData(mode="exact", acquisition="offline", local_steps=local_steps, **SMALL)
    made = attack.poison(own(context), context)
    n, m = context.cohort, 3
    # Attackers take their steps along the gradient wanted, the others move as they did before.
    moves = [-server_lr * update_lr * local_steps * asked[0]] * m + [honest_shift(context)] * (n - m)
    landed = context.weights + torch.stack(moves).mean(0)
    assert torch.allclose(landed, made.state["target"], atol=1e-5)


@pytest.mark.parametrize("mode", ["direction", "exact"])
@pytest.mark.parametrize("still", [{"server_lr": 0.0}, {"lr": 0.0, "update_lr": 0.0}], ids=str)
def test_a_rate_of_zero_gets_nowhere(mode: Any, still: dict[str, float]) -> None:
    context = world(**still).context
    made = VirtualData(mode=mode, acquisition="offline", **SMALL).poison(own(context), context)
    assert made.report["reach"] == 0.0
    assert bool(made.batch.inputs.isfinite().all())


@pytest.mark.parametrize("mode", ["direction", "exact"])
def test_figures_in_the_record(mode: Any, asked: list[Tensor]) -> None:
    # Clients that train at a rate of 0.75, for a server that goes 0.4 of the way.
    context = world(lr=0.75, update_lr=0.75, server_lr=0.4).context
    made = VirtualData(mode=mode, acquisition="offline", **SMALL).poison(own(context), context)
    mine = made.batch.select(made.batch.owners == 3)
    model = model_at(context.weights)
    loss = nn.functional.cross_entropy(model(mine.inputs), mine.targets)
    g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    wanted = asked[0]
    assert made.report["cosine"] == pytest.approx(float(g @ wanted / g.norm() / wanted.norm()), abs=1e-4)
    assert made.report["norm_ratio"] == pytest.approx(float(g.norm() / wanted.norm()), rel=1e-3)
    way = made.state["target"] - context.weights
    moved = -0.3 * g * 2 / context.cohort
    along = -wanted / wanted.norm()
    assert made.report["reach"] == pytest.approx(float(moved @ along / way.norm()), rel=1e-3)


def test_what_attackers_aim_at_is_any_attack_on_data() -> None:
    aims = (LabelFlip(), LabelFlip("source-target", 1, 7), Semantic(), BadNets(poisoning_ratio=0.3))
    for aim in aims:
        attack = VirtualData(aim=aim, **SMALL)
        place = world(attack)
        made = attack.poison(own(place.context), place.context)
        assert made.batch.owners.tolist() == [3] * 4 + [8] * 4
        assert 0 < made.report["target_loss"] < 10
        assert ATTACKS.build(ATTACKS.table(attack)) == attack
    assert ATTACKS.build({"kind": "virtual-data", "aim": {"kind": "badnets", "target": 3}}).aim == BadNets(target=3)  # type: ignore[attr-defined]


def test_goals() -> None:
    tests = world().tests
    flipped = VirtualData(aux=50).goal(tests, seed=3)
    assert len(flipped.labels) == 50
    assert flipped.rows is None
    for x, y in zip(flipped.inputs, flipped.labels.tolist(), strict=True):
        row = int((tests.inputs(slice(None)) - x).abs().flatten(1).amax(1).argmin())  # type: ignore[arg-type]
        assert int(tests.targets[row]) == 9 - y
    assert torch.equal(VirtualData(aux=50).goal(tests, seed=3).inputs, flipped.inputs)
    pair = VirtualData(aim=LabelFlip("source-target", 1, 7), aux=10_000).goal(tests, seed=3)
    assert len(pair.labels) == int((tests.targets == 1).sum())
    assert set(pair.labels.tolist()) == {7}
    inner = BadNets().goal(tests, 3)
    outer = VirtualData(aim=BadNets()).goal(tests, 3)
    assert torch.equal(inner.inputs, outer.inputs)
    with pytest.raises(ConfigError, match="no class"):
        VirtualData(aim=LabelFlip("source-target", 1, 70)).goal(tests, 3)


def test_copies_are_trained_on_once() -> None:
    dataset = make_dataset()
    inputs = dataset.batch(dataset.train, torch.arange(12))
    targets = dataset.train.targets[:12]
    owners = torch.tensor([3]).repeat(12)
    batch = Batch.join(Batch(inputs, targets, owners), Batch(inputs, targets, owners + 17))
    context = world(attackers=(3, 20)).context
    once = distinct(batch, context)
    assert torch.equal(once.inputs, inputs)
    assert torch.equal(once.targets, targets)
    assert once.owners.tolist() == [3] * 12


def test_a_target_that_is_the_model_leaves_the_base_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_data, "train", lambda context, *rest: context.weights.clone())
    context = world().context
    made = VirtualData(acquisition="offline", **SMALL).poison(own(context), context)
    assert made.report["cosine"] == made.report["reach"] == 0
    assert all(nearest(x, own(context))[0] == 0 for x in made.batch.inputs)


@pytest.mark.parametrize("weights", [0.0, 1e30, math.nan])
def test_hostile_models_do_not_end_the_round(weights: float) -> None:
    context = world().context
    context = replace(context, weights=torch.full_like(context.weights, weights), previous_weights=None)
    for acquisition in ("offline", "online-local", "online-global"):
        made = VirtualData(acquisition=acquisition, **SMALL).poison(own(context), context)  # type: ignore[arg-type]
        assert len(made.batch) == 8
        assert bool(made.batch.inputs.isfinite().all())


def test_inputs_of_an_unknown_range() -> None:
    context = replace(world().context, low=None, high=None)
    for base in ("data", "noise"):
        made = VirtualData(base=base, noise=0.1, **SMALL).poison(own(context), context)  # type: ignore[arg-type]
        assert bool(made.batch.inputs.isfinite().all())


@pytest.mark.parametrize(
    "options",
    [
        {"acquisition": "offlin"},
        {"mode": "length"},
        {"base": "image"},
        {"points": 0},
        {"steps": 0},
        {"restarts": 0},
        {"epochs": 0},
        {"offline_epochs": 0},
        {"batch_size": 0},
        {"local_steps": 0},
        {"aux": 0},
        {"lr": 0.0},
        {"step_size": math.inf},
        {"epsilon": -1.0},
        {"noise": math.nan},
        {"aim": LabelFlip("furthest")},
        {"aim": LabelNoise()},
        {"aim": VirtualData()},
    ],
    ids=str,
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        VirtualData(**options)


def experiment(defence: dict[str, Any], attack: dict[str, Any], rounds: int = 25, momentum: float = 0.0) -> Experiment:
    return Experiment.from_table(
        {
            "rounds": rounds,
            "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 10}},
            "model": {"name": "mlp", "hidden": [16]},
            "learning_rate": {"kind": "triangular", "peak": 0.5},
            "sampling": {"kind": "uniform", "cohort": 8},
            "clients": {"kind": "gradient", "batch_size": 40},
            "adversary": {"count": 1, "sybils": 4},
            "attack": attack,
            "defence": {**defence, "server": {"kind": "sgd", "momentum": momentum}},
        }
    )


TRIGGER = {
    "kind": "virtual-data",
    "aim": {"kind": "badnets", "size": 3},
    "base": "noise",
    "epsilon": 1.0,
    "points": 16,
    "steps": 30,
    "restarts": 1,
}


def test_noise_alone_plants_a_backdoor_and_copies_are_found_out() -> None:
    mean = run(experiment({"pipeline": ["mean"]}, TRIGGER))
    gold = run(experiment({"pipeline": ["foolsgold"]}, TRIGGER))
    assert mean.attack_accuracy is not None
    assert gold.attack_accuracy is not None
    assert mean.attack_accuracy > 0.6
    assert gold.attack_accuracy < 0.3
    assert gold.test_accuracy > 0.7
    last = gold.rounds[-1]
    assert float(last["detected"]) == 1
    assert last["attack"]["cosine"] > 0.3


def test_in_an_experiment_the_honest_move_is_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's rate changes every round, attackers come and go with the cohort, and sybils are always there."""
    truth: list[Tensor] = []
    guessed: list[Tensor] = []
    remembered, shift = rounds.remembered, target_model.honest_shift

    def spy(weights: Tensor, updates: Any, attackers: Any) -> Any:
        good = torch.from_numpy(~np.isin(updates.clients.numpy(), attackers))
        truth.append(updates.combine(good.double() / good.sum()))
        return remembered(weights, updates, attackers)

    def guess(context: AttackContext) -> Tensor:
        guessed.append(shift(context))
        return guessed[-1]

    monkeypatch.setattr(rounds, "remembered", spy)
    monkeypatch.setattr(virtual_data, "honest_shift", guess)
    attack = {**TRIGGER, "steps": 2, "epochs": 1}
    asked = experiment({"pipeline": ["mean"]}, attack, rounds=8)
    run(asked)
    assert len(guessed) == 8
    assert not guessed[0].any()
    for t in range(1, 8):
        expected = -asked.learning_rate.at(t, 8) * truth[t - 1]
        assert torch.allclose(guessed[t], expected, atol=1e-6 + 1e-3 * float(expected.abs().max())), t


def test_clients_that_train_at_a_rate_of_their_own(monkeypatch: pytest.MonkeyPatch, asked: list[Tensor]) -> None:
    """If attackers got the gradient that they ask for, and the others moved as before, the mean would land on w_tar."""
    seen: list[tuple[AttackContext, Any]] = []
    poison = VirtualData.poison

    def spy(self: VirtualData, batch: Batch, context: AttackContext) -> Any:
        made = poison(self, batch, replace(context, weights=context.weights.clone()))
        seen.append((replace(context, weights=context.weights.clone()), made))
        return made

    monkeypatch.setattr(VirtualData, "poison", spy)
    attack = {**TRIGGER, "mode": "exact", "acquisition": "offline", "steps": 2, "offline_epochs": 2}
    table = experiment({"pipeline": ["mean"]}, attack, rounds=4)
    clients = LocalSGD(epochs=1, batch_size=0, server_lr_factor=0.25)
    run(table.model_copy(update={"clients": clients}))
    assert len(seen) == len(asked) == 4
    for t, ((context, made), wanted) in enumerate(zip(seen, asked, strict=True), start=1):
        lr, n, m = table.learning_rate.at(t, 4), context.cohort, len(context.clients)
        # Local training takes a client lr along its gradient, and the server goes a quarter of the mean's way.
        move = (m * -0.25 * lr * wanted + (n - m) * honest_shift(context)) / n
        torch.testing.assert_close(context.weights + move, made.state["target"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("acquisition", ["offline", "online-global"])
def test_a_stopped_run_goes_on_with_the_same_bits(acquisition: str, tmp_path: Path) -> None:
    attack = {**TRIGGER, "steps": 3, "acquisition": acquisition}
    asked = experiment({"pipeline": ["mean"]}, attack, rounds=6).model_copy(update={"checkpoint_every": 2})

    def stop(record: Any) -> None:
        if record["kind"] == "round" and record["round"] == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(asked, tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed, whole = run(asked, tmp_path / "run", resume=True), run(asked)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert resumed.rounds == whole.rounds
