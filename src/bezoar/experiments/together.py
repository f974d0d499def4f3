"""What the ranks of one run must agree on, and how a checkpoint gets to them and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bezoar._version import __version__
from bezoar.data.text import Windows
from bezoar.errors import BezoarError, ConfigError, UnsupportedError
from bezoar.experiments.records import Checkpoint
from bezoar.experiments.setup import Setup
from bezoar.experiments.work import keepers
from bezoar.kernels.bits import checksum
from bezoar.models.files import FROZEN
from bezoar.ranks import Ranks

#: Names of tensors in a checkpoint of which every rank keeps rows of its own: the momentum of all clients.
BY_CLIENT = "clients.momentum"

#: What a message about rows of a checkpoint holds at most, in bytes.
_PIECE = 64 * 2**20

#: Types of tensors by the name they have in a message.
_TYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def check_same(setup: Setup, digest: str) -> None:
    """Raise unless all ranks have the same experiment, data and software; also if the run can not be shared.

    Raises:
        ConfigError: on rank 0 and all others, with the name of what differs and where.
        UnsupportedError: the model draws random numbers for all clients at once.
    """
    ranks = setup.ranks
    if ranks.alone:
        return
    _refuse_shared_draws(setup)
    dataset = setup.federation.dataset
    facts = {
        "the experiment": digest,
        "bezoar's version": __version__,
        "torch's version": str(torch.__version__),
        "the training data": _digest(dataset.train.inputs, dataset.train.targets),
        "the test data": _digest(dataset.test.inputs, dataset.test.targets),
        "the partition": _digest(*map(torch.from_numpy, setup.federation.samples_of(np.arange(setup.federation.n)))),
        "the model": _digest(setup.weights),
        "the frozen part of the model": setup.facts.get(FROZEN, "nothing"),
    }
    found = [part.split("\n") for part in ranks.texts("\n".join(facts.values()))]
    for rank, theirs in enumerate(found):
        for what, mine, other in zip(facts, found[0], theirs, strict=True):
            if mine != other:
                raise ConfigError(f"{what} of rank {rank} is not that of rank 0: {other} instead of {mine}")


def _digest(*parts: Tensor | Windows) -> str:
    """A few characters that tell tensors apart."""
    held = [part.tokens if isinstance(part, Windows) else part for part in parts]
    sums = [str(int(checksum(part.detach().cpu().contiguous()))) for part in held]
    shapes = [str(list(part.shape)) for part in parts]
    return hashlib.blake2b(" ".join(sums + shapes).encode(), digest_size=6).hexdigest()


def _refuse_shared_draws(setup: Setup) -> None:
    """Raise for layers whose draws depend on who else is in the batch."""
    if not setup.experiment.clients.shares_draws:
        return
    for name, module in setup.model.named_modules():
        chance = module.dropout if isinstance(module, nn.RNNBase | nn.MultiheadAttention) else getattr(module, "p", 0)
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.RNNBase | nn.MultiheadAttention) and chance:
            raise UnsupportedError(
                f"model: {name!r} is a {type(module).__name__} that drops out, and draws for all clients at once, "
                f"which many ranks can not do as one process does: run it in one process, or with clients that train "
                f"for several steps (clients.kind = 'local', batch_size > 0)"
            )


def agreed(setup: Setup, round: int, asked: bool) -> bool:
    """Whether anybody was asked to stop; that all ranks have the same model is looked at on the way.

    Raises:
        BezoarError: they have not, after ``round`` rounds.
    """
    ranks = setup.ranks
    if ranks.alone:
        return asked
    mine = torch.stack([checksum(setup.weights).cpu(), torch.tensor(int(asked))])
    found = ranks.gather(mine[None])
    differ = (found[:, 0] != found[0, 0]).nonzero().flatten().tolist()
    if differ:
        raise BezoarError(
            f"after round {round} the model of rank {differ[0]} is not that of rank 0: do all machines have the same "
            f"processors, threads and libraries?"
        )
    return bool(found[:, 1].any())


def whole_tensors(ranks: Ranks, tensors: Mapping[str, Tensor], setup: Setup) -> dict[str, Tensor]:
    """What rank 0 writes down: ``tensors`` with the rows of all clients where every rank has its own."""
    found = dict(tensors)
    rows = found.get(BY_CLIENT)
    if ranks.alone or rows is None:
        return found
    ids = _everyones(setup)
    found[BY_CLIENT] = _collected(ranks, rows, ids)
    return found


def _everyones(setup: Setup) -> list[Tensor]:
    """The clients whose momentum every rank keeps."""
    mine = torch.from_numpy(keepers(setup))
    lengths = setup.ranks.gather(torch.tensor([len(mine)])).tolist()
    return list(torch.split(setup.ranks.gather(mine, lengths), lengths))


def _collected(ranks: Ranks, rows: Tensor, ids: list[Tensor]) -> Tensor:
    """All rows in the order of ids, on rank 0; nothing on the others."""
    d, n = rows.shape[1], sum(map(len, ids))
    whole = torch.empty(n if ranks.first else 0, d, dtype=rows.dtype)
    step = max(1, _PIECE // max(1, d * rows.element_size()))
    nothing = rows[:0].reshape(-1)
    for start in range(0, max(map(len, ids)), step):
        pieces = [rows[start : start + step].reshape(-1), *[nothing] * (ranks.size - 1)]
        counts = [len(part[start : start + step]) for part in ids]
        shapes = [(count, d) for count in counts] if ranks.first else [(0, d)] * ranks.size
        found = ranks.exchange(pieces, shapes)
        if ranks.first:
            for part, values in zip(ids, found, strict=True):
                whole[part[start : start + step]] = values.cpu()
    return whole


def share_checkpoint(setup: Setup, checkpoint: Checkpoint | None) -> tuple[int, dict[str, Tensor]] | None:
    """Rank 0's checkpoint on every rank, with the rows of its own clients only; None where there is none."""
    ranks = setup.ranks
    if ranks.alone:
        return None if checkpoint is None else (checkpoint.round, checkpoint.tensors)
    tensors = {} if checkpoint is None else checkpoint.tensors
    described = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
    plan = ranks.said(None if checkpoint is None else [checkpoint.round, described])
    if plan is None:
        return None
    found = {}
    for name, (dtype, shape) in plan[1].items():
        if name == BY_CLIENT:
            found[name] = _handed_out(ranks, tensors.get(name), torch.empty(0, shape[1], dtype=_TYPES[dtype]), setup)
        else:
            found[name] = ranks.told(tensors[name] if ranks.first else torch.empty(shape, dtype=_TYPES[dtype]))
    return plan[0], found


def _handed_out(ranks: Ranks, whole: Tensor | None, like: Tensor, setup: Setup) -> Tensor:
    """The rows of this rank's clients, of all rows that rank 0 has."""
    ids, d = _everyones(setup), like.shape[1]
    mine = torch.empty(len(ids[ranks.rank]), d, dtype=like.dtype)
    step = max(1, _PIECE // max(1, d * like.element_size()))
    for start in range(0, max(map(len, ids)), step):
        parts = [part[start : start + step] for part in ids]
        pieces = [like.reshape(-1) if whole is None else whole[part].reshape(-1) for part in parts]
        own = (len(parts[ranks.rank]), d)
        found = ranks.exchange(pieces, [own, *[(0, d)] * (ranks.size - 1)])
        mine[start : start + step] = found[0]
    return mine
