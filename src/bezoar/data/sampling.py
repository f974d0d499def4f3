"""Who takes part in a round, and who is malicious: pure functions of the seed and the round."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from bezoar.data._checks import number, whole
from bezoar.data.dataset import Indices
from bezoar.errors import ConfigError
from bezoar.registry import Registry
from bezoar.seeding import numpy_generator


class Sampling(Protocol):
    """How the cohort of a round is drawn."""

    @property
    def cohort(self) -> int:
        """Clients per round."""

    def draw(
        self,
        n_clients: int,
        round: int,
        seed: int,
        compromised: Indices | None = None,
        per_round: int | None = None,
        held: Indices | None = None,
    ) -> Indices:
        """The client ids of one round, sorted, int64 [cohort].

        ``held`` [n] is how many samples every client holds, for samplings that ask.
        """

    def plays(self, drawn: int) -> bool:
        """Whether a round with ``drawn`` clients takes place."""


@dataclass(frozen=True)
class UniformSampling:
    """Every round draws ``cohort`` clients uniformly, without replacement, whatever earlier rounds drew.

    >>> UniformSampling(3).draw(n_clients=3, round=0, seed=0)
    array([0, 1, 2])
    """

    cohort: int

    def __post_init__(self) -> None:
        whole("cohort", self.cohort)

    def plays(self, drawn: int) -> bool:
        """Always."""
        return True

    def draw(
        self,
        n_clients: int,
        round: int,
        seed: int,
        compromised: Indices | None = None,
        per_round: int | None = None,
        held: Indices | None = None,
    ) -> Indices:
        """The client ids of one round, sorted, int64 [cohort].

        With ``per_round=m`` exactly m of them come from ``compromised`` and the others from the rest. Raises
        ConfigError if there are fewer clients of a kind than asked for.
        """
        _check_cohort(self.cohort, n_clients)
        rng = numpy_generator(seed, "cohort", round)
        if per_round is None:
            return np.sort(rng.choice(n_clients, self.cohort, replace=False))
        bad = _unique_ids(compromised, n_clients)
        good = n_clients - len(bad)
        most, least = min(self.cohort, len(bad)), max(0, self.cohort - good)
        if not least <= whole("per_round", per_round, 0) <= most:
            raise ConfigError(
                f"per_round={per_round} is impossible with {len(bad)} compromised of {n_clients} clients and "
                f"cohort={self.cohort}: {least}..{most} would do"
            )
        drawn = bad[rng.choice(len(bad), per_round, replace=False)] if per_round else bad[:0]
        others = np.delete(np.arange(n_clients), bad)[rng.choice(good, self.cohort - per_round, replace=False)]
        return np.sort(np.concatenate([drawn, others]))


@dataclass(frozen=True)
class EpochSampling:
    """Every client takes part once per epoch, in an order drawn anew for every epoch.

    An epoch has ceil(n / cohort) rounds; its last cohort is smaller where ``cohort`` does not divide n.

    Three options are how the authors' code of SparseFed samples. With ``batch_size`` b a client that holds m samples
    takes part up to ceil(m / b) times in an epoch: every round draws its cohort uniformly from the clients that have
    samples left, until nobody has, or for ``epoch_rounds`` rounds (there the schedule's rounds per epoch plus one).
    Attackers are counted with the aux points of their attack: with 500 of them and b = 5 they are hardly ever used up,
    and their share of the cohorts rises through the epoch. With ``skip_tail`` rounds with fewer than ``cohort`` clients
    do not take place; the schedule of the learning rate goes on.

    >>> [EpochSampling(2).draw(n_clients=3, round=r, seed=0).tolist() for r in (0, 1)]
    [[1, 2], [0]]
    """

    cohort: int
    batch_size: int = 0
    epoch_rounds: int = 0
    skip_tail: bool = False

    added: ClassVar[tuple[str, ...]] = ("batch_size", "epoch_rounds", "skip_tail")

    def __post_init__(self) -> None:
        whole("cohort", self.cohort)
        whole("batch_size", self.batch_size, 0)
        if whole("epoch_rounds", self.epoch_rounds, 0) and not self.batch_size:
            raise ConfigError("epoch_rounds ends epochs in which clients take part by batch_size: set batch_size")

    def plays(self, drawn: int) -> bool:
        """Whether a round with ``drawn`` clients takes place."""
        return drawn == self.cohort or not self.skip_tail

    def rounds_per_epoch(self, n_clients: int) -> int:
        """Rounds until every client has taken part once (without ``batch_size``)."""
        return -(-n_clients // self.cohort)

    def draw(
        self,
        n_clients: int,
        round: int,
        seed: int,
        compromised: Indices | None = None,
        per_round: int | None = None,
        held: Indices | None = None,
    ) -> Indices:
        """The client ids of one round, sorted, int64 [cohort] or less in the last rounds of an epoch.

        ``per_round`` would break "once per epoch" and is refused with a ConfigError, and so is ``batch_size`` without
        ``held``.
        """
        _check_cohort(self.cohort, n_clients)
        if per_round is not None:
            raise ConfigError("per_round needs sampling = 'uniform': in an epoch each client takes part exactly once")
        if self.batch_size:
            if held is None or len(held) != n_clients:
                raise ConfigError(f"batch_size={self.batch_size} needs the number of samples of every client, held")
            return self._drawn_by_samples(round, seed, held)
        epoch, step = divmod(round, self.rounds_per_epoch(n_clients))
        order = _epoch_order(n_clients, epoch, seed)
        return np.sort(order[step * self.cohort : (step + 1) * self.cohort])

    def _drawn_by_samples(self, round: int, seed: int, held: Indices) -> Indices:
        """The cohort where clients take part as long as they have samples left."""
        turns = -(-np.asarray(held, dtype=np.int64) // self.batch_size)
        if not turns.any():
            raise ConfigError("no client holds a sample")
        key, epoch = turns.tobytes(), 0
        while round >= len(cohorts := _epoch_by_samples(key, self.cohort, self.epoch_rounds, epoch, seed)):
            round, epoch = round - len(cohorts), epoch + 1
        return cohorts[round]


#: Name in a config -> way of sampling.
SAMPLINGS: Registry[Sampling] = Registry("sampling", {"uniform": UniformSampling, "epoch": EpochSampling})


def compromised(
    n_clients: int, *, count: int | None = None, share: float | None = None, seed: int, last: bool = False
) -> Indices:
    """The ids of the malicious clients, sorted, int64; give either their ``count`` or their ``share`` of all
    (to the nearest whole client).

    Drawn from the seed: ids are often ordered by class, so that the ``last`` ones, which the authors' code of SparseFed
    takes, remove much of one class. With one seed a smaller set is part of every larger one, which pairs the runs of a
    sweep. Raises ConfigError if there are
    fewer clients than that, or if a positive share is less than one client.

    >>> set(compromised(50, count=3, seed=1)) < set(compromised(50, share=0.1, seed=1))
    True
    """
    whole("n_clients", n_clients)
    if (count is None) == (share is None):
        raise ConfigError("give exactly one of count and share of compromised clients")
    if share is not None:
        number("share", share, 0.0, 1.0)
        count = round(share * n_clients)
        if share and not count:
            raise ConfigError(
                f"share={share:g} of {n_clients} clients is less than one: use at least {1 / n_clients:g}"
            )
    assert count is not None
    if whole("count", count, 0) > n_clients:
        raise ConfigError(f"count={count} compromised clients of {n_clients}: at most {n_clients}")
    if last:
        return np.arange(n_clients - count, n_clients, dtype=np.int64)
    return np.sort(numpy_generator(seed, "compromised").permutation(n_clients)[:count])


@functools.lru_cache(maxsize=4)
def _epoch_order(n_clients: int, epoch: int, seed: int) -> Indices:
    """Drawn once an epoch, not once a round; read-only because it is shared."""
    order = numpy_generator(seed, "epoch", epoch).permutation(n_clients)
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=256)
def _epoch_by_samples(turns: bytes, cohort: int, most: int, epoch: int, seed: int) -> tuple[Indices, ...]:
    """The cohorts of an epoch in which client i takes part up to ``turns[i]`` times, at most ``most`` of them (0: all).

    Read-only because they are shared.
    """
    left = np.frombuffer(turns, dtype=np.int64).copy()
    rng = numpy_generator(seed, "epoch", epoch)
    cohorts: list[Indices] = []
    while len(able := np.flatnonzero(left)) and not (most and len(cohorts) == most):
        drawn = np.sort(rng.choice(able, min(cohort, len(able)), replace=False))
        drawn.setflags(write=False)
        left[drawn] -= 1
        cohorts.append(drawn)
    return tuple(cohorts)


def _check_cohort(cohort: int, n_clients: int) -> None:
    if cohort > whole("n_clients", n_clients):
        raise ConfigError(f"cohort={cohort} of {n_clients} clients: at most {n_clients}")


def _unique_ids(ids: Indices | None, n_clients: int) -> Indices:
    if ids is None:
        raise ConfigError("per_round needs the ids of the compromised clients")
    bad = np.unique(np.asarray(ids, dtype=np.int64))
    if len(bad) and (bad[0] < 0 or bad[-1] >= n_clients):
        raise ConfigError(f"compromised clients must be in 0..{n_clients - 1}")
    return bad
