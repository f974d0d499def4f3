"""Models by import path, for tests."""

from __future__ import annotations

from torch import Tensor, nn


def with_dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer with dropout."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


class Broken(nn.Module):
    """Raises when it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("broken on purpose")


def broken(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A model that can be made but not used."""
    return Broken()


def with_batch_norm(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer with BatchNorm."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))
