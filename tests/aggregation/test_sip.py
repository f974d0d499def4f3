"""Safe-interval projection against its definition in float64, its constants, and rows that want to be hostile."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bezoar.aggregation import (
    MVA,
    NNM,
    RULES,
    SIP,
    Aggregate,
    CenteredClipping,
    Clip,
    Context,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    Rule,
    TrimmedMean,
    pipeline,
    pipeline_tables,
)
from bezoar.aggregation._candidates import candidates
from bezoar.certify import breakdown, constants, family_constants, kappa, rho
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.kernels.boxes import Intervals, common_box
from bezoar.priors import Explicit, Family, Groups, Independent
from bezoar.updates import DenseUpdates, RowUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def family(n: int, *bad: tuple[int, ...]) -> Family:
    honest = np.ones((len(bad), n), dtype=np.bool_)
    for row, ids in zip(honest, bad, strict=True):
        row[list(ids)] = False
    return Family.uniform(honest)


def subsets(n: int, f: int) -> Family:
    return family(n, *itertools.combinations(range(n), f))


def random_family(draws: np.random.Generator, n: int | None = None) -> Family:
    """Candidates that intersect, as long as they are likely enough."""
    n = n or int(draws.integers(1, 9))
    sets = draws.random((int(draws.integers(1, 7)), n)) < draws.uniform(0.3, 0.95)
    sets[~sets.any(1), int(draws.integers(n))] = True
    sets = np.unique(sets, axis=0)
    return Family(sets, np.log(draws.dirichlet(np.ones(len(sets))) + 1e-9)).intersecting()


def oracle(values: np.ndarray, sets: Family, base: np.ndarray) -> np.ndarray:
    """The definition, with two passes about each set's own mean."""
    low, high = np.full(values.shape[1], -np.inf), np.full(values.shape[1], np.inf)
    for row in sets.honest:
        reach = max(math.sqrt((row & ~other).sum() / (row & other).sum()) for other in sets.honest)
        own = values[row].astype(np.float64)
        mean, sd = own.mean(0), own.std(0)
        low, high = np.maximum(low, mean - reach * sd), np.minimum(high, mean + reach * sd)
    return np.clip(base, np.minimum(low, high), np.maximum(low, high))


class Says(Mean):
    """A base that answers the same whatever the rows."""

    def aggregate(self, updates: Any, *args: Any, **options: Any) -> Aggregate:
        return Aggregate(torch.full((updates.shape[1],), self.cap or 0.0, dtype=updates.dtype))


def says(value: float) -> Rule:
    rule = Says()
    object.__setattr__(rule, "cap", value)
    return rule


# The box


def test_golden_vectors() -> None:
    all_fours = subsets(5, 1)
    assert all_fours.rho() == pytest.approx([1 / 3] * 5)
    box = common_box(GOLDEN, Intervals.of(all_fours.honest, np.sqrt(all_fours.rho())))
    np.testing.assert_allclose(torch.stack(box), [[2.332196, 1.591752], [2.408248, 1.667760]], atol=1e-6)
    np.testing.assert_allclose(SIP(all_fours, Mean())(GOLDEN), [2.408248, 1.591752], atol=1e-6)
    known = family(5, (), (4,))
    assert known.rho().tolist() == [0.25, 0.0]
    np.testing.assert_allclose(SIP(known)(GOLDEN), [2, 2], atol=1e-6)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**9), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_definition(seed: int, dtype: torch.dtype) -> None:
    draws = np.random.default_rng(seed)
    sets = random_family(draws)
    values = draws.standard_normal((sets.n, 7)) * 10.0 ** draws.uniform(-3, 3, (1, 7)) + 1e3 * draws.standard_normal(7)
    rows = torch.from_numpy(values).to(dtype)
    for base in (Mean(), Median(), says(1e9)):
        expected = oracle(rows.numpy(), sets, base.aggregate(rows).vector.double().numpy())
        found = SIP(sets, base)(rows)
        assert found.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 1e-10
        # The ends of an interval are differences of numbers as large as the column's.
        largest = np.abs(values).max(0)
        np.testing.assert_array_less(np.abs(found.double().numpy() - expected), tolerance * largest)


