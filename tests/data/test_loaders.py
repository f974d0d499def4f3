from __future__ import annotations

import gzip
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bezoar.data import DATASETS, Dataset, load
from bezoar.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 9, 9, 3], dtype=np.uint8)
Edit = Callable[[bytes], bytes]


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for half in ("train", "t10k"):
        (folder / f"{half}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
        (folder / f"{half}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    return tmp_path


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def table(images: list[bytes | None], labels: list[int | None], column: str = "img", label: str = "label") -> pa.Table:
    structs = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({column: pa.array(structs, kind), label: pa.array(labels, pa.int64())})


PHOTOS = np.random.default_rng(1).integers(0, 256, (1_100, 32, 32, 3), dtype=np.uint8)


def cifar(folder: Path, content: pa.Table, split: str = "train", name: str = "cifar10") -> Path:
    (folder / name).mkdir(exist_ok=True)
    pq.write_table(content, folder / name / f"{split}.parquet")
    return folder


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    small = table([png(photo) for photo in PHOTOS[:3]], [3, 0, 9])
    return cifar(cifar(tmp_path, small), small, "test")


def test_digits_need_no_files_and_are_the_same_for_everyone() -> None:
    digits = load("digits")
    assert (len(digits.train), len(digits.test), digits.shape) == (1_438, 359, (1, 8, 8))
    assert np.bincount(digits.test.targets).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert digits.train.inputs.dtype == torch.uint8
    assert digits.train.inputs.max() == 16
    assert int((digits.test.inputs.long() * torch.arange(64).view(1, 1, 8, 8)).sum()) == 3_500_348
    whole = digits.batch(digits.train, slice(None))
    assert abs(whole.mean()) < 1e-3
    assert abs(whole.std() - 1) < 1e-3
    raw = load("digits", normalise=False)
    assert raw.batch(raw.train, slice(None)).aminmax() == (0.0, 1.0)


def test_idx_files_are_read_as_they_are(mnist: Path) -> None:
    data = load("mnist", mnist, verify=False)
    assert torch.equal(data.train.inputs, torch.from_numpy(IMAGES)[:, None])
    assert data.test.targets.tolist() == LABELS.tolist()
    assert data.natural == {}
    assert len(data.classes) == 10


def test_unpacked_idx_files_serve_too_and_the_environment_names_the_directory(
    mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (mnist / "mnist").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    monkeypatch.setenv("BEZOAR_DATA", str(mnist))
    assert torch.equal(load("mnist", verify=False).train.inputs, torch.from_numpy(IMAGES)[:, None])


def test_writers_come_from_qmnist_where_its_labels_match(mnist: Path) -> None:
    writers = np.zeros((6, 8), dtype=np.int32)
    writers[:, 0], writers[:, 2] = LABELS, [300, 70_000, 300, 5, 5, 5]
    path = mnist / "mnist" / "qmnist-train-labels-idx2-int.gz"
    path.write_bytes(gzip.compress(idx(writers, 0x0C)))
    assert load("mnist", mnist, verify=False).natural["writer"].tolist() == [300, 70_000, 300, 5, 5, 5]
    writers[0, 0] = 8
    path.write_bytes(gzip.compress(idx(writers, 0x0C)))
    with pytest.raises(DataError, match=r"qmnist-train-labels-idx2-int.gz: its 6 rows do not describe"):
        load("mnist", mnist, verify=False)


def test_files_that_are_not_the_published_ones_are_refused_by_name(mnist: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: content is not the published.*verify=False"):
        load("mnist", mnist)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda b: gzip.compress(b)[:-30], "damaged or truncated"),
        (lambda b: gzip.compress(b)[:40] + b"\0" * 99 + gzip.compress(b)[139:], "damaged or truncated"),
        (lambda b: b, "damaged or truncated"),
        (lambda b: b"", "begins with nothing"),
        (lambda b: gzip.compress(b""), "begins with nothing"),
        (lambda b: gzip.compress(b[:9]), "ends inside its header"),
        (lambda b: gzip.compress(b[:-1]), "4703 bytes of data where its header promises 4704"),
        (lambda b: gzip.compress(b + b"x"), "more bytes of data"),
        (lambda b: gzip.compress(b"\0\0\x0d\x03" + b[4:]), "begins with 00000d03, not with .* 00000803"),
        (lambda b: gzip.compress(idx(np.zeros((6, 32, 32), np.uint8))), r"shape \(32, 32\), expected \(28, 28\)"),
        (lambda b: gzip.compress(b[:4] + b"\xff" * 4 + b[8:]), "more than any file of this kind"),
        (lambda b: gzip.compress(idx(IMAGES[:5])), "6 labels for the 5 images"),
    ],
)
def test_damaged_images_name_the_file(mnist: Path, edit: Edit, words: str) -> None:
    (mnist / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(edit(idx(IMAGES)))
    with pytest.raises(DataError, match=rf"(?s)train-(images|labels)-idx.*{words}"):
        load("mnist", mnist, verify=False)


@pytest.mark.parametrize("labels", [np.array([10] * 6, np.uint8), np.array([], np.uint8)])
def test_labels_must_be_known_classes(mnist: Path, labels: np.ndarray) -> None:
    folder = mnist / "mnist"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[: len(labels)])))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: labels must be in 0\.\.9"):
        load("mnist", mnist, verify=False)


