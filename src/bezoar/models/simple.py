"""Small models: linear, multilayer perceptron, convolutional network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from bezoar.errors import ConfigError
from bezoar.models._checks import image_shape, whole


def linear(shape: tuple[int, ...], classes: int, *, zero: bool = False) -> nn.Module:
    """Logistic regression: one linear layer with bias on the flattened sample; ``zero`` starts it at zero."""
    layer = nn.Linear(math.prod(shape), classes)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def mlp(shape: tuple[int, ...], classes: int, *, hidden: Sequence[int] = (64,)) -> nn.Module:
    """Linear layers of the ``hidden`` widths with ReLU between; an empty ``hidden`` is :func:`linear`."""
    if not isinstance(hidden, tuple | list):
        raise ConfigError(f"hidden must be a list of layer widths, got {hidden!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for size in hidden:
        layers += [nn.Linear(width, whole("hidden", size)), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(shape: tuple[int, ...], classes: int, *, width: int = 32, hidden: int = 128) -> nn.Module:
    """Two 3x3 convolutions, each with ReLU and 2x2 max pool, then two linear layers.

    The convolutions have ``width`` and twice as many channels, the first linear layer gives ``hidden`` features:
    421,642 parameters for 28x28 grey images and 10 classes. Images must be at least 4x4.
    """
    channels, height, across = image_shape("cnn", shape, least=4)
    whole("width", width)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (across // 4), whole("hidden", hidden)),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
