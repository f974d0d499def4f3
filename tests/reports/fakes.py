"""Small records as a run writes them, made up by rule, so that every number in a report can be predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = {"clients": 0.8, "attack": 0.2, "aggregation": 0.05, "server": 0.01, "evaluation": 0.04, "total": 11.0}


def summary(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "fake",
        "seed": 1,
        "rounds": 10,
        "parameters": 1234,
        "test_accuracy": 0.8,
        "test_accuracy_clean": 0.82,
        "attack_accuracy": 0.1,
        "outsized_impact": 0.5,
        "distance_l1": 40.0,
        "distance_l2": 2.0,
        "per_class_accuracy": [0.9, 0.7, 0.8],
        "attackers_per_round_mean": 2.0,
        "converged": True,
        "convergence_note": "flat",
        "seconds": SECONDS,
        "command": "bezoar run fake.toml --seed 1",
        "versions": {"bezoar": "0.0", "torch": "2.0", "python": "3.11"},
        "hardware": {"cpu": "a cpu", "threads": 2, "device": "cpu"},
        "commit": "abc123",
        "hash": "f00",
    }
    return {**found, **changes}


def write_run(path: Path, settings: str | None = None, finished: bool = True, **changes: Any) -> Path:
    """A run of ten rounds that is evaluated at every second one, and ends at the summary's accuracies."""
    end = summary(**changes)
    path.mkdir(parents=True, exist_ok=True)
    (path / "experiment.toml").write_text(
        settings or f'name = "{end["name"]}"\nseed = {end["seed"]}\n\n[server]\nmomentum = 0.9\n', encoding="utf-8"
    )
    metrics, timings = [], []
    for t in range(1, end["rounds"] + 1):
        metrics.append(
            {"kind": "round", "round": t, "lr": 0.1, "attackers": 2, "cohort": 100, "clipped": 0.9,
             "aggregate_norm": 1.0, "update_norm": 0.1, "excluded": 0, "skipped": None}
        )  # fmt: skip
        timings.append({"round": t, **{k: v for k, v in SECONDS.items() if k != "total"}})
        if t % 2 == 0:
            attack = end["attack_accuracy"]
            metrics.append(
                {"kind": "evaluation", "round": t, "test_accuracy": end["test_accuracy"] * t / 10,
                 "test_accuracy_clean": end["test_accuracy_clean"] * t / 10, "test_loss": 1.0,
                 "attack_accuracy": None if attack is None else attack * t / 10,
                 "per_class_accuracy": end["per_class_accuracy"]}
            )  # fmt: skip
    for name, lines in (("metrics", metrics), ("timings", timings)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if finished:
        (path / "summary.json").write_text(json.dumps(end), encoding="utf-8")
    return path


def write_comparison(
    path: Path, axes: Sequence[str], cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]], **head: Any
) -> Path:
    """A comparison of ``(labels, changes to the summary)``; None leaves the cell's directory out."""
    listed = []
    for index, (labels, changes) in enumerate(cells):
        directory = f"cells/{index:02d}"
        listed.append({"labels": dict(labels), "dir": directory})
        if changes is not None:
            write_run(path / directory, **{"seed": labels.get("seed", 1), **changes})
    record = {"name": "fakes", "description": "made up", "command": "bezoar compare fakes.toml", "axes": list(axes)}
    path.mkdir(parents=True, exist_ok=True)
    (path / "comparison.json").write_text(json.dumps({**record, **head, "cells": listed}), encoding="utf-8")
    return path


def two_by_two(path: Path, seeds: Sequence[int] = (1, 2, 3), **head: Any) -> Path:
    """Two defences, two attacks: none 99% and 95% won, SparseFed 4% and 20%; a seed adds 1 point."""
    won = {
        ("none", "PGD"): 0.95,
        ("none", "adaptive"): 0.96,
        ("SparseFed", "PGD"): 0.04,
        ("SparseFed", "adaptive"): 0.2,
    }
    kept = {"none": 0.9, "SparseFed": 0.8}
    cells = [
        (
            {"defence": defence, "attack": attack, "seed": seed},
            {
                "test_accuracy": kept[defence] + 0.01 * seed,
                "test_accuracy_clean": kept[defence] + 0.01 * seed,
                "attack_accuracy": share + 0.01 * seed,
            },
        )
        for (defence, attack), share in won.items()
        for seed in seeds
    ]
    return write_comparison(path, ["defence", "attack", "seed"], cells, **head)
