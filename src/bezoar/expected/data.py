"""The samples of all clients: made from a seed, or those of a registered data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bezoar.attacks import Batch
from bezoar.data import Federation, load, partition
from bezoar.data.dataset import Dataset
from bezoar.errors import ConfigError
from bezoar.expected.config import SYNTHETIC, Task
from bezoar.seeding import numpy_generator

#: Test samples of every synthetic client.
TEST_SAMPLES = 50


@dataclass(frozen=True, eq=False)
class Shards:
    """What all clients hold.

    Attributes:
        train: the samples of all clients, by client; ``targets`` are classes (int64) or numbers (float64).
        test: inputs [N, ...] and targets [N] of test samples.
        classes: number of classes, None where targets are numbers.
        dataset: where the samples are from, None for synthetic ones.
    """

    train: Batch
    test: tuple[Tensor, Tensor]
    classes: int | None
    dataset: Dataset | None = None

    @property
    def n(self) -> int:
        """Number of clients."""
        return int(self.train.owners.max()) + 1


def shards(task: Task, seed: int, data_dir: str | Path | None = None) -> Shards:
    """Make or load the samples of ``task``.

    Raises:
        ConfigError: the data set can not be divided so.
        DataError: it is missing or damaged.
    """
    return _synthetic(task, seed) if task.dataset == SYNTHETIC else _loaded(task, seed, data_dir)


def _synthetic(task: Task, seed: int) -> Shards:
    groups = task.groups or (1,) * (task.clients or 0)
    group_of = np.repeat(np.arange(len(groups)), groups)
    parts = [_client(task, seed, client, int(group)) for client, group in enumerate(group_of)]
    m = task.samples
    inputs, targets, test_inputs, test_targets = (
        torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)
    )
    owners = torch.arange(len(parts)).repeat_interleave(m)
    train = Batch(inputs, targets, owners, torch.arange(len(owners)))
    return Shards(train, (test_inputs, test_targets), task.classes if task.kind == "softmax" else None)


def _client(task: Task, seed: int, client: int, group: int) -> tuple[np.ndarray, ...]:
    """Train inputs and targets, then test inputs and targets. What groups differ in is drawn once for each group."""
    d, size = task.features, task.samples + TEST_SAMPLES
    common, own = numpy_generator(seed, "expected task"), numpy_generator(seed, "expected group", group)
    draws = numpy_generator(seed, "expected client", client)
    if task.kind == "ridge":
        target = common.standard_normal(d) / np.sqrt(d)
        target = target + task.heterogeneity * own.standard_normal(d) / np.sqrt(d)
        x = draws.standard_normal((size, d))
        y = x @ target + task.noise * draws.standard_normal(size)
        return x[: task.samples], y[: task.samples], x[task.samples :], y[task.samples :]
    # Two independent standard normal vectors lie sqrt(2 d) apart.
    scale = 1 / np.sqrt(2 * d)
    means = scale * task.separation * common.standard_normal((task.classes, d))
    means = means + scale * task.heterogeneity * own.standard_normal((task.classes, d))
    shares = np.full(task.classes, 1 / task.classes)
    if task.alpha is not None:
        shares = own.dirichlet(np.full(task.classes, task.alpha))
        # A tiny alpha underflows.
        shares = shares / shares.sum() if shares.sum() > 0 else np.full(task.classes, 1 / task.classes)
    labels = draws.choice(task.classes, size, p=shares)
    x = means[labels] + draws.standard_normal((size, d))
    return x[: task.samples], labels[: task.samples], x[task.samples :], labels[task.samples :]


def _loaded(task: Task, seed: int, data_dir: str | Path | None) -> Shards:
    assert task.partition is not None
    dataset = load(task.dataset, data_dir)
    if dataset.vocabulary is not None:
        raise ConfigError(f"task.dataset: {task.dataset} is text; expected robustness is measured on numbers")
    try:
        federation = partition(dataset, task.partition, seed)
    except ConfigError as error:
        raise ConfigError(f"task.partition: {error}") from None
    rows, owners = _dealt(task, federation, seed)
    kept = np.concatenate([_some(rows[owners == i], task.samples, seed, i) for i in range(int(owners.max()) + 1)])
    counts = np.bincount(owners)
    if task.samples:
        counts = np.minimum(counts, task.samples)
    if (counts == 0).any():
        raise ConfigError(f"task.partition: client {int((counts == 0).argmax())} has no samples and can not take part")
    inputs = dataset.batch(dataset.train, kept)
    at = torch.from_numpy(kept)
    train = Batch(inputs, dataset.train.targets[at], torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), at)
    test = dataset.batch(dataset.test, slice(None)), dataset.test.targets
    return Shards(train, test, len(dataset.classes), dataset)


def _dealt(task: Task, federation: Federation, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and owners, client by client; with groups, each part of the federation is dealt to a group's members."""
    if not task.groups:
        return federation.samples_of(np.arange(federation.n))
    if federation.n != len(task.groups):
        raise ConfigError(
            f"task.groups: the partition divides the data among {federation.n}, but there are {len(task.groups)} "
            f"groups: with groups, set partition.clients = {len(task.groups)}"
        )
    rows, owners, first = [], [], 0
    for group, size in enumerate(task.groups):
        mine = numpy_generator(seed, "expected members", group).permutation(federation.client(group))
        rows.append(mine)
        owners.append(first + np.arange(len(mine)) * size // max(1, len(mine)))
        first += size
    found = np.concatenate(owners)
    if len(np.unique(found)) < first:
        raise ConfigError("task.groups: a group has fewer samples than members")
    return np.concatenate(rows), found


def _some(rows: np.ndarray, most: int, seed: int, client: int) -> np.ndarray:
    if not most or len(rows) <= most:
        return rows
    chosen = numpy_generator(seed, "expected samples", client).choice(len(rows), most, replace=False)
    return np.asarray(rows[np.sort(chosen)])
