"""Made-up data whose heterogeneity is known: a few components, which a partition deals to clients like classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bezoar.data import Dataset, Samples
from bezoar.seeding import generator


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A data set whose classes are the components, and what regression shall predict for every training sample [N]."""

    dataset: Dataset
    answers: Tensor


def synthetic(
    kind: Literal["ridge", "softmax"],
    features: int,
    components: int,
    samples: int,
    spread: float,
    noise: float,
    seed: int,
) -> Synthetic:
    r"""Samples of ``components`` kinds, as many of each.

    Regression: x ~ N(0, I), y = x.(theta + delta_c) + noise e with theta ~ N(0, I/p), delta_c ~ spread N(0, I/p).
    Classification: x ~ N(a_c, I) with a_c ~ spread N(0, I), the label is c. The same number of test samples is made.
    """
    draws = generator(seed, "synthetic data")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    labels = torch.arange(samples) % components
    centres = spread * normal(components, features)
    common = normal(features)
    parts, answers = [], torch.zeros(samples, dtype=torch.float64)
    for split in ("train", "test"):
        x = normal(samples, features)
        if kind == "softmax":
            x = x + centres[labels]
        elif split == "train":
            y = (x * (common + centres[labels])).sum(1) / features**0.5
            answers = y + noise * normal(samples)
        parts.append(Samples(x.float(), labels))
    names = tuple(f"component {c}" for c in range(components))
    zeros, ones = (0.0,) * features, (1.0,) * features
    return Synthetic(Dataset("synthetic", parts[0], parts[1], names, zeros, ones, scale=1.0), answers)
