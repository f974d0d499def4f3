"""Ways to divide a data set over clients. Each is a small frozen dataclass; :func:`partition` applies one.

A partition turns labels into an owner for each sample. Everything is arrays: 100,000 clients cost milliseconds and
megabytes. Names follow ByzFL and flwr-datasets where those have one; each class says which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import PlainSerializer

from bezoar.data._checks import number, whole
from bezoar.data.dataset import Dataset, Indices
from bezoar.data.federation import Federation
from bezoar.errors import ConfigError, nearest
from bezoar.registry import Registry
from bezoar.seeding import numpy_generator


class Partition(ABC):
    """A rule that gives every client its samples."""

    @abstractmethod
    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """(sizes [n], indices [sum of sizes]): client after client. Raises ConfigError if it can not be done."""


@dataclass(frozen=True)
class Iid(Partition):
    """Samples in random order, dealt evenly: sizes differ by one at most, or are ``samples`` each if given.

    flwr-datasets: IidPartitioner (with a shuffled data set). ByzFL: iid.
    """

    clients: int
    samples: int | None = None
    min_samples: int = 1

    def __post_init__(self) -> None:
        whole("clients", self.clients)
        whole("min_samples", self.min_samples, 0)
        if self.samples is not None:
            whole("samples", self.samples)

    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """Sizes and indices; see :class:`Partition`."""
        total = len(dataset.train)
        if self.samples is None:
            _enough(dataset, self.clients, self.min_samples)
            return _even(total, self.clients), rng.permutation(total)
        wanted = self.clients * self.samples
        if wanted > total:
            raise ConfigError(
                f"clients={self.clients} with samples={self.samples} need {wanted} samples, {dataset.name} has "
                f"{total}: at most {total // self.samples} clients or {total // self.clients} samples each"
            )
        return np.full(self.clients, self.samples), rng.permutation(total)[:wanted]


@dataclass(frozen=True)
class OneClass(Partition):
    """Each client holds ``samples`` samples of one class; client i has class i mod K of the K classes.

    The cross-device setting of SparseFed: 10,000 clients with 6 samples of Fashion-MNIST or 5 of CIFAR-10.
    flwr-datasets: PathologicalPartitioner(num_classes_per_partition=1) with clients of equal size.
    """

    clients: int
    samples: int

    def __post_init__(self) -> None:
        whole("clients", self.clients)
        whole("samples", self.samples)

    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """Sizes and indices; see :class:`Partition`."""
        labels, kinds = _labels(dataset), len(dataset.classes)
        per_class = _even(self.clients, kinds)
        have = np.bincount(labels, minlength=kinds)
        short = np.flatnonzero(per_class * self.samples > have)
        if len(short):
            used = per_class > 0
            # Client i has class i mod K: the first class that runs out bounds the number of clients.
            most = int((have // self.samples * kinds + np.arange(kinds)).min())
            raise ConfigError(
                f"clients={self.clients} with samples={self.samples} need {per_class[short[0]] * self.samples} samples "
                f"of class {dataset.classes[short[0]]!r}, {dataset.name} has {have[short[0]]}: at most {most} clients "
                f"with samples={self.samples}, or at most samples={(have[used] // per_class[used]).min()}"
            )
        indices = np.empty((self.clients, self.samples), dtype=np.int64)
        for kind in range(kinds):
            mine = rng.permutation(np.flatnonzero(labels == kind))[: per_class[kind] * self.samples]
            indices[kind::kinds] = mine.reshape(-1, self.samples)
        return np.full(self.clients, self.samples), indices.reshape(-1)


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each class is cut in shares p ~ Dir(alpha, ..., alpha) over the clients; a small ``alpha`` is uneven.

    Clients left with less than ``min_samples`` are topped up by the richest: the largest clients are cut down to one
    common size (the lowest ids by one more where that does not come out even), each giving a random part of what it
    has, and what they give fills the poor clients in the order of their ids. flwr-datasets draws again instead, and
    fails for many clients: DirichletPartitioner(self_balancing=False). ByzFL: dirichlet_niid.
    """

    clients: int
    alpha: float
    min_samples: int = 1

    def __post_init__(self) -> None:
        whole("clients", self.clients)
        whole("min_samples", self.min_samples, 0)
        number("alpha", self.alpha, 0.0, 1e12, open_low=True)

    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """Sizes and indices; see :class:`Partition`."""
        _enough(dataset, self.clients, self.min_samples)
        labels = _labels(dataset)
        owners = np.empty(len(labels), dtype=np.int64)
        for kind in range(len(dataset.classes)):
            mine = rng.permutation(np.flatnonzero(labels == kind))
            ends = np.cumsum(rng.dirichlet(np.full(self.clients, float(self.alpha))))
            # The last end is 1 up to rounding, or less where a tiny alpha underflows: scale, so that nothing is left.
            cuts = np.rint(ends / ends[-1] * len(mine)).astype(np.int64)
            owners[mine] = np.repeat(np.arange(self.clients), np.diff(cuts, prepend=0))
        order = rng.permutation(len(labels))
        indices = order[np.argsort(owners[order], kind="stable")]
        return _top_up(np.bincount(owners, minlength=self.clients), indices, self.min_samples)


