"""The task: data, model, training and evaluation. Nothing in here knows of Flower."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional

from bezoar.data import Dataset, Dirichlet, Federation, load, partition
from bezoar.models import make_model
from bezoar.seeding import generator


@lru_cache(maxsize=1)
def digits() -> Dataset:
    """The data; they come with scikit-learn."""
    return load("digits")


@lru_cache(maxsize=4)
def federation(clients: int, alpha: float, seed: int) -> Federation:
    """Who holds which sample: every process that asks gets the same answer."""
    return partition(digits(), Dirichlet(clients, alpha, min_samples=8), seed)


def model(seed: int) -> nn.Module:
    """A small network, initialised from ``seed``."""
    data = digits()
    return make_model("mlp", data.shape, len(data.classes), seed, hidden=[32])


def samples(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """These train samples [m], as the model takes them, and their labels."""
    data = digits()
    return data.batch(data.train, rows), data.train.targets[rows]


def train(
    net: nn.Module, rows: torch.Tensor, lr: float, epochs: int, batch_size: int, draws: torch.Generator
) -> tuple[int, float]:
    """Some epochs of SGD on these train samples [m]; returns m and the mean loss of the last epoch."""
    inputs, targets = samples(rows)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr)
    net.train()
    loss = 0.0
    for _ in range(epochs):
        loss = 0.0
        order = torch.randperm(len(rows), generator=draws)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            optimiser.zero_grad()
            value = functional.cross_entropy(net(inputs[batch]), targets[batch])
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss += float(value.detach()) * len(batch) / len(rows)
    return len(rows), loss


def evaluate(net: nn.Module) -> tuple[float, float]:
    """Accuracy and mean loss on the test samples."""
    data = digits()
    net.eval()
    with torch.no_grad():
        scores = net(data.batch(data.test, slice(None)))
    accuracy = (scores.argmax(1) == data.test.targets).double().mean()
    return float(accuracy), float(functional.cross_entropy(scores, data.test.targets))


def draws(seed: int, client: int, number: int) -> torch.Generator:
    """The random stream of one client in one round, in whatever process it runs."""
    return generator(seed, "example client", client, number)
