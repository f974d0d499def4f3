"""FEMNIST, handwritten characters of 3,500 writers, from LEAF's JSON files or from Hugging Face's parquet files."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bezoar.data._files import matching
from bezoar.data._images import ImageSet, read_table
from bezoar.data._leaf import read_users
from bezoar.data.dataset import Dataset, Indices, Samples
from bezoar.errors import DataError
from bezoar.seeding import numpy_generator

FEMNIST = ImageSet(
    "femnist",
    (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase),
    shape=(1, 28, 28),
    # Of LEAF's images, white paper is 1; the numbers of FetchSGD's and SparseFed's code.
    mean=(0.9637,),
    std=(0.1597,),
    rows=(0, 0),
    hub="flwrlabs/femnist",
    label="character",
)

_TRAIN, _TEST = ("train/*.json",), ("test/*.json",)
_LEAF = ("all_data/*.json", "all_data*.json")
_HUB = ("train-*.parquet", "data/train-*.parquet", "femnist.parquet")
#: What is looked for: LEAF's split, LEAF's files before its split, or the hub's table.
WANTED = {"images and writers": ("train/*.json with test/*.json", *_LEAF, *_HUB)}

#: Fixed: the split is part of the data set, not of an experiment.
_SPLIT_SEED = 0
_TEST_SHARE = 0.1

#: Images [N, 784] uint8, classes [N], writers' names [N].
_Table = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]


def load_femnist(folder: Path, verify: bool) -> Dataset | None:
    """The data set in ``folder``, or None if its files are not there. Raises DataError for damaged ones.

    LEAF's own split is kept where there is one (``train/``, ``test/``). Otherwise a tenth of every writer's images is
    test data, drawn once and for all. The natural column ``writer`` numbers the writers in the order of their names.
    There is no published checksum: LEAF's scripts sample as they are told.
    """
    train, test = matching(folder, _TRAIN), matching(folder, _TEST)
    if train and test:
        parts = [_leaf(train), _leaf(test)]
        return _dataset(*parts)
    whole: _Table | None = None
    if files := matching(folder, _LEAF):
        whole = _leaf(files)
    elif files := matching(folder, _HUB):
        whole = _parquet(files)
    if whole is None:
        return None
    in_test = _in_test(whole[2])
    if not in_test.any():
        raise DataError(f"{files[0]}: no writer has six images, of which a tenth, rounded, would be test data")
    images, labels, writers = whole
    return _dataset(
        (images[~in_test], labels[~in_test], writers[~in_test]), (images[in_test], labels[in_test], writers[in_test])
    )


def _dataset(train: _Table, test: _Table) -> Dataset:
    _, writer = np.unique(train[2], return_inverse=True)
    halves = [
        Samples(torch.from_numpy(images).view(-1, *FEMNIST.shape), torch.from_numpy(labels))
        for images, labels, _ in (train, test)
    ]
    return FEMNIST.dataset(halves[0], halves[1], {"writer": writer.astype(np.int64)})


def _in_test(writers: NDArray[np.str_]) -> NDArray[np.bool_]:
    """A tenth of every writer's images, to the nearest whole one, whatever order the files have the writers in."""
    rng = numpy_generator(_SPLIT_SEED, "femnist split")
    _, owners, counts = np.unique(writers, return_inverse=True, return_counts=True)
    # Images in the order of writers, so that the draws do not depend on which file came first.
    by_writer = np.argsort(owners, kind="stable")
    shuffled = by_writer[np.lexsort((rng.random(len(owners)), owners[by_writer]))]
    place = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    in_test = np.zeros(len(owners), dtype=bool)
    in_test[shuffled] = place < np.rint(_TEST_SHARE * counts).astype(np.int64)[owners[shuffled]]
    return in_test


def _leaf(paths: list[Path]) -> _Table:
    images, labels, writers = [], [], []
    for user, x, y, where in read_users(paths):
        images.append(_pixels(x, where))
        labels.append(_classes(y, where))
        writers.append(np.full(len(y), user))
    if not sum(len(part) for part in labels):
        raise DataError(f"{paths[0]}: there are no samples in it")
    return np.concatenate(images), np.concatenate(labels), np.concatenate(writers)


def _pixels(x: list[Any], where: str) -> NDArray[np.uint8]:
    """Grey values 0..1 as bytes [N, 784]."""
    for place, image in enumerate(x):
        if not isinstance(image, list) or len(image) != 784:
            raise DataError(f"{where}: x[{place}] must be 784 numbers (28x28)")
    try:
        values = np.array(x)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: x must hold numbers ({error})") from error
    if not len(values):
        return np.empty((0, 784), dtype=np.uint8)
    if values.dtype.kind not in "iuf" or values.shape != (len(x), 784):
        # Not what numpy would make numbers of: texts, booleans, lists of one.
        raise DataError(f"{where}: x must hold numbers, 784 an image, and nothing else")
    if not (values.min() >= 0 and values.max() <= 1):
        wrong = int(np.argwhere(~((values >= 0) & (values <= 1)).all(1))[0, 0])
        raise DataError(f"{where}: x[{wrong}] must hold grey values from 0 to 1")
    grey: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return grey


def _classes(y: list[Any], where: str) -> NDArray[np.int64]:
    for place, label in enumerate(y):
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(FEMNIST.classes):
            raise DataError(f"{where}: y[{place}] must be a class 0..{len(FEMNIST.classes) - 1}, got {label!r}")
    return np.array(y, dtype=np.int64)


def _parquet(paths: list[Path]) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({error})") from error
        samples = read_table(table, path, FEMNIST, None)
        parts.append((np.asarray(samples.inputs).reshape(-1, 784), samples.targets.numpy(), _writers(table, path)))
    images, labels, writers = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels), np.concatenate(writers)


def _writers(table: Any, path: Path) -> Indices:
    import pyarrow as pa

    if "writer_id" not in table.column_names:
        raise DataError(f"{path}: has columns {', '.join(table.column_names)}; needs writer_id, too")
    column = table.column("writer_id")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
        raise DataError(
            f"{path}: column 'writer_id' must hold names only, not {column.type} and {column.null_count} nulls"
        )
    return np.array(column.to_pylist())