@dataclass(frozen=True)
class Similarity(Partition):
    """A share ``gamma`` of the samples is dealt at random, the rest sorted by label and cut in equal pieces.

    Sizes differ by one at most. gamma = 1 is :class:`Iid`, gamma = 0 is :class:`Sorted`. ByzFL: gamma_similarity_niid.
    """

    clients: int
    gamma: float

    def __post_init__(self) -> None:
        whole("clients", self.clients)
        number("gamma", self.gamma, 0.0, 1.0)

    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """Sizes and indices; see :class:`Partition`."""
        _enough(dataset, self.clients, 1)
        order, labels = rng.permutation(len(dataset.train)), _labels(dataset)
        dealt = round(self.gamma * len(order))
        rest = order[dealt:]
        rest = rest[np.argsort(labels[rest], kind="stable")]
        sizes, first = _even(len(order), self.clients), _even(dealt, self.clients)
        owners = np.concatenate([np.repeat(np.arange(self.clients), s) for s in (first, sizes - first)])
        return sizes, np.concatenate([order[:dealt], rest])[np.argsort(owners, kind="stable")]


@dataclass(frozen=True)
class Sorted(Partition):
    """Samples sorted by label (at random inside a class) and cut in equal pieces: the extreme case.

    ByzFL: extreme_niid. flwr-datasets: ShardPartitioner with one shard per client.
    """

    clients: int

    def __post_init__(self) -> None:
        whole("clients", self.clients)

    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """Sizes and indices; see :class:`Partition`."""
        return Similarity(self.clients, 0.0).divide(dataset, rng)


