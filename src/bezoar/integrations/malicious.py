"""Which clients of a federation are malicious, and in which rounds they attack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bezoar.data.sampling import compromised
from bezoar.errors import ConfigError


@dataclass(frozen=True)
class Malicious:
    """Who is malicious, and when: exactly the ``clients`` listed, or so many of all as ``count`` or ``share`` say.

    Those are drawn from ``seed``, as the simulator draws them: partition ids are often ordered by class, and the first
    of them are no fair sample. Attacks run every ``every`` rounds from round ``start`` to round ``stop`` (both
    included; None: to the end).

    Attributes:
        clients: partition ids.
        count: how many.
        share: which share, to the nearest whole client.
        seed: of the draw.
        n: clients in the federation; None: as many as the one who asks knows of.
        start, stop, every: see above.

    Raises:
        ConfigError: not exactly one of ``clients``, ``count`` and ``share``, or numbers that can not be meant.

    >>> Malicious(share=0.3, seed=1).of(10)
    (0, 4, 8)
    >>> [t for t in range(1, 8) if Malicious(clients=(0,), start=2, every=2).active(t)]
    [2, 4, 6]
    """

    clients: tuple[int, ...] | None = None
    count: int | None = None
    share: float | None = None
    seed: int = 0
    n: int | None = None
    start: int = 1
    stop: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        given = [name for name in ("clients", "count", "share") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "say who is malicious by exactly one of clients, count and share, "
                f"got {' and '.join(given) or 'none of them'}"
            )
        ids = self.clients or ()
        if any(not isinstance(i, int) or i < 0 for i in ids) or len(set(ids)) < len(ids):
            raise ConfigError(f"malicious clients must be different partition ids >= 0, got {list(ids)}")
        if self.start < 1 or self.every < 1 or (self.stop is not None and self.stop < self.start):
            raise ConfigError(
                "attacks start in round 1 or later, stop no earlier, and come every round or less often: got "
                f"start={self.start}, stop={self.stop}, every={self.every}"
            )
        if self.n is not None:
            self.of(self.n)

    def of(self, n: int) -> tuple[int, ...]:
        """Their partition ids, ascending, in a federation of ``n`` clients (not asked if :attr:`n` is given).

        Raises:
            ConfigError: there are fewer clients than that.
        """
        n = self.n or n
        if self.clients is None:
            return tuple(compromised(n, count=self.count, share=self.share, seed=self.seed).tolist())
        if self.clients and max(self.clients) >= n:
            raise ConfigError(f"client {max(self.clients)} can not be malicious: the {n} clients are 0..{n - 1}")
        return tuple(sorted(self.clients))

    def active(self, round: int) -> bool:
        """Whether they attack in ``round``."""
        inside = self.start <= round and (self.stop is None or round <= self.stop)
        return inside and (round - self.start) % self.every == 0


def as_malicious(who: Malicious | Iterable[int]) -> Malicious:
    """Who is malicious, from that or from partition ids."""
    return who if isinstance(who, Malicious) else Malicious(clients=tuple(who))
