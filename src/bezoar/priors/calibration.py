"""Fields under which clients on a graph are bad at given rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logit

from bezoar.errors import ConfigError
from bezoar.priors.checks import check_clients, each
from bezoar.priors.family import Floats
from bezoar.priors.graphs import Edges
from bezoar.priors.ising import Ising, pieces
from bezoar.priors.ising_draws import Chains
from bezoar.priors.ising_exact import Piece
from bezoar.seeding import numpy_generator

_EXACT = 1e-8


def calibrate(
    p: float | Sequence[float],
    edges: Edges,
    clients: int | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
    **more: Any,
) -> Ising:
    """See :meth:`Ising.calibrated`."""
    check_clients("ising", clients)
    given = p if isinstance(p, float | int) else tuple(float(rate) for rate in p)
    start = Ising(given, tuple(edges), clients=clients, **more)
    if start.n is None:
        raise ConfigError("ising: of how many clients? Give clients, or one p for each")
    honest = 1 - each(given, start.n)
    fields = start._fields.copy()
    for piece in pieces(fields, start.edges):
        if not piece.edges:
            continue
        target = honest[piece.columns]
        solve = _stochastic if type(piece) is Piece else _exact
        fields[piece.columns] = solve(piece, target, tolerance, seed, not start.repulsive)
    return replace(start, p=None, fields=tuple(fields.tolist()), clients=None)


def _exact(piece: Piece, honest: Floats, _tolerance: float, _seed: int, _attractive: bool) -> Floats:
    """The minimum of log Z(h) - sum h_i E[s_i], which is convex; then steps that set each client's odds right."""

    def dual(h: Floats) -> tuple[float, Floats]:
        solved = type(piece)(piece.columns, h, piece.edges)
        return solved.log_z - float(h @ (2 * honest - 1)), 2 * (solved.honest_rates() - honest)

    h = minimize(dual, piece.fields, jac=True, method="L-BFGS-B", options={"gtol": 1e-11, "ftol": 1e-15}).x
    best, error = h, np.inf
    for _ in range(200):
        rates = type(piece)(piece.columns, h, piece.edges).honest_rates()
        off = float(abs(rates - honest).max())
        if off < error:
            best, error = h, off
        if error <= _EXACT / 100:
            break
        h = h + (logit(honest) - logit(rates.clip(1e-300, 1 - 1e-16))) / 8
    if not error <= _EXACT:
        raise ConfigError(f"ising: calibration missed the rates by {error:.1e} > {_EXACT:g}: weaken the couplings")
    return np.asarray(best)


def _stochastic(piece: Piece, honest: Floats, tolerance: float, seed: int, attractive: bool) -> Floats:
    """Robbins-Monro on 500 chains that go on while fields change, averaged over the second half, then checked."""
    rng = numpy_generator(seed, "ising calibration")
    fields = piece.fields.copy()
    chains = Chains(fields, piece.edges, 500, rng)
    steps, mean = 400, np.zeros(piece.m)
    for step in range(steps):
        _sweep(chains, fields, attractive)
        rates = (chains.honest.sum(0) + 0.5) / (len(chains.spins) + 1)
        fields = fields + 0.5 * (1 + step / 10) ** -0.6 * (logit(honest) - logit(rates)) / 2
        if step >= steps // 2:
            mean += fields / (steps - steps // 2)
    # Fresh chains: those above remember how they got there.
    check = Chains(mean, piece.edges, max(2000, int(1 / tolerance**2)), rng)
    for _ in range(100):
        _sweep(check, mean, attractive)
    seen = check.honest.mean(0)
    error = 4 * np.sqrt(seen * (1 - seen) / len(check.spins))
    missed = float((abs(seen - honest) - error).max())
    if missed > tolerance:
        raise ConfigError(f"ising: calibration missed the rates by more than {missed:.2g} > {tolerance:g}")
    return mean


def _sweep(chains: Chains, fields: Floats, attractive: bool) -> None:
    chains.heat_bath(fields)
    if attractive:
        chains.swendsen_wang(fields)
