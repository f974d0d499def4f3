"""MNIST and Fashion-MNIST from their official idx files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bezoar.data._files import find
from bezoar.data._idx import read_idx
from bezoar.data._images import ImageSet
from bezoar.data.dataset import Dataset, Indices, Samples
from bezoar.errors import DataError

PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_FILES = {part: f"{part}-idx{3 if part.endswith('images') else 1}-ubyte" for part in PARTS}
#: Alternative names of each file: compressed as published, or unpacked.
WANTED = {part: (f"{name}.gz", name) for part, name in _FILES.items()}
_QMNIST = ("qmnist-train-labels-idx2-int.gz", "qmnist-train-labels-idx2-int")


def load_idx(images: ImageSet, folder: Path, verify: bool) -> Dataset | None:
    """The data set in ``folder``, or None if one of its files is not there. Raises DataError for a damaged one.

    ``verify`` compares each file's uncompressed content with the published one.
    """
    paths = {part: find(folder, names) for part, names in WANTED.items()}
    found = {part: path for part, path in paths.items() if path is not None}
    if len(found) < len(paths):
        return None
    sums = PUBLISHED[images.name] if verify else {}
    train, test = (_samples(found, half, len(images.classes), sums) for half in ("train", "t10k"))
    return images.dataset(train, test)


def with_writers(dataset: Dataset, folder: Path) -> Dataset:
    """``dataset`` (MNIST) with its natural column ``writer``, if QMNIST's labels are in ``folder``."""
    path = find(folder, _QMNIST)
    if path is None:
        return dataset
    return dataclasses.replace(dataset, natural={"writer": _writers(path, dataset.train)})


def _samples(paths: Mapping[str, Path], half: str, classes: int, sums: Mapping[str, str]) -> Samples:
    images_path, labels_path = paths[f"{half}-images"], paths[f"{half}-labels"]
    images = read_idx(images_path, (28, 28), "uint8", sums.get(f"{half}-images"))
    labels = read_idx(labels_path, (), "uint8", sums.get(f"{half}-labels"))
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}")
    if not len(labels) or labels.max() >= classes:
        raise DataError(f"{labels_path}: labels must be in 0..{classes - 1}, and there must be some")
    return Samples(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))


def _writers(path: Path, train: Samples) -> Indices:
    """The NIST writer of each MNIST train image, from QMNIST's extended labels (class, series, writer, ...)."""
    table = read_idx(path, (8,), "int32")
    if len(table) != len(train) or not np.array_equal(table[:, 0], train.targets.numpy()):
        raise DataError(f"{path}: its {len(table)} rows do not describe the {len(train)} train images beside it")
    return table[:, 2].astype(np.int64)


MNIST = ImageSet(
    "mnist",
    tuple("0123456789"),
    shape=(1, 28, 28),
    mean=(0.1307,),
    std=(0.3081,),
    rows=(60_000, 10_000),
    hub="ylecun/mnist",
)

FASHION = ImageSet(
    "fashion-mnist",
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    shape=(1, 28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    rows=(60_000, 10_000),
    hub="zalando-datasets/fashion_mnist",
    balanced=True,
)

#: SHA-256 of the published files, uncompressed.
PUBLISHED = {
    "mnist": {
        "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
