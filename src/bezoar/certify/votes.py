"""Votes of many models: counts, majorities, bounds of unknown shares, and what a certificate says of every point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bezoar.errors import ConfigError

Counts = NDArray[np.int64]

#: The label, and the number of malicious clients, of a point about which nothing is promised.
ABSTAINED = -1

#: Quantiles are moved outwards by this share of themselves: far more than rounding, far less than matters.
_OUTWARD = 1e-12


@dataclass(frozen=True, eq=False)
class Certified:
    """What a certificate says of N points.

    Attributes:
        labels: the label of every point [N]; ``ABSTAINED`` where it could not be told with confidence.
        malicious: the largest m for which the label is the same whatever m clients do [N]; ``ABSTAINED`` where it
            could not be told, 0 where it could, but not a single malicious client is tolerated.
        confidence: the probability with which all that is said holds; 1.0 for a proof without chance.
    """

    labels: Counts
    malicious: Counts
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if self.labels.shape != self.malicious.shape or self.labels.ndim != 1:
            raise ConfigError(f"labels {self.labels.shape} and malicious {self.malicious.shape} must both be [N]")

    def accuracy(self, targets: ArrayLike, most: int | None = None) -> NDArray[np.float64]:
        """Certified accuracy for m = 0, 1, ..., most malicious clients: the share of all points whose label is the
        right one and stays. By default up to the first m for which it is 0. ``targets`` [N] are the true labels.

        >>> Certified(np.array([1, 0, 0]), np.array([2, 0, 1])).accuracy([1, 0, 1]).round(2).tolist()
        [0.67, 0.33, 0.33, 0.0]
        """
        right = self.malicious[self.labels == _targets(targets, self.labels)]
        last = int(right.max(initial=ABSTAINED)) + 1 if most is None else most
        reached = len(right) - np.searchsorted(np.sort(right), np.arange(last + 1))
        return reached / max(1, len(self.labels))


def _targets(targets: ArrayLike, labels: Counts) -> Counts:
    found = np.asarray(targets)
    if found.shape != labels.shape or found.dtype.kind not in "iu":
        raise ConfigError(f"targets must be one whole number a point [{len(labels)}], got {found.dtype} {found.shape}")
    return found.astype(np.int64)


def count_votes(votes: ArrayLike, classes: int) -> Counts:
    """The number of votes that every class gets [N, C], from ``votes`` [S, N]: the class that each of S models gives.

    Raises ConfigError unless there are at least two classes, a model, a point, and all votes are classes.

    >>> count_votes([[0, 1], [0, 2], [1, 2]], classes=3).tolist()
    [[2, 1, 0], [0, 1, 2]]
    """
    given = check_votes(votes, classes)
    points = given.shape[1]
    flat = given + classes * np.arange(points)
    return np.bincount(flat.reshape(-1), minlength=points * classes).reshape(points, classes).astype(np.int64)


def check_votes(votes: ArrayLike, classes: int) -> Counts:
    """``votes`` [S, N] as int64. Raises ConfigError if they are none."""
    given = np.asarray(votes)
    if classes < 2:
        raise ConfigError(f"classes must be at least 2, got {classes}")
    if given.ndim != 2 or given.dtype.kind not in "iu" or given.size == 0:
        raise ConfigError(f"votes must be whole numbers [models, points], got {given.dtype} {list(given.shape)}")
    if given.min() < 0 or given.max() >= classes:
        raise ConfigError(f"votes must be classes 0..{classes - 1}, got {int(given.min())}..{int(given.max())}")
    return given.astype(np.int64)


def check_counts(counts: ArrayLike) -> tuple[Counts, int]:
    """``counts`` [N, C] as int64, and the number of votes of a point. Raises ConfigError if they are none."""
    given = np.asarray(counts)
    if given.ndim != 2 or given.dtype.kind not in "iu" or given.shape[0] < 1 or given.shape[1] < 2:
        raise ConfigError(
            f"counts must be whole numbers [points, classes], 2 classes at least, got {given.dtype} {list(given.shape)}"
        )
    sums = given.sum(axis=1)
    if given.min() < 0 or sums.min() != sums.max() or sums[0] < 1:
        raise ConfigError("counts must be numbers >= 0, with the same number of votes, at least one, for every point")
    return given.astype(np.int64), int(sums[0])


def check_alpha(alpha: float) -> None:
    """Raise ConfigError unless ``alpha`` is a probability that leaves some confidence."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be between 0 and 1, got {alpha}")


def majority(counts: Counts) -> Counts:
    """The class with the most votes [N]; of equal ones the lowest."""
    return np.asarray(counts.argmax(axis=1), dtype=np.int64)


def leads(counts: Counts, labels: Counts) -> Counts:
    """By how many votes the label beats every class [N, C], one less where a tie would go to that class.

    A label keeps winning as long as no lead has been spent beyond 0. The label's own lead is the largest integer.
    """
    rows, rivals = np.arange(len(counts)), np.arange(counts.shape[1])
    lead = counts[rows, labels][:, None] - counts - (rivals[None, :] < labels[:, None])
    lead[rows, labels] = np.iinfo(np.int64).max
    return lead


def share_bounds(counts: Counts, total: int, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clopper-Pearson bounds of unknown shares from ``counts`` of ``total`` independent draws: (lower, upper).

    Each of them is wrong with probability ``alpha`` at most.

    >>> lower, upper = share_bounds(np.array([0, 10]), 10, 0.05)
    >>> lower.round(4).tolist(), upper.round(4).tolist()
    ([0.0, 0.7411], [0.2589, 1.0])
    """
    from scipy.special import betaincinv

    check_alpha(alpha)
    hits, misses = counts.astype(np.float64), (total - counts).astype(np.float64)
    with np.errstate(all="ignore"):
        lower = np.where(hits > 0, betaincinv(np.maximum(hits, 1), misses + 1, alpha), 0.0)
        beyond = np.where(misses > 0, betaincinv(np.maximum(misses, 1), hits + 1, alpha), 0.0)
    upper = np.where(misses > 0, np.nextafter(1 - beyond * (1 - _OUTWARD), 2.0), 1.0)
    return lower * (1 - _OUTWARD), np.minimum(upper, 1.0)


def label_bounds(
    counts: Counts, labels: Counts, alpha: float, joint: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds that hold together with probability 1 - alpha: of the label's share from below [N], of every other
    class's from above [N, C] (0 for the label itself).

    ``labels`` may have been read off the same counts: each class is bounded from below and from above, 2 C bounds a
    point, whichever of them are used. With ``joint`` they hold for all points together, else for each point by itself.
    """
    check_alpha(alpha)
    points, classes = counts.shape
    lower, upper = share_bounds(counts, int(counts[0].sum()), alpha / (2 * classes * (points if joint else 1)))
    rows = np.arange(points)
    least = lower[rows, labels]
    most = np.minimum(upper, np.nextafter(1 - least, 2.0)[:, None])
    most[rows, labels] = 0.0
    return least, most
