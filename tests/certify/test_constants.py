from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import Clip, Columnwise, Krum, Mean, Median, Rule, TrimmedMean
from bezoar.aggregation.arc import ARC
from bezoar.aggregation.base import Constant
from bezoar.aggregation.bucketing import Bucketing
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.aggregation.mea_med import MeaMed
from bezoar.aggregation.multi_krum import MultiKrum
from bezoar.aggregation.nearest import CVA
from bezoar.aggregation.nnm import NNM
from bezoar.aggregation.subsets import MDA, MVA, SMEA
from bezoar.certify import breakdown, constants, kappa
from bezoar.errors import ConfigError
from tests.certify.hill import ratios, worst

#: Rule, n and q of every search.
SEARCHED: list[tuple[Rule, int, int]] = [
    (TrimmedMean(f=1), 5, 1),
    (TrimmedMean(f=2), 5, 1),
    (TrimmedMean(f=3), 9, 1),
    (TrimmedMean(f=4), 9, 4),
    (TrimmedMean(f=3), 8, 0),
    (TrimmedMean(f=3), 8, 2),
    (Median(), 5, 2),
    (Median(), 9, 0),
    (Median(), 9, 3),
    (Median(), 4, 1),
    (Median(), 8, 3),
    (Median(), 8, 0),
    (NNM(f=1) >> TrimmedMean(f=1), 5, 1),
    (NNM(f=2) >> TrimmedMean(f=2), 7, 2),
    (NNM(f=2) >> TrimmedMean(f=2), 7, 1),
    (NNM(f=2) >> Mean(), 7, 0),
    (ARC(f=1) >> TrimmedMean(f=1), 5, 1),
    (ARC(f=2) >> TrimmedMean(f=2), 7, 2),
    (ARC(f=3) >> Median(), 8, 1),
    (ARC(f=2) >> Mean(), 7, 0),
    (ARC(f=1) >> NNM(f=1) >> TrimmedMean(f=1), 5, 1),
    (Bucketing(s=2) >> Median(), 6, 1),
    (Bucketing(s=2) >> TrimmedMean(f=1), 8, 1),
    (CVA(f=4, pivot=TrimmedMean(f=1)), 9, 1),
    (CVA(f=4, pivot=TrimmedMean(f=1)), 9, 0),
    (CVA(f=1, pivot=TrimmedMean(f=3)), 9, 1),
    (NNM(f=1) >> CVA(f=3, pivot=TrimmedMean(f=1)), 7, 1),
    (Krum(f=1, variant="byzfl"), 5, 1),
    (Krum(f=2, variant="byzfl"), 5, 2),
    (Krum(f=3, variant="byzfl"), 7, 3),
    (Krum(f=2, variant="byzfl"), 7, 1),
    (MeaMed(f=1), 5, 1),
    (MeaMed(f=4), 9, 4),
    (MeaMed(f=3), 8, 1),
    (MultiKrum(f=1, variant="byzfl"), 5, 1),
    (MultiKrum(f=3, variant="byzfl"), 7, 3),
    (GeometricMedian(), 5, 2),
    (GeometricMedian(), 7, 1),
    (MDA(f=1), 5, 1),
    (MDA(f=2), 7, 2),
    (MDA(f=2), 7, 1),
    (MVA(f=1), 5, 1),
    (MVA(f=2), 7, 2),
    (MVA(f=2), 7, 1),
    (SMEA(f=1), 5, 1),
    (SMEA(f=2), 7, 2),
    (SMEA(f=2), 7, 1),
    (CVA(f=2, pivot=Median()), 7, 2),
]


def declared(rule: Rule, q: int) -> int | None:
    return q if rule.tolerated is None else None


@pytest.mark.parametrize(("rule", "n", "q"), SEARCHED, ids=repr)
def test_no_input_exceeds_a_constant_and_the_exact_ones_are_reached(rule: Rule, n: int, q: int) -> None:
    known = constants(rule, n, declared(rule, q), q)
    assert known, "a rule on this list states a constant"
    found = worst(rule, n, q, steps=100 if isinstance(rule, Columnwise) else 20)
    for constant in known:
        assert found.ratio <= constant.value * (1 + 1e-9), (constant, found)
        if constant.source == "exact":
            assert found.ratio >= constant.value * (1 - 1e-6), (constant, found)


def test_the_search_finds_what_is_not_robust() -> None:
    assert worst(Mean(), 5, 1, steps=20).ratio > 1e4
    assert worst(NNM(f=1) >> Mean(), 5, 1, steps=20).ratio > 1e4
    assert worst(Clip(1.0) >> TrimmedMean(f=1), 5, 1, steps=20).ratio > 1e2
    assert worst(Krum(f=1, variant="byzfl"), 5, 1, steps=20).ratio > 1.5


