"""Which samples of a batch are poisoned, and samples that attackers are handed beside their own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.attacks.base import Batch
from bezoar.errors import ConfigError
from bezoar.seeding import generator

#: Samples that are hashed at a time.
_CHUNK = 1024


def check_share(who: str, key: str, value: float) -> None:
    """Raise unless ``value`` is a share in (0, 1]."""
    if not 0 < value <= 1:
        raise ConfigError(f"{who}: {key} must be above 0 and at most 1, got {value}")


def check_class(who: str, key: str, value: int | None, classes: int) -> None:
    """Raise unless ``value`` is None or one of ``classes`` classes."""
    if value is not None and value >= classes:
        raise ConfigError(f"{who}: {key}={value} is no class of this data set: classes are 0..{classes - 1}")


def check_pair(who: str, source: int, target: int) -> None:
    """Raise unless ``source`` and ``target`` can be two different classes."""
    if source < 0 or target < 0 or source == target:
        raise ConfigError(f"{who}: source and target must be two different classes, got {source} and {target}")


def uniforms(inputs: Tensor, seed: int, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) for every sample [N], uniform over seeds, that depends on the sample's content alone.

    A sample then has the same fate in every round and in every batch that it is drawn into, and so have its copies.
    """
    flat = inputs.detach().reshape(len(inputs), -1).float().contiguous().view(torch.int32)
    draws = generator(seed, purpose)
    factors = torch.randint(-(2**63), 2**63 - 1, (flat.shape[1],), generator=draws).to(flat.device)
    sums = [(part.long() * factors).sum(1) for part in torch.split(flat, _CHUNK)]
    # The finaliser of splitmix64: without it similar samples would get similar numbers.
    bits = torch.cat(sums).cpu().numpy().view(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits = bits ^ (bits >> np.uint64(31))
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def chosen(batch: Batch, share: float, seed: int, purpose: str, among: Tensor | None = None) -> Tensor:
    """A ``share`` of every owner's samples (of those in the mask ``among`` only), to the nearest count: bool [N].

    The same samples in every round, as far as they are in the batch: those whose :func:`uniforms` are least.
    """
    inside = torch.ones(len(batch), dtype=torch.bool) if among is None else among.cpu()
    if share == 1:
        return inside.to(batch.inputs.device)
    numbers, owners = uniforms(batch.inputs, seed, purpose), batch.owners.cpu().numpy()
    mask = np.zeros(len(batch), dtype=bool)
    for owner in np.unique(owners):
        rows = np.flatnonzero((owners == owner) & inside.numpy())
        count = int(np.floor(share * len(rows) + 0.5))
        mask[rows[np.argsort(numbers[rows], kind="stable")[:count]]] = True
    return torch.from_numpy(mask).to(batch.inputs.device)


def handed(like: Batch, inputs: Tensor, targets: Tensor, clients: Tensor) -> Batch:
    """A batch in which each of ``clients`` holds all of ``inputs`` [m, ...] with ``targets`` [m]."""
    q, m = len(clients), len(inputs)
    inputs = inputs.to(like.inputs.device)
    owners = clients.to(like.owners.device).repeat_interleave(m)
    return Batch(torch.cat([inputs] * q), targets.to(like.targets.device).repeat(q), owners)
