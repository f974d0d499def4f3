from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bezoar.data import Dataset, Samples
from bezoar.data._augment import crop_and_flip
from bezoar.errors import DataError


def photographs(n: int = 40, channels: int = 3, size: int = 12) -> Samples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    return Samples(images, torch.arange(n) % 2)


def dataset(samples: Samples, **changes: object) -> Dataset:
    values: dict[str, object] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)} | changes
    return Dataset("photographs", samples, samples, ("a", "b"), **values)  # type: ignore[arg-type]


def test_batch_scales_to_one_and_normalises_per_channel() -> None:
    samples = photographs()
    data = dataset(samples)
    rows = torch.tensor([3, 0, 3])
    expected = samples.inputs[rows].float() / 255
    expected = (expected - torch.tensor(data.mean).view(1, 3, 1, 1)) / torch.tensor(data.std).view(1, 3, 1, 1)
    batch = data.batch(samples, rows)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, expected)
    assert torch.equal(batch, data.batch(samples, rows.numpy()))
    assert torch.equal(data.batch(samples, slice(None))[rows], batch)


def test_batch_takes_features_that_are_not_images() -> None:
    samples = Samples(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), torch.tensor([0, 1]))
    data = Dataset("table", samples, samples, ("a", "b"), mean=(2.0, 20.0), std=(1.0, 10.0), scale=1.0)
    torch.testing.assert_close(data.batch(samples, slice(None)), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_augmentation_is_a_crop_of_the_reflect_padded_image_or_its_mirror_image() -> None:
    samples = photographs()
    rows = torch.arange(len(samples)).flip(0)
    cropped = crop_and_flip(samples.inputs, rows, torch.Generator().manual_seed(1))
    padded = F.pad(samples.inputs.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    seen = set()
    for result, row in zip(cropped, rows, strict=True):
        crops = {
            (y, x, flip): torch.equal(result, window.flip(2) if flip else window)
            for y in range(9)
            for x in range(9)
            for flip in (False, True)
            for window in [padded[row, :, y : y + 12, x : x + 12]]
        }
        assert sum(crops.values()) == 1
        seen.update(key for key, same in crops.items() if same)
    assert {flip for *_, flip in seen} == {False, True}
    assert {y for y, *_ in seen} | {x for _, x, _ in seen} == set(range(9))


def test_augmentation_follows_its_generator_and_only_where_the_data_set_has_one() -> None:
    samples = photographs()
    rows = np.arange(10)
    plain, augmented = dataset(samples), dataset(samples, augmentation="crop-flip")

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert torch.equal(plain.batch(samples, rows, seeded(0)), plain.batch(samples, rows))
    assert torch.equal(augmented.batch(samples, rows), plain.batch(samples, rows))
    once = augmented.batch(samples, rows, seeded(0))
    assert torch.equal(once, augmented.batch(samples, rows, seeded(0)))
    assert torch.equal(once, augmented.batch(samples, slice(0, 10), seeded(0)))
    assert not torch.equal(once, augmented.batch(samples, rows, seeded(1)))


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
@pytest.mark.parametrize("seed", [None, 3])
def test_some_of_a_batch_are_what_they_are_in_the_whole(augmentation: str, seed: int | None) -> None:
    samples, only = photographs(), torch.tensor([7, 2, 9])
    data = dataset(samples, augmentation=augmentation)

    def draws() -> torch.Generator | None:
        return None if seed is None else torch.Generator().manual_seed(seed)

    for rows in (torch.arange(10) * 3, slice(5, 20)):
        whole = data.batch(samples, rows, draws())
        assert torch.equal(data.batch(samples, rows, draws(), only), whole[only])
        assert data.batch(samples, rows, draws(), only[:0]).shape == (0, 3, 12, 12)


def test_stored_images_are_not_changed() -> None:
    samples = photographs()
    before = samples.inputs.clone()
    dataset(samples, augmentation="crop-flip").batch(samples, slice(None), torch.Generator().manual_seed(0))
    assert torch.equal(samples.inputs, before)
    floats = Samples(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
    Dataset("f", floats, floats, ("a",), (0.25,) * 3, (0.5,) * 3, scale=1.0).batch(floats, slice(None))
    assert torch.equal(floats.inputs, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int32), "int64"),
        (torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64), "one row per target"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "one row per target"),
    ],
)
def test_samples_that_do_not_fit_are_refused(inputs: torch.Tensor, targets: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Samples(inputs, targets)


def test_parts_that_do_not_fit_are_refused() -> None:
    samples = photographs()
    with pytest.raises(DataError, match="3 channels"):
        dataset(samples, mean=(0.0,))
    with pytest.raises(DataError, match="positive"):
        dataset(samples, std=(1.0, 0.0, 1.0))
    with pytest.raises(DataError, match="test samples"):
        Dataset("x", samples, photographs(size=8), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(DataError, match=r"0\.\.0"):
        Dataset("x", samples, samples, ("a",), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(DataError, match="'writer'"):
        dataset(samples, natural={"writer": np.zeros(3, dtype=np.int64)})


def test_import_is_light() -> None:
    code = "import sys, bezoar.data; print([m for m in ('sklearn', 'pyarrow', 'PIL', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
