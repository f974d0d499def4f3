"""The model: NVFlare builds it anew at the server, from the name of its class and the constructor's arguments."""

import torch
from torch import Tensor, nn


class DigitsNet(nn.Module):
    """8 x 8 images of digits to 10 classes, through one hidden layer (2,410 parameters).

    The first weights come from ``seed``.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(64, 32)
            self.out = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.out(self.hidden(images).relu())
        return scores
