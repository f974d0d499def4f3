"""The posterior over honest sets against brute force, its limits, Gibbs sampling, memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import MVA, RULES, Context, Mean, PosteriorMean, PriorMean
from bezoar.aggregation._gibbs import gibbs
from bezoar.aggregation._posterior import Model, posterior, scatter
from bezoar.errors import ConfigError
from bezoar.priors import Explicit, Family, Groups, HonestPrior, Independent, Ising, Subsets
from bezoar.updates import DenseUpdates

GROUPS = Explicit(8, bad=((), (0, 1, 2), (3, 4), (5,)), p=(0.4, 0.3, 0.2, 0.1))


def rows(n: int = 8, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(values: torch.Tensor, prior: HonestPrior, beta: float, c: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition, set by set: the answer and the posterior."""
    family, x = prior.support(), values.numpy()
    r = np.array([((x[mask] - x[mask].mean(0)) ** 2).sum() for mask in family.honest])
    size, left = family.sizes, family.n - family.sizes
    # Sets of more than half of the rows, or of probability 0.01 at least, start the scale.
    known = (size > 1) & (r > 0) & ((size > family.n / 2) | (np.exp(family.log_prob) >= 0.01))
    scale = (r[known] / (size[known] - 1)).min()
    for step in range(steps + 1):
        logs = family.log_prob - beta / 2 * (r / scale + c * left)
        p = np.exp(logs - logs.max())
        p /= p.sum()
        if step < steps:
            scale = (p @ r) / (p @ (size - 1))
    return p @ np.stack([x[mask].mean(0) for mask in family.honest]), p


@pytest.mark.parametrize("prior", [GROUPS, Groups((3, 3, 2), 0.2, 0.6), Independent(0.2, clients=8)], ids=repr)
@pytest.mark.parametrize(("beta", "c", "steps"), [(8.0, 2.0, 5), (1.0, 0.5, 0), (3.0, 0.0, 2)])
def test_the_answer_is_the_definition(prior: HonestPrior, beta: float, c: float, steps: int) -> None:
    for seed in range(4):
        values = rows(seed=seed)
        values[:2] += seed
        answer = PosteriorMean(prior, beta=beta, exclusion=c, em_steps=steps).aggregate(values)
        wanted, p = brute(values, prior, beta, c, steps)
        np.testing.assert_allclose(answer.vector.numpy(), wanted, rtol=1e-8, atol=1e-10)
        assert answer.weights is not None
        assert float(answer.weights.sum()) == pytest.approx(1)
        assert answer.scores is not None
        np.testing.assert_allclose(answer.scores.numpy(), p @ prior.support().honest, rtol=1e-7, atol=1e-10)


def test_scatter_is_about_the_mean() -> None:
    x = rows().numpy()
    distances = ((x[:, None] - x) ** 2).sum(2)
    family = GROUPS.support()
    wanted = [((x[mask] - x[mask].mean(0)) ** 2).sum() for mask in family.honest]
    np.testing.assert_allclose(scatter(distances, family.honest), wanted)


def test_limits() -> None:
    values = rows()
    # beta -> 0: the prior mean.
    near = PosteriorMean(GROUPS, beta=0.0)(values)
    torch.testing.assert_close(near, PriorMean(GROUPS)(values))
    # All sets of one size, beta -> infinity: the one of least variance.
    torch.testing.assert_close(PosteriorMean(Subsets(2, clients=8), beta=1e9, em_steps=0)(values), MVA(f=2)(values))
    # Everybody is honest: the mean.
    everyone = Explicit(8, bad=((),), p=(1.0,))
    torch.testing.assert_close(PosteriorMean(everyone)(values), Mean()(values))
    # All rows equal: that row, whatever the prior says.
    same = values[:1].repeat(8, 1)
    torch.testing.assert_close(PosteriorMean(GROUPS)(same), same[0])


