"""Trackers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bezoar.errors import ConfigError
from bezoar.registry import Registry
from bezoar.tracking._mlflow import MLflow
from bezoar.tracking._tensorboard import TensorBoard
from bezoar.tracking._wandb import WeightsAndBiases
from bezoar.tracking.base import Tracker

#: All trackers by name; installed packages add theirs through the entry point ``bezoar.trackers``.
TRACKERS: Registry[Tracker] = Registry(
    "tracker",
    {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases},
    group="bezoar.trackers",
)


def chosen(trackers: Iterable[Any]) -> dict[str, Tracker]:
    """Trackers by the names that warnings and records use: from names, tables, or as they are; two alike are numbered.

    Raises:
        ConfigError: an unknown name, a wrong table, something that is no tracker, or a library is missing.
    """
    found: dict[str, Tracker] = {}
    for one in trackers:
        tracker = TRACKERS.build(one) if isinstance(one, str | Mapping) or not hasattr(one, "start") else one
        try:
            base = TRACKERS.name(tracker)
        except ConfigError:
            # Those of the caller's own need no registry.
            base = type(tracker).__name__
        name, count = base, 1
        while name in found:
            count += 1
            name = f"{base} {count}"
        found[name] = tracker
    return found


def together(trackers: Iterable[Any], name: str, folder: Path | None) -> tuple[Tracker, ...]:
    """Trackers for all runs of a comparison: those that can keep its runs in one place do."""
    return tuple(
        tracker.together(name, folder) if hasattr(tracker, "together") else tracker
        for tracker in chosen(trackers).values()
    )
