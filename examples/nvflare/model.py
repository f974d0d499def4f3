"""The model: NVFlare builds it on the server from its class, so it has to be a named one in a module of its own."""

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """8 x 8 images of digits to 10 classes, through one hidden layer (2,410 parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.out(self.hidden(images).relu())
        return scores
