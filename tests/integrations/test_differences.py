"""Rounds whose clients send what they would add to the model, where the server knows its model and where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import NNM, Clip, FLTrust, Krum, Mean, TrimmedMean
from bezoar.errors import ConfigError
from bezoar.experiments.defence import Defence, defence
from bezoar.integrations.coordinator import Coordinator, Memory, Reply, Status, as_defence
from bezoar.servers import SGD, FetchSGD, SparseFed

Arrays = dict[str, Any]


def model(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(4, 5)).astype(np.float32),
        "count": rng.integers(0, 9, (3,)),
        "seen": rng.random(2) < 0.5,
        "running_var": rng.random(5).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
    }


def changed(start: Arrays, seed: int) -> Arrays:
    move = model(seed)
    found = {name: (start[name] + 0.1 * move[name]).astype(np.float32) for name in ("w", "b", "running_var")}
    return {**start, **found, "count": start["count"] + move["count"], "seen": move["seen"]}


def minus(one: Arrays, two: Arrays) -> Arrays:
    return {n: one[n] ^ two[n] if one[n].dtype == bool else one[n] - two[n] for n in two}


def plus(one: Arrays, two: Arrays) -> Arrays:
    return {n: one[n] ^ two[n] if one[n].dtype == bool else one[n] + two[n] for n in one}


def same(one: Arrays, two: Arrays, exact: bool = True) -> None:
    assert list(one) == list(two)
    for name in one:
        assert one[name].dtype == two[name].dtype
        # A float buffer that went there and back is rounded once more.
        if exact and name != "running_var":
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
        else:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("policy", ["median", "keep", "rule"])
@pytest.mark.parametrize(
    "made",
    [
        as_defence(NNM(f=1) >> TrimmedMean(f=1)),
        as_defence(Krum(f=1), SGD(momentum=0.9)),
        as_defence(Clip(0.1) >> Mean(), SparseFed(k=4)),
        as_defence(Clip(0.1) >> Mean(), FetchSGD(k=4, rows=3, columns=50)),
        defence({"preset": "weak-dp", "radius": 0.1, "std": 0.01}),
    ],
)
def test_models_differences_and_a_model_that_nobody_knows_give_the_same_bits(made: Defence, policy: Any) -> None:
    coordinator = Coordinator(made, lr=0.7, buffer_policy=policy)
    models, steps, blind = Memory(), Memory(), Memory()
    one = two = three = model(0)
    for number in range(1, 4):
        sent = [changed(one, 100 * number + i) for i in range(6)]
        full = coordinator.play(number, one, [Reply(i, p) for i, p in enumerate(sent)], models)
        moves = [Reply(i, minus(p, two), difference=True) for i, p in enumerate(sent)]
        step = coordinator.play(number, two, moves, steps)
        alone = [replace(move, arrays=minus(sent[move.client], three)) for move in moves]
        unknown = coordinator.play(number, coordinator.own_template(three), alone, blind)
        assert full.verdicts == step.verdicts == unknown.verdicts
        assert unknown.arrays == {}
        models, steps, blind = full.memory, step.memory, unknown.memory
        same(full.arrays, plus(one, full.changes))
        exact = policy != "rule"  # otherwise running_var takes part in norms, rounded once more
        one, two, three = full.arrays, plus(two, step.changes), plus(three, unknown.changes)
        same(step.arrays, two)
        same(one, two, exact)
        same(one, three, exact)


@given(st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_every_client_may_choose(choices: list[bool]) -> None:
    coordinator, start = Coordinator(as_defence(TrimmedMean(f=1))), model(0)
    sent = [changed(start, i + 1) for i in range(6)]
    mixed = [
        Reply(i, minus(p, start) if d else p, difference=d) for i, (p, d) in enumerate(zip(sent, choices, strict=True))
    ]
    full = coordinator.play(1, start, [Reply(i, p) for i, p in enumerate(sent)], Memory())
    same(coordinator.play(1, start, mixed, Memory()).arrays, full.arrays)


def test_changes_of_a_model_that_is_changed_itself_are_differences_of_models() -> None:
    coordinator = Coordinator(defence({"preset": "crfl", "radius": 1.0, "std": 0.1, "model_radius": 1.0}))
    start = model(0)
    found = coordinator.play(1, start, [Reply(i, changed(start, i)) for i in range(4)], Memory())
    np.testing.assert_allclose(start["w"] + found.changes["w"], found.arrays["w"], atol=1e-6)
    norm = np.sqrt(sum(float((found.arrays[n] ** 2).sum()) for n in "wb"))
    assert 0.1 < norm < 2.5


def test_nothing_changes_where_the_round_is_skipped() -> None:
    coordinator, start = Coordinator(as_defence(TrimmedMean(f=1))), model(0)
    bad = {**minus(changed(start, 1), start), "w": np.full((4, 5), np.nan, np.float32)}
    for known in (start, coordinator.own_template(start)):
        found = coordinator.play(1, known, [Reply(i, bad, difference=True) for i in range(5)], Memory())
        assert found.skipped
        assert found.changes == {}
        assert found.memory == Memory()


def test_whole_models_can_not_be_read_without_knowing_the_own_one() -> None:
    coordinator, start = Coordinator(as_defence(TrimmedMean(f=1))), model(0)
    sent = [Reply(i, minus(changed(start, i), start), difference=i != 2) for i in range(5)]
    found = coordinator.play(1, coordinator.own_template(start), sent, Memory())
    assert [int(v.status) for v in found.verdicts] == [0, 0, Status.EXCLUDED, 0, 0]
    assert "a whole model" in found.verdicts[2].reason


@pytest.mark.parametrize("bad", [2**63 - 1, -(2**63)])
def test_counters_that_overflow_raise_nothing(bad: int) -> None:
    coordinator, start = Coordinator(as_defence(Mean())), model(0)
    moves = [Reply(i, minus(changed(start, i), start), difference=True) for i in range(5)]
    moves[4] = replace(moves[4], arrays={**moves[4].arrays, "count": np.full(3, bad)})
    found = coordinator.play(1, start, moves, Memory())
    assert found.skipped is None
    assert (found.arrays["count"] < 20).all()


def test_what_needs_the_model_is_refused_without_it() -> None:
    template = Coordinator(as_defence(Mean())).own_template(model(0))
    crfl = defence({"preset": "crfl", "radius": 1.0, "std": 0.1})
    for coordinator, words in (
        (Coordinator(crfl), "model_post"),
        (Coordinator(as_defence(FLTrust()), root=lambda _, arrays: arrays), "server's own update"),
        (Coordinator(as_defence(Mean(), FetchSGD(k=1, columns=50)), sketched=True), "sketches"),
        (Coordinator(as_defence(Mean(), SparseFed(k=1000))), "1000"),
    ):
        with pytest.raises(ConfigError, match=words):
            coordinator.play(1, template, [], Memory())
