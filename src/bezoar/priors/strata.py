r"""Honest sets drawn by number of bad clients, so that each number counts with its exact probability.

Rare numbers, which plain draws hardly ever see, get draws of their own wherever sets can be drawn given their number of
bad clients: for priors of independent blocks (rates, groups, small or tree-like graphs), for exchangeable ones, and for
mixtures of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior
from bezoar.priors.blocks import Block
from bezoar.priors.count import _Exchangeable
from bezoar.priors.family import Floats, Masks
from bezoar.priors.mixture import Mixture
from bezoar.seeding import numpy_generator

#: Draws that every possible number of bad clients gets at least.
_LEAST = 8
#: Numbers of bad clients less likely than this get no draws of their own.
_NEVER = 1e-15
#: Entries of the tables behind the draws.
_ENTRIES = 2**27

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Strata:
    r"""Drawn honest sets and what each counts.

    Attributes:
        honest: bool [k, n].
        weights: [k]; they add up to the probability of the numbers of bad clients that were drawn at all.
        law: whether the weights of each number of bad clients add up to its exact probability; else every draw counts
            1/k.
    """

    honest: Masks
    weights: Floats
    law: bool

    @property
    def unseen(self) -> float:
        """Probability of the numbers of bad clients that no draw had."""
        missing = 1 - float(self.weights.sum()) if self.law else 0.0
        return missing if missing > 1e-12 else 0.0

    def error(self, values: Floats) -> float:
        r"""The standard error of ``weights @ values``, values [k] being those of a function of the sets.

        With an exact law it is that within numbers of bad clients, :math:`\sum_q P(q)^2 s_q^2 / k_q`; a number that was
        drawn once is taken to vary as all draws together do. Infinite for a single draw.
        """
        if len(values) < 2:
            return np.inf
        overall = float(values.var(ddof=1))
        if not self.law:
            return float(np.sqrt(overall / len(values)))
        bad = (~self.honest).sum(1)
        total = 0.0
        for q in np.unique(bad):
            here = bad == q
            spread = float(values[here].var(ddof=1)) if here.sum() > 1 else overall
            total += float(self.weights[here].sum()) ** 2 * spread / int(here.sum())
        return float(np.sqrt(total))


def stratified(prior: HonestPrior, draws: int, seed: int) -> Strata:
    r"""About ``draws`` honest sets of ``prior``, weighted so that each number of bad clients counts as it should.

    Where sets can be drawn given that number (see above), every number gets its share of the draws, and eight at least,
    so that none is unseen. Elsewhere sets are drawn from the prior and weighted afterwards; where its law of
    \|B\| is not known, they all count the same.

    >>> from bezoar.priors import Independent
    >>> found = stratified(Independent(0.01, clients=12), draws=100, seed=0)
    >>> int((~found.honest).sum(1).max()), found.unseen
    (8, 0.0)
    """
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise ConfigError(f"stratified: draws must be a whole number >= 1, got {draws!r}")
    try:
        law = prior.bad_count()
    except ConfigError:
        honest = prior.sample(draws, seed)
        return Strata(honest, np.full(len(honest), 1 / len(honest)), False)
    counts = np.where(law > _NEVER, np.maximum(_LEAST, np.round(law * draws)), 0).astype(np.int64)
    rng = numpy_generator(seed, "honest sets by number")
    wanted = np.repeat(np.arange(len(law)), counts)
    found = drawn_given(prior, wanted, rng)
    honest = prior.sample(draws, seed) if found is None else found
    bad = (~honest).sum(1)
    counts = np.bincount(bad, minlength=len(law))
    return Strata(honest, np.asarray(law[bad] / counts[bad]), True)


def drawn_given(prior: HonestPrior, bad: Counts, rng: np.random.Generator) -> Masks | None:
    """Honest sets [k, n], set j drawn given that ``bad[j]`` clients are not in it; each number must be possible.

    None: this prior has no exact way to do that (or its tables would be too large).
    """
    n = prior._clients()
    if isinstance(prior, _Exchangeable):
        place = rng.random((len(bad), n)).argsort(1).argsort(1)
        return np.asarray(place >= bad[:, None])
    if isinstance(prior, Mixture):
        return _of_mixture(prior, bad, rng)
    try:
        blocks = prior._blocks()
    except ConfigError:
        return None
    if blocks is None or (len(blocks) + 1) * (int(bad.max(initial=0)) + 1) > _ENTRIES:
        return None
    return _of_blocks(blocks, n, bad, rng)


def _of_mixture(prior: Mixture, bad: Counts, rng: np.random.Generator) -> Masks | None:
    chances = prior._chances()
    laws = np.array([c * part.bad_count() for c, part in zip(chances, prior.parts, strict=True)])
    share = np.cumsum(laws[:, bad], axis=0)
    which = (rng.random(len(bad)) * share[-1] >= share).sum(0).clip(max=len(laws) - 1)
    honest = np.empty((len(bad), prior._clients()), dtype=np.bool_)
    for k, part in enumerate(prior.parts):
        here = which == k
        if here.any():
            found = drawn_given(part, bad[here], rng)
            if found is None:
                return None
            honest[here] = found
    return honest


def _of_blocks(blocks: list[Block], n: int, bad: Counts, rng: np.random.Generator) -> Masks:
    """From the last block to the first: its option given how many of the clients up to there are bad."""
    most = int(bad.max(initial=0))
    falls = [(~block.honest).sum(1) for block in blocks]
    chances = [np.exp(block.log_prob) for block in blocks]
    # laws[i] is that of the first i blocks.
    laws = np.zeros((len(blocks) + 1, most + 1))
    laws[0, 0] = 1.0
    for i, (fall, chance) in enumerate(zip(falls, chances, strict=True)):
        own = np.bincount(fall, chance)
        for k in np.flatnonzero(own[: most + 1]).tolist():
            laws[i + 1, k:] += laws[i, : most + 1 - k] * own[k]
    left = bad.astype(np.int64)
    honest = np.empty((len(bad), n), dtype=np.bool_)
    for i in range(len(blocks) - 1, -1, -1):
        before = left[:, None] - falls[i]
        weight = np.where(before >= 0, laws[i, np.maximum(before, 0)], 0.0) * chances[i]
        share = np.cumsum(weight, axis=1)
        option = (rng.random(len(left))[:, None] * share[:, -1:] >= share).sum(1).clip(max=len(falls[i]) - 1)
        honest[:, blocks[i].columns] = blocks[i].honest[option]
        left = left - falls[i][option]
    return honest