def test_parquet_images_keep_their_pixels_and_channels(cifar10: Path) -> None:
    data = load("cifar10", cifar10, verify=False)
    assert data.train.inputs.is_contiguous()
    assert torch.equal(data.train.inputs, torch.from_numpy(PHOTOS[:3]).permute(0, 3, 1, 2))
    assert data.train.targets.tolist() == [3, 0, 9]
    assert data.augmentation == "crop-flip"


def test_many_images_stay_in_order_and_the_hub_names_its_files_otherwise(tmp_path: Path) -> None:
    many = table([png(photo) for photo in PHOTOS], [i % 100 for i in range(1_100)], label="fine_label")
    folder = cifar(cifar(tmp_path, many, "train-00000-of-00001", "cifar100"), many, "test", "cifar100")
    data = load("cifar100", folder, verify=False)
    assert torch.equal(data.test.inputs, torch.from_numpy(PHOTOS).permute(0, 3, 1, 2))
    assert len(data.classes) == len(set(data.classes)) == 100
    assert list(data.classes) == sorted(data.classes)


def test_parquet_of_another_size_or_balance_is_refused_unless_asked_for(tmp_path: Path, cifar10: Path) -> None:
    with pytest.raises(DataError, match=r"train.parquet: column 'label' has 3 rows, the published split has 50000"):
        load("cifar10", cifar10)
    labels = [0, *range(1, 10)] * 5_000
    labels[1] = 0
    cifar(tmp_path, table([b""] * 50_000, list(labels)))
    with pytest.raises(DataError, match="has 4999 to 5001 samples a class, published are 5000"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table([png(PHOTOS[0])], [1], column="picture"), "has columns picture, label; needs img or image, and label"),
        (table([png(PHOTOS[0])], [1], label="fine_label"), "has columns img, fine_label; needs"),
        (table([png(PHOTOS[0])], [10]), r"labels in 0\.\.9"),
        (table([png(PHOTOS[0])], [-1]), r"labels in 0\.\.9"),
        (table([png(PHOTOS[0])], [None]), "1 nulls"),
        (table([], []), "there must be some"),
        (table([png(PHOTOS[0])] * 2 + [png(PHOTOS[0, :16])], [1] * 3), "row 2: a 32x16 RGB image, needs 32x32 RGB"),
        (table([png(PHOTOS[0, :, :, 0])], [1]), "row 0: a 32x32 L image, needs 32x32 RGB"),
        (table([png(PHOTOS[0])[:-40]], [1]), "row 0: not a readable PNG"),
        (table([png(PHOTOS[0], "JPEG")], [1]), "row 0: not a readable PNG"),
        (table([None], [1]), "row 0: not a readable PNG"),
        (pa.table({"img": [b"x"], "label": [1]}), "images have type binary"),
        (pa.table({"img": [b"x"], "label": ["1"]}), "needs integers only"),
    ],
)
def test_damaged_tables_name_the_file_and_the_row(cifar10: Path, content: pa.Table, words: str) -> None:
    cifar(cifar10, content, "test")
    with pytest.raises(DataError, match=rf"test.parquet.*{words}"):
        load("cifar10", cifar10, verify=False)


