"""How likely candidate honest sets are once their rows have been seen, from squared distances alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bezoar.priors.family import Floats, Masks

#: A scale below this is none: all rows of every set are equal.
TINY = 1e-300
#: Sets of half of the rows or fewer must be as likely as this to begin with, or they do not set the first scale.
LIKELY = 0.01


@dataclass(frozen=True)
class Model:
    r"""The likelihood: :math:`\exp(-\tfrac\beta2 (R_S/s^2 + c |B_S|))`, s^2 fitted in ``steps`` steps.

    ``beta`` says how many coordinates count (tempering), ``exclusion`` (c) what a bad client costs, in units of s^2.
    ``sybils`` is what two rows of a set cost that are much closer than honest ones would be.
    """

    beta: float
    exclusion: float
    steps: int
    sybils: float = 0.0


@dataclass(frozen=True, eq=False)
class Posterior:
    """Probabilities of the sets [K], the scale s^2, and the log-likelihoods at that scale [K]."""

    p: Floats
    scale: float
    log_likelihood: Floats


def counted(members: Floats) -> Floats:
    """Number of rows of each set [K], of 0 and 1 [K, m]: as a product, many times as fast as the sum of short rows."""
    return np.asarray(members @ np.ones(members.shape[1]))


def scatter(distances: Floats, honest: Masks) -> Floats:
    r"""R_S = sum over S of the squared distances from its mean [K]: half the mean sum of distances within S."""
    members = honest.astype(np.float64)
    sizes = counted(members)
    pairs = np.einsum("ki,ki->k", members @ distances, members)
    found: Floats = np.divide(pairs, 2 * sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    return found


def twins(distances: Floats, honest: Masks, scale: float) -> Floats:
    """How many pairs within each set are closer than honest rows of this scale would be [K].

    Honest rows differ by 2 s^2 in the mean. A pair counts as one if it is equal, and not at all from a tenth of 2 s^2.
    """
    near = np.clip(1 - distances / (0.1 * 2 * scale), 0.0, 1.0)
    np.fill_diagonal(near, 0.0)
    members = honest.astype(np.float64)
    found: Floats = np.einsum("ki,ki->k", members @ near, members) / 2
    return found


def first_scale(r: Floats, sizes: Floats, m: int, log_prior: Floats) -> float:
    """The least positive R_S/(|S|-1) of sets of two or more of m rows; 0 if there is none.

    Sets count that hold more than half of the rows, or that are likely without them (:data:`LIKELY`); others only if
    there is no such. Otherwise any two rows that nearly agree would say how much honest ones vary, wherever the prior
    gives some chance that these two are all that is honest.
    """
    found = np.divide(r, sizes - 1, out=np.full(len(r), np.inf), where=(sizes > 1) & (r > 0))
    known = found[(2 * sizes > m) | (normalised_exp(log_prior) >= LIKELY)]
    least = float(known.min(initial=np.inf))
    least = least if math.isfinite(least) else float(found.min())
    return least if math.isfinite(least) else 0.0


def normalised_exp(logs: Floats) -> Floats:
    """exp of ``logs``, over its sum."""
    p = np.exp(logs - logs.max())
    return np.asarray(p / p.sum())


def posterior(
    distances: Floats, honest: Masks, log_prior: Floats, model: Model, known: tuple[Floats, float] | None = None
) -> Posterior:
    r"""The posterior of the sets ``honest`` [K, m], none of them empty, with ``log_prior`` [K] up to a constant.

    .. math:: \pi_S \propto \mu(S) e^{-\frac\beta2 (R_S/s^2 + c|B_S|)},\quad
        s^2 \leftarrow \frac{\sum_S \pi_S R_S}{\sum_S \pi_S (|S| - 1)}

    s^2 starts at the least R_S/(|S|-1) of sets that may say so (:func:`first_scale`). ``distances`` [m, m] are squared.
    ``known`` is a past log-likelihood [K] and how much it counts against the new one (the temporal form): both enter
    the posterior and the fit of s^2.
    """
    sizes = counted(honest.astype(np.float64))
    bad = honest.shape[1] - sizes
    r = scatter(distances, honest)
    scale = first_scale(r, sizes, honest.shape[1], log_prior)
    if scale <= TINY:
        # All rows of all sets agree: there is nothing to be learnt from them but how many are left out.
        loglik = -0.5 * model.beta * model.exclusion * bad
        return Posterior(normalised_exp(log_prior + _with(known, loglik)), scale, _with(known, loglik))
    p, logs = np.zeros(len(r)), np.zeros(len(r))
    for step in range(model.steps + 1):
        cost = r / scale + model.exclusion * bad
        if model.sybils:
            cost = cost + model.sybils * twins(distances, honest, scale)
        logs = _with(known, -0.5 * model.beta * cost)
        p = normalised_exp(log_prior + logs)
        degrees = float(p @ (sizes - 1))
        if step == model.steps or degrees <= 0:
            break
        fitted = float(p @ r) / degrees
        scale = fitted if math.isfinite(fitted) and fitted > TINY else scale
    return Posterior(p, scale, logs)


def _with(known: tuple[Floats, float] | None, fresh: Floats) -> Floats:
    if known is None:
        return fresh
    past, share = known
    return share * past + (1 - share) * fresh
