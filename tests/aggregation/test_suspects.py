"""Which rows count as suspects: those that a gate or a verdict left out, not those that a selection passed over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import FLAME, Aggregate, Krum, Mean, MultiKrum, SignGuard, TrimmedMean
from bezoar.aggregation.suspects import more_than_f
from bezoar.errors import HostileRowsError


def rows(n: int = 20, d: int = 30, bad: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    values = 1 + 0.1 * torch.randn(n, d, generator=draws)
    values[:bad] = -values[:bad]
    return values


@given(st.sets(st.integers(0, 30)), st.integers(0, 31))
def test_it_is_a_count_and_names_the_rows(excluded: set[int], f: int) -> None:
    answer = Aggregate(torch.zeros(1), excluded=dict.fromkeys(sorted(excluded), "why"))
    found = more_than_f(answer, f)
    assert (found is not None) == (len(excluded) > f)
    if found is not None:
        assert f"{len(excluded)} clients look hostile, more than the declared f={f}" in found
        assert all(f"{row} (why)" in found for row in sorted(excluded)[:5])


@pytest.mark.parametrize("rule", [Krum(f=2), MultiKrum(f=2), TrimmedMean(f=2), Mean()], ids=lambda rule: rule.name)
def test_selecting_trimming_and_averaging_accuse_nobody(rule: Mean) -> None:
    assert more_than_f(rule.aggregate(rows(bad=2)), 0) is None


@pytest.mark.parametrize("rule", [FLAME(), SignGuard()], ids=lambda rule: rule.name)
def test_verdicts_of_filters_count(rule: FLAME) -> None:
    answer = rule.aggregate(rows(bad=3), generator=torch.Generator().manual_seed(0))
    assert {0, 1, 2} <= set(answer.excluded)
    assert more_than_f(answer, 2) is not None
    assert more_than_f(answer, len(answer.excluded)) is None


def test_the_gates_rows_count_and_too_many_of_them_are_an_error_already() -> None:
    values = rows()
    values[[3, 8]] = torch.nan
    assert more_than_f(TrimmedMean(f=2).aggregate(values), 2) is None
    assert "3 (not finite), 8 (not finite)" in str(more_than_f(Mean().aggregate(values), 1))
    with pytest.raises(HostileRowsError):
        TrimmedMean(f=1).aggregate(values)
