"""Sets drawn given their number of bad clients, against the conditional law; weights and errors of strata."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bezoar.errors import ConfigError
from bezoar.priors import Count, Explicit, Groups, HonestPrior, Independent, Ising, Mixture, Subsets
from bezoar.priors.mixture import contaminated
from bezoar.priors.strata import drawn_given, stratified

CHAIN = Ising(p=0.2, edges=tuple((i, i + 1, 0.5) for i in range(5)), clients=6)
PRIORS: list[HonestPrior] = [
    Independent((0.1, 0.5, 0.02, 0.3, 0.2, 0.0)),
    Independent(0.4, 6, "minority"),
    Groups((3, 2, 1), p=(0.1, 0.3, 0.2)),
    Groups((3, 3), p=0.3, within=0.6),
    Subsets(2, clients=6),
    Count((0.5, 0.2, 0.1, 0.2), clients=6),
    CHAIN,
    contaminated(Groups((3, 2, 1), p=0.2), 0.2),
]


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_draws_given_a_number_follow_the_conditional_law(prior: HonestPrior) -> None:
    family, law = prior.support(), prior.bad_count()
    rng = np.random.default_rng(0)
    for q in np.flatnonzero(law > 1e-12).tolist():
        found = drawn_given(prior, np.full(4000, q), rng)
        assert found is not None
        assert ((~found).sum(1) == q).all()
        here = family.n - family.sizes == q
        p = np.exp(family.log_prob[here]) / law[q]
        assert p.sum() == pytest.approx(1)
        seen = (found[:, None] == family.honest[here]).all(2).mean(0)
        assert seen.sum() == pytest.approx(1)
        # Five standard errors: fails by chance once in millions.
        assert (np.abs(seen - p) <= 5 * np.sqrt(p * np.maximum(1 - p, 0) / 4000) + 1e-12).all()


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_every_number_of_bad_clients_counts_with_its_probability(prior: HonestPrior) -> None:
    law = prior.bad_count()
    found = stratified(prior, 50, seed=1)
    np.testing.assert_allclose(np.bincount((~found.honest).sum(1), found.weights, len(law)), law, atol=1e-14)
    assert found.unseen == 0
    again = stratified(prior, 50, seed=1)
    assert (again.honest == found.honest).all()


def test_the_error_is_that_of_repeated_draws() -> None:
    def phi(honest: Any) -> Any:
        return honest[:, 0] * 3.0 + honest.sum(1) ** 2

    ring = tuple((i, (i + 1) % 24, 0.2) for i in range(24)) + tuple((i, (i + 7) % 24, 0.2) for i in range(24))
    for prior, law in (
        (Independent((0.4,) * 3 + (0.1,) * 7), True),
        (Ising(p=0.1, edges=ring, clients=24, sweeps=20), False),
    ):
        values, errors = [], []
        for seed in range(60):
            found = stratified(prior, 100, seed)
            assert found.law is law
            values.append(float(found.weights @ phi(found.honest)))
            errors.append(found.error(phi(found.honest)))
        assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)
        if law:
            exact = prior.support()
            wanted = float(np.exp(exact.log_prob) @ phi(exact.honest))
            assert np.mean(values) == pytest.approx(wanted, abs=5 * np.mean(errors) / 60**0.5)


def test_numbers_that_no_draw_had_are_told_where_sets_can_not_be_drawn_by_number() -> None:
    bad = tuple(tuple(range(k)) for k in range(6))
    prior = Mixture((Explicit(8, bad=bad, p=(0.5, 0.3, 0.1, 0.09, 0.009, 0.001)), Independent(0.01, clients=8)), (1, 0))
    found = stratified(prior, 20, seed=0)
    law = prior.bad_count()
    drawn = np.unique((~found.honest).sum(1))
    assert found.unseen == pytest.approx(1 - law[drawn].sum())
    assert found.unseen > 0
    assert stratified(prior, 1, seed=0).error(np.ones(1)) == np.inf
    with pytest.raises(ConfigError, match="draws must be a whole number"):
        stratified(prior, 0, seed=0)
