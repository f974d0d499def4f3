"""Client graphs from data: who tends to turn together with whom, as a list of edges (i, j, coupling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bezoar.errors import ConfigError, nearest

Edges = tuple[tuple[int, int, float], ...]


def edges_of_adjacency(adjacency: Any, strength: float = 1.0) -> Edges:
    """Edges of a symmetric matrix of couplings [n, n] with zeros on its diagonal, times ``strength``.

    >>> edges_of_adjacency([[0, 0.5], [0.5, 0]])
    ((0, 1, 0.5),)
    """
    matrix = np.asarray(adjacency, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ConfigError(f"an adjacency matrix must be square [n, n], got shape {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise ConfigError("an adjacency matrix must hold finite numbers")
    uneven = np.argwhere(matrix != matrix.T)
    if len(uneven):
        i, j = uneven[0].tolist()
        raise ConfigError(
            f"couplings must be symmetric, but [{i}, {j}] is {matrix[i, j]:g} and [{j}, {i}] is {matrix[j, i]:g}"
        )
    if matrix.diagonal().any():
        i = int(np.flatnonzero(matrix.diagonal())[0])
        raise ConfigError(f"client {i} is coupled to itself: the diagonal must be zero")
    return tuple((i, j, float(strength * matrix[i, j])) for i, j in np.argwhere(np.triu(matrix)).tolist())


def edges_of_graph(graph: Any, strength: float = 1.0, weight: str = "weight") -> Edges:
    """Edges of a networkx graph: ``strength`` times the attribute ``weight`` (1 where there is none).

    Nodes 0..n-1 are the clients of these ids; other nodes are numbered in the graph's order.
    """
    if not all(hasattr(graph, name) for name in ("nodes", "edges", "is_directed")):
        raise ConfigError(f"needs a networkx graph, got {type(graph).__name__}")
    if graph.is_directed():
        raise ConfigError("couplings must be symmetric: needs an undirected graph, e.g. graph.to_undirected()")
    nodes = list(graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    if set(nodes) == set(range(len(nodes))):
        number = {node: node for node in nodes}
    return added_up(
        (number[a], number[b], strength * float(data.get(weight, 1.0))) for a, b, data in graph.edges(data=True)
    )


def edges_of_labels(labels: Sequence[Any], strength: float) -> Edges:
    """An edge between any two clients of the same label; None stands for unknown and joins nobody.

    >>> edges_of_labels(["a", "b", "a"], 0.5)
    ((0, 2, 0.5),)
    """
    if not np.isfinite(strength):
        raise ConfigError(f"the strength of a coupling must be a finite number, got {strength!r}")
    alike = combinations(range(len(labels)), 2)
    return tuple((i, j, float(strength)) for i, j in alike if labels[i] is not None and labels[i] == labels[j])


def edges_of_metadata(metadata: Mapping[str, Sequence[Any]], strengths: Mapping[str, float]) -> Edges:
    """An edge wherever two clients share a site, region, device, ...; what they share adds up.

    >>> edges_of_metadata({"site": ["a", "a", "b"], "device": [1, 1, 1]}, {"site": 0.5, "device": 0.25})
    ((0, 1, 0.75), (0, 2, 0.25), (1, 2, 0.25))
    """
    for name in strengths:
        if name not in metadata:
            raise ConfigError(f"no metadata {name!r}; {nearest(name, metadata)}")
    numbers = {name: len(values) for name, values in metadata.items()}
    if len(set(numbers.values())) > 1:
        raise ConfigError(f"metadata must have one value a client, got {numbers}")
    return added_up(edge for name, strength in strengths.items() for edge in edges_of_labels(metadata[name], strength))


def added_up(edges: Any) -> Edges:
    """One edge a pair, with the sum of its couplings, in the order of the ids. Raises for self loops."""
    total: dict[tuple[int, int], float] = {}
    for i, j, coupling in edges:
        if i == j:
            raise ConfigError(f"client {i} is coupled to itself: an edge needs two clients")
        pair = (min(i, j), max(i, j))
        total[pair] = total.get(pair, 0.0) + coupling
    return tuple((i, j, total[i, j]) for i, j in sorted(total) if total[i, j])
