from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bezoar.aggregation import Mean
from bezoar.attacks import CounterGradient
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.updates import DenseUpdates
from tests.attacks.context import world
from tests.experiments.tiny import TABLE, override


def test_one_round_lands_the_mean_on_the_target_if_the_honest_sum_is_seen() -> None:
    attack = CounterGradient(epochs=2, honest="seen")
    w = world(attack, radius=math.inf, server_lr=0.3)
    # In the first round, so that the target is trained now.
    context = dataclasses.replace(w.context, state={})
    sent = attack.send(w.view, Mean(), context)
    target = sent.state["target"]
    assert not torch.equal(target, context.weights)
    step = context.weights - 0.3 * Mean()(sent.rows)
    torch.testing.assert_close(step, target, atol=1e-5, rtol=0)
    assert sent.report["distance"] == pytest.approx(float((context.weights - target).norm()))


def test_inferred_honest_sum_is_that_of_the_last_round() -> None:
    attack = CounterGradient(epochs=1)
    w = world(attack, radius=math.inf, server_lr=0.5)
    first = dataclasses.replace(w.context, state={}, previous_weights=None, previous_sent=None, previous_cohort=0)
    sent = attack.send(w.view, Mean(), first)
    target, n, m = sent.state["target"], first.cohort, len(first.clients)
    u = sent.rows.select(sent.rows.malicious.nonzero().flatten()).materialise()
    # Nothing is known of the honest in the first round.
    torch.testing.assert_close(u[0], n * (first.weights - target) / 0.5 / m, atol=1e-4, rtol=1e-5)
    assert torch.equal(u[0], u[1])
    # The honest send the same again: then the second step ends at the target.
    after = first.weights - 0.5 * Mean()(sent.rows)
    second = dataclasses.replace(
        first,
        round=first.round + 1,
        weights=after,
        state=sent.state,
        previous_weights=first.weights,
        previous_sent=u.sum(0),
        previous_cohort=n,
    )
    again = attack.send(w.view, Mean(), second)
    assert torch.equal(again.state["target"], target)
    torch.testing.assert_close(after - 0.5 * Mean()(again.rows), target, atol=1e-3, rtol=0)


def test_length_is_capped_by_reach_and_by_a_known_radius() -> None:
    for attack, radius, length in (
        (CounterGradient(epochs=1), 0.2, 0.2),
        (CounterGradient(epochs=1, reach=0.1), 0.2, 0.1),
    ):
        w = world(attack, radius=radius, state={})
        sent = attack.send(w.view, Mean(), w.context)
        assert sent.report["length"] == pytest.approx(length, rel=1e-4)


def test_target_learns_shifted_labels() -> None:
    attack = CounterGradient(epochs=200, shift=3)
    w = world(attack, state={})
    target = attack.send(w.view, Mean(), w.context).state["target"]
    own = w.context.own
    assert own is not None
    w.context.scratch.load(target)
    with torch.no_grad():
        found = w.context.scratch.module(own.inputs).argmax(1)
    assert float((found == (own.targets + 3) % 10).double().mean()) > 0.9


def test_parameters_and_missing_samples() -> None:
    for bad in (
        {"shift": 0},
        {"epochs": 0},
        {"lr": 0.0},
        {"reach": math.nan},
        {"honest": "guessed"},
        {"momentum": 1.0},
        {"batch_size": 0},
    ):
        with pytest.raises(ConfigError, match="counter-gradient: "):
            CounterGradient(**bad)  # type: ignore[arg-type]
    w = world(CounterGradient(), own=None, state={})
    with pytest.raises(ConfigError, match=r"it needs context\.own"):
        CounterGradient().send(w.view, Mean(), w.context)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_federation_of_digits_ends_where_the_attackers_want(momentum: float) -> None:
    settings = {
        "rounds": 30,
        "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 10}},
        "model": {"name": "linear"},
        "learning_rate": {"kind": "constant", "lr": 0.1},
        "sampling": {"kind": "uniform", "cohort": 10},
        "adversary": {"count": 1, "knowledge": "model"},
        "attack": {"kind": "counter-gradient", "epochs": 100, "momentum": momentum},
        "defence": {"preset": "none", "momentum": momentum},
        "evaluation": {"every": 30},
    }
    assert run(Experiment.from_table(override(TABLE, settings))).test_accuracy < 0.05
    settings["defence"] = {"preset": "trimmed-mean", "f": 1, "momentum": momentum}
    assert run(Experiment.from_table(override(TABLE, settings))).test_accuracy > 0.75


def test_momentum_and_pauses_are_reckoned_with() -> None:
    attack = CounterGradient(epochs=1, momentum=0.5)
    w = world(attack, radius=math.inf, server_lr=0.5, state={}, previous_weights=None, previous_cohort=0)
    context, velocity = w.context, torch.zeros_like(w.context.weights)
    n, m, gaps = context.cohort, len(context.clients), []
    for round in range(5, 10):
        # In one round nobody attacks: the attackers send what the others send on average.
        attacks = round != 7
        sent = attack.send(w.view, Mean(), context)
        rows = Mean()(sent.rows) if attacks else Mean()(w.view)
        velocity = 0.5 * velocity + rows
        after = context.weights - 0.5 * velocity
        bad = sent.rows.combine(sent.rows.malicious.double()) if attacks else m * rows
        context = dataclasses.replace(
            context,
            round=round + 1,
            weights=after,
            state=sent.state if attacks else context.state,
            previous_weights=context.weights,
            previous_sent=bad,
            previous_cohort=n,
        )
        gaps.append(float((after - sent.state["target"]).norm()))
    # The first round knows nothing of the honest, the others everything, the one after the pause but for a guess.
    assert gaps[1] < 1e-3 < gaps[0]
    assert gaps[2] > 1e-2
    assert gaps[4] < 1e-3


