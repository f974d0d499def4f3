"""ResNet101 with layer normalisation, the model of the FEMNIST experiments of FetchSGD and SparseFed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezoar.models._checks import image_shape, whole

#: Bottlenecks of the four stages.
_DEPTHS = (3, 4, 23, 3)
#: Output channels of a bottleneck for each of its inner ones.
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, each normalised, around a skip connection.

    ``size`` is (H, W) of the input; :attr:`size` that of the output.
    """

    def __init__(self, channels: int, inner: int, stride: int, size: tuple[int, int]) -> None:
        super().__init__()
        outer = _EXPANSION * inner
        self.size = _strided(size, stride)
        self.block = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.LayerNorm((inner, *size)),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
            nn.LayerNorm((inner, *self.size)),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.LayerNorm((outer, *self.size)),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or channels != outer:
            self.skip = nn.Sequential(
                nn.Conv2d(channels, outer, 1, stride=stride, bias=False), nn.LayerNorm((outer, *self.size))
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, 4 inner, H', W']."""
        changed: Tensor = self.block(x)
        return torch.relu(changed + self.skip(x))


class ResNet101LayerNorm(nn.Module):
    """torchvision's ResNet101 with its stem of stride 4, every BatchNorm replaced by LayerNorm over (C, H, W)."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        size = _strided((shape[1], shape[2]), 2)
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], width, 7, stride=2, padding=3, bias=False),
            nn.LayerNorm((width, *size)),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        size, channels = _strided(size, 2), width
        stages = []
        for stage, depth in enumerate(_DEPTHS):
            inner = width << stage
            blocks = []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(Bottleneck(channels, inner, stride, size))
                channels, size = _EXPANSION * inner, blocks[-1].size
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.linear(self.pool(self.stages(self.stem(x))))
        return logits


def resnet101_layernorm(shape: tuple[int, ...], classes: int, *, width: int = 64) -> nn.Module:
    """ResNet101 with LayerNorm over (C, H, W): 43,124,350 parameters for 28x28 grey images, 62 classes.

    608,768 of them are the normalisations' own. Images must be at least 4x4; ``width`` is the stem's channels.
    """
    return ResNet101LayerNorm(image_shape("resnet101-layernorm", shape, least=4), classes, whole("width", width))


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """What a padded convolution or pool of that stride leaves of (H, W)."""
    return -(-size[0] // stride), -(-size[1] // stride)
