"""The input gate: what a stranger's message must look like before any rule sees it.

A message is bytes of NumPy's ``.npy`` format, or an array, for every name of the global model. Nothing in it is
believed: the header is read by itself, compared with the server's own shape and type, and the length of the data must
be what they say before a single number is touched. Nothing is unpickled; nothing larger than expected is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bezoar.errors import ConfigError

Array = npt.NDArray[Any]

#: Where a model's arrays hold what is measured, not trained (BatchNorm of PyTorch and of Keras).
BUFFERS = ("*running_mean", "*running_var", "*num_batches_tracked", "*moving_mean", "*moving_variance")

#: What the server does with arrays that are no parameters.
BufferPolicy = Literal["median", "keep", "rule"]

#: No honest header of an array is longer.
_HEADER_BYTES = 4096

#: Room for the headers of a message, an array, beside its numbers.
_ROOM = 16 * 1024


class GateError(ValueError):
    """What is wrong with one client's message; it never leaves the gate."""


@dataclass(frozen=True)
class Field:
    """One named array of the model: ``buffer`` if it is no parameter; parameters have columns ``start`` to ``stop``."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    buffer: bool
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Template:
    """The names, shapes and types that every message must have: those of the server's own model, in its order."""

    fields: tuple[Field, ...]

    @classmethod
    def of(
        cls, arrays: Mapping[str, Array], buffers: Sequence[str] = BUFFERS, policy: BufferPolicy = "median"
    ) -> Template:
        """The template of a model.

        Arrays that are not of floating point numbers, or whose name matches a pattern in ``buffers``, are buffers; with
        ``policy="rule"`` those of floating point numbers are parameters all the same.

        Raises:
            ConfigError: no parameters, complex numbers, objects or texts.
        """
        fields, start = [], 0
        for name, array in arrays.items():
            kind = array.dtype.kind
            if kind not in "fiub":
                raise ConfigError(
                    f"the model's array {name!r} holds {array.dtype}: only real numbers can be aggregated"
                )
            buffer = kind != "f" or (policy != "rule" and any(fnmatchcase(name, pattern) for pattern in buffers))
            stop = start if buffer else start + array.size
            fields.append(Field(name, tuple(array.shape), array.dtype, buffer, start, stop))
            start = stop
        if start == 0:
            raise ConfigError("the model has no parameters: no array of floating point numbers that is not a buffer")
        return cls(tuple(fields))

    @property
    def parameters(self) -> tuple[Field, ...]:
        """The arrays that rules aggregate."""
        return tuple(field for field in self.fields if not field.buffer)

    @property
    def d(self) -> int:
        """How many parameters."""
        return max(field.stop for field in self.fields)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which parameters are aggregated: float32, or float64 where the model has any."""
        wide = any(field.dtype.itemsize > 4 for field in self.parameters)
        return np.dtype(np.float64 if wide else np.float32)

    @property
    def most_bytes(self) -> int:
        """No honest message is longer than this."""
        return sum(field.nbytes + _ROOM for field in self.fields)

    def check(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        """The message's arrays in the template's order, without a copy where that is possible.

        Values are arrays or the bytes of a ``.npy`` file.

        Raises:
            GateError: names, shapes, types or lengths other than the template's.
        """
        if not isinstance(arrays, Mapping):
            raise GateError(f"not a mapping of names to arrays but {type(arrays).__name__}")
        wanted = {field.name for field in self.fields}
        if arrays.keys() != wanted:
            missing, strange = sorted(wanted - arrays.keys()), sorted(str(k) for k in arrays.keys() - wanted)
            found = [f"{_few(names)} {what}" for names, what in ((missing, "missing"), (strange, "unknown")) if names]
            raise GateError("wrong names: " + ", ".join(found))
        return {field.name: _array(arrays[field.name], field) for field in self.fields}

    def ordered(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays in the template's order."""
        return {field.name: arrays[field.name] for field in self.fields}


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _array(value: Any, field: Field) -> Array:
    array = _decoded(value, field) if isinstance(value, bytes | bytearray | memoryview) else value
    if not isinstance(array, np.ndarray):
        raise GateError(f"{field.name!r} is no array but {type(value).__name__}")
    if array.shape != field.shape:
        raise GateError(f"{field.name!r} has shape {list(array.shape)}, expected {list(field.shape)}")
    if array.dtype != field.dtype:
        raise GateError(f"{field.name!r} has type {array.dtype}, expected {field.dtype}")
    return array


def _decoded(data: bytes | bytearray | memoryview, field: Field) -> Array:
    """An array from a ``.npy`` file, not copied.

    NumPy's own reader allocates what the header claims before it looks at the length; here the length comes first.
    """
    if len(data) > field.nbytes + _ROOM:
        raise GateError(f"{field.name!r} takes {len(data)} bytes, expected at most {field.nbytes + _ROOM}")
    file = BytesIO(data[:_HEADER_BYTES])
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file, max_header_size=_HEADER_BYTES)
    except Exception:  # whatever a header can make NumPy's parser, and Python's behind it, raise
        raise GateError(f"{field.name!r} is not in NumPy's format") from None
    if shape != field.shape:
        raise GateError(f"{field.name!r} has shape {list(shape)[:8]}, expected {list(field.shape)}")
    if dtype != field.dtype:
        raise GateError(f"{field.name!r} has type {str(dtype)[:40]}, expected {field.dtype}")
    start = file.tell()
    if len(data) - start != field.nbytes:
        raise GateError(f"{field.name!r} holds {len(data) - start} bytes of numbers, expected {field.nbytes}")
    flat: Array = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")
