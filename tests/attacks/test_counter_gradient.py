from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bezoar.aggregation import Mean
from bezoar.attacks import CounterGradient
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
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
