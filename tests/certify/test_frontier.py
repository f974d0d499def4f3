"""The least bound against a fine grid, and against trainings."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.certify.frontier import frontier, least_bound, least_bounds
from bezoar.expected import run
from tests.expected.small import SOFTMAX, small

sizes = st.one_of(st.just(0.0), st.floats(1e-6, 50))
numbers = st.lists(st.tuples(sizes, sizes), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(numbers, st.floats(0, 5), st.floats(0.05, 3))
def test_bends_and_bound_are_those_of_a_fine_grid(pairs: list[tuple[float, float]], kappa: float, mu: float) -> None:
    v, u = np.array(pairs).T
    squared, residual = frontier(v, u)
    assert squared[0] == 0
    assert (np.diff(squared) >= 0).all()
    np.testing.assert_allclose(residual, np.maximum((v - squared[:, None] * u).max(1), 0), atol=1e-9)
    grid = np.linspace(0, min(1 / kappa if kappa > 0 else 1e3, 1e3), 4001)[:-1]
    # Linear in between, and no lower behind the last bend unless zero.
    whole = np.maximum((v - grid[:, None] * u).max(1), 0)
    np.testing.assert_allclose(np.interp(grid, squared, residual), whole, atol=1e-7)
    found = least_bound(kappa, mu, v, u)
    assert found is not None
    left = 1 - kappa * grid
    tried = kappa * whole[left > 1e-9] / (2 * mu * left[left > 1e-9])
    assert found.value <= tried.min() * (1 + 1e-9) + 1e-9
    assert found.residual >= (v - found.squared * u).max() - 1e-9


@settings(deadline=None, max_examples=100)
@given(st.lists(numbers, min_size=1, max_size=5), st.data(), st.floats(0.05, 3))
def test_many_sets_at_once_have_the_bounds_of_each(
    rows: list[list[tuple[float, float]]], data: st.DataObject, mu: float
) -> None:
    most = max(map(len, rows))
    v, u = np.zeros((len(rows), most)), np.zeros((len(rows), most))
    for i, pairs in enumerate(rows):
        v[i, : len(pairs)], u[i, : len(pairs)] = np.array(pairs).T
    kappas = np.array([data.draw(st.one_of(st.just(0.0), st.floats(1e-3, 9), st.just(math.inf))) for _ in rows])
    found = least_bounds(kappas, mu, v, u)
    for i, k in enumerate(kappas.tolist()):
        one = least_bound(k, mu, v[i], u[i])
        if one is None:
            assert found[i] == math.inf
        else:
            # A bend may lie so close to 1 / kappa that the other way to write it leaves it out.
            assert found[i] <= one.value * (1 + 1e-9) + 1e-12
            squared, residual = frontier(v[i], u[i])
            if not ((np.abs(1 - k * squared) <= 1e-9) & (residual < residual[0])).any():
                assert found[i] >= one.value * (1 - 1e-9) - 1e-12


def test_nothing_is_promised_without_a_finite_kappa() -> None:
    assert least_bound(math.inf, 1.0, np.ones(2), np.ones(2)) is None
    assert least_bound(1.0, 1.0, np.array([1.0, math.inf]), np.ones(2)) is None


def test_no_training_exceeds_its_bound() -> None:
    attacks = [{"kind": kind} for kind in ("none", "label-flip", "sign-flip", "mimic")]
    attacks += [{"kind": kind, "refresh": 8} for kind in ("opt-alie", "worst-of")]
    seen = 0
    for task in ({"kind": "ridge", "clients": 5, "samples": 12, "features": 3, "heterogeneity": 1.0}, SOFTMAX):
        rules = [
            {"label": "tm", "pipeline": [{"kind": "trimmed-mean", "f": 2}]},
            {"label": "median", "pipeline": ["median"]},
            {"label": "sip", "pipeline": [{"kind": "sip", "base": ["mean"]}]},
        ]
        for cell in run(small(task=task, rule=rules, attack=attacks, rounds=30)).cells:
            assert cell["excess"] is not None
            assert cell["kappa"] is not None
            assert cell["worst_ratio"] <= cell["kappa"] + 1e-9
            assert cell["bound"] is not None
            assert cell["excess"] <= cell["bound"] + cell["optimisation"] + 1e-9
            seen += 1
    assert seen == 2 * 3 * 6 * 3
