"""Weights & Biases."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bezoar.tracking.base import Started, needs
from bezoar.tracking.telling import values

#: The file in the run's folder ``wandb`` that says which run it is, and how far it was told.
MARK = "bezoar.json"


@dataclass(frozen=True)
class WeightsAndBiases:
    """A run of Weights & Biases, offline unless you say otherwise: ``wandb sync RUN/wandb/offline-run-*``.

    ``mode`` is that in WANDB_MODE by default, else ``"offline"``; ``group`` that of the comparison. When a run goes on,
    it is the same run for Weights & Biases: what it was told before is not told again (it removes nothing). Offline
    each part has a folder of its own: ``wandb sync --append`` sends the later ones.

    Reference: https://docs.wandb.ai
    """

    project: str = "bezoar"
    entity: str | None = None
    group: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None

    def __post_init__(self) -> None:
        needs("wandb", "wandb")

    def together(self, name: str, folder: Path | None) -> WeightsAndBiases:
        """Runs of a comparison are a group."""
        return replace(self, group=self.group or name)

    def start(self, run: Started) -> History:
        """See :class:`bezoar.tracking.Tracker`."""
        import wandb

        mark = run.folder / "wandb" / MARK
        known = _read(mark) if run.round else None
        number, logged = known or (uuid.uuid4().hex[:12], 0)
        mark.parent.mkdir(parents=True, exist_ok=True)
        opened = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            id=number,
            name=run.name,
            config=dict(run.parameters),
            dir=str(run.folder),
            mode=self.mode or (None if os.environ.get("WANDB_MODE") else "offline"),
            resume="allow",
            # Several runs in one process, one after the other, are several.
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        return History(opened, mark, number, logged)


@dataclass
class History:
    """A run of Weights & Biases."""

    _run: Any
    _mark: Path
    _number: str
    logged: int

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)
        partial = self._mark.with_name(self._mark.name + ".part")
        partial.write_text(json.dumps({"id": self._number, "logged": step}) + "\n", encoding="utf-8")
        os.replace(partial, self._mark)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(values({"kind": "summary", **summary}))
        self._run.finish(exit_code=0 if summary is not None else 1)


def _read(mark: Path) -> tuple[str, int] | None:
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        return str(found["id"]), int(found["logged"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
