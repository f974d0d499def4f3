"""What is refused, and what the message says would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bezoar.errors import ConfigError
from bezoar.priors import (
    PRIORS,
    Count,
    Explicit,
    Groups,
    Independent,
    Ising,
    KnownBad,
    Mixture,
    Subsets,
    contaminated,
    edges_of_adjacency,
    edges_of_graph,
    edges_of_labels,
    edges_of_metadata,
)

NAN = float("nan")
THREE = Independent(0.1, 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Independent(NAN), "from 0 to 1"),
        (lambda: Independent(()), "at least one"),
        (lambda: Independent(0.1, at_most=-1), "minority"),
        (lambda: Independent((1.0, 1.0, 0.5), at_most=1).weights(), "more than 1"),
        (lambda: Independent((1.0, 1.0)).weights(), "nobody is honest"),
        (lambda: Independent(0.1).weights(), r"prior.of\(n\)"),
        (lambda: Subsets(3, 3), "less than the 3"),
        (lambda: Subsets(3).of(2), "less than the 2"),
        (lambda: Subsets(-1), ">= 0"),
        (lambda: Count((0.5, 0.4)), "add up to 1"),
        (lambda: Count((0.5, 0.25, 0.25), 1), "up to 2 bad"),
        (lambda: Count(()), "at least one"),
        (lambda: Count((0.0, 1.0), 1).weights(), "nobody is honest"),
        (lambda: Groups(p=0.5), "either sizes"),
        (lambda: Groups((2,), 0.5, labels=("a", "a")), "either sizes"),
        (lambda: Groups((2,)), "needs p"),
        (lambda: Groups(labels=("a", "b"), p=(0.1,)), "1 probabilities for 2"),
        (lambda: Groups(labels=("a", "b"), p=0.1).of(3), "labels are those of 2"),
        (lambda: Groups((2,), 0.5, NAN), "within"),
        (lambda: Explicit(2, ((0, 1),), (1.0,)).support(), "nobody is honest"),
        (lambda: Explicit(2, ((0,),), (0.9,)), "add up to 1"),
        (lambda: Mixture((THREE,), (0.5,)), "add up to 1"),
        (lambda: Mixture((THREE, Independent(0.1, 4)), (0.5, 0.5)), r"\[3, 4\]"),
        (lambda: Mixture((), ()), "one p a part"),
        (lambda: contaminated(THREE, epsilon=2.0), "epsilon"),
        (lambda: KnownBad(Independent(0.1), (0,)), "how many clients"),
        (lambda: KnownBad(THREE, (4,)), "from 0 to 3"),
        (lambda: Ising(0.0, clients=3), "strictly between"),
        (lambda: Ising(0.1, ((0, 0, 1.0),)), "to itself"),
        (lambda: Ising(0.1, ((0, 1, 1.0), (1, 0, 0.5))), "symmetric"),
        (lambda: Ising(0.1, ((0, 1, 1.0), (1, 0, 1.0))), "twice"),
        (lambda: Ising(0.1, ((0, 1, -1.0),)), "repulsive = true"),
        (lambda: Ising(0.1, ((0, 1, NAN),)), "finite"),
        (lambda: Ising(0.1, ((0, 5, 1.0),), clients=3), "0 to 2"),
        (lambda: Ising(fields=(NAN,)), "finite"),
        (lambda: Ising(), "either p"),
        (lambda: Ising(0.1, fields=(0.1,)), "either p"),
        (lambda: Ising(0.1, repulsive=True, sampler="swendsen-wang"), "couplings >= 0"),
        (lambda: Ising((0.1, 0.2), clients=3), "about 2 clients"),
        (lambda: Ising.calibrated(0.1, ((0, 1, 1.0),)), "how many clients"),
        (lambda: edges_of_adjacency([[0, 1], [2, 0]]), r"\[0, 1\] is 1 and \[1, 0\] is 2"),
        (lambda: edges_of_adjacency([[1]]), "diagonal"),
        (lambda: edges_of_adjacency([[0, 1]]), "square"),
        (lambda: edges_of_adjacency([[0, NAN], [NAN, 0]]), "finite"),
        (lambda: edges_of_graph([[0, 1], [1, 0]]), "networkx graph"),
        (lambda: edges_of_labels("aa", NAN), "finite"),
        (lambda: edges_of_metadata({"site": ["a"]}, {"sight": 1.0}), "site"),
        (lambda: edges_of_metadata({"site": ["a"], "age": [1, 2]}, {"site": 1.0}), "one value a client"),
        (lambda: THREE.among([]), "at least one"),
        (lambda: THREE.among([0, 0]), "different ids"),
        (lambda: THREE.among([3]), "from 0 to 2"),
        (lambda: THREE.given_bad([0, 1, 2]), "all 3 clients"),
        (lambda: Independent((0.0, 0.5)).given_bad([0]), "not all bad"),
        (lambda: Subsets(1, 4).given_bad([0, 1]), "not all bad"),
        (lambda: Groups((1, 1), (0.0, 0.5)).given_bad([0]), "not all bad"),
        (lambda: THREE.sample(0, 1), "n_draws"),
        (lambda: THREE.estimated_weights(1, 1), "at least 2 draws"),
        (lambda: THREE.expected(lambda s: 1.0, 10, 1), "one value for each"),
        (lambda: THREE.support(NAN), "delta"),
        (lambda: THREE.f_quantile(2.0), "delta"),
        (lambda: THREE.breakdown_probability(-1), ">= 0"),
        (lambda: THREE.log_prob(np.ones(4, dtype=bool)), r"bool \[3\]"),
        (lambda: THREE.log_prob([0.2, 0.4, 1.0]), r"bool \[3\]"),
        (lambda: PRIORS.build({"kind": "isng", "p": 0.1}), "ising"),
        (lambda: PRIORS.build({"kind": "mixture", "p": [1.0], "parts": "independent"}), "list of priors"),
        (lambda: PRIORS.build({"kind": "ising", "p": 0.1, "edges": [[0, 1]]}), "edges"),
    ],
)
def test_nonsense_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        assert make() is not None
