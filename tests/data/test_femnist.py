from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bezoar.data import Dataset, Natural, load, partition
from bezoar.errors import DataError

RNG = np.random.default_rng(0)
WRITERS = {"f0001_41": 20, "f0000_14": 34, "f0007_03": 4}
IMAGES = {writer: RNG.integers(0, 256, (size, 28, 28), dtype=np.uint8) for writer, size in WRITERS.items()}
LABELS = {writer: RNG.integers(0, 62, size) for writer, size in WRITERS.items()}


def table(writers: list[str], part: slice = slice(None)) -> dict[str, Any]:
    data = {
        writer: {
            "x": [(image.reshape(-1) / 255).tolist() for image in IMAGES[writer][part]],
            "y": LABELS[writer][part].tolist(),
        }
        for writer in writers
    }
    return {"users": writers, "num_samples": [len(data[w]["y"]) for w in writers], "user_data": data}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def whole(folder: Path) -> Path:
    names = list(WRITERS)
    write(folder / "femnist/all_data/all_data_0.json", table(names[:1]))
    write(folder / "femnist/all_data/all_data_1.json", table(names[1:]))
    return folder


def loose(folder: Path) -> Path:
    write(folder / "femnist/all_data_0.json", table(list(WRITERS)))
    return folder


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def hub(folder: Path, **columns: Any) -> Path:
    (folder / "femnist/data").mkdir(parents=True)
    for shard, writers in enumerate((list(WRITERS)[:2], list(WRITERS)[2:])):
        structs = [{"bytes": png(image), "path": None} for writer in writers for image in IMAGES[writer]]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        content: dict[str, Any] = {
            "image": pa.array(structs, kind),
            "writer_id": [writer for writer in writers for _ in IMAGES[writer]],
            "hsf_id": pa.array([0] * len(structs), pa.int64()),
            "character": pa.array([int(y) for writer in writers for y in LABELS[writer]], pa.int64()),
        }
        content |= {key: value(len(structs)) for key, value in columns.items()}
        pq.write_table(pa.table(content), folder / f"femnist/data/train-0000{shard}-of-00002.parquet")
    return folder


def contents(data: Dataset) -> list[tuple[bytes, int]]:
    return sorted(
        (bytes(image.numpy().tobytes()), int(label))
        for part in (data.train, data.test)
        for image, label in zip(part.inputs, part.targets, strict=True)
    )


@pytest.mark.parametrize("layout", [whole, loose, hub])
def test_every_layout_gives_the_same_images_and_writers(tmp_path: Path, layout: Any) -> None:
    data = load("femnist", layout(tmp_path))
    assert data.shape == (1, 28, 28)
    assert len(data.classes) == 62
    assert (data.classes[0], data.classes[10], data.classes[36]) == ("0", "A", "a")
    assert isinstance(data.train.inputs, torch.Tensor)
    assert data.train.inputs.dtype == torch.uint8
    assert contents(data) == sorted(
        (image.tobytes(), int(label))
        for writer in WRITERS
        for image, label in zip(IMAGES[writer], LABELS[writer], strict=True)
    )
    # A tenth of every writer's is test data; writers are numbered by name.
    assert (len(data.train), len(data.test)) == (18 + 31 + 4, 2 + 3)
    assert np.bincount(data.natural["writer"]).tolist() == [31, 18, 4]
    for writer, number in zip(sorted(WRITERS), range(3), strict=True):
        mine = data.train.inputs[torch.from_numpy(data.natural["writer"] == number)]
        assert {image.numpy().tobytes() for image in mine} <= {image.tobytes() for image in IMAGES[writer]}
    again = load("femnist", tmp_path)
    assert torch.equal(data.test.targets, again.test.targets)


def test_the_split_of_a_writer_does_not_depend_on_the_other_files(tmp_path: Path) -> None:
    one, other = whole(tmp_path / "one"), loose(tmp_path / "other")
    tests = [load("femnist", folder).test for folder in (one, other)]
    assert [sorted(part.targets.tolist()) for part in tests] == [sorted(tests[0].targets.tolist())] * 2


