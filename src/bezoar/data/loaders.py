"""The data sets by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bezoar.data import _files, _mnist
from bezoar.data._digits import load_digits
from bezoar.data.dataset import Dataset
from bezoar.errors import ConfigError, nearest


@dataclass(frozen=True)
class Source:
    """One data set by name: what it is, which files it needs, and how it is read.

    ``files`` maps a part to the names under which its file is looked for in ``<data_dir>/<name>/``; it is empty for
    data that come with the library. ``read(folder, verify)`` returns None where a file is missing.
    """

    name: str
    summary: str
    read: Callable[[Path, bool], Dataset | None]
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _idx(family: _mnist.IdxFamily, summary: str) -> Source:
    return Source(family.name, summary, lambda folder, verify: _mnist.load_idx(family, folder, verify), _mnist.WANTED)


#: Name -> data set.
DATASETS: dict[str, Source] = {
    source.name: source
    for source in (
        Source("digits", "1,797 grey 8x8 scans of digits, 10 classes; part of scikit-learn", lambda *_: load_digits()),
        _idx(_mnist.FASHION, "70,000 grey 28x28 pictures of clothes, 10 classes"),
        _idx(
            _mnist.MNIST,
            "70,000 grey 28x28 handwritten digits, 10 classes; natural column 'writer' with QMNIST's labels",
        ),
    )
}


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, verify: bool = True, normalise: bool = True
) -> Dataset:
    """The data set called ``name``.

    Its files are looked for in ``<data_dir>/<name>/``; ``data_dir`` defaults to the environment variable BEZOAR_DATA,
    else ``./data``. ``verify=False`` accepts files that are not the published ones, as long as their structure is
    right. ``normalise=False`` leaves inputs in [0, 1] (mean 0, std 1).

    Raises ConfigError for an unknown name, DataError if files are missing or damaged.

    >>> load("digits").shape
    (1, 8, 8)
    """
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}: {nearest(name, DATASETS)}")
    source, folder = DATASETS[name], _files.root(data_dir) / name
    dataset = source.read(folder, verify)
    if dataset is None:
        raise _files.missing(name, folder, source.files, "")
    if normalise:
        return dataset
    channels = dataset.shape[0]
    return dataclasses.replace(dataset, mean=(0.0,) * channels, std=(1.0,) * channels)
