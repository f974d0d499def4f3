"""The nine-layer residual network of the SparseFed experiments."""

from __future__ import annotations

from torch import Tensor, nn

from bezoar.models._checks import image_shape, whole

#: Page's fixed logit scale; without batch normalisation it also tames the first steps.
_LOGIT_SCALE = 0.125


class Residual(nn.Module):
    """x + relu(conv(relu(conv(x)))), both 3x3 with ``channels`` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*_conv(channels, channels), *_conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> the same shape."""
        changed: Tensor = self.block(x)
        return x + changed


class ResNet9(nn.Module):
    """Page's cifar10-fast network without batch normalisation: 3x3 convolutions without bias, a ReLU after each.

    The published network ends in a 4x4 max pool, which for 32x32 images is the maximum over all that is left; taking
    that maximum makes the network work for other sizes too.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        self.prep = nn.Sequential(*_conv(shape[0], width))
        self.layer1 = nn.Sequential(*_conv(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width))
        self.layer2 = nn.Sequential(*_conv(2 * width, 4 * width), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(*_conv(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width))
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.linear = nn.Linear(8 * width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, classes]."""
        features = self.pool(self.layer3(self.layer2(self.layer1(self.prep(x)))))
        logits: Tensor = self.linear(features) * _LOGIT_SCALE
        return logits


def resnet9(shape: tuple[int, ...], classes: int, *, width: int = 64) -> nn.Module:
    """Page's residual network without batch normalisation: 6,568,640 parameters for 32x32 colour images, 10 classes.

    Images must be at least 8x8.
    """
    return ResNet9(image_shape("resnet9", shape, least=8), classes, whole("width", width))


def _conv(channels: int, filters: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.ReLU()
