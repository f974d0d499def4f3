"""Data sets from the Hugging Face hub, for those who have its ``datasets`` library installed."""

from __future__ import annotations

from bezoar.data._images import ImageSet, read_table
from bezoar.data.dataset import Samples
from bezoar.errors import DataError


def load_hub(images: ImageSet, verify: bool, absent: DataError) -> tuple[Samples, Samples] | None:
    """(train, test) from the hub or its local cache, or None if the library is not installed.

    Raises DataError if the hub can not be reached, beginning with ``absent`` (which files were not found first), or if
    it gives something else.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        return None
    try:
        splits = load_dataset(images.hub)
        tables = [splits[split].with_format("arrow")[:] for split in ("train", "test")]
    except Exception as error:  # the library lets through whatever its network and file layers raise
        raise DataError(f"{absent}. The hub did not give {images.hub!r} either: {error}") from error
    train, test = (
        read_table(table, f"hub data set {images.hub}, {split}", images, rows if verify else None)
        for table, split, rows in zip(tables, ("train", "test"), images.rows, strict=True)
    )
    return train, test
