from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Mean
from bezoar.attacks import AntiCGE
from bezoar.errors import ConfigError
from tests.attacks.context import bare


def survivors(rows: torch.Tensor, f: int) -> list[int]:
    """Comparative gradient elimination: the n - f shortest rows."""
    norms = np.sqrt((rows.double().numpy() ** 2).sum(1))
    return sorted(int(i) for i in np.argsort(norms, kind="stable")[: len(rows) - f])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    h=st.integers(1, 12),
    q=st.integers(1, 5),
    power=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_all_attackers_survive_the_filter(seed: int, h: int, q: int, power: int, dtype: torch.dtype) -> None:
    honest = np.random.default_rng(seed).normal(0.2, 1, (h, 6)) * np.random.default_rng(seed + 1).uniform(1, 9, (h, 1))
    view, context = bare(torch.from_numpy(honest * 10.0**power).to(dtype), q)
    sent = AntiCGE().send(view, Mean(), context)
    rows = sent.rows.materialise()
    bad = set(sent.rows.malicious.nonzero().flatten().tolist())
    if q <= h:
        assert bad <= set(survivors(rows, q))
        # Two per mille longer and the filter would take attackers instead of the last honest row that it drops.
        longer = torch.where(sent.rows.malicious[:, None], rows.double() * 1.002, rows.double())
        assert not bad <= set(survivors(longer, q))


@pytest.mark.parametrize("f", [1, 2, 3])
def test_the_direction_is_against_the_honest_survivors(f: int) -> None:
    honest = torch.tensor([[3.0, 0.0], [0.0, 1.0], [6.0, 8.0], [0.0, -2.0], [4.0, 0.0]], dtype=torch.float64)
    view, context = bare(honest, 2)
    vector = AntiCGE(f=f).rows(view, Mean(), context).basis[0]
    norms = [10.0, 4.0, 3.0]
    kept = [[0, 1, 3, 4], [0, 1, 3], [1, 3]][f - 1]
    total = honest[kept].sum(0)
    expected = -total / total.norm() * norms[f - 1] * (1 - 1e-4)
    assert torch.allclose(vector, expected)


def test_with_enough_attackers_the_sum_of_the_filter_turns_round() -> None:
    honest = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)) * 0.1 + 1
    view, context = bare(honest, 5)
    rows = AntiCGE().rows(view, Mean(), context).materialise()
    assert float(rows[survivors(rows, 5)].sum(0) @ honest.mean(0)) < 0


def test_half_precision_keeps_a_margin() -> None:
    view, context = bare(torch.randn(9, 50, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16), 3)
    rows = AntiCGE().rows(view, Mean(), context)
    assert set(rows.malicious.nonzero().flatten().tolist()) <= set(survivors(rows.materialise(), 3))


@pytest.mark.parametrize("options", [{"f": 0}, {"f": -2}])
def test_nonsense_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="anti-cge"):
        AntiCGE(**options)
