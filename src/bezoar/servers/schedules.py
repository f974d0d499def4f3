"""Learning-rate schedules: pure functions of the round.

A round t of T is placed at x = (t - offset) / T. The ``offset`` 1/2, the middle of its share of the run, is the
default: a schedule that starts or ends at zero wastes no round. With offset 0 a round has the rate of its end (the
authors' code of SparseFed), with offset 1 that of its start, which is the rate of offset 0 one round late (its revision
of 2021-05).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from bezoar.errors import ConfigError
from bezoar.registry import Registry


def _positive(owner: str, name: str, value: float) -> None:
    if not 0 < value <= 1e30:
        raise ConfigError(f"{owner}: {name} must be a positive number of at most 1e30, got {value}")


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate for every round; ``offset`` says where in its share of the run a round is placed.

    >>> [Triangular(peak=1.0, peak_at=0.5, offset=o).at(1, 4) for o in (0.0, 0.5, 1.0)]
    [0.5, 0.25, 0.0]
    """

    offset: float = field(default=0.5, kw_only=True)

    added: ClassVar[tuple[str, ...]] = ("offset",)

    def _check(self, owner: str) -> None:
        if not 0 <= self.offset <= 1:
            raise ConfigError(f"{owner}: offset must be between 0 and 1, got {self.offset}")

    @abstractmethod
    def _at(self, x: float) -> float:
        """Rate at the share x of the run, 0 <= x <= 1."""

    def at(self, round: int, rounds: int) -> float:
        """Rate in round ``round`` (from 1) of ``rounds``."""
        return self._at((round - self.offset) / rounds)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate in every round.

    >>> Constant(0.1).at(3, 10)
    0.1
    """

    lr: float

    def __post_init__(self) -> None:
        self._check("constant")
        _positive("constant", "lr", self.lr)

    def _at(self, x: float) -> float:
        return self.lr


@dataclass(frozen=True)
class Triangular(Schedule):
    """From zero up to ``peak`` at the share ``peak_at`` of the run, then down to zero.

    >>> [round(Triangular(peak=0.2, peak_at=0.5).at(t, 4), 3) for t in (1, 2, 3, 4)]
    [0.05, 0.15, 0.15, 0.05]
    """

    peak: float
    peak_at: float = 0.2

    def __post_init__(self) -> None:
        self._check("triangular")
        _positive("triangular", "peak", self.peak)
        if not 0 < self.peak_at < 1:
            raise ConfigError(f"triangular: peak_at is a share of the run between 0 and 1, got {self.peak_at}")

    def _at(self, x: float) -> float:
        return self.peak * (x / self.peak_at if x < self.peak_at else (1 - x) / (1 - self.peak_at))


@dataclass(frozen=True)
class PiecewiseLinear(Schedule):
    """Straight lines between ``points`` (share of the run, rate), from share 0 to share 1.

    >>> PiecewiseLinear(((0.0, 0.0), (0.5, 1.0), (1.0, 1.0))).at(1, 4)
    0.25
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        self._check("piecewise-linear")
        shares = [share for share, _ in self.points]
        if len(shares) < 2 or shares[0] != 0 or shares[-1] != 1 or sorted(set(shares)) != shares:
            raise ConfigError(f"piecewise-linear: shares must rise from 0 to 1, got {shares}")
        if any(not 0 <= rate <= 1e30 for _, rate in self.points):
            raise ConfigError("piecewise-linear: rates must be between 0 and 1e30")

    def _at(self, x: float) -> float:
        for (left, low), (right, high) in zip(self.points, self.points[1:], strict=False):
            if x <= right:
                return low + (high - low) * (x - left) / (right - left)
        return self.points[-1][1]


@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up over the share ``warmup``, then half a cosine from ``peak`` down to ``final``.

    >>> round(Cosine(peak=1.0).at(2, 3), 3)
    0.5
    """

    peak: float
    final: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        self._check("cosine")
        _positive("cosine", "peak", self.peak)
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= self.peak:
            raise ConfigError("cosine: warmup is a share below 1 and final lies between 0 and peak")

    def _at(self, x: float) -> float:
        if x < self.warmup:
            return self.peak * x / self.warmup
        along = (x - self.warmup) / (1 - self.warmup)
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * along)) / 2


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {"constant": Constant, "triangular": Triangular, "piecewise-linear": PiecewiseLinear, "cosine": Cosine},
)
