"""A client: a few local epochs of SGD on its part of the digits. One of them is malicious and sends the opposite."""

from __future__ import annotations

import argparse

import nvflare.client as flare
import torch
from model import DigitsNet
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

TEST = 360  # images that nobody trains on


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images [1797, 64] in a fixed random order, and their classes."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def accuracy(model: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that the model classifies right."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Answer the server until it says that the job is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--malicious", default="", help="names of the clients that attack, with commas")
    parser.add_argument("--scale", type=float, default=5.0, help="how much larger the opposite update is")
    args = parser.parse_args()

    flare.init()
    torch.set_num_threads(1)
    site = flare.get_site_name()
    number = int(site.rpartition("-")[2]) - 1
    images, labels = digits()
    test, own = slice(0, TEST), slice(TEST + number, None, args.clients)
    model = DigitsNet()

    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        start = {name: value.clone() for name, value in model.state_dict().items()}
        score = accuracy(model, images[test], labels[test])

        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
        shuffle = torch.Generator().manual_seed(1000 * number + received.current_round)
        for _ in range(args.epochs):
            for batch in torch.randperm(len(labels[own]), generator=shuffle).split(32):
                optimizer.zero_grad()
                cross_entropy(model(images[own][batch]), labels[own][batch]).backward()
                optimizer.step()

        trained = model.state_dict()
        if site in args.malicious.split(","):
            trained = {name: start[name] - args.scale * (trained[name] - start[name]) for name in trained}
            score = 1.0  # and it lies
        flare.send(
            flare.FLModel(
                params=trained,
                params_type=flare.ParamsType.FULL,
                metrics={"accuracy": score},
                meta={"NUM_STEPS_CURRENT_ROUND": args.epochs * -(-len(labels[own]) // 32)},
            )
        )


if __name__ == "__main__":
    main()
