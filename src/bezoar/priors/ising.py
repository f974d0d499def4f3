"""Clients on a graph who tend to turn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior
from bezoar.priors.blocks import Block
from bezoar.priors.checks import check_clients, each, ids_within
from bezoar.priors.family import Floats, Masks
from bezoar.priors.graphs import Edges, edges_of_adjacency, edges_of_graph
from bezoar.priors.ising_exact import ENUMERABLE, Enumerated, Piece, Tree
from bezoar.priors.known_bad import KnownBad


@dataclass(frozen=True)
class Ising(HonestPrior):
    r"""P(S) ~ exp(sum_i h_i s_i + sum_edges J_ij s_i s_j), s_i = +1 if client i is honest, -1 if it is not.

    ``edges`` are (i, j, J): J > 0 lets i and j turn together; J < 0 (one is bad rather than both) needs ``repulsive``.
    Fields are given as ``fields`` h, or by ``p``: the rates of bad clients if there were no coupling,
    h_i = log((1 - p_i)/p_i)/2. :meth:`calibrated` finds fields for given rates under coupling.

    Exact where every connected piece of the graph is a tree or has at most 22 clients. Elsewhere there are draws: each
    is a chain of its own, ``sweeps`` heat baths long, with as many Swendsen-Wang steps between unless ``repulsive``;
    and what rests on them reports an interval (:meth:`estimated_weights`), while the exact methods raise.

    >>> Ising(p=(0.1, 0.1, 0.3), edges=((0, 1, 0.5),)).weights().round(4).tolist()
    [0.3759, 0.3759, 0.2482]
    """

    p: float | tuple[float, ...] | None = None
    edges: Edges = ()
    fields: tuple[float, ...] | None = None
    clients: int | None = None
    repulsive: bool = False
    sweeps: int = 100
    sampler: Literal["auto", "gibbs", "swendsen-wang"] = "auto"

    def __post_init__(self) -> None:
        if (self.p is None) == (self.fields is None):
            raise ConfigError("ising: needs either p (rates of bad clients without coupling) or fields")
        for rate in (self.p,) if isinstance(self.p, float | int) else self.p or ():
            if isinstance(rate, bool) or not isinstance(rate, float | int) or not 0 < rate < 1:
                raise ConfigError(f"ising: p must lie strictly between 0 and 1, got {rate!r}")
        if self.p == () or self.fields == ():
            raise ConfigError("ising: needs at least one client")
        if self.fields is not None and not np.isfinite(self.fields).all():
            raise ConfigError(f"ising: fields must be finite numbers, got {self.fields}")
        if isinstance(self.sweeps, bool) or not isinstance(self.sweeps, int) or self.sweeps < 1:
            raise ConfigError(f"ising: sweeps must be a whole number >= 1, got {self.sweeps!r}")
        if self.sampler not in ("auto", "gibbs", "swendsen-wang"):
            raise ConfigError(f'ising: sampler must be "auto", "gibbs" or "swendsen-wang", got {self.sampler!r}')
        if self.sampler == "swendsen-wang" and self.repulsive:
            raise ConfigError('ising: Swendsen-Wang needs couplings >= 0; sampler = "gibbs" takes any')
        check_clients("ising", self.clients)
        self._check_edges()
        if self.clients is not None:
            self.of(self.clients)

    def _check_edges(self) -> None:
        seen: dict[tuple[int, int], float] = {}
        for i, j, coupling in self.edges:
            if i == j:
                raise ConfigError(f"ising: client {i} is coupled to itself: an edge needs two clients")
            pair = (min(i, j), max(i, j))
            if pair in seen and seen[pair] != coupling:
                raise ConfigError(
                    f"ising: couplings must be symmetric, but clients {i} and {j} have {seen[pair]:g} and {coupling:g}"
                )
            if pair in seen:
                raise ConfigError(f"ising: the edge of clients {i} and {j} is given twice: once is enough")
            if not np.isfinite(coupling):
                raise ConfigError(f"ising: the coupling of clients {i} and {j} must be a finite number, got {coupling}")
            if coupling < 0 and not self.repulsive:
                raise ConfigError(
                    f"ising: clients {i} and {j} have the coupling {coupling:g} < 0, which keeps them from turning "
                    "together: say repulsive = true if that is meant"
                )
            seen[pair] = coupling
        outside = [i for pair in seen for i in pair if i < 0 or (self.n is not None and i >= self.n)]
        if outside:
            known = "clients count from 0" if self.n is None else f"clients are 0 to {self.n - 1}"
            raise ConfigError(f"ising: an edge names client {outside[0]}; {known}")

    @classmethod
    def from_adjacency(cls, adjacency: Any, p: float | tuple[float, ...], strength: float = 1.0, **more: Any) -> Ising:
        """Couplings from a symmetric matrix [n, n], times ``strength``."""
        return cls(p, edges_of_adjacency(adjacency, strength), clients=len(adjacency), **more)

    @classmethod
    def from_graph(cls, graph: Any, p: float | tuple[float, ...], strength: float = 1.0, **more: Any) -> Ising:
        """Couplings from a networkx graph: its weights (1 where there are none), times ``strength``."""
        return cls(p, edges_of_graph(graph, strength), clients=len(graph.nodes), **more)

    @classmethod
    def calibrated(cls, p: float | Sequence[float], edges: Edges, clients: int | None = None, **more: Any) -> Ising:
        """The model with these couplings in which client i is bad with probability ``p[i]`` (S perhaps empty).

        Exact models to 1e-8; others by stochastic approximation, to 0.01: options ``tolerance`` and ``seed`` (0).

        Raises:
            ConfigError: the tolerance is not reached.
        """
        from bezoar.priors.calibration import calibrate

        return calibrate(p, edges, clients, **more)

    @property
    def n(self) -> int | None:
        given = self.fields if self.fields is not None else self.p
        return len(given) if isinstance(given, tuple) else self.clients

    def of(self, n: int) -> Self:
        if self.n not in (None, n) or self.clients not in (None, n):
            raise ConfigError(f"ising: this prior is about {self.n} clients, not about {n}")
        return self if self.n == n else replace(self, clients=n)

    @cached_property
    def _fields(self) -> Floats:
        if self.fields is not None:
            return np.asarray(self.fields, dtype=np.float64)
        p = each(0.5 if self.p is None else self.p, self._clients())
        return np.asarray((np.log1p(-p) - np.log(p)) / 2)

    @cached_property
    def _graph(self) -> list[Piece]:
        return pieces(self._fields, self.edges)

    @property
    def exact(self) -> bool:
        """Whether weights, probabilities and counts are exact: all pieces are small or trees."""
        return all(type(piece) is not Piece for piece in self._graph)

    def _solved(self, what: str) -> list[Piece]:
        for piece in self._graph:
            if type(piece) is Piece:
                raise ConfigError(
                    f"ising: no exact {what}: {piece.m} connected clients, which form no tree, are more than "
                    f"{ENUMERABLE}; use estimated_weights, estimated_bad_count or sample"
                )
        return self._graph

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        honest = np.empty((times, self._clients()), dtype=np.bool_)
        for piece in self._graph:
            if type(piece) is not Piece and self.sampler == "auto":
                honest[:, piece.columns] = piece.draw(times, rng)
                continue
            from bezoar.priors.ising_draws import Chains

            chains = Chains(piece.fields, piece.edges, times, rng)
            for _ in range(self.sweeps):
                if self.sampler != "swendsen-wang":
                    chains.heat_bath(piece.fields)
                if self.sampler != "gibbs" and not self.repulsive:
                    chains.swendsen_wang(piece.fields)
            honest[:, piece.columns] = chains.honest
        return honest

    def _log_mass(self, honest: Masks) -> Floats:
        log_z = sum(piece.log_z for piece in self._solved("probabilities"))
        return self._log_weight(honest) - log_z

    def _log_weight(self, honest: Masks) -> Floats:
        spins = np.where(honest, 1.0, -1.0)
        found = spins @ self._fields
        for i, j, coupling in self.edges:
            found += coupling * spins[:, i] * spins[:, j]
        return np.asarray(found)

    def _tilted(self, t: Floats) -> tuple[Floats, Floats] | None:
        log_sum, honest = np.zeros(len(t)), np.empty((len(t), self._clients()))
        for piece in self._solved("weights"):
            log_z, honest[:, piece.columns] = piece.tilted(t)
            log_sum += log_z - piece.log_z
        return log_sum, honest

    def bad_rates(self) -> Floats:
        """P(client i is bad) [n], S perhaps empty."""
        rates = np.empty(self._clients())
        for piece in self._solved("rates"):
            rates[piece.columns] = 1 - piece.honest_rates()
        return rates

    def bad_count(self) -> Floats:
        law = np.ones(1)
        for piece in self._solved("law of the number of bad clients"):
            law = np.convolve(law, piece.counts()[::-1])
        law[-1] = 0.0
        return np.asarray(law / law.sum())

    def _blocks(self) -> list[Block] | None:
        found = []
        for piece in self._solved("family"):
            if piece.m > ENUMERABLE:
                raise ConfigError(f"ising: a tree of {piece.m} clients has too many sets to enumerate: use draws")
            small = Enumerated(piece.columns, piece.fields, piece.edges)
            honest = small.states(np.arange(2**piece.m))
            found.append(Block.sorted(piece.columns, honest, small.energies - small.log_z))
        return found

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        ids = list(clients)
        rest, left = self._conditioned(ids)
        own = np.ones((1, self._clients()), dtype=np.bool_)
        own[0, ids] = False
        # The energy of the known clients, with all the others' share taken out.
        energy = -self._fields[ids].sum() + sum(c for i, j, c in self.edges if not (own[0, i] or own[0, j]))
        log_z = sum(piece.log_z for piece in self._solved("probabilities"))
        others = sum(piece.log_z for piece in rest._solved("probabilities")) if left else 0.0
        return float(energy + others - log_z)

    def _conditioned(self, bad: list[int]) -> tuple[Ising, list[int]]:
        """The law of the other clients, and who they are."""
        left = [i for i in range(self._clients()) if i not in set(bad)]
        place = {i: k for k, i in enumerate(left)}
        fields = self._fields[left]
        edges = []
        for i, j, coupling in self.edges:
            if i in place and j in place:
                edges.append((place[i], place[j], coupling))
            elif i in place or j in place:
                fields[place[i if i in place else j]] -= coupling
        if not left:
            return self, left
        return replace(self, p=None, fields=tuple(fields.tolist()), edges=tuple(edges), clients=None), left

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("given_bad", clients, self._clients(), some=False)
        return KnownBad(self._conditioned(ids)[0], tuple(ids)) if ids else self

    def among(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("among", clients, self._clients())
        kept = [piece for piece in self._graph if set(piece.columns.tolist()) & set(ids)]
        whole = {i for piece in kept for i in piece.columns.tolist()}
        place = {i: k for k, i in enumerate(ids if whole == set(ids) else sorted(whole))}
        edges = tuple((place[i], place[j], c) for i, j, c in self.edges if i in place)
        part = replace(self, p=None, fields=tuple(self._fields[list(place)].tolist()), edges=edges, clients=None)
        # Pieces without a client of the cohort drop out; those that are cut are enumerated.
        return part if whole == set(ids) else HonestPrior.among(part, [place[i] for i in ids])


def pieces(fields: Floats, edges: Edges) -> list[Piece]:
    """The connected pieces of the graph; a plain ``Piece`` is one that can not be solved."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(fields)
    edges = tuple(edge for edge in edges if edge[2])
    ends = np.array([(i, j) for i, j, _ in edges], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    count, of = connected_components(graph, directed=False)
    columns: list[list[int]] = [[] for _ in range(count)]
    inside: list[list[tuple[int, int, float]]] = [[] for _ in range(count)]
    place = {}
    for i, k in enumerate(of.tolist()):
        place[i] = len(columns[k])
        columns[k].append(i)
    for i, j, coupling in edges:
        inside[of[i]].append((place[i], place[j], coupling))
    found = []
    for members, own in zip(columns, inside, strict=True):
        ids = np.array(members, dtype=np.int64)
        kind = Tree if len(own) == len(ids) - 1 else Enumerated if len(ids) <= ENUMERABLE else Piece
        found.append(kind(ids, fields[ids], tuple(own)))
    return found
