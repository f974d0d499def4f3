"""The kinds of input a rule accepts, and the way back: the answer has the kind of the question."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.updates.base import Layout, Segment, Updates
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.held import RowUpdates

#: Turns a vector [d] or rows [m, d] back into the caller's kind.
Restore = Callable[[Tensor], Any]


def as_updates(updates: Any) -> tuple[Updates, Restore]:
    """Read an ``Updates``, a tensor or array [n, d], a list of vectors or a list of name -> tensor mappings.

    Returns the updates and a function that brings a result back to the caller's kind. The input is never changed.
    In a list, names and shapes are those of the majority; a row that differs in them counts as not finite and is
    excluded with the reason, as any other row a malicious client may send. The type is the most frequent one.

    Raises:
        ConfigError: no updates, or no such kind.
    """
    if isinstance(updates, Updates):
        return updates, lambda result: result
    if isinstance(updates, Tensor):
        return DenseUpdates(_floating(updates)), lambda result: result
    if isinstance(updates, np.ndarray):
        return DenseUpdates(_floating(_from_numpy(updates))), lambda result: result.numpy()
    if isinstance(updates, Sequence) and not isinstance(updates, str | bytes):
        rows = list(updates)
        if not rows:
            raise ConfigError("updates are empty: at least one client update is needed")
        return _mappings(rows) if sum(isinstance(row, Mapping) for row in rows) * 2 > len(rows) else _vectors(rows)
    raise ConfigError(
        f"updates must be an Updates, a tensor or array [n, d], a list of vectors or a list of mappings, "
        f"got {type(updates).__name__}"
    )


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor, copied only where torch can not share it (foreign byte order, negative strides)."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % native.itemsize for stride in native.strides):
        native = native.copy()
    with warnings.catch_warnings():
        # Nothing here writes into the caller's numbers; a memory-mapped file must not be copied for that.
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        try:
            return torch.from_numpy(native)
        except TypeError:
            raise ConfigError(f"updates must be numbers that torch has, got an array of {array.dtype}") from None


def _floating(values: Tensor) -> Tensor:
    if values.ndim != 2 or values.numel() == 0:
        raise ConfigError(f"updates must be a matrix [n, d] with n, d >= 1, got shape {list(values.shape)}")
    if values.is_complex():
        raise ConfigError("updates must be real numbers, got complex ones")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _tensor(value: Any) -> Tensor | None:
    """``value`` as a real tensor, None if it is none."""
    try:
        tensor = _from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    except (ConfigError, TypeError, ValueError, RuntimeError):
        return None
    return None if tensor.is_complex() else tensor.detach()


def _majority(signatures: Sequence[Hashable]) -> Hashable:
    """The most frequent signature that is not None, the first among equals."""
    counts = Counter(signature for signature in signatures if signature is not None)
    if not counts:
        raise ConfigError("updates must be a list of vectors or of name -> tensor mappings: none of them is one")
    return counts.most_common(1)[0][0]


def _vectors(rows: list[Any]) -> tuple[Updates, Restore]:
    tensors = [None if isinstance(row, Mapping) else _tensor(row) for row in rows]
    # The length first: a type can be converted, and must not split the honest rows into minorities.
    d = _majority([None if t is None or t.ndim != 1 else len(t) for t in tensors])
    assert isinstance(d, int)
    kind = _majority([t.dtype if t is not None and t.shape == (d,) else None for t in tensors])
    assert isinstance(kind, torch.dtype)
    numpy = sum(isinstance(row, np.ndarray) for row in rows) * 2 > len(rows)
    dtype = kind if kind.is_floating_point else torch.get_default_dtype()
    if d == 0:
        raise ConfigError("updates hold no parameters: d must be at least 1")
    kept = [[t] if t is not None and t.shape == (d,) else None for t in tensors]
    flaws = {i: f"not a vector of length {d}" for i, row in enumerate(kept) if row is None}

    def restore(result: Tensor) -> Any:
        if result.ndim == 1:
            return result.numpy() if numpy else result
        return [row.numpy() if numpy else row for row in result]

    return RowUpdates(kept, dtype, flaws=flaws), restore


def _read_mapping(row: Any) -> dict[Any, Tensor] | None:
    if not isinstance(row, Mapping):
        return None
    tensors = {name: _tensor(value) for name, value in row.items()}
    return None if any(t is None for t in tensors.values()) else {n: t for n, t in tensors.items() if t is not None}


def _mappings(rows: list[Any]) -> tuple[Updates, Restore]:
    read = [_read_mapping(row) for row in rows]
    shapes = [
        None if row is None else tuple(sorted((repr(name), tuple(t.shape)) for name, t in row.items())) for row in read
    ]
    wanted = _majority(shapes)
    members = [i for i, shape in enumerate(shapes) if shape == wanted]
    first = read[members[0]]
    assert first is not None
    names = list(first)
    segments, start = [], 0
    kinds: dict[Any, torch.dtype] = {}
    for name in names:
        segments.append(Segment(str(name), start, start + first[name].numel(), tuple(first[name].shape)))
        start += first[name].numel()
        kinds[name] = Counter(row[name].dtype for row in (read[i] for i in members) if row).most_common(1)[0][0]
    layout: Layout = tuple(segments)
    numpy = {name: sum(isinstance(rows[i][name], np.ndarray) for i in members) * 2 > len(members) for name in names}
    # Counters (int64) keep their digits in double precision only.
    if start == 0:
        raise ConfigError("updates hold no parameters: d must be at least 1")
    exact = any(not kind.is_floating_point for kind in kinds.values())
    dtype = torch.float64
    if not exact:
        dtype = next(iter(kinds.values()))
        for kind in kinds.values():
            dtype = torch.promote_types(dtype, kind)
    pieces = [
        None if row is None or shape != wanted else [row[name].reshape(-1) for name in names]
        for row, shape in zip(read, shapes, strict=True)
    ]
    flaws = {i: "other names or shapes than the majority" for i, row in enumerate(pieces) if row is None}

    def unpack(vector: Tensor) -> dict[str, Any]:
        out: dict[Any, Any] = {}
        for name, segment in zip(names, layout, strict=True):
            value = vector[segment.start : segment.stop].reshape(segment.shape).to(kinds[name])
            out[name] = value.numpy() if numpy[name] else value
        return out

    def restore(result: Tensor) -> Any:
        return unpack(result) if result.ndim == 1 else [unpack(row) for row in result]

    return RowUpdates(pieces, dtype, layout=layout, flaws=flaws), restore