@pytest.mark.parametrize("far", [3.0, 10.0, 1e4])
def test_forty_per_cent_of_the_rows_may_be_far_away(far: float) -> None:
    values = rows(10, 20)
    values[:4] += far
    answer = PosteriorMean(Independent(0.2, clients=10)).aggregate(values)
    assert answer.scores is not None
    assert float(answer.scores[:4].max()) < 1e-3
    assert float(answer.scores[4:].min()) > 0.9
    torch.testing.assert_close(answer.vector, values[4:].mean(0), atol=0.2, rtol=0)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("most", [100_000, 10])
def test_two_rows_that_agree_are_not_all_that_is_honest(gap: float, most: int) -> None:
    """They were when the tightest of all sets said how much honest rows vary."""
    values = rows(10, 20)
    values[0] = 3.0
    values[1] = 3.0 + gap
    answer = PosteriorMean(Independent(0.1, clients=10), most=most).aggregate(values)
    assert answer.scores is not None
    assert float(answer.scores[:2].max()) < 0.01
    assert float(answer.scores[2:].min()) > 0.9
    # A small set that is likely by itself does say so: twelve of twenty may be bad.
    many = rows(20, 20)
    many[:12] += 5.0
    told = Explicit(20, bad=((), tuple(range(12)), (12, 13, 14, 15)), p=(0.6, 0.2, 0.2))
    torch.testing.assert_close(PosteriorMean(told, most=max(most, 3))(many), many[12:].mean(0))


def test_what_a_lone_row_moves_is_bounded() -> None:
    """A single client may be all that is honest, with some tiny probability: times 1e30 that would be much."""
    prior = Independent(0.2, clients=8)
    values = rows()
    usual = PosteriorMean(prior)(values)
    for far in (1e5, 1e8, 1e30):
        values[0] = far
        moved = PosteriorMean(prior).aggregate(values)
        assert float((moved.vector - usual).norm()) < 2
        assert set(moved.excluded) == ({0} if far > 1e6 else set())


@pytest.mark.parametrize("far", [1.0, 1e3, 1e8, 1e12, 1e30])
def test_chains_keep_their_digits_when_rows_far_away_leave(far: float) -> None:
    values = rows(8, 4)
    values[:3] *= torch.tensor([[far], [-far], [far]], dtype=torch.float64)
    values[3:] += 0.5
    distances = ((values[:, None] - values) ** 2).sum(2).numpy()
    prior, model = Independent(0.2, clients=8), Model(4.0, 2.0, 1)
    drawn = gibbs(distances, prior, model, 8_000, np.random.default_rng(0))
    family = prior.support()
    logs = family.log_prob - 2 * (scatter(distances, family.honest) / drawn.scale + 2 * (8 - family.sizes))
    p = np.exp(logs - logs.max())
    np.testing.assert_allclose(drawn.honest.mean(0), p @ family.honest / p.sum(), atol=0.05)


@pytest.mark.parametrize("steps", [0, 1])
def test_chains_find_what_single_flips_would_not(steps: int) -> None:
    """Excluding one of four shifted rows hardly pays, excluding all does; most draws from the prior exclude none."""
    values = rows(14, 40)
    values[:4] += 2.0
    distances = ((values[:, None] - values) ** 2).sum(2).numpy()
    prior, model = Independent(0.027, clients=14), Model(8.0, 2.0, steps)
    drawn = gibbs(distances, prior, model, 400, np.random.default_rng(0))
    family = prior.support()
    found = posterior(distances, family.honest, family.log_prob, model)
    assert drawn.scale == pytest.approx(found.scale, rel=0.05)
    np.testing.assert_allclose(drawn.honest.mean(0), found.p @ family.honest, atol=0.1)
    assert float(drawn.honest[:, :4].mean()) < 0.2


def test_an_unusable_row_is_known_to_be_bad() -> None:
    values = rows()
    values[0] = torch.nan
    answer = PosteriorMean(GROUPS).aggregate(values)
    assert set(answer.excluded) == {0}
    # Only the set without 0 remains.
    torch.testing.assert_close(answer.vector, values[3:].mean(0))
    # A prior that rules this out is wrong about the client, and serves without it.
    stubborn = Explicit(8, bad=((), (3, 4)), p=(0.5, 0.5))
    assert torch.isfinite(PosteriorMean(stubborn)(values)).all()


