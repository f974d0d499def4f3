from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bezoar.reports.expected.statistics import Paired, Spread, against, holm, median, signed_rank

numbers = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=9)


@given(numbers)
@settings(deadline=None)
def test_signed_rank_is_the_share_of_all_signs_that_are_as_extreme(differences: list[float]) -> None:
    kept = [value for value in differences if value]
    if not kept:
        assert signed_rank(differences) == 1
        return
    ranks = stats.rankdata([abs(value) for value in kept])
    middle = ranks.sum() / 2
    seen = abs(sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0) - middle)
    every = itertools.product((0, 1), repeat=len(kept))
    extreme = [abs(sum(r * s for r, s in zip(ranks, signs, strict=True)) - middle) >= seen - 1e-9 for signs in every]
    assert signed_rank(differences) == pytest.approx(sum(extreme) / len(extreme), abs=1e-12)


def test_signed_rank_agrees_with_scipy_where_there_are_no_ties() -> None:
    differences = [0.3, -1.2, 2.1, 3.3, 0.7, 5.0, -0.1, 4.4, 1.9, 2.2]
    assert signed_rank(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_ten_seeds_of_one_sign_survive_holm_for_twenty_comparisons() -> None:
    assert signed_rank([float(i) for i in range(1, 11)]) == 2 / 1024
    assert holm([2 / 1024] * 20)[0] < 0.05
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0]) > 0.05


def test_a_seed_that_diverged_has_the_greatest_rank() -> None:
    assert signed_rank([math.inf, -1.0, -2.0]) == signed_rank([100.0, -1.0, -2.0])
    with pytest.raises(ValueError, match="NaN"):
        signed_rank([math.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_step_down_procedure(p: list[float]) -> None:
    adjusted = holm(p)
    rejected = set()
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] * (len(p) - place) >= 0.05:
            break
        rejected.add(index)
    assert {i for i, value in enumerate(adjusted) if value < 0.05} == rejected


def test_spread_keeps_what_diverged() -> None:
    lost, steady = Spread.of([1.0, math.inf, 3.0]), Spread.of([1e6, 1e7])
    assert (lost.estimate, lost.diverged, lost.median, lost.typical) == (None, 1, 3.0, math.inf)
    assert steady.key < lost.key < Spread.of([math.inf, math.inf, 0.0]).key
    assert Spread.of([math.inf] * 4).text() == "diverged in 4 of 4"
    assert median([math.inf, math.inf]) == math.inf
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_differences_are_paired_by_seed() -> None:
    pair = Paired.of({0: 1.0, 1: 2.0, 2: 3.0}, {2: 5.0, 0: 2.0, 1: 4.0})
    assert pair.difference is not None
    assert pair.difference.mean == pytest.approx(-5 / 3)
    assert pair.difference.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.tstd([-1, -2, -2]) / math.sqrt(3))
    assert (pair.less, pair.more, pair.lean) == (3, 0, -1)
    with pytest.raises(ValueError, match="same seeds"):
        Paired.of({0: 1.0}, {1: 1.0})


def test_both_diverging_is_a_tie_and_one_is_a_loss() -> None:
    pair = Paired.of({0: math.inf, 1: math.inf}, {0: math.inf, 1: 1.0})
    assert (pair.difference, pair.less, pair.more, pair.n) == (None, 0, 1, 2)


def test_the_sign_is_that_of_the_ranks_not_of_the_counts() -> None:
    this = dict(enumerate([0.9] * 6 + [100.0] * 5))
    pair = Paired.of(this, dict.fromkeys(range(11), 1.0))
    assert (pair.less, pair.more, pair.lean) == (6, 5, 1)
    assert (pair.sign(0.01), pair.sign(0.05)) == ("worse", "undecided")


def test_signs_are_corrected_for_all_comparisons_made_together() -> None:
    this = {seed: float(seed) for seed in range(6)}
    above = {seed: value + 1 + seed for seed, value in this.items()}
    assert against(this, {"other": above})["other"][1] == "better"
    both = against(this, {"other": above, "another": above})
    assert {sign for _, sign in both.values()} == {"undecided"}
    assert against(this, {"same": this})["same"][1] == "equal"
