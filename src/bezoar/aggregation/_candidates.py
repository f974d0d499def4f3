"""The candidate honest sets of a round: a prior's sets among the clients that take part, without the known bad ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from bezoar.aggregation.base import Context
from bezoar.errors import ConfigError
from bezoar.kernels.boxes import Intervals
from bezoar.priors import PRIORS, Explicit, Family, HonestPrior
from bezoar.priors.base import check_probability
from bezoar.registry import holds
from bezoar.updates.base import Updates

#: Who may be honest: a prior, or the sets themselves.
Candidates = HonestPrior | Family


def prior_field() -> Any:
    """The field of a rule that holds a prior or a family; None until :meth:`bezoar.aggregation.Part.given` fills it."""
    return holds(_build, _table, default=None)


def _build(table: Any) -> Candidates:
    return table if isinstance(table, Family) else PRIORS.build(table)


def _table(prior: Candidates) -> dict[str, Any]:
    if isinstance(prior, HonestPrior):
        return PRIORS.table(prior)
    p = np.exp(prior.log_prob)
    bad = tuple(tuple(np.flatnonzero(~row).tolist()) for row in prior.honest)
    return PRIORS.table(Explicit(prior.n, bad, tuple((p / p.sum()).tolist())))


def check_prior(owner: str, prior: object) -> None:
    """Raise unless ``prior`` is None, a prior or a family."""
    if prior is not None and not isinstance(prior, HonestPrior | Family):
        raise ConfigError(f"{owner}: prior must be a prior or a family of honest sets, got {prior!r}")


def needed(owner: str, prior: Candidates | None) -> Candidates:
    """The prior, or a ConfigError where there is none."""
    if prior is None:
        raise ConfigError(f"{owner} needs a prior over who is honest: {owner}(prior=Groups((8, 4, 4), p=0.1))")
    return prior


def about(owner: str, prior: Candidates, n: int) -> Candidates:
    """The prior about n clients, where it left their number open."""
    return prior.of(n) if isinstance(prior, HonestPrior) and prior.n is None else prior


def places(owner: str, prior: Candidates, rows: Updates, context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Columns of the prior for the rows [m], and for the clients left out as hostile.

    A prior that leaves the number of clients open is about those of the round, in the order of their ids.
    """
    ids, gone = tuple(rows.clients.tolist()), context.hostile
    if len(set(ids + gone)) < len(ids) + len(gone):
        raise ConfigError(f"{owner}: two rows have the same client id; every row must be a client's own")
    if prior.n is None:
        order = {client: place for place, client in enumerate(sorted(ids + gone))}
        return tuple(order[i] for i in ids), tuple(order[i] for i in gone)
    wrong = [i for i in ids + gone if not 0 <= i < prior.n]
    if wrong:
        raise ConfigError(
            f"{owner}: the prior is about the clients 0 to {prior.n - 1}, but there is a row of client {wrong[0]}"
        )
    return ids, gone


def present(
    owner: str, prior: Candidates | None, rows: Updates, context: Context
) -> tuple[Candidates, tuple[int, ...], tuple[int, ...]]:
    """The prior, about the clients of the round where it left their number open, and their :func:`places`."""
    given = needed(owner, prior)
    clients, hostile = places(owner, given, rows, context)
    return about(owner, given, len(clients) + len(hostile)), clients, hostile


def check_sets(owner: str, delta: float, disjoint: str) -> None:
    """Raise unless these say which candidate sets are served, and what to do with disjoint ones."""
    check_probability(owner, "delta", delta)
    if disjoint not in ("error", "drop"):
        raise ConfigError(f"{owner}: disjoint must be 'error' or 'drop', got {disjoint!r}")


@lru_cache(maxsize=8)
def support(prior: Candidates, delta: float) -> Family:
    """The family itself, or the prior's support; remembered, as it may be long to enumerate."""
    return prior if isinstance(prior, Family) else prior.support(delta)


@lru_cache(maxsize=64)
def candidates(
    prior: Candidates, delta: float, drop: bool, clients: tuple[int, ...], hostile: tuple[int, ...]
) -> tuple[Family, Intervals]:
    """The sets among ``clients`` (columns of the prior, one a row), and their intervals of reach sqrt rho.

    Sets that hold one of ``hostile`` are not the honest one. If all do, the prior is wrong about these clients, and the
    sets are taken without them.

    Raises:
        ConfigError: two sets are disjoint, and ``drop`` does not say to keep the likelier.
    """
    family = support(prior, delta).select([*clients, *hostile])
    m = len(clients)
    clean = ~family.honest[:, m:].any(1)
    if clean.any():
        family = Family(np.ascontiguousarray(family.honest[clean][:, :m]), family.log_prob[clean])
    else:
        family = family.select(range(m))
    family = family.intersecting() if drop else family
    return family, Intervals.of(family.honest, np.sqrt(family.rho()))
