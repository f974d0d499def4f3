"""What a data set is in memory, and how a batch of it becomes a model's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.data._augment import crop_and_flip
from bezoar.data.text import Vocabulary, Windows
from bezoar.errors import ConfigError, DataError, nearest

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Samples:
    """One split: ``inputs`` [N, C, H, W] (images stay uint8) and ``targets`` [N] int64.

    Inputs may be tokens, integers [N, T], also as windows over one text.
    Raises DataError if the two do not belong together.
    """

    inputs: Tensor | Windows
    targets: Tensor

    def __post_init__(self) -> None:
        if self.targets.dtype != torch.int64 or self.targets.ndim != 1:
            raise DataError(f"targets must be int64 [N], got {self.targets.dtype} {list(self.targets.shape)}")
        if self.inputs.ndim < 2 or len(self.inputs) != len(self.targets):
            raise DataError(
                f"inputs must be [N, C, ...] with one row per target ({len(self.targets)}), "
                f"got {list(self.inputs.shape)}"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: Indices) -> Samples:
        """Samples ``rows`` alone; windows stay in the memory of their text."""
        at, inputs = torch.from_numpy(rows), self.inputs
        chosen = inputs.select(at) if isinstance(inputs, Windows) else inputs[at]
        return Samples(chosen, self.targets[at])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set with a train and a test split.

    ``mean`` and ``std`` are per channel, of inputs scaled to [0, 1]; ``scale`` is the stored value that becomes 1.0
    (255 for images). ``natural`` maps a column, for example ``"writer"``, to a group id per train sample
    [N_train] int64, and ``natural_test`` the same per test sample, where that is known. ``augmentation`` is applied
    where :meth:`batch` is given a generator.

    With a ``vocabulary`` inputs are tokens [N, T] of it, int64 and never scaled: no channels, ``mean`` and ``std`` are
    empty. Raises DataError for targets outside the classes and for parts that do not fit together.

    >>> images = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    >>> part = Samples(images, torch.tensor([0, 1]))
    >>> tiny = Dataset("tiny", part, part, ("a", "b"), mean=(0.0,), std=(1.0,), scale=7.0)
    >>> tiny.shape, tiny.batch(tiny.train, torch.tensor([1])).flatten().tolist()[-1]
    ((1, 2, 2), 1.0)
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    natural: Mapping[str, Indices] = field(default_factory=dict)
    scale: float = 255.0
    augmentation: Literal["none", "crop-flip"] = "none"
    vocabulary: Vocabulary | None = None
    natural_test: Mapping[str, Indices] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.train.inputs.shape[1:] != self.test.inputs.shape[1:]:
            raise DataError(
                f"{self.name}: train samples are {self.shape}, test samples {tuple(self.test.inputs.shape[1:])}"
            )
        if self.vocabulary is not None:
            self._check_tokens(self.vocabulary)
        elif not len(self.mean) == len(self.std) == self.shape[0] or min(self.std) <= 0 or self.scale <= 0:
            raise DataError(
                f"{self.name}: mean and std need one number for each of the {self.shape[0]} channels, "
                "std and scale must be positive"
            )
        for split, samples in (("train", self.train), ("test", self.test)):
            if len(samples) and not (samples.targets.min() >= 0 and samples.targets.max() < len(self.classes)):
                raise DataError(f"{self.name}: {split} targets must be in 0..{len(self.classes) - 1}")
        for split, samples, columns in (("train", self.train, self.natural), ("test", self.test, self.natural_test)):
            for column, groups in columns.items():
                if groups.shape != (len(samples),):
                    raise DataError(
                        f"{self.name}: column {column!r} has shape {groups.shape}, needs one group id for each of "
                        f"the {len(samples)} {split} samples"
                    )

    def _check_tokens(self, vocabulary: Vocabulary) -> None:
        if len(self.shape) != 1 or self.mean or self.std or self.augmentation != "none":
            raise DataError(
                f"{self.name}: tokens are samples of shape (T,) without mean, std and augmentation, got {self.shape}"
            )
        for split, samples in (("train", self.train), ("test", self.test)):
            held = samples.inputs.tokens if isinstance(samples.inputs, Windows) else samples.inputs
            if held.is_floating_point() or (held.numel() and not (held.min() >= 0 and held.max() < len(vocabulary))):
                raise DataError(f"{self.name}: {split} tokens must be integers in 0..{len(vocabulary) - 1}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (T,) for tokens."""
        return tuple(self.train.inputs.shape[1:])

    def of_groups(self, column: str, part: int, parts: int) -> Dataset:
        """The samples of the groups g of ``column`` with g mod ``parts`` = ``part`` alone, train and test.

        Raises ConfigError for a column whose groups are not known of both, and for a part without samples.
        """
        known = self.natural.keys() & self.natural_test.keys()
        if column not in known:
            has = nearest(column, known) if known else "it has none"
            raise ConfigError(f"column {column!r} is unknown in train and test samples of {self.name}: {has}")
        rows = [np.flatnonzero(columns[column] % parts == part) for columns in (self.natural, self.natural_test)]
        if not all(map(len, rows)):
            raise ConfigError(f"part {part} of {parts} of {self.name}'s {column}s has no samples to train or test with")
        return replace(
            self,
            train=self.train.select(rows[0]),
            test=self.test.select(rows[1]),
            natural={name: groups[rows[0]] for name, groups in self.natural.items()},
            natural_test={name: groups[rows[1]] for name, groups in self.natural_test.items()},
        )

    def batch(
        self,
        samples: Samples,
        indices: Tensor | Indices | slice,
        augment: torch.Generator | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """Rows ``indices`` of ``samples`` as normalised float32 [len(indices), C, H, W], or as tokens int64 [..., T].

        With a generator in ``augment`` each row gets this data set's random augmentation, drawn from it; a data set
        without one ignores the generator, so that a caller need not know which is which. Draws depend on the
        position in the batch: to be independent of chunking, ask for the whole union batch at once, of which the
        positions ``only`` [m] (int64) come back if given.
        """
        rows = torch.from_numpy(indices) if isinstance(indices, np.ndarray) else indices
        if only is not None and (augment is None or self.augmentation == "none"):
            rows, only = torch.arange(len(samples))[rows][only] if isinstance(rows, slice) else rows[only], None
        if self.vocabulary is not None:
            return samples.inputs[rows].long()
        if augment is not None and isinstance(samples.inputs, Tensor):
            raw = self.augmented(samples.inputs, rows, augment, only)
        else:
            raw = samples.inputs[rows]
        channels = (1, -1) + (1,) * (raw.ndim - 2)
        mean = torch.tensor(self.mean, device=raw.device).view(channels)
        std = torch.tensor(self.std, device=raw.device).view(channels)
        # Floats of a slice are still the stored ones.
        copied = raw.to(torch.float32, copy=isinstance(rows, slice))
        return copied.mul_(1 / (self.scale * std)).sub_(mean / std)

    def augmented(
        self, inputs: Tensor, rows: Tensor | slice, draws: torch.Generator, only: Tensor | None = None
    ) -> Tensor:
        """Rows of ``inputs`` [M, C, H, W], normalised or not, with this data set's random augmentation, if any.

        ``only`` [m] picks some of these rows, after all have been drawn for.
        """
        if self.augmentation == "crop-flip":
            return crop_and_flip(inputs, rows, draws, only)
        found = inputs[rows.to(inputs.device) if isinstance(rows, Tensor) else rows]
        return found if only is None else found[only.to(found.device)]


def as_input(batch: Tensor, device: torch.device) -> Tensor:
    """Samples as the model takes them; images in the memory format that convolutions like."""
    batch = batch.to(device)
    if batch.ndim != 4:
        return batch
    # Spelt out: ``contiguous(memory_format=...)`` leaves the strides of one-channel images as they are, and layers
    # whose weights are views into one vector would then work in the slow format.
    return batch.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
