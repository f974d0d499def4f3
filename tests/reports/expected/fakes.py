"""Folders as runs of expected robustness leave them, with losses that are known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit

#: (labels, seed, rule, attack, set) -> excess; infinite: it diverged.
Loss = Callable[[Mapping[str, str], int, str, str, int], float]

SETS = ((), (0, 1), (2,))
PROBABILITIES = (0.5, 0.3, 0.2)


def cell(rule: str, attack: str, index: int, excess: float, **changes: Any) -> dict[str, Any]:
    """One line of a run."""
    diverged = math.isinf(excess)
    line = {
        "kind": "cell",
        "rule": rule,
        "attack": attack,
        "set": index,
        "bad": list(SETS[index % 3]),
        "log_prob": math.log(PROBABILITIES[index % 3]),
        "excess": None if diverged else excess,
        "loss": None if diverged else excess + 1,
        "accuracy": 0.5,
        "error": 0.1,
        "variance": 0.4,
        "worst_ratio": 0.5,
        "kappa": 1.0,
        "bound": 4.0 * (0.01 if diverged else excess + 0.01),
        "broke": False,
        "diverged": diverged,
        "skipped": 0,
        "seconds": 0.25,
    }
    return {**line, **changes}


def write_run(
    folder: Path, lines: Sequence[Mapping[str, Any]], seed: int = 0, reading: str = "R1", name: str = "fake"
) -> Path:
    folder.mkdir(parents=True)
    table = {"kind": "expected", "name": name, "seed": seed, "reading": reading}
    (folder / "experiment.toml").write_text(tomlkit.dumps(table))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"kind": "expected", "name": name, "seed": seed, "commit": "abc", "command": "bezoar run fake",
               "hardware": {"cpu": "one"}, "versions": {"python": "3"}, "seconds": {"total": 2.0}}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_grid(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    rules: Sequence[str],
    attacks: Sequence[str],
    loss: Loss,
    seeds: Sequence[int] = tuple(range(8)),
    name: str = "fake",
    **changes: Any,
) -> Path:
    cells = []
    for values in itertools.product(*axes.values()):
        labels = dict(zip(axes, values, strict=True))
        for seed in seeds:
            lines = [
                cell(rule, attack, s, loss(labels, seed, rule, attack, s), **changes)
                for rule in rules
                for attack in attacks
                for s in range(3)
            ]
            place = f"cells/{len(cells)}"
            write_run(folder / place, lines, seed, name=name)
            cells.append({"labels": {"seed": seed, **labels}, "dir": place})
    index = {"name": name, "description": "A fake.", "command": "bezoar compare fake", "axes": ["seed", *axes],
             "cells": cells}  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(index))
    return folder