def test_the_split_that_leaf_made_is_kept(tmp_path: Path) -> None:
    names = list(WRITERS)
    write(tmp_path / "femnist/train/all_data_niid_0_keep_0_train_9.json", table(names, slice(3, None)))
    write(tmp_path / "femnist/test/all_data_niid_0_keep_0_test_9.json", table(names, slice(3)))
    data = load("femnist", tmp_path)
    assert (len(data.train), len(data.test)) == (58 - 9, 9)
    assert data.test.targets.tolist() == [int(y) for writer in names for y in LABELS[writer][:3]]
    federation = partition(data, Natural("writer", split=10), 0)
    assert federation.counts().tolist() == [4] + [3] * 9 + [2] * 7 + [1] * 3 + [1]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t["user_data"]["f0000_14"]["x"].pop(), "user 'f0000_14': 33 entries in x, 34 in y"),
        (lambda t: t["user_data"]["f0000_14"]["x"][2].pop(), r"x\[2\] must be 784 numbers"),
        (lambda t: t["user_data"]["f0000_14"]["x"][3].__setitem__(5, 1.5), r"x\[3\] must hold grey values from 0 to 1"),
        (lambda t: t["user_data"]["f0000_14"]["x"][3].__setitem__(5, float("nan")), r"x\[3\] must hold grey values"),
        (lambda t: t["user_data"]["f0000_14"]["x"][3].__setitem__(5, "white"), "x must hold numbers"),
        (lambda t: t["user_data"]["f0000_14"]["x"][3].__setitem__(5, "0.5"), "x must hold numbers"),
        (lambda t: t["user_data"]["f0000_14"]["x"][3].__setitem__(5, 10**400), "x must hold numbers"),
        (lambda t: t["user_data"]["f0000_14"].update(x=[[[0.5]] * 784] * 34), "x must hold numbers, 784 an image"),
        (lambda t: t["user_data"]["f0000_14"]["y"].__setitem__(1, 62), r"y\[1\] must be a class 0\.\.61, got 62"),
        (lambda t: t["user_data"]["f0000_14"]["y"].__setitem__(1, True), r"y\[1\] must be a class"),
        (lambda t: t["num_samples"].__setitem__(1, 5), "num_samples says 5, there are 34"),
        (lambda t: t["num_samples"].pop(), "num_samples has 2 entries for 3 users"),
        (lambda t: t["users"].__setitem__(1, ["f9"]), r"users\[1\] must be a name, got \['f9'\]"),
        (lambda t: t["users"].__setitem__(1, "f9"), "user 'f9': user_data needs"),
        (lambda t: t["users"].__setitem__(1, t["users"][0]), "stands in all_data_0.json already"),
        (lambda t: t.pop("users"), "not a file of LEAF's"),
        (lambda t: t.update(users=[], num_samples=[]), "there are no samples"),
        (lambda t: t.update(table(["f0000_14"], slice(5))), "no writer has six images"),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, edit: Any, words: str) -> None:
    content = table(list(WRITERS))
    edit(content)
    write(tmp_path / "femnist/all_data_0.json", content)
    with pytest.raises(DataError, match=words):
        load("femnist", tmp_path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"writer_id": lambda n: pa.array(range(n))}, "'writer_id' must hold names only, not int64"),
        ({"writer_id": lambda n: pa.array([None] * n, pa.string())}, "and 38 nulls|and 54 nulls"),
        ({"character": lambda n: pa.array([62] * n)}, r"must have labels in 0\.\.61"),
        ({"image": lambda n: pa.array([{"bytes": "text", "path": None}] * n)}, "bytes have type string; needs binary"),
        ({"image": lambda n: pa.array([{"bytes": b"", "path": None}] * n)}, "not a readable PNG"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load("femnist", hub(tmp_path, **columns))


def test_where_the_files_come_from_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all_data\*\.json .* LEAF's scripts .*flwrlabs/femnist"):
        load("femnist", tmp_path)
