"""A round as attackers see it, with everything that an attack may ask for, on made-up images."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from bezoar.aggregation import Context
from bezoar.attacks import Attack, AttackContext, Batch, SemanticText, Tests
from bezoar.attacks.base import standalone
from bezoar.clients import Scratch
from bezoar.data import Dataset, Samples
from bezoar.data.text import Vocabulary
from bezoar.experiments.setup import cross_entropy
from bezoar.models import flatten, make_model
from bezoar.seeding import generator
from bezoar.updates import DenseUpdates, Updates, client_gradients

MEAN, STD, CLASSES = 0.3, 0.4, 10
SHAPE = (1, 8, 8)


def make_dataset(train: int = 60, test: int = 600) -> Dataset:
    """Random 8x8 images of ten classes, each class brighter in its own rows, stored as bytes."""
    draws = generator(0, "tests: images")

    def part(size: int) -> Samples:
        targets = torch.arange(size) % CLASSES
        inputs = torch.randint(0, 120, (size, *SHAPE), generator=draws)
        inputs += 13 * ((torch.arange(8)[:, None] + targets[:, None, None, None]) % CLASSES)
        return Samples(inputs.clamp(max=255).to(torch.uint8), targets)

    return Dataset("made-up", part(train), part(test), tuple("0123456789"), mean=(MEAN,), std=(STD,))


def make_text(train: int = 60, test: int = 600) -> Dataset:
    """Twelve random letters of ten, the next one after them."""
    draws = generator(0, "tests: text")
    letters = Vocabulary(tuple("abcdefghij"), "character")

    def part(size: int) -> Samples:
        tokens = torch.randint(0, CLASSES, (size, 13), generator=draws)
        return Samples(tokens[:, :12].to(letters.dtype), tokens[:, 12])

    return Dataset("made-up text", part(train), part(test), letters.names, mean=(), std=(), vocabulary=letters)


def reads_text(attack: Attack | None) -> bool:
    """Whether ``attack`` is made for text, itself or through the one that poisons its samples."""
    return isinstance(attack, SemanticText) or isinstance(getattr(attack, "poison", None), SemanticText)


@dataclasses.dataclass(frozen=True)
class World:
    """A round: the honest updates ``view``, and what the attackers know beside."""

    view: Updates
    context: AttackContext
    tests: Tests


def world(
    attack: Attack | None = None,
    *,
    honest: tuple[int, ...] = (0, 2, 4, 6, 7, 9, 11, 12, 13),
    attackers: tuple[int, ...] = (3, 8),
    samples: int = 6,
    round: int = 5,
    seed: int = 7,
    method: str = "auto",
    **known: Any,
) -> World:
    """A round of a small MLP, or LSTM; ``known`` replaces fields of the context, ``attack`` sets what it aims at."""
    text = reads_text(attack)
    dataset = make_text() if text else make_dataset()
    options: dict[str, Any] = {"hidden": 4, "layers": 1} if text else {"hidden": [8]}
    model = make_model("lstm" if text else "mlp", dataset.shape, CLASSES, seed=0, **options)
    weights = flatten(model)
    draws = generator(1, "tests: clients")
    tests = Tests(dataset, torch.device("cpu"))
    everyone = torch.tensor(sorted((*honest, *attackers)))
    owners = everyone.repeat_interleave(samples)
    picked = torch.randint(len(dataset.train), (len(owners),), generator=draws)
    batch = Batch(dataset.batch(dataset.train, picked), dataset.train.targets[picked], owners)
    bad = torch.isin(owners, torch.tensor(attackers))

    def updates(part: Batch) -> Updates:
        return client_gradients(model, cross_entropy, part.inputs, part.targets, part.owners, method=method)  # type: ignore[arg-type]

    own = batch.select(bad)
    n = len(everyone)
    mean, std = torch.full((1, 1, 1), MEAN), torch.full((1, 1, 1), STD)
    trusted = client_gradients(
        model, cross_entropy, dataset.batch(dataset.test, slice(0, 20)), dataset.test.targets[:20],
        torch.zeros(20, dtype=torch.int64),
    )  # fmt: skip
    last = torch.randn(len(weights), generator=draws)
    fields: dict[str, Any] = {
        "round": round,
        "seed": seed,
        "clients": torch.tensor(attackers),
        "weights": weights,
        "scratch": Scratch(model),
        "loss_fn": cross_entropy,
        "radius": 2.0,
        "goal": None if attack is None else attack.goal(tests, seed),
        "cohort": n,
        "classes": CLASSES,
        "lr": 0.1,
        "own": own,
        "own_rows": updates(own),
        "low": None if text else -mean / std,
        "high": None if text else (1 - mean) / std,
        "mean": None if text else mean,
        "std": None if text else std,
        "vocabulary": dataset.vocabulary,
        "server_context": Context(
            round=round,
            model=weights,
            client_weights=torch.linspace(1.0, 1.2, n, dtype=torch.float64),
            root_gradient=trusted.combine(torch.ones(1)),
            last_aggregate=last,
        ),
        "previous_weights": weights + 0.1 * last,
        "previous_sent": torch.randn(len(weights), generator=draws),
        "previous_cohort": n,
    }
    return World(updates(batch.select(~bad)), AttackContext(**(fields | known)), tests)


def bare(
    values: Tensor, q: int = 2, *, round: int = 4, seed: int = 7, **known: Any
) -> tuple[DenseUpdates, AttackContext]:
    """Honest rows ``values`` [h, d] of clients 0, 2, 4 ..., and ``q`` attackers 1, 3, 5 ... who know nothing else."""
    view = DenseUpdates(values, torch.arange(len(values)) * 2)
    context = standalone(view, len(values) + q, q, seed)
    return view, dataclasses.replace(context, **({"round": round, "clients": torch.arange(q) * 2 + 1} | known))


def hostile(kind: str, h: int = 7, d: int = 23, dtype: torch.dtype = torch.float32) -> Tensor:
    """Honest rows [h, d] that are legal, and some that are not."""
    rows = torch.randn(h, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    if kind == "equal":
        rows = rows[:1].repeat(h, 1)
    elif kind == "zero":
        rows = torch.zeros(h, d, dtype=torch.float64)
    elif kind == "single":
        rows = rows[:1]
    elif kind == "close":
        rows = 1e3 + 1e-4 * rows
    elif kind in ("1e30", "1e-30"):
        rows = rows * float(kind)
    elif kind == "one huge":
        rows[2] *= 1e30
    elif kind == "nan row":
        rows[2, 5] = torch.nan
    elif kind == "inf row":
        rows[2] = torch.inf
    else:
        assert kind == "plain", kind
    return rows.to(dtype)


HOSTILE = ("plain", "equal", "zero", "single", "close", "1e30", "1e-30", "one huge", "nan row", "inf row")
