"""What a tracker is."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bezoar.errors import ConfigError


@dataclass(frozen=True)
class Started:
    """A run that starts, or goes on.

    Attributes:
        name: of the experiment.
        key: the hash of its configuration.
        parameters: its configuration with dotted keys, ``{"learning_rate.lr": 0.1}``.
        folder: the run's directory; a tracker's files belong in a directory of its own in there.
        round: 0 for a new run; a run that goes on does so after this round, and what was tracked of later ones is of a
            past that did not happen.
    """

    name: str
    key: str
    parameters: Mapping[str, Any]
    folder: Path
    round: int = 0


class Series(Protocol):
    """What a tracker writes of one run."""

    @property
    def logged(self) -> int:
        """The last round it holds when it starts: 0, or for a run that goes on what it kept.

        It is told of all rounds after this one, in order, also of those that were recorded before the run was stopped:
        nothing is missing, and nothing comes twice.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One round, which is the step: all finite numbers that are recorded of it, by name."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The end: the run's summary, None if it was stopped, or failed, and may go on later."""


class Tracker(Protocol):
    """Settings of a tracker. Registered ones are frozen dataclasses; workers of a comparison are sent copies.

    It may have a method ``together(name, folder)`` beside: itself as it is for all runs of a comparison of that name;
    ``folder`` is the comparison's, None where its runs share no disk.
    """

    def start(self, run: Started) -> Series:
        """Open the series of a run.

        Raises:
            ConfigError: the run should not start: settings are wrong, a library is missing. After any other error, here
                or later, the run goes on without the tracker.
        """


def needs(module: str, extra: str) -> None:
    """Raise ConfigError unless a library is installed; nothing is imported."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(f"tracking needs the library {module!r}: pip install 'bezoar[{extra}]'")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables with dotted keys.

    >>> flat({"rounds": 3, "model": {"name": "mlp", "hidden": [8]}})
    {'rounds': 3, 'model.name': 'mlp', 'model.hidden': [8]}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
