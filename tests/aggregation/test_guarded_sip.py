"""Guarded SIP: what it visits against all sets, when it trusts, and what it answers then."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import RULES, SIP, GeometricMedian, GuardedSIP, Mean
from bezoar.aggregation._outside import Minority, codes, tight_sets
from bezoar.aggregation._posterior import posterior
from bezoar.errors import ConfigError
from bezoar.priors import Explicit

PRIOR = Explicit(10, bad=((), (0, 1, 2), (3, 4)), p=(0.5, 0.3, 0.2))


def all_sets(m: int, most: int) -> np.ndarray:
    found = []
    for q in range(most + 1):
        for out in itertools.combinations(range(m), q):
            mask = np.ones(m, dtype=np.bool_)
            mask[list(out)] = False
            found.append(mask)
    return np.array(found)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 8))
def test_the_mass_of_the_prior_is_that_of_all_sets_within_the_bound(seed: int, away: float) -> None:
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(10, 3))
    x[draws.permutation(10)[:3]] += away
    distances = ((x[:, None] - x) ** 2).sum(2)
    rule = GuardedSIP(PRIOR)
    known = rule.guard(distances, PRIOR.support())
    law = Minority(10, 0.1, 4)
    sets, log_prior, own = rule._mixed(PRIOR.support(), all_sets(10, 4), law)
    whole = posterior(distances, sets, log_prior, rule.model)
    assert known.least <= known.mass + 1e-12
    # All sets of up to four of ten are few enough to be visited.
    assert known.mass == pytest.approx(float(whole.p[:own].sum()), abs=1e-9)
    assert np.exp(law.log_prob((~all_sets(10, 4)).sum(1))).sum() == pytest.approx(1)


def test_the_lower_bound_holds_where_sets_are_left_out() -> None:
    draws = np.random.default_rng(0)
    prior = Explicit(14, bad=((), (0, 1, 2, 3)), p=(0.6, 0.4))
    rule = GuardedSIP(prior)
    held = 0
    for _ in range(6):
        x = draws.normal(size=(14, 4))
        x[draws.permutation(14)[: draws.integers(0, 7)]] += draws.uniform(0, 4)
        distances = ((x[:, None] - x) ** 2).sum(2)
        visited = tight_sets(distances, 6)
        assert visited.listed < 6
        assert len(np.unique(codes(visited.honest))) == len(visited.honest)
        known = rule.guard(distances, prior.support())
        law = Minority(14, 0.1, 6)
        sets, log_prior, own = rule._mixed(prior.support(), all_sets(14, 6), law)
        r = np.array([((x[mask] - x[mask].mean(0)) ** 2).sum() for mask in sets])
        logs = log_prior - 4 * (r / known.found.scale + 2 * (~sets).sum(1))
        p = np.exp(logs - logs.max())
        true = float(p[:own].sum() / p.sum())
        assert known.least - 1e-9 <= true <= known.mass + 1e-9
        held += 1
    assert held == 6


def data(bad: tuple[int, ...], far: float) -> torch.Tensor:
    values = torch.randn(10, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[list(bad)] += far
    return values


def test_a_right_prior_is_trusted_and_the_answer_lies_in_the_box() -> None:
    values = data((0, 1, 2), 5.0)
    for base in (None, Mean(), GeometricMedian()):
        answer = GuardedSIP(PRIOR, base).aggregate(values)
        assert answer.box is not None
        boxed = SIP(PRIOR, base=Mean()).aggregate(values)
        assert boxed.box is not None
        assert answer.box.diagonal == pytest.approx(boxed.box.diagonal)
        torch.testing.assert_close(answer.vector, values[3:].mean(0), atol=1.5, rtol=0)


def test_a_wrong_prior_is_left_for_the_fallback() -> None:
    values = data((3, 5, 8), 8.0)
    answer = GuardedSIP(PRIOR).aggregate(values)
    assert answer.box is None
    assert torch.equal(answer.vector, GeometricMedian()(values))
    own = GuardedSIP(PRIOR, fallback="base").aggregate(values)
    assert own.box is None
    good = [i for i in range(10) if i not in (3, 5, 8)]
    torch.testing.assert_close(own.vector, values[good].mean(0), atol=0.2, rtol=0)
    # SIP trusts blindly, and its box leaves the honest mean out.
    blind = SIP(PRIOR, base=Mean())(values)
    assert float((blind - values[good].mean(0)).norm()) > 2 * float((own.vector - values[good].mean(0)).norm())


def test_unusable_rows_are_bad_for_certain() -> None:
    values = data((0, 1, 2), 5.0)
    values[0] = math.nan
    answer = GuardedSIP(PRIOR).aggregate(values)
    assert set(answer.excluded) == {0}
    torch.testing.assert_close(answer.vector, values[3:].mean(0), atol=0.3, rtol=0)


def test_tables_and_nonsense() -> None:
    for fallback in ("base", {"kind": "trimmed-mean", "f": 2}):
        rule = RULES.build({"kind": "guarded-sip", "base": ["mean"], "fallback": fallback})
        assert RULES.build(RULES.table(rule)) == rule
    for wrong, message in (
        ({"contamination": 0.0}, "contamination must be above 0"),
        ({"p0": 1.0}, "p0 must be"),
        ({"mass": 2.0}, "mass"),
        ({"fallback": "bse"}, "unknown rule 'bse'"),
        ({"disjoint": "ignore"}, "disjoint"),
    ):
        with pytest.raises(ConfigError, match=message):
            RULES.build({"kind": "guarded-sip", **wrong})
