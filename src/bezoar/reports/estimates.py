"""A mean over seeds and what it is worth: Student's t interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """The mean of ``n`` seeds, the half width of its 95% interval (None for one seed), the least and the greatest.

    NaN and infinity are not dropped: a seed that diverged stays visible in the mean.

    >>> Estimate.of([1.0, 2.0, 3.0])
    Estimate(mean=2.0, half=2.484..., low=1.0, high=3.0, n=3)
    """

    mean: float
    half: float | None
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        """The estimate from one value per seed; None values do not apply and are left out; None if nothing is left."""
        known = [float(value) for value in values if value is not None]
        n = len(known)
        if not n:
            return None
        if not all(map(math.isfinite, known)):
            mean = sum(known) / n
            return cls(mean, math.nan if n > 1 else None, mean, mean, n)
        mean = math.fsum(known) / n
        half = None
        if n > 1:
            variance = math.fsum((value - mean) ** 2 for value in known) / (n - 1)
            half = student_t(n - 1) * math.sqrt(variance / n)
        return cls(mean, half, min(known), max(known), n)

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals touch; True if one of them is not known."""
        if self.half is None or other.half is None:
            return True
        return not abs(self.mean - other.mean) > self.half + other.half


def student_t(df: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t: P(|T| <= t) = confidence.

    For whole degrees of freedom the distribution has a closed form (Abramowitz and Stegun 26.7.3 and 26.7.4),
    so that a report does not pay for importing scipy.stats.

    >>> round(student_t(2), 4)
    4.3027
    """
    if df < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {df}")
    low, high = 0.0, math.pi / 2  # bisect the angle atan(t / sqrt(df)): it is bounded, t is not
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < confidence else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(df)


def _within(angle: float, df: int) -> float:
    """P(|T| <= t) at t = sqrt(df) tan(angle)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = df % 2
    term = cosine if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if odd else 2, df, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
