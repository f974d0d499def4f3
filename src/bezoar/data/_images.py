"""Image data sets as tables of PNG bytes and labels: the layout of Hugging Face's parquet files and of its library."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bezoar.data.dataset import Dataset, Indices, Samples
from bezoar.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("img", "image")
#: Images per task: long enough that the pool costs nothing.
_CHUNK = 500


@dataclass(frozen=True)
class ImageSet:
    """What is known about one data set of images of one size, wherever its files come from.

    ``shape`` is (C, H, W), ``rows`` the published sizes of train and test, ``balanced`` whether all classes are
    equally frequent in both, ``hub`` the data set's name on the Hugging Face hub.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: tuple[int, int]
    hub: str
    label: str = "label"
    balanced: bool = False
    augmentation: Literal["none", "crop-flip"] = "none"

    def dataset(self, train: Samples, test: Samples, natural: Mapping[str, Indices] | None = None) -> Dataset:
        """The two splits with everything that is known about them."""
        return Dataset(
            self.name,
            train,
            test,
            self.classes,
            self.mean,
            self.std,
            natural or {},
            augmentation=self.augmentation,
        )


def read_table(table: pa.Table, where: object, images: ImageSet, rows: int | None) -> Samples:
    """The samples in ``table``: a column img or image of struct{bytes: PNG, path}, and an integer label column.

    ``rows``: the published number of rows; None accepts any number and any balance of the classes.
    Raises DataError that begins with ``where`` if the table or one of its images is not what it should be.
    """
    column = next((name for name in _IMAGE_COLUMNS if name in table.column_names), None)
    if column is None or images.label not in table.column_names:
        raise DataError(
            f"{where}: has columns {', '.join(table.column_names)}; "
            f"needs {' or '.join(_IMAGE_COLUMNS)}, and {images.label}"
        )
    targets = _labels(table.column(images.label), f"{where}: column {images.label!r}", images, rows)
    return Samples(torch.from_numpy(_decode(table.column(column), where, images)), torch.from_numpy(targets))


def _labels(column: pa.ChunkedArray, where: str, images: ImageSet, rows: int | None) -> NDArray[np.int64]:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{where} has {column.null_count} nulls and type {column.type}; needs integers only")
    labels = np.array(column.to_numpy(), dtype=np.int64)
    if rows is not None and len(labels) != rows:
        raise DataError(f"{where} has {len(labels)} rows, the published split has {rows}")
    classes = len(images.classes)
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{where} must have labels in 0..{classes - 1}, and there must be some")
    counts = np.bincount(labels, minlength=classes)
    if rows is not None and images.balanced and len(set(counts.tolist())) > 1:
        raise DataError(
            f"{where} has {counts.min()} to {counts.max()} samples a class, published are {rows // classes}"
        )
    return labels


def _decode(column: pa.ChunkedArray, where: object, images: ImageSet) -> NDArray[np.uint8]:
    """uint8 [N, C, H, W]. Pillow releases the interpreter lock, so that threads help."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise DataError(f"{where}: images have type {column.type}; needs struct{{bytes, path}}")
    encoded = column.combine_chunks().field("bytes")
    if not (pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)):
        raise DataError(f"{where}: images' bytes have type {encoded.type}; needs binary")
    pixels = np.empty((len(encoded), *images.shape), dtype=np.uint8)

    def chunk(start: int) -> None:
        for row, image in enumerate(encoded.slice(start, _CHUNK).to_pylist(), start):
            pixels[row] = _png(image, f"{where}: row {row}", images.shape)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(chunk, range(0, len(encoded), _CHUNK)))
    return pixels


def _png(encoded: bytes | None, where: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """uint8 [C, H, W]. Only PNG, which is lossless: a JPEG copy of a data set is another data set."""
    from PIL import Image

    channels, height, width = shape
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(io.BytesIO(encoded or b""), formats=("PNG",)) as image:
            # Sizes are read from the header, so that a huge image is refused before it is decoded.
            if image.size != (width, height) or image.mode != mode:
                raise DataError(
                    f"{where}: a {image.size[0]}x{image.size[1]} {image.mode} image, needs {width}x{height} {mode}"
                )
            return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: not a readable PNG image ({error})") from error
