"""Which samples of a batch are poisoned, and samples that attackers are handed beside their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.attacks.base import AttackContext, Batch
from bezoar.errors import ConfigError
from bezoar.seeding import derive, generator

#: (owner, targets [m]) -> which of its samples may be chosen: bool [m].
Among = Callable[[int, Tensor], Tensor]

Numbers = NDArray[np.float64]

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


def uniforms(inputs: Tensor, seed: int, purpose: str) -> Numbers:
    """A number in [0, 1) for every sample [N], uniform over seeds, that depends on the sample's content alone.

    Equal samples have equal numbers, in every batch that they are drawn into; a sample that was changed, for example by
    augmentation, is another sample.
    """
    flat = inputs.detach().reshape(len(inputs), -1).float().contiguous().view(torch.int32)
    draws = generator(seed, purpose)
    factors = torch.randint(-(2**63), 2**63 - 1, (flat.shape[1],), generator=draws).to(flat.device)
    # Without it a sample of zeros would have the number zero, whatever the seed.
    offset = torch.randint(-(2**63), 2**63 - 1, (), generator=draws).to(flat.device)
    sums = [(part.long() * factors).sum(1) + offset for part in torch.split(flat, _CHUNK)]
    return _finalised(torch.cat(sums).cpu().numpy().view(np.uint64))


def uniforms_of_rows(rows: NDArray[np.int64], seed: int, purpose: str) -> Numbers:
    """A number in [0, 1) for every row of the training set [N], uniform over seeds (splitmix64)."""
    start = np.uint64(derive(seed, purpose))
    return _finalised(rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start)


def _finalised(bits: NDArray[np.uint64]) -> Numbers:
    # The finaliser of splitmix64: without it similar samples would get similar numbers.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits = bits ^ (bits >> np.uint64(31))
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def numbers(batch: Batch, seed: int, purpose: str) -> Numbers:
    """A number in [0, 1) for every sample [N]: by its row of the training set, by its content where that has none."""
    rows = _rows(batch)
    made_up = np.flatnonzero(rows < 0)
    found = uniforms_of_rows(rows, seed, purpose)
    if len(made_up):
        found[made_up] = uniforms(batch.inputs[torch.from_numpy(made_up).to(batch.inputs.device)], seed, purpose)
    return found


def chosen(batch: Batch, share: float, context: AttackContext, purpose: str, among: Among | None = None) -> Tensor:
    """A ``share`` of every owner's samples (of those that are ``among`` only), to the nearest count: bool [N].

    The count is taken of all samples that the owner holds (``context.held``), and those of least number are chosen,
    the number being a seeded hash of the row of the training set. So a sample has the same fate in every round, however
    few samples a round sees and however they are augmented, and copies in other hands share it, if those hands hold
    the same samples.

    Samples that stand in no training set are chosen by their content, the count being taken of those in the batch. So
    are all where nobody says what the owner holds, but that the number stays the row's if that is known.
    """
    owners, rows, targets = batch.owners.cpu().numpy(), _rows(batch), batch.targets.cpu()
    found = np.ones(len(batch)) if share == 1 else numbers(batch, context.seed, purpose)
    mask = np.zeros(len(batch), dtype=bool)
    for owner in np.unique(owners).tolist():
        mine = np.flatnonzero(owners == owner)
        if among is not None:
            mine = mine[among(owner, targets[torch.from_numpy(mine)]).numpy()]
        if share == 1:
            mask[mine] = True
            continue
        if context.held is not None:
            known = mine[rows[mine] >= 0]
            mask[known] = np.isin(rows[known], _of_all(owner, share, context, purpose, among))
            mine = mine[rows[mine] < 0]
        mask[mine[_least(found[mine], share)]] = True
    return torch.from_numpy(mask).to(batch.inputs.device)


def _of_all(owner: int, share: float, context: AttackContext, purpose: str, among: Among | None) -> NDArray[np.int64]:
    """The rows that are chosen of all that ``owner`` holds."""
    assert context.held is not None
    holdings = context.held(owner)
    held = holdings.rows.cpu()
    if among is not None:
        held = held[among(owner, holdings.targets.cpu())]
    rows = held.numpy()
    return rows[_least(uniforms_of_rows(rows, context.seed, purpose), share)]


def _least(found: Numbers, share: float) -> NDArray[np.int64]:
    """Where the ``share`` of least numbers stands."""
    return np.argsort(found, kind="stable")[: int(np.floor(share * len(found) + 0.5))]


def _rows(batch: Batch) -> NDArray[np.int64]:
    return np.full(len(batch), -1) if batch.rows is None else batch.rows.cpu().numpy()


def handed(like: Batch, inputs: Tensor, targets: Tensor, clients: Tensor) -> Batch:
    """A batch in which each of ``clients`` holds all of ``inputs`` [m, ...] with ``targets`` [m]."""
    q, m = len(clients), len(inputs)
    inputs = inputs.to(like.inputs.device)
    owners = clients.to(like.owners.device).repeat_interleave(m)
    return Batch(torch.cat([inputs] * q), targets.to(like.targets.device).repeat(q), owners)