@dataclass(frozen=True)
class Natural(Partition):
    """One client per group of ``column`` (a writer, a role, a hospital), in the order of the group ids.

    With ``split`` each group's samples are dealt at random to that many clients, devices of one user, whose sizes
    differ by one at most and whose ids follow each other: SparseFed's FEMNIST has 35,000 devices of 3,500 users. Every
    client has ``min_samples`` at least: a group too small for that becomes fewer devices, or is left out if it can not
    fill one. Without ``split`` nothing is drawn: the seed does not matter.
    flwr-datasets: NaturalIdPartitioner (without ``split``).
    """

    column: str
    min_samples: int = 1
    # Left out of tables at its default: experiments from before it existed keep their hashes.
    split: Annotated[int, PlainSerializer(lambda devices: None if devices == 1 else devices)] = 1

    def __post_init__(self) -> None:
        whole("min_samples", self.min_samples)
        whole("split", self.split)
        if not isinstance(self.column, str):
            raise ConfigError(f"column must be a name, got {self.column!r}")

    def divide(self, dataset: Dataset, rng: Generator) -> tuple[Indices, Indices]:
        """Sizes and indices; see :class:`Partition`."""
        if self.column not in dataset.natural:
            known = nearest(self.column, dataset.natural) if dataset.natural else "it has no natural groups"
            raise ConfigError(f"column {self.column!r} is unknown in {dataset.name}: {known}")
        _, owners, sizes = np.unique(dataset.natural[self.column], return_inverse=True, return_counts=True)
        devices = np.minimum(self.split, sizes // self.min_samples)
        if not devices.any():
            raise ConfigError(
                f"min_samples={self.min_samples} leaves no client: the largest {self.column} has {sizes.max()} samples"
            )
        order = np.arange(len(owners)) if self.split == 1 else rng.permutation(len(owners))
        order = order[np.argsort(owners[order], kind="stable")]
        group = np.repeat(np.arange(len(devices)), devices)
        place = np.arange(len(group)) - np.repeat(np.cumsum(devices) - devices, devices)
        share, rest = sizes[group] // devices[group], sizes[group] % devices[group]
        return share + (place < rest), order[devices[owners[order]] > 0]


#: Name in a config -> kind of partition.
PARTITIONS: Registry[Partition] = Registry(
    "partition",
    {
        "iid": Iid,
        "one-class": OneClass,
        "dirichlet": Dirichlet,
        "similarity": Similarity,
        "sorted": Sorted,
        "natural": Natural,
    },
)


def partition(dataset: Dataset, kind: Partition, seed: int) -> Federation:
    """Divide the train samples of ``dataset`` over clients. The same seed gives the same division.

    Raises ConfigError, with what would be possible, if the data set can not be divided so.
    """
    sizes, indices = kind.divide(dataset, numpy_generator(seed, f"partition {PARTITIONS.name(kind)}"))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Federation(dataset, offsets.astype(np.int64), indices.astype(np.int64, copy=False))


def _labels(dataset: Dataset) -> NDArray[np.int64]:
    return np.asarray(dataset.train.targets.cpu().numpy())


def _even(total: int, parts: int) -> Indices:
    """Sizes that differ by one at most, the larger first (as np.array_split)."""
    return total // parts + (np.arange(parts) < total % parts).astype(np.int64)


def _enough(dataset: Dataset, clients: int, min_samples: int) -> None:
    total = len(dataset.train)
    if clients * min_samples > total:
        raise ConfigError(
            f"clients={clients} with min_samples={min_samples} need {clients * min_samples} samples, "
            f"{dataset.name} has {total}: at most {total // min_samples} clients, or a smaller min_samples where the "
            "partition has that option (0 allows clients without samples)"
        )


def _top_up(counts: Indices, indices: Indices, least: int) -> tuple[Indices, Indices]:
    """Move samples from the largest clients to those with less than ``least``.

    ``indices`` lists the samples client by client, in random order within each.
    """
    lack = np.maximum(least - counts, 0)
    missing = int(lack.sum())
    if not missing:
        return counts, indices
    low, high = least, int(counts.max())
    while low < high:  # the highest common size at which the largest clients free enough samples
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(counts - level, 0).sum() >= missing else (low, level - 1)
    spare = np.maximum(counts - low, 0)
    # Cutting down to this size may free a few too many: the last donors keep one more each.
    donors = np.flatnonzero(spare)
    too_many = int(spare.sum()) - missing
    spare[donors[len(donors) - too_many :]] -= 1
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(indices)) - np.repeat(starts, counts)
    owners = np.repeat(np.arange(len(counts)), counts)
    given = rank >= np.repeat(counts - spare, counts)
    owners[given] = np.repeat(np.arange(len(counts)), lack)
    return counts - spare + lack, indices[np.argsort(owners, kind="stable")]
