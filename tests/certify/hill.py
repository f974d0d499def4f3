"""A search for inputs on which a rule does badly: a lower bound on its robustness constant, found by hill climbing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from bezoar.aggregation import Columnwise, Rule

#: Values of bad rows beside honest zeros and ones.
BAD = (-1e4, -30.0, -3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 31.0, 1e4)


@dataclass(frozen=True)
class Worst:
    """The largest ratio found, and the rows [n, d] that give it."""

    ratio: float
    rows: np.ndarray


@lru_cache(maxsize=64)
def honest_sets(n: int, q: int) -> np.ndarray:
    """All sets of n - q rows as 0/1 [sets, n]."""
    sets = np.ones((len(list(itertools.combinations(range(n), q))), n))
    for row, bad in enumerate(itertools.combinations(range(n), q)):
        sets[row, list(bad)] = 0.0
    return sets


def answers(rule: Rule, batch: np.ndarray) -> np.ndarray:
    """The rule's answers [b, d] to a batch of inputs [b, n, d]."""
    b, n, d = batch.shape
    if isinstance(rule, Columnwise):
        columns = torch.from_numpy(np.ascontiguousarray(batch.transpose(1, 0, 2).reshape(n, b * d)))
        return rule(columns).numpy().reshape(b, d)
    return np.stack([rule(torch.from_numpy(values)).numpy() for values in batch])


def ratios(rule: Rule, batch: np.ndarray, q: int) -> np.ndarray:
    """The largest ||F(x) - mean_S||^2 / Var_S over all S of size n - q, for every input of the batch [b]."""
    sets = honest_sets(batch.shape[1], q)
    size = sets[0].sum()
    # Seen from the answer the error of S is its mean, and squares stay small where they matter.
    seen = batch - answers(rule, batch)[:, None, :]
    means = np.einsum("sn,bnd->bsd", sets, seen, optimize=True) / size
    error, squares = (means**2).sum(2), (seen**2).sum(2) @ sets.T / size
    spread = squares - error
    # Below this, rounding of the answer or of the spread is all there is to see.
    floor = 1e-9 * squares + 1e-18 * (batch**2).sum(2).max(1)[:, None] + 1e-300
    return np.where(spread > floor, error / np.maximum(spread, floor), 0.0).max(1)


def starts(n: int, q: int, draws: np.random.Generator, many: int) -> np.ndarray:
    """Inputs [b, n, 3] to start from: all two-point sets on a line, then few-point sets and clouds in 1 to 3 D."""
    batch = []
    for ones, bad in itertools.product(range(n - q + 1), BAD):
        values = np.zeros((n, 3))
        values[:ones, 0] = 1.0
        values[n - q :, 0] = bad
        batch.append(values)
    for i in range(many):
        values = np.zeros((n, 3))
        d = 1 + i % 3
        if i % 2:
            values[:, :d] = draws.integers(-1, 2, (n, d))
        else:
            values[:, :d] = draws.standard_normal((n, d))
        if q:
            copies = draws.standard_normal(d) if draws.random() < 0.5 else draws.standard_normal((q, d))
            values[n - q :, :d] = copies * 10 ** draws.uniform(-1, 4)
        batch.append(values)
    return np.stack(batch)


def moved(batch: np.ndarray, q: int, draws: np.random.Generator) -> np.ndarray:
    """Every input with one small change: a row nudged, put onto another, or all bad rows moved together."""
    changed = batch.copy()
    b, n, _ = batch.shape
    for k in range(b):
        used = np.abs(batch[k]).sum(0) > 0
        kind, row, other = draws.random(), draws.integers(n), draws.integers(n)
        nudge = draws.standard_normal(3) * used * 10 ** draws.uniform(-4, 0.5)
        if kind < 0.2:
            changed[k, row] = batch[k, other]
        elif kind < 0.3:
            weight = draws.random()
            changed[k, row] = weight * batch[k, row] + (1 - weight) * batch[k, other]
        elif kind < 0.5 and q:
            bad = draws.permutation(n)[:q] if draws.random() < 0.3 else np.arange(n - q, n)
            changed[k, bad] = batch[k, bad] * 10 ** draws.uniform(-0.3, 0.3) + nudge
        elif kind < 0.75:
            changed[k, row, draws.integers(3)] += nudge.sum()
            changed[k] *= used
        else:
            changed[k, row] += nudge
    return changed


def worst(rule: Rule, n: int, q: int, *, steps: int = 60, chains: int = 12, seed: int = 0) -> Worst:
    """Climb from the ``chains`` best of many starts; every step keeps what did not get worse."""
    draws = np.random.default_rng(seed)
    batch = starts(n, q, draws, many=4 * chains)
    found = ratios(rule, batch, q)
    best = np.argsort(-found, kind="stable")
    # Half of the chains start from the best inputs, half from anywhere: the best may all lie on one hill.
    others = draws.choice(best[chains // 2 :], chains - chains // 2, replace=False)
    chosen = np.concatenate([best[: chains // 2], others])
    batch, found = batch[chosen], found[chosen]
    for _ in range(steps):
        trial = moved(batch, q, draws)
        value = ratios(rule, trial, q)
        better = value >= found
        batch[better], found[better] = trial[better], value[better]
    top = int(found.argmax())
    return Worst(float(found[top]), batch[top])