def two_levels(n: int, q: int, zeros: int) -> torch.Tensor:
    """One coordinate: honest zeros, then honest ones, then q rows far above."""
    return torch.tensor([[0.0]] * zeros + [[1.0]] * (n - q - zeros) + [[1e6]] * q, dtype=torch.float64)


def test_the_trimmed_mean_attains_its_constant() -> None:
    for n, f in itertools.product(range(1, 16), range(8)):
        for q in range(f + 1):
            if n > 2 * f:
                rule, rows = TrimmedMean(f=f), two_levels(n, q, f)
                honest = rows[: n - q, 0]
                error = float((rule(rows)[0] - honest.mean()) ** 2)
                value = kappa(rule, n, q=q)
                assert value == pytest.approx(f / (n - q - f), rel=1e-15)
                assert error == pytest.approx(value * float(honest.var(correction=0)), abs=1e-9)


def test_the_median_attains_its_constant() -> None:
    for n in range(1, 16):
        for q in range((n - 1) // 2 + 1):
            rows = two_levels(n, q, (n - 1) // 2)
            honest = rows[: n - q, 0]
            error = float((Median()(rows)[0] - honest.mean()) ** 2)
            value = kappa(Median(), n, f=q)
            expected = (n - 1) / (n + 1 - 2 * q) if n % 2 else (n - 2) / (n + 2 - 2 * q)
            assert value == pytest.approx(expected, rel=1e-15)
            assert error == pytest.approx(value * float(honest.var(correction=0)), abs=1e-9)
            assert n % 2 or value < n / (n - 2 * q)


def test_rules_that_choose_the_tightest_subset_come_as_close_to_their_constant_as_one_likes() -> None:
    for n, f in [(5, 1), (7, 2), (7, 3)]:
        for rule in (MVA(f=f), SMEA(f=f)):
            rows = torch.tensor([[0.0]] * (n - 2 * f) + [[1.0]] * f + [[-1 + 1e-6]] * f, dtype=torch.float64)
            error = (rule(rows)[0] - rows[: n - f].mean()) ** 2
            assert float(error / rows[: n - f].var(correction=0)) == pytest.approx(kappa(rule, n), rel=1e-5)
            assert kappa(rule, n) == pytest.approx(4 * f / (n - 2 * f), rel=1e-12)


def test_clipping_that_adapts_attains_its_constant_before_the_mean() -> None:
    for n, f in [(5, 1), (7, 2), (9, 4), (20, 6)]:
        k = math.floor(2 * f * (n - f) / n)
        rows = torch.tensor([[1.0]] * k + [[0.0]] * (n - k), dtype=torch.float64)
        rule = ARC(f=f) >> Mean()
        ratio = float(rows.mean() ** 2 / rows.var(correction=0))
        assert float(rule(rows)[0]) == 0.0
        assert kappa(rule, n, q=0) == pytest.approx(ratio, rel=1e-12)
        assert kappa(ARC(f=f) >> TrimmedMean(f=f), n) <= (f + 2 * f) / (n - 2 * f) + 1e-12


def test_every_rule_pays_the_lower_bound() -> None:
    # q ones and n - q zeros: the zeros force the answer 0, which the ones with n - 2q zeros then pay for.
    for rule, n, q in SEARCHED:
        if rule.tolerated in (None, q) and q:
            rows = np.zeros((n, 1))
            rows[:q] = 1.0
            assert float(rule(torch.from_numpy(rows))[0]) == pytest.approx(0.0, abs=1e-6)
            assert ratios(rule, rows[None], q)[0] == pytest.approx(q / (n - 2 * q), rel=1e-4)
            assert kappa(rule, n, declared(rule, q)) >= q / (n - 2 * q) - 1e-12


def test_pipelines_compose_their_constants() -> None:
    assert kappa(NNM(f=2) >> TrimmedMean(f=2), 9) == pytest.approx(8 * 2 / 7 * (2 / 5 + 1))
    assert kappa(NNM(f=2) >> TrimmedMean(f=2), 9, q=1) == pytest.approx(8 * 2 / 7 * (2 / 6 + 1))
    assert kappa(ARC(f=2) >> TrimmedMean(f=2), 9) == pytest.approx(3 / (9 - 2 - 3) + 2 / 5)
    both = ARC(f=2) >> NNM(f=2) >> TrimmedMean(f=2)
    assert kappa(both, 9) == pytest.approx(8 * 2 / 7 * (2 / 5 + 1) + 3 / 4)
    assert kappa(NNM(f=2) >> Median(), 9) == pytest.approx(8 * 2 / 7 * (8 / 6 + 1))
    assert kappa(NNM(f=2) >> Mean(), 9) == math.inf
    assert kappa(Clip(1.0) >> TrimmedMean(f=2), 9) == math.inf
    assert kappa(Bucketing(s=2) >> TrimmedMean(f=1), 9) == math.inf
    share = (10 - 4) / (10 - 2)
    assert kappa(Bucketing(s=2) >> Median(), 10, f=2) == pytest.approx(((5 - 1) / (5 + 1 - 4) + 1 - share) / share)
    (mixed,) = constants(NNM(f=2) >> Krum(f=2, variant="byzfl"), 9)
    assert mixed.source == "published"
    (mixed,) = constants(NNM(f=2) >> TrimmedMean(f=2), 9)
    assert mixed.source == "proved"


def test_the_best_proved_constant_comes_first_and_unverified_ones_promise_nothing() -> None:
    class Claims(TrimmedMean):
        def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
            return (
                Constant(0.1, "hearsay", "unverified"),
                Constant(2.0, "elsewhere", "published"),
                Constant(5.0, "loose", "proved"),
                Constant(3.0, "here", "exact"),
            )

    assert [constant.value for constant in constants(Claims(f=1), 5)] == [3.0, 5.0, 2.0, 0.1]
    assert kappa(Claims(f=1), 5) == 2.0

    class Silent(TrimmedMean):
        def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
            return (Constant(0.1, "hearsay", "unverified"),)

    assert kappa(Silent(f=1), 5) == math.inf
    assert kappa(Krum(f=1), 5) == math.inf


def test_more_bad_rows_than_declared_promise_nothing() -> None:
    assert constants(TrimmedMean(f=1), 9, q=2) == ()
    assert kappa(TrimmedMean(f=1), 9, q=2) == math.inf
    assert kappa(Median(), 9, f=2, q=3) == math.inf
    assert kappa(Mean(), 9, f=0) == 0.0
    assert kappa(Mean(), 9, f=3, q=0) == 0.0
    assert kappa(Mean(), 9, q=1) == math.inf
    assert kappa(TrimmedMean(f=np.int64(2)), np.int64(9), q=np.int64(1)) == 2 / 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "numbers", "message"),
    [
        (TrimmedMean(f=2), {"n": 9, "f": 3}, "declared with f=2, not f=3"),
        (TrimmedMean(f=5), {"n": 9}, "f=5 is out of range for n=9"),
        (Median(), {"n": 9}, "has no f: say how many of the n=9 rows may be bad"),
        (Median(), {"n": 9, "f": 5}, "f=5 is out of range for n=9 rows; f must be between 0 and 4"),
        (Median(), {"n": 9, "f": -1}, "f must be a whole number >= 0, got -1"),
        (Median(), {"n": 0, "f": 0}, "n must be a whole number >= 1, got 0"),
        (Median(), {"n": 9.0, "f": 0}, "n must be a whole number >= 1, got 9.0"),
        (TrimmedMean(f=2), {"n": 9, "q": -1}, "q must be a whole number >= 0, got -1"),
        (TrimmedMean(f=2), {"n": 9, "q": True}, "q must be a whole number >= 0, got True"),
        (TrimmedMean(f=2), {"n": 9, "q": 9}, "q=9 is out of range for n=9 rows; q must be between 0 and 8"),
        (NNM(f=2) >> TrimmedMean(f=2), {"n": 4}, "out of range for n=4"),
        (Bucketing(s=3) >> TrimmedMean(f=2), {"n": 9}, "f=2 is out of range for n=3"),
    ],
)
def test_numbers_out_of_range_are_errors_that_say_what_would_fit(
    rule: Rule, numbers: dict[str, Any], message: str
) -> None:
    for function in (kappa, constants):
        with pytest.raises(ConfigError, match=message):
            function(rule, **numbers)


