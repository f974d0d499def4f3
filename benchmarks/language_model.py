"""What clients' gradients of a recurrent language model cost, next to one plain forward and backward pass.

    python benchmarks/language_model.py
    python benchmarks/language_model.py --hidden 256 --layers 2 --clients 20

Subjects, on the same samples (contexts of 80 characters): ``plain`` (one forward and backward pass over all of them,
the reference), ``ghost`` (the norms and a weighted sum of all clients' gradients from layer inputs and output
gradients), ``loop`` (the same, client by client), and ``read`` and ``read torch`` (forward alone without gradients: the
model, and torch.nn.LSTM of that size). All run in turn in one process; ratios are medians of the ratios of neighbouring
runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from _common import interleave, table
from torch import Tensor, nn

from bezoar.allocator import tune
from bezoar.experiments.setup import cross_entropy
from bezoar.models import make_model
from bezoar.updates import client_gradients

LENGTH, CHARACTERS = 80, 76


def subjects(hidden: int, layers: int, clients: int, samples: int) -> dict[str, Callable[[], object]]:
    """What is timed."""
    draws = torch.Generator().manual_seed(0)
    model = make_model("lstm", (LENGTH,), CHARACTERS, 0, hidden=hidden, layers=layers)
    tokens = torch.randint(CHARACTERS, (clients * samples, LENGTH), generator=draws)
    targets = torch.randint(CHARACTERS, (clients * samples,), generator=draws)
    owners = torch.arange(clients).repeat_interleave(samples)
    theirs, embedded = nn.LSTM(8, hidden, layers, batch_first=True), torch.randn(*tokens.shape, 8, generator=draws)

    def plain() -> object:
        return torch.autograd.grad(cross_entropy(model(tokens), targets).mean(), list(model.parameters()))

    def asked(method: str) -> object:
        updates = client_gradients(model, cross_entropy, tokens, targets, owners, method=method)  # type: ignore[arg-type]
        return updates.squared_norms(), updates.combine(torch.ones(clients))

    def read(what: Callable[[Tensor], object], inputs: Tensor) -> object:
        with torch.no_grad():
            return what(inputs)

    return {
        "plain": plain,
        "ghost": lambda: asked("ghost"),
        "loop": lambda: asked("loop"),
        "read": lambda: read(model, tokens),
        "read torch": lambda: read(theirs, embedded),
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="Clients' gradients of an LSTM.")
    for option, default in (("hidden", 64), ("layers", 1), ("clients", 100), ("samples", 8), ("repeats", 3)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    tune()
    found = interleave(
        subjects(given.hidden, given.layers, given.clients, given.samples), given.repeats, torch.device("cpu"), 1
    )
    reference = found["plain"].seconds
    rows = []
    for name, timing in found.items():
        ratio = statistics.median(a / b for a, b in zip(timing.seconds, reference, strict=True))
        rows.append([name, f"{timing.median:.3f}", f"{ratio:.2f}"])
    print(f"{given.clients} clients x {given.samples} contexts, hidden {given.hidden}, layers {given.layers}")
    print(table(["subject", "seconds", "/ plain"], rows))


if __name__ == "__main__":
    main()
