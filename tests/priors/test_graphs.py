"""Ising models that are drawn from, calibrated, or made from data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bezoar.errors import ConfigError
from bezoar.priors import (
    PRIORS,
    Independent,
    Ising,
    contaminated,
    edges_of_adjacency,
    edges_of_graph,
    edges_of_labels,
    edges_of_metadata,
)
from tests.priors.oracle import law

TRIANGLES = ((0, 1, 0.5), (1, 2, 0.3), (0, 2, 0.9), (2, 3, 0.2), (3, 4, 1.2))


@pytest.mark.parametrize("sampler", ["gibbs", "swendsen-wang"])
def test_chains_draw_from_the_model(sampler: Any) -> None:
    prior = Ising((0.2, 0.4, 0.5, 0.3, 0.6), TRIANGLES, sampler=sampler, sweeps=60)
    sets, p = law(prior)
    times = 20_000
    drawn = prior.sample(times, seed=1)
    seen = np.bincount(drawn @ (2 ** np.arange(5)[::-1]), minlength=32)[1:]
    often = p * times >= 5
    statistic = ((seen - times * p)[often] ** 2 / (times * p[often])).sum()
    assert statistic < often.sum() + 5 * np.sqrt(2 * often.sum())
    assert (drawn == prior.sample(times, seed=1)).all()
    estimate = prior.estimated_weights(times, seed=2)
    exact = (p / sets.sum(1)) @ sets
    assert (abs(estimate.value - exact) < 2.5 * estimate.half_width).all()
    assert (estimate.half_width < 0.005).all()
    counts = prior.estimated_bad_count(times, seed=2)
    assert (abs(counts.value - prior.bad_count()) <= 2.5 * counts.half_width + 1e-3).all()


def test_repulsive_chains_draw_from_the_model() -> None:
    prior = Ising((0.2, 0.4, 0.5), ((0, 1, -0.8), (1, 2, 0.4), (0, 2, -0.3)), repulsive=True, sampler="gibbs")
    sets, p = law(prior)
    drawn = prior.sample(20_000, seed=1)
    assert drawn.mean(0) == pytest.approx(p @ sets, abs=0.02)


def test_strong_couplings_need_clusters() -> None:
    # Two states, all honest or all bad, of equal probability: single flips stay in the one they start from.
    n = 30
    edges = edges_of_labels(["one"] * n, 0.5)
    prior = Ising(fields=(0.02,) * n, edges=edges, sweeps=25)
    assert not prior.exact
    honest = prior._draw(2000, np.random.default_rng(0)).mean(1)
    # The two states' odds, by their energies: exp(2 n h).
    assert (honest > 0.5).mean() == pytest.approx(1 / (1 + np.exp(-2 * n * 0.02)), abs=0.04)
    for ask in (prior.weights, prior.bad_count, prior.support, lambda: prior.log_prob(np.ones(n, dtype=bool))):
        with pytest.raises(ConfigError, match="30 connected clients"):
            ask()


def test_calibrated_rates_hold_under_coupling() -> None:
    rates = (0.1, 0.2, 0.05, 0.5, 0.3)
    tied = Ising.calibrated(rates, TRIANGLES)
    assert tied.bad_rates() == pytest.approx(rates, abs=1e-8)
    assert abs(Ising(rates, TRIANGLES).bad_rates() - rates).max() > 0.02
    tree = Ising.calibrated(0.1, tuple((i, i + 1, 1.0) for i in range(29)), clients=30)
    assert tree.bad_rates() == pytest.approx(np.full(30, 0.1), abs=1e-8)
    assert Ising.calibrated(rates, ()).bad_rates() == pytest.approx(rates, abs=1e-15)


def test_calibration_by_draws() -> None:
    edges = edges_of_labels(["a"] * 25, 0.03)
    prior = Ising.calibrated(0.2, edges, clients=25, tolerance=0.03, seed=1)
    # Without coupling they would be log(4)/2 = 0.69.
    assert (abs(prior._fields - 0.28) < 0.02).all()
    assert not prior.exact
    assert 1 - prior._draw(5000, np.random.default_rng(9)).mean(0) == pytest.approx(np.full(25, 0.2), abs=0.045)


def test_graphs_from_data() -> None:
    matrix = np.array([[0, 0.5, 0], [0.5, 0, 1.0], [0, 1.0, 0]])
    assert edges_of_adjacency(matrix, 2.0) == ((0, 1, 1.0), (1, 2, 2.0))
    assert Ising.from_adjacency(matrix, 0.1) == Ising(0.1, ((0, 1, 0.5), (1, 2, 1.0)), clients=3)
    assert edges_of_metadata({"site": ["a", None, "a", None]}, {"site": 1.0}) == ((0, 2, 1.0),)

    class Graph:
        """What the library uses of a networkx graph."""

        def __init__(self, nodes: list[Any], edges: list[tuple[Any, Any, dict[str, float]]]) -> None:
            self.nodes, self._edges = nodes, edges

        def edges(self, data: bool) -> list[tuple[Any, Any, dict[str, float]]]:
            assert data
            return self._edges

        def is_directed(self) -> bool:
            return False

    assert edges_of_graph(Graph([1, 0], [(1, 0, {"weight": 0.5})])) == ((0, 1, 0.5),)
    assert edges_of_graph(Graph(["b", "a", "c"], [("b", "c", {})]), 0.25) == ((0, 2, 0.25),)
    assert Ising.from_graph(Graph(["b", "a"], []), 0.1).n == 2


def test_networkx_graph() -> None:
    networkx = pytest.importorskip("networkx")
    graph = networkx.path_graph(4)
    assert Ising.from_graph(graph, 0.1, 0.5).edges == ((0, 1, 0.5), (1, 2, 0.5), (2, 3, 0.5))
    with pytest.raises(ConfigError, match="undirected"):
        edges_of_graph(networkx.DiGraph([(0, 1)]))


def test_contaminated_holds_every_honest_majority() -> None:
    guarded = contaminated(Independent(0.0, 5), epsilon=0.2, p0=0.3)
    sets, p = law(guarded)
    assert ((p > 0) == (sets.sum(1) >= 3)).all()
    assert guarded.log_prob(np.ones(5, dtype=bool)) > np.log(0.8)
    # Open until the number of clients is known, in tables too.
    still = contaminated(Independent(0.1))
    assert still.n is None
    assert still.of(7).n == 7
    assert PRIORS.build(PRIORS.table(still)) == still
    weights = contaminated(Independent(0.1, 1000)).weights()
    assert weights == pytest.approx(np.full(1000, 1e-3), rel=1e-9)