def test_at_rate_zero_the_honest_mean_is_sent_and_the_target_is_kept() -> None:
    attack = CounterGradient(epochs=1)
    for rate in (0.0, 1e-42):
        w = world(attack, radius=math.inf, server_lr=rate, state={}, previous_weights=None, previous_cohort=0)
        sent = attack.send(w.view, Mean(), w.context)
        rows = sent.rows.materialise()
        mean = rows[~sent.rows.malicious].double().mean(0)
        assert torch.allclose(rows[sent.rows.malicious].double(), mean, atol=1e-7)
        assert sent.report["length"] == pytest.approx(float(mean.norm()), rel=1e-5)
        short = dataclasses.replace(w.context, radius=0.01)
        assert attack.send(w.view, Mean(), short).report["length"] == pytest.approx(0.01, rel=1e-4)
        # A round in which the model stood still says nothing of the honest.
        later = dataclasses.replace(
            w.context,
            round=w.context.round + 1,
            server_lr=0.5,
            state=sent.state,
            previous_weights=w.context.weights,
            previous_sent=rows[sent.rows.malicious].sum(0),
            previous_cohort=w.context.cohort,
        )
        again = attack.send(w.view, Mean(), later)
        assert torch.equal(again.state["target"], sent.state["target"])
        assert bool(torch.isfinite(again.rows.basis).all())
        if rate == 0:
            n, m = later.cohort, len(later.clients)
            wanted = n * (later.weights - again.state["target"]) / 0.5 / m
            torch.testing.assert_close(again.rows.basis[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("honest", ["inferred", "seen"])
def test_a_schedule_with_a_zero_stretch_is_no_hindrance(honest: str) -> None:
    settings = {
        "rounds": 24,
        "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 10}},
        "model": {"name": "linear"},
        "learning_rate": {"kind": "piecewise-linear", "points": [[0, 0.1], [0.3, 0], [0.6, 0], [0.7, 0.1], [1, 0.05]]},
        "sampling": {"kind": "uniform", "cohort": 10},
        "adversary": {"count": 1, "knowledge": "model" if honest == "inferred" else "honest-updates"},
        "attack": {"kind": "counter-gradient", "epochs": 100, "honest": honest},
        "defence": {"preset": "none", "momentum": 0.0},
        "evaluation": {"every": 24},
    }
    result = run(Experiment.from_table(override(TABLE, settings)))
    assert sum(record["lr"] == 0 for record in result.rounds) > 3
    assert result.test_accuracy < 0.05


def test_the_guess_fits_however_many_attack_and_take_part() -> None:
    """All honest clients always send the same row: from the second round on, the mean ends at the target."""
    attack = CounterGradient(epochs=2)
    context = world(
        attack, radius=math.inf, server_lr=0.5, state={}, previous_weights=None, previous_sent=None, previous_cohort=0
    ).context
    row = torch.randn(len(context.weights), generator=torch.Generator().manual_seed(0))
    for i, (h, m) in enumerate([(9, 2), (5, 6), (12, 1), (3, 4), (7, 7)]):
        view = DenseUpdates(row.repeat(h, 1), torch.arange(h))
        context = dataclasses.replace(context, clients=torch.arange(h, h + m), cohort=h + m)
        sent = attack.send(view, Mean(), context)
        rows = sent.rows.materialise()
        after = context.weights - 0.5 * rows.mean(0)
        if i:
            torch.testing.assert_close(after, sent.state["target"], atol=1e-3, rtol=0)
        else:
            assert float((after - sent.state["target"]).norm()) > 1
        context = dataclasses.replace(
            context,
            round=context.round + 1,
            weights=after,
            state=sent.state,
            previous_weights=context.weights,
            previous_sent=rows[sent.rows.malicious].sum(0),
            previous_cohort=h + m,
        )
    # Without an honest client in the round before, nothing is known of those of this one.
    alone = dataclasses.replace(context, state={**context.state, "attackers": torch.tensor(context.previous_cohort)})
    sent = attack.send(view, Mean(), alone)
    wanted = alone.cohort * (alone.weights - sent.state["target"]) / 0.5 / len(alone.clients)
    torch.testing.assert_close(sent.rows.basis[0], wanted, atol=1e-4, rtol=1e-4)


def test_a_shift_that_changes_no_label_is_refused() -> None:
    for shift in (10, 30):
        with pytest.raises(ConfigError, match=f"shift of {shift}"):
            world(CounterGradient(shift=shift))
        w = world(CounterGradient(), state={})
        with pytest.raises(ConfigError, match="10 classes"):
            CounterGradient(shift=shift).send(w.view, Mean(), w.context)
    w = world()
    assert CounterGradient(shift=11).goal(w.tests, 0) is None  # type: ignore[func-returns-value]


def test_rows_that_hold_no_numbers_do_not_spread() -> None:
    w = world(CounterGradient(), state={}, radius=1.0, server_lr=0.3)
    hopeless = DenseUpdates(torch.full((9, len(w.context.weights)), torch.nan), w.view.clients)
    for lr in (0.0, 0.3):
        context = dataclasses.replace(w.context, server_lr=lr)
        sent = CounterGradient(epochs=1, honest="seen").send(hopeless, Mean(), context)
        assert bool(torch.isfinite(sent.rows.basis).all())
