"""The kinds of input a rule accepts, and the way back: the answer has the kind of the question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.updates.base import Layout, Segment, Updates
from bezoar.updates.dense import DenseUpdates

#: Turns a vector [d] or rows [m, d] back into the caller's kind.
Restore = Callable[[Tensor], Any]


def as_updates(updates: Any) -> tuple[Updates, Restore]:
    """Read an ``Updates``, a tensor or array [n, d], a list of vectors or a list of name -> tensor mappings.

    Returns the updates and a function that brings a result back to the caller's kind. The input is never changed.

    Raises:
        ConfigError: empty input, ragged vectors, mappings with other names or shapes than the first one.
    """
    if isinstance(updates, Updates):
        return updates, lambda result: result
    if isinstance(updates, Tensor):
        return DenseUpdates(_floating(updates)), lambda result: result
    if isinstance(updates, np.ndarray):
        return DenseUpdates(_floating(torch.from_numpy(np.ascontiguousarray(updates)))), lambda result: result.numpy()
    if isinstance(updates, Sequence) and not isinstance(updates, str | bytes):
        rows = list(updates)
        if not rows:
            raise ConfigError("updates are empty: at least one client update is needed")
        return _mappings(rows) if isinstance(rows[0], Mapping) else _vectors(rows)
    raise ConfigError(
        f"updates must be an Updates, a tensor or array [n, d], a list of vectors or a list of mappings, "
        f"got {type(updates).__name__}"
    )


def _floating(values: Tensor) -> Tensor:
    if values.ndim != 2 or len(values) == 0:
        raise ConfigError(f"updates must be a matrix [n, d] with n >= 1, got shape {list(values.shape)}")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _vectors(rows: list[Any]) -> tuple[Updates, Restore]:
    numpy = isinstance(rows[0], np.ndarray)
    tensors = [torch.as_tensor(row) for row in rows]
    for i, row in enumerate(tensors):
        if row.ndim != 1 or row.shape != tensors[0].shape:
            raise ConfigError(f"update {i} has shape {list(row.shape)}, expected {list(tensors[0].shape)} as update 0")
    stacked = _floating(torch.stack(tensors))

    def restore(result: Tensor) -> Any:
        if result.ndim == 1:
            return result.numpy() if numpy else result
        return [row.numpy() if numpy else row for row in result]

    return DenseUpdates(stacked), restore


def _mappings(rows: list[Any]) -> tuple[Updates, Restore]:
    first = {name: torch.as_tensor(value) for name, value in rows[0].items()}
    numpy = {name: isinstance(value, np.ndarray) for name, value in rows[0].items()}
    segments, start = [], 0
    for name, value in first.items():
        segments.append(Segment(name, start, start + value.numel(), tuple(value.shape)))
        start += value.numel()
    layout: Layout = tuple(segments)
    flat = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or set(row) != set(first):
            raise ConfigError(f"update {i} must be a mapping with the names of update 0: {', '.join(first)}")
        parts = []
        for segment in layout:
            value = torch.as_tensor(row[segment.name])
            if tuple(value.shape) != segment.shape:
                raise ConfigError(
                    f"update {i}, {segment.name!r}: shape {list(value.shape)}, expected {list(segment.shape)}"
                )
            parts.append(value.reshape(-1))
        flat.append(torch.cat(parts))
    stacked = _floating(torch.stack(flat))

    def unpack(vector: Tensor) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for segment in layout:
            value = vector[segment.start : segment.stop].reshape(segment.shape).to(first[segment.name].dtype)
            out[segment.name] = value.numpy() if numpy[segment.name] else value
        return out

    def restore(result: Tensor) -> Any:
        return unpack(result) if result.ndim == 1 else [unpack(row) for row in result]

    return DenseUpdates(stacked, layout=layout), restore
