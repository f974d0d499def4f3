"""What clients' gradients of a transformer cost, trained as a whole and by adapters, next to a plain pass.

    python benchmarks/transformer.py
    python benchmarks/transformer.py --width 128 --layers 4 --clients 20

Subjects, on the same samples: for the whole model and for LoRA (rank 4 on queries, values and the perceptron) ``plain``
(one forward and backward pass over all samples, the reference of its kind), ``ghost`` (norms and a weighted sum of all
clients' gradients from layer inputs and output gradients), ``gram`` (the Gram matrix as well) and ``loop`` (the same as
``ghost``, client by client). All run in turn in one process; ratios are medians of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from _common import interleave, table
from language_model import CHARACTERS

from bezoar.allocator import tune
from bezoar.experiments.setup import cross_entropy
from bezoar.models import LoRA, built, make_model
from bezoar.updates import client_gradients

KINDS = {"full": None, "LoRA": LoRA(("query", "value", "up", "down"), rank=4, alpha=8.0)}


def subjects(given: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is timed."""
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(CHARACTERS, (given.clients * given.samples, given.context), generator=draws)
    targets = torch.randint(CHARACTERS, (len(tokens),), generator=draws)
    owners = torch.arange(given.clients).repeat_interleave(given.samples)
    found: dict[str, Callable[[], object]] = {}
    for kind, lora in KINDS.items():
        made = make_model("transformer", (given.context,), CHARACTERS, 0, width=given.width, layers=given.layers)
        model = built(made, lora=lora).model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def plain(model: torch.nn.Module, trained: list[torch.nn.Parameter]) -> object:
            return torch.autograd.grad(cross_entropy(model(tokens), targets).mean(), trained)

        def asked(model: torch.nn.Module, method: str, gram: bool) -> object:
            updates = client_gradients(model, cross_entropy, tokens, targets, owners, method=method)  # type: ignore[arg-type]
            return updates.squared_norms(), updates.combine(torch.ones(given.clients)), gram and updates.gram()

        found[f"{kind}: plain"] = partial(plain, model, trained)
        found[f"{kind}: ghost"] = partial(asked, model, "ghost", False)
        found[f"{kind}: gram"] = partial(asked, model, "ghost", True)
        found[f"{kind}: loop"] = partial(asked, model, "loop", False)
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="Clients' gradients of a transformer.")
    options = {"width": 64, "layers": 2, "context": 40, "clients": 20, "samples": 8, "repeats": 5}
    for option, default in options.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    tune()
    found = interleave(subjects(given), given.repeats, torch.device("cpu"), 1)
    rows = []
    for name, timing in found.items():
        reference = found[f"{name.partition(':')[0]}: plain"].seconds
        ratio = statistics.median(a / b for a, b in zip(timing.seconds, reference, strict=True))
        rows.append([name, f"{timing.median:.3f}", f"{ratio:.2f}"])
    print(f"{given.clients} clients x {given.samples} samples of {given.context} characters, width {given.width}")
    print(table(["subject", "seconds", "/ plain"], rows))


if __name__ == "__main__":
    main()
