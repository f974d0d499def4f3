"""Simple operations that, on a CPU, leave torch's own threads asleep.

Those wait for each other at the end of every operation on more than 32,768 numbers, and spin for a while afterwards:
they keep the cores from the threads of :mod:`bezoar.kernels.threads`, and on a busy machine one of them is always late.
Bits are those of torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bezoar.kernels.threads import in_threads

#: Numbers added at a time: torch does not divide so few.
CHUNK = 32768


def in_numpy(values: Tensor) -> bool:
    """Whether NumPy can work on ``values`` in place."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` of a vector."""
    return torch.from_numpy(values.numpy()[index.numpy()]) if in_numpy(values) else values[index]


def clear_(values: Tensor, index: Tensor) -> None:
    """``values[index] = 0`` in a vector."""
    if in_numpy(values):
        values.numpy()[index.numpy()] = 0.0
    else:
        values.index_fill_(0, index, 0.0)


def scaled(values: Tensor, factor: float) -> Tensor:
    """``factor * values``."""
    if not in_numpy(values):
        return factor * values
    array = values.numpy()
    # Infinity is an answer, as in torch.
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(array * array.dtype.type(factor))


def added(values: Tensor, others: Tensor, alpha: float) -> Tensor:
    """``values + alpha * others``, of equal shapes."""
    if not in_numpy(values) or not (values.is_contiguous() and others.is_contiguous()):
        return torch.add(values, others, alpha=alpha)
    out = torch.empty_like(values)
    flat, left, right = out.view(-1), values.view(-1), others.view(-1)

    def work(start: int, stop: int) -> None:
        torch.add(left[start:stop], right[start:stop], alpha=alpha, out=flat[start:stop])

    in_threads(lambda: work, len(flat), CHUNK)
    return out
