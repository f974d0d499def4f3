from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.data import SAMPLINGS, EpochSampling, UniformSampling, compromised
from bezoar.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 200), st.integers(0, 10**6), st.integers(0, 2**60))
def test_a_uniform_cohort_is_sorted_distinct_and_depends_on_seed_and_round_only(
    data: st.DataObject, n: int, round: int, seed: int
) -> None:
    cohort = data.draw(st.integers(1, n))
    ids = UniformSampling(cohort).draw(n, round, seed)
    assert ids.dtype == np.int64
    assert len(ids) == cohort
    assert (np.diff(ids) > 0).all()
    assert ids[0] >= 0
    assert ids[-1] < n
    assert np.array_equal(ids, UniformSampling(cohort).draw(n, round, seed))


def test_rounds_and_seeds_draw_different_cohorts() -> None:
    for sampling in (UniformSampling(10), EpochSampling(10)):
        draws = [tuple(sampling.draw(1_000, round, seed)) for round in range(20) for seed in range(3)]
        assert len(set(draws)) == len(draws)


def test_uniform_draws_every_client_equally_often() -> None:
    counts = np.zeros(50)
    for round in range(2_000):
        counts[UniformSampling(5).draw(50, round, 0)] += 1
    assert abs(counts - 200).max() < 5 * np.sqrt(200)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(0, 20))
def test_every_client_takes_part_once_an_epoch(data: st.DataObject, n: int, epoch: int) -> None:
    sampling = EpochSampling(data.draw(st.integers(1, n)))
    length = sampling.rounds_per_epoch(n)
    rounds = [sampling.draw(n, epoch * length + step, 5) for step in range(length)]
    assert sorted(np.concatenate(rounds).tolist()) == list(range(n))
    assert all(len(ids) == sampling.cohort for ids in rounds[:-1])
    assert all((np.diff(ids) > 0).all() for ids in rounds)


def test_every_epoch_has_another_order() -> None:
    sampling = EpochSampling(10)
    epochs = [[tuple(sampling.draw(100, epoch * 10 + step, 0)) for step in range(10)] for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_per_round_gives_exactly_that_many_attackers() -> None:
    bad = compromised(200, count=20, seed=3)
    seen: set[int] = set()
    for round in range(100):
        ids = UniformSampling(20).draw(200, round, 3, bad, per_round=2)
        assert len(set(ids.tolist())) == 20
        assert np.isin(ids, bad).sum() == 2
        seen.update(ids[np.isin(ids, bad)].tolist())
    assert seen == set(bad.tolist())
    assert not np.isin(UniformSampling(20).draw(200, 0, 3, bad, per_round=0), bad).any()
    assert np.isin(UniformSampling(20).draw(200, 0, 3, bad, per_round=20), bad).all()


def test_without_per_round_the_compromised_do_not_change_the_cohort() -> None:
    bad = compromised(200, count=20, seed=3)
    assert np.array_equal(UniformSampling(20).draw(200, 4, 3, bad), UniformSampling(20).draw(200, 4, 3))


def test_impossible_cohorts_say_what_is_possible() -> None:
    with pytest.raises(ConfigError, match="cohort=11 of 10 clients: at most 10"):
        UniformSampling(11).draw(10, 0, 0)
    with pytest.raises(ConfigError, match="cohort=11 of 10 clients: at most 10"):
        EpochSampling(11).draw(10, 0, 0)
    with pytest.raises(ConfigError, match="cohort must be at least 1"):
        UniformSampling(0)
    bad = np.array([1, 2])
    with pytest.raises(ConfigError, match=r"per_round=3 .*: 0\.\.2 would do"):
        UniformSampling(5).draw(10, 0, 0, bad, per_round=3)
    with pytest.raises(ConfigError, match=r"per_round=0 .*: 1\.\.2 would do"):
        UniformSampling(9).draw(10, 0, 0, bad, per_round=0)
    with pytest.raises(ConfigError, match="per_round needs the ids"):
        UniformSampling(5).draw(10, 0, 0, per_round=1)
    with pytest.raises(ConfigError, match="per_round needs sampling = 'uniform'"):
        EpochSampling(5).draw(10, 0, 0, bad, per_round=1)
    with pytest.raises(ConfigError, match=r"0\.\.9"):
        UniformSampling(5).draw(10, 0, 0, np.array([10]), per_round=1)


def test_compromised_are_seeded_spread_and_nested() -> None:
    ids = compromised(10_000, share=0.02, seed=0)
    assert len(ids) == 200
    assert ids.dtype == np.int64
    assert np.array_equal(ids, compromised(10_000, count=200, seed=0))
    assert not np.array_equal(ids, compromised(10_000, count=200, seed=1))
    assert ids.min() < 1_000
    assert ids.max() > 9_000
    assert set(compromised(10_000, count=100, seed=0)) < set(ids)
    assert len(compromised(10, count=0, seed=0)) == 0
    assert len(compromised(10, count=10, seed=0)) == 10


def test_compromised_draws_are_not_the_cohort_draws() -> None:
    assert not np.array_equal(compromised(1_000, count=50, seed=0), UniformSampling(50).draw(1_000, 0, 0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one"),
        ({"count": 1, "share": 0.1}, "exactly one"),
        ({"count": 51}, "count=51 compromised clients of 50: at most 50"),
        ({"count": -1}, "count must be at least 0"),
        ({"share": 1.1}, "share must be at least 0 and at most 1"),
        ({"share": 0.001}, "less than one: use at least 0.02"),
    ],
)
def test_impossible_compromises_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compromised(50, seed=0, **options)  # type: ignore[arg-type]


def test_samplings_by_name() -> None:
    assert list(SAMPLINGS) == ["uniform", "epoch"]
    assert SAMPLINGS.build({"kind": "epoch", "cohort": 3}) == EpochSampling(3)
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        SAMPLINGS.build({"kind": "unifrom", "cohort": 3})
