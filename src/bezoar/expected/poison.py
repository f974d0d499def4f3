"""Data attacks on all clients of a task at once: whoever turns bad holds these samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bezoar.attacks import Attack, AttackContext, Batch, DataAttack, LabelFlip
from bezoar.attacks.base import Holdings, standalone
from bezoar.attacks.mistakes import (
    BiasedSampling,
    DuplicatedRecords,
    LabelNoise,
    MislabelledClass,
    MissingFeatures,
    UnitError,
)
from bezoar.errors import ConfigError
from bezoar.expected.data import Shards
from bezoar.updates import DenseUpdates

#: Attacks whose samples are the same in every round and for every honest set.
_MISTAKES = (BiasedSampling, DuplicatedRecords, LabelNoise, MislabelledClass, MissingFeatures, UnitError)


def flips_targets(attack: Attack) -> bool:
    """Whether the attack is the one that changes targets that are numbers: static label flipping, of all samples."""
    return isinstance(attack, LabelFlip) and attack.mode == "static" and attack.poisoning_ratio == 1


def lasting(attack: DataAttack) -> bool:
    """Whether the poisoned samples are the same in every round."""
    return isinstance(attack, _MISTAKES) or (
        isinstance(attack, LabelFlip) and attack.mode not in ("random", "furthest")
    )


def poisoned(attack: DataAttack, shards: Shards, seed: int) -> Batch:
    r"""What every client of ``shards`` would hold if it were bad.

    Static label flipping of targets that are numbers negates them, :math:`y \mapsto -y`: as :math:`C - 1 - y` does
    with classes, it mirrors them in the middle of their range.

    Raises:
        ConfigError: the attack draws anew every round, or reads the model.
    """
    if not lasting(attack):
        raise ConfigError(
            f"{type(attack).__name__} changes its samples from round to round; convex tasks take the mistakes and "
            "label-flip in the modes static, next, swap and source-target"
        )
    train = shards.train
    if shards.classes is not None:
        return attack.poison(train, context(shards, torch.unique(train.owners), seed)).batch
    if flips_targets(attack):
        return replace(train, targets=-train.targets)
    # Numbers are no classes: the attack sees where they stand instead, and leaves that alone.
    places = replace(train, targets=torch.arange(len(train)))
    found = attack.poison(places, context(shards, torch.unique(train.owners), seed)).batch
    return replace(found, targets=train.targets[found.targets])


def context(shards: Shards, clients: torch.Tensor, seed: int, round: int = 1) -> AttackContext:
    """What the attackers ``clients`` know of the data."""
    train, dataset = shards.train, shards.dataset
    bare = standalone(DenseUpdates(torch.zeros(1, 1)), shards.n, 1, seed)
    shape = (-1,) + (1,) * (train.inputs.ndim - 2)
    mean = torch.tensor((0.0,) if dataset is None else dataset.mean, dtype=train.inputs.dtype).view(shape)
    std = torch.tensor((1.0,) if dataset is None else dataset.std, dtype=train.inputs.dtype).view(shape)
    # All by sample: what a client holds is what the task gave it.
    starts = np.searchsorted(train.owners.numpy(), np.arange(shards.n + 1))

    def held(client: int) -> Holdings:
        mine = slice(int(starts[client]), int(starts[client + 1]))
        assert train.rows is not None
        return Holdings(train.rows[mine], train.targets[mine])

    return replace(bare, round=round, clients=clients, classes=shards.classes or 0, mean=mean, std=std, held=held)