@pytest.mark.parametrize(
    ("rule", "n", "expected"),
    [
        (Mean(), 9, 0),
        (Median(), 9, 4),
        (Median(), 8, 3),
        (TrimmedMean(f=1), 9, 4),
        (Krum(f=1), 9, 3),
        (Krum(f=1, variant="sparsefed"), 9, 3),
        (NNM(f=1) >> TrimmedMean(f=1), 9, 4),
        (NNM(f=1) >> Krum(f=1), 9, 3),
        (NNM(f=1) >> Mean(), 9, 0),
        (Clip(1.0) >> Median(), 9, 4),
        (Clip(1.0) >> Mean(), 9, 0),
        (Bucketing(s=2) >> Median(), 9, 2),
        (Bucketing(s=2) >> Median(), 10, 2),
        (Bucketing(s=2) >> Bucketing(s=2) >> Median(), 20, 2),
        (Bucketing(s=3) >> Krum(f=0), 10, 0),
        (Median(), 1, 0),
    ],
    ids=repr,
)
def test_breakdown(rule: Rule, n: int, expected: int) -> None:
    assert breakdown(rule, n) == expected


def test_breakdown_of_too_few_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Krum can not work with n=2 rows"):
        breakdown(Bucketing(s=2) >> Krum(f=0), 4)
    with pytest.raises(ConfigError, match="n must be a whole number >= 1"):
        breakdown(Median(), 0)
