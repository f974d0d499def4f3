"""The data sets by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bezoar.data import _cifar, _femnist, _files, _heart, _mnist, _reddit, _shakespeare
from bezoar.data._digits import load_digits
from bezoar.data._hub import load_hub
from bezoar.data._images import ImageSet
from bezoar.data.dataset import Dataset
from bezoar.errors import ConfigError, nearest


@dataclass(frozen=True)
class Source:
    """One data set by name: what it is, which files it needs, and how it is read.

    ``files`` maps a part to the names under which its file is looked for in ``<data_dir>/<name>/``; it is empty for
    data that come with the library. ``read(folder, verify)`` returns None where a file is missing; ``images``, if
    there is such a thing, then tells what to ask the hub for, and ``hint`` where else the files come from.
    """

    name: str
    summary: str
    read: Callable[[Path, bool], Dataset | None]
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: ImageSet | None = None
    hint: str = ""


def _idx(images: ImageSet, summary: str) -> Source:
    return Source(images.name, summary, partial(_mnist.load_idx, images), _mnist.WANTED, images)


def _parquet(images: ImageSet, summary: str) -> Source:
    return Source(images.name, summary, partial(_cifar.load_parquet, images), _cifar.WANTED, images)


#: Name -> data set.
DATASETS: dict[str, Source] = {
    source.name: source
    for source in (
        Source("digits", "1,797 grey 8x8 scans of digits, 10 classes; part of scikit-learn", lambda *_: load_digits()),
        _idx(_mnist.FASHION, "70,000 grey 28x28 pictures of clothes, 10 classes"),
        _idx(_mnist.MNIST, "70,000 grey 28x28 handwritten digits, 10 classes; with QMNIST's labels, who wrote them"),
        _parquet(_cifar.CIFAR10, "60,000 colour 32x32 photographs, 10 classes"),
        _parquet(_cifar.CIFAR100, "60,000 colour 32x32 photographs, 100 classes"),
        Source(
            "heart-disease",
            "920 patients of four hospitals, 22 features, healthy or not; columns hospital and ward (UCI)",
            _heart.load_heart,
            _heart.WANTED,
        ),
        Source(
            "femnist",
            "about 805,000 grey 28x28 handwritten characters, 62 classes; column writer (LEAF or Hugging Face files)",
            _femnist.load_femnist,
            _femnist.WANTED,
            hint=". LEAF's scripts make the JSON files, huggingface.co/datasets/flwrlabs/femnist has the parquet files",
        ),
        Source(
            "shakespeare",
            "37 plays by speaking role: 80 characters, the next of 76; columns role and play",
            _shakespeare.load_shakespeare,
            _shakespeare.WANTED,
        ),
        Source(
            "reddit",
            "posts by user: 10 words, the next of 50,000; column user (LEAF files, JSON lines or parquet)",
            _reddit.load_reddit,
            _reddit.WANTED,
            hint=_reddit.HINT,
        ),
    )
}


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, verify: bool = True, normalise: bool = True
) -> Dataset:
    """The data set called ``name``.

    Its files are looked for in ``<data_dir>/<name>/``; ``data_dir`` defaults to the environment variable BEZOAR_DATA,
    else ``./data``. Where they are absent and the optional library ``datasets`` is installed, the data come from
    the Hugging Face hub or its cache. ``verify=False`` accepts files that are not the published
    ones, as long as their structure is right. ``normalise=False`` leaves inputs in [0, 1] (mean 0, std 1); tokens are
    never normalised.

    Raises ConfigError for an unknown name, DataError if files are missing or damaged.

    >>> load("digits").shape
    (1, 8, 8)
    """
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}: {nearest(name, DATASETS)}")
    source, folder = DATASETS[name], _files.root(data_dir) / name
    dataset = source.read(folder, verify)
    if dataset is None:
        hub = ", or install the hub's client: pip install 'bezoar[data]'" if source.images else ""
        absent = _files.missing(name, folder, source.files, source.hint or hub)
        splits = load_hub(source.images, verify, absent) if source.images else None
        if source.images is None or splits is None:
            raise absent
        dataset = source.images.dataset(*splits)
    if name == "mnist":
        dataset = _mnist.with_writers(dataset, folder)
    if normalise or dataset.vocabulary is not None:
        return dataset
    channels = dataset.shape[0]
    return dataclasses.replace(dataset, mean=(0.0,) * channels, std=(1.0,) * channels)