def test_a_file_that_is_no_parquet_is_named(cifar10: Path) -> None:
    path = cifar10 / "cifar10" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train.parquet: not a readable parquet file"):
        load("cifar10", cifar10, verify=False)


class FakeSplit:
    """What is used of a split of the hub's library."""

    def __init__(self, content: pa.Table) -> None:
        self.content = content

    def with_format(self, kind: str) -> FakeSplit:
        assert kind == "arrow"
        return self

    def __getitem__(self, rows: slice) -> pa.Table:
        return self.content[rows]


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], dict[str, FakeSplit]]) -> None:
    module = ModuleType("datasets")
    module.load_dataset = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize(
    ("name", "repository", "column", "label"),
    [
        ("mnist", "ylecun/mnist", "image", "label"),
        ("fashion-mnist", "zalando-datasets/fashion_mnist", "image", "label"),
        ("cifar10", "uoft-cs/cifar10", "img", "label"),
        ("cifar100", "uoft-cs/cifar100", "img", "fine_label"),
    ],
)
def test_absent_files_come_from_the_hub_where_its_library_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, repository: str, column: str, label: str
) -> None:
    pixels = IMAGES if "mnist" in name else PHOTOS[:6]
    content = table([png(picture) for picture in pixels], LABELS.tolist(), column, label)
    asked = []

    def answer(path: str) -> dict[str, FakeSplit]:
        asked.append(path)
        return {"train": FakeSplit(content), "test": FakeSplit(content[:2])}

    fake_hub(monkeypatch, answer)
    data = load(name, tmp_path, verify=False)
    assert asked == [repository]
    expected = torch.from_numpy(pixels)[:, None] if "mnist" in name else torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(data.train.inputs, expected)
    assert data.test.targets.tolist() == [0, 1]
    with pytest.raises(DataError, match=rf"hub data set {repository}, train: column '{label}' has 6 rows"):
        load(name, tmp_path)


def test_a_hub_that_does_not_answer_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: str) -> dict[str, FakeSplit]:
        raise ConnectionError("no route to host")

    fake_hub(monkeypatch, answer)
    with pytest.raises(DataError, match=r"not in .*looked for .* hub did not give 'ylecun/mnist' .*no route"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_absent_files_are_listed_with_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert all(names[0] in message for names in DATASETS[name].files.values())
    assert "BEZOAR_DATA" in message
    assert "\n" not in message


def test_the_default_directory_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delenv("BEZOAR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=str(tmp_path / "data" / "mnist")):
        load("mnist")


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        load("cifar-10")
    assert all(source.summary for source in DATASETS.values())


def moments(data: Dataset) -> tuple[list[float], list[float]]:
    values = np.arange(256) / data.scale
    histograms = [np.bincount(data.train.inputs[:, c].flatten(), minlength=256) for c in range(data.shape[0])]
    means = [float(np.average(values, weights=h)) for h in histograms]
    squares = [float(np.average(values**2, weights=h)) for h in histograms]
    return means, [(s - m**2) ** 0.5 for s, m in zip(squares, means, strict=True)]


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist", "mnist"])
def test_real_data_are_complete_and_their_constants_right(data_dir: Path, name: str) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"no real {name}: {data_dir / name} is not a directory")
    data = load(name, data_dir)
    assert (len(data.train), len(data.test)) == ((50_000 if "cifar" in name else 60_000), 10_000)
    mean, std = moments(data)
    assert mean == pytest.approx(data.mean, abs=2e-4)
    assert std == pytest.approx(data.std, abs=2e-4)
    if name != "mnist":
        assert len(set(np.bincount(data.train.targets).tolist())) == 1


@pytest.mark.data
def test_real_mnist_has_its_writers(data_dir: Path) -> None:
    if not (data_dir / "mnist" / "qmnist-train-labels-idx2-int.gz").is_file():
        pytest.skip(f"no QMNIST labels in {data_dir / 'mnist'}")
    writers = load("mnist", data_dir).natural["writer"]
    assert len(np.unique(writers)) == 539
