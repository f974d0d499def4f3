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


def test_clients_take_part_as_long_as_they_have_samples() -> None:
    held = np.array([5, 10, 11, 1, 20])
    sampling = EpochSampling(2, batch_size=5)
    # 1 + 2 + 3 + 1 + 4 = 11 turns.
    rounds = [sampling.draw(5, t, 3, held=held) for t in range(40)]
    counts, epochs = np.zeros(5, dtype=int), 0
    for ids in rounds:
        assert len(set(ids.tolist())) == len(ids) > 0
        assert (np.diff(ids) > 0).all()
        counts[ids] += 1
        assert (counts <= [1, 2, 3, 1, 4]).all()
        if counts.sum() == 11:
            counts, epochs = np.zeros(5, dtype=int), epochs + 1
    assert epochs >= 5
    assert all(np.array_equal(a, sampling.draw(5, t, 3, held=held)) for t, a in enumerate(rounds))
    assert any(not np.array_equal(a, sampling.draw(5, t, 4, held=held)) for t, a in enumerate(rounds))


def test_attackers_with_many_aux_points_fill_the_end_of_an_epoch() -> None:
    """Two of twenty clients hold 100 times as much: whoever has samples left is drawn, and that is them."""
    held = np.full(20, 5)
    held[-2:] = 500
    sampling = EpochSampling(4, batch_size=5)
    rounds = [sampling.draw(20, t, 0, held=held) for t in range(100)]
    share = [np.isin(ids, [18, 19]).mean() for ids in rounds]
    assert np.mean(share[:3]) < 0.51
    assert share[20:] == [1.0] * 80
    # Cut off after the schedule's rounds of an epoch, plus one, the next epoch begins with everybody again.
    cut = EpochSampling(4, batch_size=5, epoch_rounds=6)
    again = [cut.draw(20, t, 0, held=held) for t in range(12)]
    assert [a.tolist() for a in again[:6]] == [a.tolist() for a in rounds[:6]]
    assert set(np.concatenate(again[6:9]).tolist()) - {18, 19}


def test_with_one_batch_each_every_client_takes_part_once() -> None:
    sampling = EpochSampling(3, batch_size=5)
    drawn = np.concatenate([sampling.draw(10, t, 0, held=np.full(10, 5)) for t in range(4)])
    assert sorted(drawn.tolist()) == list(range(10))


def test_tail_rounds_can_be_left_out() -> None:
    assert EpochSampling(4).plays(1)
    assert not EpochSampling(4, skip_tail=True).plays(3)
    assert EpochSampling(4, skip_tail=True).plays(4)
    assert UniformSampling(4).plays(4)


def test_options_of_epochs_are_checked_and_stay_out_of_tables() -> None:
    assert SAMPLINGS.table(EpochSampling(3)) == {"kind": "epoch", "cohort": 3}
    for sampling in (EpochSampling(3, 5, 2), EpochSampling(3, skip_tail=True)):
        assert SAMPLINGS.build(SAMPLINGS.table(sampling)) == sampling
    with pytest.raises(ConfigError, match="batch_size must be at least 0"):
        EpochSampling(3, batch_size=-1)
    with pytest.raises(ConfigError, match="set batch_size"):
        EpochSampling(3, epoch_rounds=2)
    with pytest.raises(ConfigError, match="needs the number of samples of every client"):
        EpochSampling(3, batch_size=5).draw(10, 0, 0)
    with pytest.raises(ConfigError, match="no client holds a sample"):
        EpochSampling(3, batch_size=5).draw(10, 0, 0, held=np.zeros(10, dtype=np.int64))


def test_the_last_clients_are_malicious_if_asked() -> None:
    assert compromised(10_000, share=0.02, seed=5, last=True).tolist() == list(range(9_800, 10_000))
    assert compromised(10, count=3, seed=1, last=True).tolist() == [7, 8, 9]
    assert len(compromised(10, count=0, seed=1, last=True)) == 0


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
