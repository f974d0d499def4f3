"""The UCI heart disease data: patients of four hospitals, a small federation that exists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bezoar.data._files import check_sha256, find
from bezoar.data.dataset import Dataset, Indices, Samples
from bezoar.errors import DataError
from bezoar.seeding import numpy_generator

Table = NDArray[np.float64]

#: Group ids of the column ``hospital`` are places in this tuple.
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
WANTED = {hospital: (f"processed.{hospital}.data",) for hospital in HOSPITALS}

_COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal"),
    "num",
)
_CATEGORIES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}
_CODES = {**_CATEGORIES, **dict.fromkeys(("sex", "fbs", "exang"), (0, 1)), "num": (0, 1, 2, 3, 4)}
#: A living patient has neither: 0 was written where nothing was measured.
_NEVER_ZERO = ("trestbps", "chol")

#: What the inputs are, in their order.
FEATURES = tuple(
    name
    for column in _COLUMNS[:-1]
    for name in ([f"{column}={code}" for code in _CATEGORIES[column]] if column in _CATEGORIES else [column])
)

#: Fixed: split and wards are part of the data set, not of an experiment.
_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_WARD = 40


def load_heart(folder: Path, verify: bool) -> Dataset | None:
    """The data set in ``folder``, or None if one of its files is not there. Raises DataError for a damaged one.

    Inputs are the 22 :data:`FEATURES`: numbers and yes-or-no answers as they are, a category as one column for each of
    its codes. A number or an answer that is missing becomes the median over the training patients of all hospitals
    (the lower one of two); a missing category has 0 in all its columns. Class 1 is disease, ``num`` > 0. Of each
    hospital's patients of each class a fifth is test data, always the same. The natural column ``hospital`` says where
    a training patient was examined; ``ward`` divides each hospital's patients at random into groups of about 40, for
    federations of more than four clients: the wards are made up, the hospitals are not.
    """
    paths = [find(folder, WANTED[hospital]) for hospital in HOSPITALS]
    if None in paths:
        return None
    tables = [_read(path, PUBLISHED[path.name] if verify else None) for path in paths if path is not None]
    whole = np.concatenate(tables)
    hospital = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    targets = (whole[:, -1] > 0).astype(np.int64)
    in_test = _in_test(hospital, targets)
    inputs = _encode(whole[:, :-1], ~in_test)
    train, test = (
        Samples(torch.from_numpy(inputs[rows].astype(np.float32)), torch.from_numpy(targets[rows]))
        for rows in (~in_test, in_test)
    )
    mean, std = inputs[~in_test].mean(0), inputs[~in_test].std(0)
    return Dataset(
        "heart-disease",
        train,
        test,
        ("healthy", "disease"),
        mean=tuple(mean.tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),
        natural={"hospital": hospital[~in_test], "ward": _wards(hospital[~in_test])},
        scale=1.0,
    )


def _read(path: Path, sha256: str | None) -> Table:
    """The patients in one file [n, 14], NaN where a cell is missing."""
    content = path.read_bytes()
    check_sha256(path, sha256, content)
    rows = []
    for number, line in enumerate(content.decode("latin-1").splitlines(), 1):
        cells = line.split(",")
        if len(cells) != len(_COLUMNS):
            raise DataError(f"{path}, line {number}: {len(cells)} cells, expected {len(_COLUMNS)}")
        rows.append([_value(name, cell, f"{path}, line {number}") for name, cell in zip(_COLUMNS, cells, strict=True)])
    if not rows:
        raise DataError(f"{path}: there are no patients in it")
    table = np.array(rows)
    for column in _NEVER_ZERO:
        cells_of = table[:, _COLUMNS.index(column)]
        cells_of[cells_of == 0] = np.nan
    return table


def _value(column: str, cell: str, where: str) -> float:
    """The number in one cell, NaN if it is missing; DataError if it can not stand in that column."""
    if cell.strip() == "?" and column != "num":
        return float("nan")
    allowed = _CODES.get(column)
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (allowed is not None and value not in allowed):
        expected = f"one of {', '.join(map(str, allowed))}" if allowed else "a number or ?"
        raise DataError(f"{where}: {column} is {cell.strip()!r}, expected {expected}")
    return value


def _in_test(hospital: Indices, targets: Indices) -> NDArray[np.bool_]:
    """Which patients are test data: a fifth of each hospital's of each class."""
    rng = numpy_generator(_SPLIT_SEED, "heart-disease split")
    in_test = np.zeros(len(targets), dtype=bool)
    for place in range(len(HOSPITALS)):
        for kind in (0, 1):
            mine = rng.permutation(np.flatnonzero((hospital == place) & (targets == kind)))
            in_test[mine[: round(_TEST_SHARE * len(mine))]] = True
    return in_test


def _encode(table: Table, in_train: NDArray[np.bool_]) -> Table:
    """One column for each of :data:`FEATURES`, without missing values."""
    columns = []
    for name, values in zip(_COLUMNS[:-1], table.T, strict=True):
        if name in _CATEGORIES:
            columns += [(values == code).astype(np.float64) for code in _CATEGORIES[name]]
            continue
        known = np.sort(values[in_train & ~np.isnan(values)])
        median = known[(len(known) - 1) // 2] if len(known) else 0.0
        columns.append(np.where(np.isnan(values), median, values))
    return np.stack(columns, 1)


def _wards(hospital: Indices) -> Indices:
    """A ward for every patient: each hospital's dealt at random into groups of about 40, sizes one apart at most."""
    rng = numpy_generator(_SPLIT_SEED, "heart-disease wards")
    wards = np.empty_like(hospital)
    first = 0
    for place in np.unique(hospital):
        mine = rng.permutation(np.flatnonzero(hospital == place))
        count = max(1, round(len(mine) / _WARD))
        wards[mine] = first + np.arange(len(mine)) % count
        first += count
    return wards


#: SHA-256 of UCI's files.
PUBLISHED = {
    "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
