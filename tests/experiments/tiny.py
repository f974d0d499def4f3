"""A small experiment on digits that ends in about a second."""

from __future__ import annotations

from typing import Any

from bezoar.experiments import Experiment
from bezoar.experiments.config import override

TABLE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "rounds": 12,
    "data": {"dataset": "digits", "partition": {"kind": "one-class", "clients": 600, "samples": 2}},
    "model": {"name": "mlp", "hidden": [16]},
    "learning_rate": {"kind": "constant", "lr": 0.1},
    "sampling": {"kind": "uniform", "cohort": 20},
    "adversary": {"share": 0.1},
    "attack": {"kind": "pgd", "aux": 10, "epochs": 2, "batch_size": 5},
    "defence": {"preset": "sparsefed", "radius": 2.0, "k": "5%"},
    "evaluation": {"every": 4},
    "checkpoint_every": 3,
}


def tiny(**settings: Any) -> Experiment:
    """The small experiment with dotted keys (dots written as __) replaced."""
    return Experiment.from_table(override(TABLE, {key.replace("__", "."): value for key, value in settings.items()}))