def test_cohorts_see_their_part_of_the_sets() -> None:
    values = rows(5)
    ids = torch.tensor([1, 2, 3, 6, 7])
    answer = PosteriorMean(GROUPS).aggregate(DenseUpdates(values, ids))
    family = GROUPS.support().select(ids.tolist())
    wanted = PosteriorMean(family)(values)
    torch.testing.assert_close(answer.vector, wanted)


def test_memory_averages_log_likelihoods_and_can_be_resumed() -> None:
    rule = PosteriorMean(GROUPS, memory=0.7)
    past, state = None, {}
    family = GROUPS.support()
    for t in range(4):
        values = rows(seed=t)
        answer = rule.aggregate(values, state)
        distances = ((values[:, None] - values) ** 2).sum(2).numpy()
        known = None if past is None else (past, 0.7)
        found = posterior(distances, family.honest, family.log_prob, Model(8.0, 2.0, 5), known)
        past = found.log_likelihood - found.log_likelihood.max()
        np.testing.assert_allclose(
            answer.vector.numpy(), found.p @ (family.honest @ values.numpy() / family.sizes[:, None])
        )
        state = {key: value.clone() for key, value in answer.state.items()}
    with pytest.raises(ConfigError, match="belongs to another prior"):
        PosteriorMean(Explicit(8, bad=((),), p=(1.0,)), memory=0.7).aggregate(rows(), state)
    with pytest.raises(ConfigError, match="memory must be"):
        PosteriorMean(GROUPS, memory=1.0)


def test_copies_look_too_honest_unless_that_costs() -> None:
    values = rows(10, 30)
    values[:4] = values[:4].mean(0) + 0.2
    prior = Explicit(10, bad=((0, 1, 2, 3), (4, 5, 6, 7, 8, 9)), p=(0.5, 0.5))
    naive, careful = PosteriorMean(prior).aggregate(values), PosteriorMean(prior, sybils=50.0).aggregate(values)
    assert naive.scores is not None
    assert careful.scores is not None
    assert float(careful.scores[0]) < 1e-6 <= float(naive.scores[0])


@pytest.mark.parametrize(
    "prior",
    [
        Independent(0.2, clients=8),
        Groups((3, 3, 2), 0.3, 0.7),
        Groups((4, 4), 0.3),
        Ising(p=0.2, edges=((0, 1, 0.5), (1, 2, 0.5), (5, 6, 0.4)), clients=8),
    ],
    ids=repr,
)
def test_gibbs_draws_from_the_enumerated_posterior(prior: HonestPrior) -> None:
    values = rows(8, 3)
    values[:2] += 1.0
    distances = ((values[:, None] - values) ** 2).sum(2).numpy()
    model = Model(0.6, 1.0, 0)
    drawn = gibbs(distances, prior, model, 12_000, np.random.default_rng(0))
    family = prior.support()
    r = scatter(distances, family.honest)
    logs = family.log_prob - 0.3 * (r / drawn.scale + (8 - family.sizes))
    p = np.exp(logs - logs.max())
    p /= p.sum()
    # Chains of 400 kept sweeps: a few per cent.
    np.testing.assert_allclose(drawn.honest.mean(0), p @ family.honest, atol=0.05)


LOOP = Ising(p=0.2, edges=((0, 1, 0.5), (1, 2, 0.5), (0, 2, 0.3), (5, 6, 0.4), (2, 6, 0.3)), clients=8)


@pytest.mark.parametrize("hostile", [(), (1,)])
def test_chains_over_all_clients_serve_cohorts(hostile: tuple[int, ...]) -> None:
    """As the law among the cohort's clients does, which larger models have in no closed form."""
    clients = (6, 0, 3, 2, 7)
    values = rows(5, 3)
    values[0] += 1.0
    distances = ((values[:, None] - values) ** 2).sum(2).numpy()
    prior = LOOP.given_bad(hostile) if hostile else LOOP
    drawn = gibbs(distances, prior, Model(0.6, 1.0, 0), 12_000, np.random.default_rng(0), clients=clients)
    family = prior.among(clients).support()
    logs = family.log_prob - 0.3 * (scatter(distances, family.honest) / drawn.scale + (5 - family.sizes))
    p = np.exp(logs - logs.max())
    np.testing.assert_allclose(drawn.honest.mean(0), p @ family.honest / p.sum(), atol=0.05)


