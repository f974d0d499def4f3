"""Models by import path, for tests."""

from __future__ import annotations

from torch import nn


def with_dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer with dropout."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))
