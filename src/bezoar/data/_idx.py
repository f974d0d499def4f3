"""The idx format of MNIST: a magic number, big-endian sizes, then the array."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bezoar.data._files import check_sha256
from bezoar.errors import DataError

_CODES = {"uint8": 0x08, "int32": 0x0C}
#: No file of this family is larger; a header that asks for more is damaged or hostile.
_MOST_BYTES = 2**30


def read_idx(
    path: Path, item: tuple[int, ...], dtype: Literal["uint8", "int32"], sha256: str | None = None
) -> NDArray[np.int32 | np.uint8]:
    """The array [N, *item] of ``dtype`` in ``path``, gzip-compressed if its name ends in .gz.

    ``sha256`` is that of the uncompressed content, so that a recompressed copy passes; None skips the check.
    Raises DataError naming the file if it is damaged, truncated, of another type or shape, or not the published one.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * (1 + len(item)))
            sizes = _sizes(path, head, item, dtype)
            length = math.prod(sizes) * np.dtype(dtype).itemsize
            if length > _MOST_BYTES:
                raise DataError(f"{path}: header promises {length} bytes, more than any file of this kind")
            body = file.read(length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated ({error})") from error
    if len(body) != length:
        found = f"{len(body)}" if len(body) < length else "more"
        raise DataError(f"{path}: {found} bytes of data where its header promises {length}")
    check_sha256(path, sha256, head, body)
    stored = np.frombuffer(body, np.dtype(dtype).newbyteorder(">"))
    return stored.reshape(sizes).astype(dtype)  # a copy: torch refuses read-only memory


def _sizes(path: Path, head: bytes, item: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    dimensions = 1 + len(item)
    magic = bytes([0, 0, _CODES[dtype], dimensions])
    if head[:4] != magic:
        raise DataError(
            f"{path}: begins with {head[:4].hex() or 'nothing'}, not with the idx magic number "
            f"{magic.hex()} of {dtype} values in {dimensions} dimensions"
        )
    if len(head) < 4 + 4 * dimensions:
        raise DataError(f"{path}: ends inside its header")
    sizes: tuple[int, ...] = struct.unpack(f">{dimensions}I", head[4:])
    if sizes[1:] != item:
        raise DataError(f"{path}: entries have shape {sizes[1:]}, expected {item}")
    return sizes