def test_priors_whose_probabilities_are_known_up_to_a_constant_are_served() -> None:
    some = LOOP.support().honest
    for prior in (LOOP, LOOP.given_bad([3])):
        known = some[np.isfinite(prior._log_mass(some))]
        assert np.isinf(prior._log_weight(some)).sum() == len(some) - len(known)
        shift = prior._log_weight(known) - prior._log_mass(known)
        np.testing.assert_allclose(shift, shift[0], atol=1e-9)
    ring = Ising(p=0.1, edges=(*((i, (i + 1) % 30, 0.4) for i in range(30)), (0, 15, 0.4)), clients=30)
    assert not ring.exact
    values = rows(30, 40)
    values[:9] += 2.0
    answer = PosteriorMean(ring).aggregate(values)
    assert answer.scores is not None
    assert float(answer.scores[:9].max()) < 0.1
    assert float(answer.scores[9:].min()) > 0.8
    # Every other client takes part, and one of them is known to be bad.
    values[:9] += 1.0
    values[4] = torch.nan
    part = PosteriorMean(ring).aggregate(DenseUpdates(values[::2], torch.arange(0, 30, 2)))
    assert set(part.excluded) == {2}
    torch.testing.assert_close(part.vector, values[10::2].mean(0), atol=0.3, rtol=0)


def test_a_client_that_can_not_be_bad_but_is_does_not_stop_the_round() -> None:
    values = rows()
    values[0] = torch.nan
    for most in (1, 1000):
        rule = PosteriorMean(Independent((0.0, *([0.2] * 7))), most=most)
        assert torch.isfinite(rule(values)).all()


def test_drawn_sets_are_seeded_and_go_on_where_they_were() -> None:
    rule = PosteriorMean(Independent(0.2, clients=8), most=10, sweeps=60)
    values = rows()
    first, again = rule.aggregate(values, context=Context(round=3)), rule.aggregate(values, context=Context(round=3))
    assert (first.vector == again.vector).all()
    assert set(first.state) == {"chains"}
    later = rule.aggregate(values, first.state, Context(round=4))
    assert torch.isfinite(later.vector).all()
    with pytest.raises(ConfigError, match="sets that can be listed"):
        PosteriorMean(Independent(0.2, clients=8), most=10, memory=0.5)(values)


def test_sets_of_one_size_have_a_constant_in_the_limit() -> None:
    """The least varying set T is within (sqrt rho_S + sqrt rho_T) sd_S of any S."""
    draws = np.random.default_rng(0)
    worst = 0.0
    for _ in range(300):
        n = 6
        sets = {tuple(sorted(draws.permutation(n)[:4].tolist())) for _ in range(4)}
        honest = np.zeros((len(sets), n), dtype=np.bool_)
        for row, ids in zip(honest, sorted(sets), strict=True):
            row[list(ids)] = True
        family = Family.uniform(honest)
        rho = family.rho()
        x = torch.from_numpy(draws.normal(size=(n, 1)) * 10.0 ** draws.integers(-2, 3, size=(n, 1)))
        answer = PosteriorMean(family, beta=1e12, em_steps=0).aggregate(x)
        variances = np.array([float(x[mask].var(0, correction=0).sum()) for mask in honest])
        chosen = int(variances.argmin())
        for k, mask in enumerate(honest):
            error = float((answer.vector - x[mask].mean(0)).square().sum())
            allowed = (math.sqrt(rho[k]) + math.sqrt(rho[chosen])) ** 2 * variances[k]
            assert error <= allowed * (1 + 1e-6) + 1e-12
            worst = max(worst, error / allowed if allowed > 0 else 0.0)
    assert worst > 0.2


