"""Draws of honest sets against the probabilities they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bezoar.errors import ConfigError
from bezoar.priors import PRIORS, Groups, HonestPrior, Independent


def draws(prior: HonestPrior, n: int, times: int = 4000) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(1)
    return np.array([prior.draw(n, rng) for _ in range(times)])


def test_independent_clients_fall_with_their_own_probability() -> None:
    honest = draws(Independent((0.1, 0.5, 0.9)), 3)
    assert np.allclose(1 - honest.mean(0), [0.1, 0.5, 0.9], atol=0.03)
    assert abs(np.corrcoef(honest.T)[np.triu_indices(3, 1)]).max() < 0.06
    assert np.allclose(1 - draws(Independent(0.25), 4).mean(0), 0.25, atol=0.03)


def test_groups_fall_together() -> None:
    honest = draws(Groups((2, 1), p=0.5), 3)
    assert (honest[:, 0] == honest[:, 1]).all()
    assert np.allclose(honest.mean(0), 0.5, atol=0.03)
    assert abs(np.corrcoef(honest[:, 1], honest[:, 2])[0, 1]) < 0.06


def test_within_a_bad_group_some_stay_honest() -> None:
    honest = draws(Groups((3, 2), p=(0.5, 0.0), within=0.4), 5)
    assert np.allclose(1 - honest.mean(0), [0.2, 0.2, 0.2, 0.0, 0.0], atol=0.03)
    # Two of one group: 0.5 * 0.4 * 0.4, not 0.2 * 0.2.
    assert abs((~honest[:, 0] & ~honest[:, 1]).mean() - 0.08) < 0.02


def test_same_generator_same_draw() -> None:
    prior = Independent(0.3)
    assert prior.draw(50, np.random.default_rng(4)).tolist() == prior.draw(50, np.random.default_rng(4)).tolist()


def test_tables_round_trip() -> None:
    for prior in (Independent(0.2), Independent((0.1, 0.2)), Groups((2, 3), (0.1, 0.2), 0.5)):
        assert PRIORS.build(PRIORS.table(prior)) == prior


@pytest.mark.parametrize(
    "make",
    [
        lambda: Independent(1.5),
        lambda: Independent((0.1, -0.1)),
        lambda: Independent((0.5,)).draw(2, np.random.default_rng(0)),
        lambda: Groups((), 0.5),
        lambda: Groups((0, 2), 0.5),
        lambda: Groups((2,), (0.5, 0.5)),
        lambda: Groups((2,), 0.5, within=2.0),
        lambda: Groups((2,), 0.5).draw(3, np.random.default_rng(0)),
    ],
)
def test_nonsense_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        assert make() is not None