def test_no_digits_are_lost_beside_hostile_rows_nor_far_from_zero() -> None:
    # Twelve of twenty may be bad: the median of a column, and all that is measured from it, would be theirs.
    sets = family(20, tuple(range(12)), (18, 19))
    honest = 1e3 + 1e-4 * np.random.default_rng(0).standard_normal((8, 50))
    for evil in (1e30, -1e30, 1e140, 3e38, 1e-30, 0.0):
        values = np.concatenate([np.full((12, 50), evil), honest])
        for base in (Mean(), Median(), says(-1e35), says(math.nan), says(math.inf)):
            answer = SIP(sets, base)(torch.from_numpy(values)).numpy()
            error, spread = ((answer - honest.mean(0)) ** 2).sum(), honest.var(0).sum()
            assert error <= sets.rho()[0] * spread * (1 + 1e-6)


@pytest.mark.parametrize("evil", [1e30, -1e30, 1e20, 7e37, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounding_of_huge_rows_does_not_cut_into_the_honest_interval(evil: float, dtype: torch.dtype) -> None:
    # The interval of all rows ends exactly where the honest ones lie: a difference of two numbers of 1e30.
    for copies, n in itertools.product((1, 2, 3, 4, 5, 7), (9, 12, 20)):
        sets = family(n, (), tuple(range(copies)))
        values = torch.full((n, 3), 0.1, dtype=dtype)
        values[copies:, 1] += 1e-3 * torch.arange(n - copies, dtype=dtype)
        values[:copies] = evil
        honest = values[copies:].double()
        answer = SIP(sets, Mean())(values).double()
        error = (answer - honest.mean(0)).abs() - math.sqrt(sets.rho()[1]) * honest.std(0, correction=0)
        assert float(error.max()) <= 1e-6


def test_the_box_of_twenty_thousand_random_families_is_never_empty() -> None:
    draws = np.random.default_rng(5)
    for k in range(20000):
        sets = random_family(draws)
        values = draws.integers(-2, 3, (sets.n, 4)) * 10.0 ** draws.integers(-6, 30 if k % 3 else 1, (sets.n, 1))
        low, high = common_box(torch.from_numpy(values), Intervals.of(sets.honest, np.sqrt(sets.rho())))
        size = torch.maximum(low.abs(), high.abs())
        assert bool((low <= high + 1e-15 * size).all()), (sets.honest, values)


def test_only_all_honest_is_the_mean() -> None:
    values = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    found = SIP(family(7, ()), Krum(f=2)).aggregate(values)
    torch.testing.assert_close(found.vector, values.mean(0), rtol=1e-6, atol=1e-7)
    assert found.box is not None
    assert found.box.moved > 0
    assert found.box.diagonal < 1e-12
    assert found.weights is None


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (8, 3), (9, 4)])
def test_the_trimmed_mean_lies_in_the_box_of_all_subsets(n: int, f: int) -> None:
    rule = SIP(subsets(n, f), TrimmedMean(f=f))
    assert isinstance(rule.prior, Family)
    assert rule.prior.rho() == pytest.approx(f / (n - 2 * f))
    for seed in range(20):
        values = torch.randn(n, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        values[:f] *= 10.0 ** (seed - 5)
        torch.testing.assert_close(rule(values), TrimmedMean(f=f)(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", [Mean(), GeometricMedian()], ids=repr)
def test_order_of_rows_and_place_of_the_origin_do_not_matter(base: Rule) -> None:
    draws = np.random.default_rng(3)
    for _ in range(20):
        sets = random_family(draws, 8)
        values = torch.from_numpy(draws.standard_normal((8, 9)))
        answer = SIP(sets, base)(values)
        shift = torch.from_numpy(100 * draws.standard_normal(9))
        torch.testing.assert_close(SIP(sets, base)(values + shift), answer + shift, rtol=1e-6, atol=1e-6)
        order = draws.permutation(8)
        moved = DenseUpdates(values[order], torch.from_numpy(order))
        torch.testing.assert_close(SIP(sets, base).aggregate(moved).vector, answer, rtol=1e-6, atol=1e-6)


def test_rows_that_are_nowhere_a_matrix() -> None:
    values = torch.randn(20, 90000, generator=torch.Generator().manual_seed(1))
    rule = SIP(Groups((8, 4, 4, 4), p=0.1), delta=0.06)
    pieces = RowUpdates([[row[:50000], row[50000:]] for row in values])
    torch.testing.assert_close(rule.aggregate(pieces).vector, rule(values), rtol=1e-5, atol=1e-6)


# What it promises


@pytest.mark.parametrize(
    ("sizes", "suspects", "expected"),
    [
        ((8, 4, 4, 4), range(4), [8 / 12, 4 / 8, 1, 1, 1]),
        ((12, 4, 4), range(3), [1.5, 1, 3, 3]),
        ((12, 8), [0], [1.5, 0]),
    ],
)
def test_rho_of_groups_of_which_one_may_be_bad(sizes: tuple[int, ...], suspects: Any, expected: list[float]) -> None:
    ends = np.cumsum(sizes)
    bad = [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    sets = family(sum(sizes), (), *(bad[g] for g in suspects))
    assert rho(sets) == pytest.approx(expected)
    rule = SIP(sets)
    assert family_constants(rule, sets) == pytest.approx(expected)
    assert family_constants(TrimmedMean(f=8), sets)[0] == pytest.approx(8 / (sum(sizes) - 8))


def test_constants_of_families_of_other_rules() -> None:
    sets = family(20, (), range(8), range(8, 12), range(12, 16), range(16, 20))  # type: ignore[arg-type]
    assert family_constants(TrimmedMean(f=8), sets) == pytest.approx([8 / 12, 2, 1, 1, 1])
    assert family_constants(TrimmedMean(f=4), sets)[1] == math.inf
    assert family_constants(Mean(), sets).tolist() == [0, *[math.inf] * 4]
    assert family_constants(Median(), sets) == pytest.approx([kappa(Median(), 20, f=q, q=q) for q in (0, 8, 4, 4, 4)])
    # Sets that are no candidates, and mixings before.
    few = Family(sets.honest[:2], sets.log_prob[:2])
    assert family_constants(SIP(few), sets)[2:].tolist() == [math.inf] * 3
    mixed = family_constants(NNM(f=4) >> SIP(sets), sets)
    assert mixed == pytest.approx([8 * 4 / 16 * (8 / 12 + 1), math.inf, 4, 4, 4])
    assert family_constants(Clip(1.0) >> SIP(sets), sets).tolist() == [math.inf] * 5
    with pytest.raises(ConfigError, match="about 20 clients, the family about 5"):
        family_constants(SIP(sets), subsets(5, 1))


def test_constants_are_stated_where_all_sets_of_a_size_are_candidates() -> None:
    rule = SIP(subsets(7, 2))
    (known,) = constants(rule, 7, q=2)
    assert known.source == "exact"
    assert known.value == pytest.approx(2 / 3)
    (weaker,) = constants(rule, 7, f=2, q=1)
    assert (weaker.source, weaker.value) == ("proved", known.value)
    assert kappa(rule, 7, f=3) == math.inf
    assert kappa(rule, 8, f=2) == math.inf
    assert kappa(SIP(), 7, f=2) == math.inf
    assert breakdown(rule, 7) == 2
    assert breakdown(SIP(Groups((8, 4, 4, 4), p=0.1), delta=0.06), 20) == 0


BASES = [Mean(), Median(), GeometricMedian(), Krum(f=1), MVA(f=2), says(1e12), says(-3.0)]


@pytest.mark.parametrize("base", BASES, ids=lambda rule: f"{rule.name}-{getattr(rule, 'cap', '')}")
def test_no_rule_beats_rho_on_the_two_inputs(base: Rule) -> None:
    draws = np.random.default_rng(11)
    for _ in range(30):
        sets = random_family(draws, 8)
        rates = sets.rho()
        for s, t in enumerate(sets.overlaps[1]):
            one, other = sets.honest[s], sets.honest[t]
            if not (one & ~other).any():
                assert rates[s] == 0
                continue
            # All of T says 0, and answers of 0 are all that T's promise leaves.
            values = torch.from_numpy((one & ~other).astype(np.float64))[:, None]
            own = values[torch.from_numpy(one)]
            answer = float(SIP(sets, base)(values)[0])
            assert answer == pytest.approx(0, abs=1e-10)
            assert float(own.mean() - answer) ** 2 == pytest.approx(rates[s] * float(own.var(correction=0)), rel=1e-9)


def climb(rule: Rule, sets: Family, draws: np.random.Generator, steps: int) -> float:
    """The largest share of its constant that any set pays, found by moving rows that no longer make it less."""
    limits = sets.rho()

    def worst(values: np.ndarray) -> float:
        answer = rule(torch.from_numpy(values)).numpy()
        share = 0.0
        for row, limit in zip(sets.honest, limits, strict=True):
            seen = values[row] - answer
            error, spread = float((seen.mean(0) ** 2).sum()), float(seen.var(0).sum())
            allowed = limit * spread * (1 + 1e-9) + 1e-12 * float((values[row] ** 2).max())
            assert error <= allowed, (values, row, error, allowed)
            if spread > 1e-6 * (seen**2).max() and limit > 0:
                share = max(share, error / (limit * spread))
        return share

    values = draws.integers(0, 2, (sets.n, 2)).astype(np.float64)
    best = worst(values)
    for _ in range(steps):
        trial = values.copy()
        row, other = draws.integers(sets.n, size=2)
        kind = draws.random()
        if kind < 0.35:
            trial[row] = trial[other]
        elif kind < 0.5:
            trial[row] *= 10.0 ** draws.uniform(-1, 4)
        else:
            trial[row] += draws.standard_normal(2) * 10.0 ** draws.uniform(-3, 1)
        found = worst(trial)
        if found >= best:
            values, best = trial, found
    return best


@pytest.mark.parametrize("base", BASES[:-1], ids=lambda rule: f"{rule.name}-{getattr(rule, 'cap', '')}")
def test_a_search_finds_no_input_that_costs_more_than_rho(base: Rule) -> None:
    draws = np.random.default_rng(2)
    shares = []
    for _ in range(8):
        sets = random_family(draws, 7)
        shares.append(climb(SIP(sets, base), sets, draws, 60))
    # It gets somewhere: that is what makes the bound worth something.
    assert max(shares) > 0.9


def test_two_stories_that_fit_the_same_rows_cost_what_the_priors_leave() -> None:
    # S and T see the same rows; with probabilities p and q the posterior mean errs by 4 p q / (p + q) rho V, and no
    # rule by less; SIP in the middle by rho V (p + q), whatever they are.
    n, a = 9, 3
    for p in (0.5, 0.7, 0.9, 0.99):
        q = 1 - p
        values = np.array([[-1.0]] * a + [[1.0]] * a + [[0.0]] * (n - 2 * a))
        s, t = values[:, 0] <= 0, values[:, 0] >= 0
        sets = Family(np.stack([s, t]), np.log([p, q]))
        means, spread = np.array([values[s].mean(), values[t].mean()]), values[s].var()
        assert values[t].var() == pytest.approx(spread)
        limit = sets.rho()[0]
        grid = np.linspace(-1, 1, 20001)
        expected = p * (grid - means[0]) ** 2 + q * (grid - means[1]) ** 2
        assert expected.min() == pytest.approx(4 * p * q * limit * spread, rel=1e-6)
        assert grid[expected.argmin()] == pytest.approx(p * means[0] + q * means[1], abs=1e-4)
        answer = float(SIP(sets, says(5.0))(torch.from_numpy(values))[0])
        assert answer == pytest.approx(0, abs=1e-9)
        assert p * (answer - means[0]) ** 2 + q * (answer - means[1]) ** 2 == pytest.approx(limit * spread)


# Hostile rows, cohorts, bad input


def test_sets_with_an_unusable_row_are_no_candidates() -> None:
    sets = family(6, (), (0, 1), (5,))
    values = torch.randn(6, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    values[1] = torch.nan
    rule = SIP(sets, Krum(f=1))
    answer = rule.aggregate(values)
    assert answer.excluded == {1: "not finite"}
    # Only the set without 0 and 1 is left, so its mean is the answer.
    torch.testing.assert_close(answer.vector, values[2:].mean(0))


def test_if_all_candidates_hold_an_unusable_row_they_go_on_without_it() -> None:
    sets = family(6, (), (5,))
    values = torch.randn(6, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    values[0] = torch.inf
    base = says(-1e3)
    found = SIP(sets, base).aggregate(values).vector
    expected = oracle(values[1:].numpy(), family(5, (), (4,)), np.full(30, -1e3))
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_more_than_half_of_the_rows_may_be_unusable_and_the_base_gets_what_is_left_of_f() -> None:
    sets = family(20, (), tuple(range(12)))
    values = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    values[:12] = torch.nan
    for base in (TrimmedMean(f=4), NNM(f=4) >> TrimmedMean(f=2), Krum(f=2), MoNNA(f=3, trusted=15)):
        answer = SIP(sets, base).aggregate(values)
        torch.testing.assert_close(answer.vector, values[12:].mean(0))
        assert set(answer.excluded) == set(range(12))
    # What the base sees: f less what is gone, but not below zero.
    fewer = SIP(sets, NNM(f=4) >> TrimmedMean(f=2)).within(torch.arange(3, 20), 20)
    assert fewer.base == NNM(f=2) >> TrimmedMean(f=0)
    assert SIP(sets, TrimmedMean(f=4)).within(torch.arange(3, 20), 20).base == TrimmedMean(f=1)
    with pytest.raises(HostileRowsError, match="trusted row 3"):
        SIP(sets, MoNNA(f=3, trusted=3)).aggregate(values)
    values[:] = torch.nan
    with pytest.raises(HostileRowsError, match="20 of 20"):
        SIP(sets).aggregate(values)


def test_cohorts_are_columns_of_the_prior() -> None:
    sets = family(10, (), (0, 1, 2), (8, 9))
    values = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    clients = torch.tensor([9, 0, 5, 4, 2])
    found = SIP(sets, says(7.0)).aggregate(DenseUpdates(values, clients)).vector
    expected = oracle(values.numpy(), family(5, (), (1, 4), (0,)), np.full(30, 7.0))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    with pytest.raises(ConfigError, match="clients 0 to 9, but there is a row of client 10"):
        SIP(sets).aggregate(DenseUpdates(values, clients + 1))
    with pytest.raises(ConfigError, match="same client id"):
        SIP(sets).aggregate(DenseUpdates(values, clients.clamp(max=4)))
    # Sets that do not meet within the cohort.
    apart = family(6, (0, 1), (2, 3))
    rows = DenseUpdates(values[:4], torch.arange(4))
    with pytest.raises(ConfigError, match=r"number 0 \(bad: 0, 1\) and 1 \(bad: 2, 3\) are disjoint"):
        SIP(apart).aggregate(rows)
    likelier = Family(apart.honest, np.log([0.3, 0.7]))
    torch.testing.assert_close(SIP(likelier, disjoint="drop").aggregate(rows).vector, values[:2].mean(0))


def test_a_prior_about_any_number_of_clients_is_about_those_of_the_round() -> None:
    rule = SIP(Independent(0.1), disjoint="drop", delta=0.05)
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(4))
    clients = torch.tensor([500, 3, 77, 1, 20, 9])
    found = rule.aggregate(DenseUpdates(values, clients)).vector
    # In the order of their ids.
    torch.testing.assert_close(found, rule(values[clients.argsort()]))
    values[2] = torch.nan
    assert torch.isfinite(rule.aggregate(DenseUpdates(values, clients)).vector).all()


def test_what_a_cohort_costs_is_found_once() -> None:
    sets = family(20, (), tuple(range(8)))
    rule = SIP(sets)
    before = candidates.cache_info()
    values = torch.randn(20, 3000, generator=torch.Generator().manual_seed(4))
    for t in range(5):
        rule.aggregate(values, context=Context(round=t))
    after = candidates.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 4)
    # Another family with the same numbers is another family.
    other = SIP(Family(sets.honest[:1], sets.log_prob[:1]), Krum(f=1))
    torch.testing.assert_close(other(values), values.mean(0), rtol=1e-5, atol=1e-6)


def test_the_bases_memory_and_diagnostics_are_kept() -> None:
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(4))
    rule = SIP(family(6, (), (5,)), CenteredClipping(radius=1.0))
    answer = rule.aggregate(values)
    assert answer.state.keys() == CenteredClipping(radius=1.0).aggregate(values).state.keys()
    # Nothing to move: the weights are those of the base.
    still = SIP(family(6, (), (5,)), Mean()).aggregate(values[:1].repeat(6, 1))
    assert still.box is not None
    assert still.box.moved == 0
    assert still.weights is not None


def test_tables() -> None:
    text = {
        "kind": "sip",
        "prior": {"kind": "groups", "sizes": [8, 4, 4, 4], "p": 0.1},
        "base": [{"kind": "nnm", "f": 2}, {"kind": "trimmed-mean", "f": 2}],
        "delta": 0.06,
    }
    rule = pipeline(text)
    assert rule == SIP(Groups((8, 4, 4, 4), p=0.1), NNM(f=2) >> TrimmedMean(f=2), delta=0.06)
    assert pipeline(pipeline_tables(rule)) == rule
    assert pipeline("sip") == SIP()
    assert "prior" not in RULES.table(SIP())
    (kept,) = pipeline_tables(SIP(family(3, (), (2,))))
    assert kept["prior"] == {"kind": "explicit", "clients": 3, "bad": [[], [2]], "p": [0.5, 0.5]}
    prior = Explicit(3, ((), (0,)), (0.5, 0.5))
    filled = (Clip(1.0) >> SIP(base=SIP())).given(prior)
    assert filled == Clip(1.0) >> SIP(prior, SIP(prior))
    assert SIP(Independent(0.1)).given(prior).prior == Independent(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 3}, "prior must be a prior or a family"),
        ({"base": "mean"}, "base must be a rule, for example"),
        ({"base": Clip(1.0)}, "base must be a rule"),
        ({"delta": -0.1}, "delta must be a number from 0 to 1"),
        ({"delta": math.nan}, "delta must be a number from 0 to 1"),
        ({"disjoint": "both"}, "disjoint must be 'error' or 'drop'"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SIP(**options)


def test_bad_use() -> None:
    values: Tensor = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=r"SIP needs a prior.*SIP\(prior=Groups"):
        SIP()(values)
    with pytest.raises(ConfigError, match="clients 0 to 2, but there is a row of client 3"):
        SIP(family(3, ()))(values)
    with pytest.raises(ConfigError, match="f=10 is out of range for n=20"):
        SIP(family(20, ()), TrimmedMean(f=10))(values)
    with pytest.raises(ConfigError, match="are disjoint"):
        SIP(Independent(0.5))(values[:3])