@pytest.mark.parametrize("c", [0.5, 2.0, 8.0])
def test_sets_of_different_sizes_have_a_larger_constant_in_the_limit(c: float) -> None:
    """sd_T^2 <= g sd_S^2 with g = |S|/|T| max(1, 1 + c (|T|-|S|)/(|S|-1)) where S may set the scale (docs/pma.md)."""
    draws, held = np.random.default_rng(0), 0
    for _ in range(200):
        n = 7
        honest = np.ones((4, n), dtype=np.bool_)
        for row in honest:
            row[draws.permutation(n)[: draws.integers(0, 4)]] = False
        family = Family.uniform(np.unique(honest, axis=0))
        rho, sizes = family.rho(), family.sizes
        x = torch.from_numpy(draws.normal(size=(n, 1)) * 10.0 ** draws.integers(-2, 3, size=(n, 1)))
        answer = PosteriorMean(family, beta=1e12, exclusion=c, em_steps=0).aggregate(x)
        assert answer.scores is not None
        chosen = np.flatnonzero((family.honest == (answer.scores.numpy() > 0.5)).all(1))
        if len(chosen) != 1 or float(answer.scores.min()) not in (0.0, 1.0):
            continue
        t, held = int(chosen[0]), held + 1
        for k, mask in enumerate(family.honest):
            more = max(0, sizes[t] - sizes[k])
            g = sizes[k] / sizes[t] * (1 + c * more / (sizes[k] - 1))
            error = float((answer.vector - x[mask].mean(0)).square().sum())
            allowed = (math.sqrt(rho[k]) + math.sqrt(rho[t] * g)) ** 2 * float(x[mask].var(0, correction=0).sum())
            assert error <= allowed * (1 + 1e-6) + 1e-12
    assert held > 150


def test_four_rho_is_not_a_constant_for_sets_of_different_sizes() -> None:
    """All n against S of size k: bad rows within a^2 < c n/k R_S/(k-1) of S's mean are taken for honest."""
    n, k, c = 20, 8, 8.0
    x = rows(n, 6)
    x[:k] -= x[:k].mean(0)
    family = Explicit(n, bad=((), tuple(range(k, n))), p=(0.5, 0.5)).support()
    small, spread = x[:k], float(x[:k].square().sum())
    x[k:] = 0.0
    x[k:, 0] = math.sqrt(0.999 * c * n / k * spread / (k - 1))
    answer = PosteriorMean(family, beta=1e6, exclusion=c)(x)
    kappa = float((answer - small.mean(0)).square().sum()) / (spread / k)
    assert kappa == pytest.approx(0.999 * c * (n - k) ** 2 / (n * (k - 1)))
    assert kappa > 4 * family.rho().max()
    # Rows that agree to the last digit say nothing of the scale: there is no constant at all.
    x[:k] = 0.0
    assert float(PosteriorMean(family, beta=1e6, exclusion=c)(x).norm()) > 1


def test_how_many_rows_that_agree_are_believed() -> None:
    """k equal rows of n cost c (n-k), the others n-k-1 + c k: believed from k > ((c-1) n + 1) / (2c - 1)."""
    values = rows(16, 400)
    for k in range(2, 9):
        values[:k] = 3.0
        scores = PosteriorMean(Independent(0.3, clients=16)).aggregate(values).scores
        assert scores is not None
        believed = bool(scores[0] > 0.5)
        assert believed == (k > (16 + 1) / 3), k


def test_tables() -> None:
    table = {"kind": "posterior-mean", "prior": {"kind": "independent", "p": 0.1}, "memory": 0.9}
    rule: Any = RULES.build(table)
    assert rule == PosteriorMean(Independent(0.1), memory=0.9)
    assert RULES.build(RULES.table(rule)) == rule
    with pytest.raises(ConfigError, match="beta must be"):
        RULES.build({**table, "beta": -1.0})
    with pytest.raises(ConfigError, match="needs a prior"):
        PosteriorMean()(rows())
