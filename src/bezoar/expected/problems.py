"""From a task's settings to its losses."""

from __future__ import annotations

from pathlib import Path

from bezoar.expected.config import Task
from bezoar.expected.data import shards
from bezoar.expected.network import Network
from bezoar.expected.ridge import Ridge
from bezoar.expected.softmax import Softmax
from bezoar.expected.tasks import Problem


def make_problem(task: Task, seed: int, data_dir: str | Path | None = None) -> Problem:
    """The losses of all clients.

    Raises:
        ConfigError: the data set can not be divided so.
        DataError: it is missing or damaged.
    """
    held = shards(task, seed, data_dir)
    if task.kind == "model":
        return Network(held, task, seed)
    return Ridge(held, task.l2) if task.kind == "ridge" else Softmax(held, task.l2)
