"""What a job leaves on disk, and how verdicts read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext

from bezoar.errors import BezoarError
from bezoar.integrations.coordinator import Coordinator, Outcome, Verdict
from bezoar.integrations.gate import Array
from bezoar.integrations.journal import Journal, evaluation_record, round_record

_LOG = logging.getLogger(__name__)


class Books:
    """The records of one job in ``out``, or none; opened when the first round ends, at the server where it runs."""

    def __init__(self, out: str | None, settings: Mapping[str, Any]) -> None:
        self._out = out
        self._settings = settings
        self._journal: Journal | None = None

    def add(
        self,
        number: int,
        outcome: Outcome,
        names: Mapping[int, str],
        metrics: Mapping[str, float],
        seconds: Mapping[str, float],
        fl_ctx: FLContext | None,
    ) -> None:
        """Append a round."""
        if self._out is None:
            return
        if self._journal is None:
            journal = Journal(_folder(self._out, fl_ctx), self._settings)
            journal.open(resume=False)
            self._journal = journal
        rate = self._settings["lr"]
        record = round_record(number, rate, len(names), outcome.verdicts, outcome.record, outcome.skipped)
        record["verdicts"] = {names[v.client]: words(v) for v in outcome.verdicts if v.status}
        # Clients evaluate the model that they start from: the last round's.
        known = [evaluation_record(number - 1, metrics, "clients")] if metrics and number > 1 else []
        self._journal.add(*known, record, seconds={"round": number, **seconds})

    def close(self, arrays: Mapping[str, Array], parameters: int) -> None:
        """Write the last model and the summary, once."""
        journal, self._journal = self._journal, None
        if journal is not None:
            try:
                journal.finish(arrays, parameters)
            except BezoarError as error:
                _LOG.error("bezoar: %s", error)


def settings(made: Coordinator, label: str, clients: list[str] | None) -> dict[str, Any]:
    """The settings as a table, as they stand in the records."""
    table = {"weight_cap": made.weight_cap, "buffers": list(made.buffers), "buffer_policy": made.buffer_policy}
    if clients is not None:
        table["clients"] = clients
    head = {"kind": "nvflare", "name": label, "seed": made.seed, "lr": made.lr}
    return {**head, "defence": made.defence.table(), "nvflare": table}


def words(verdict: Verdict) -> str:
    """A verdict as text."""
    return verdict.status.name.lower() + (f": {verdict.reason}" if verdict.reason else "")


def _folder(out: str, fl_ctx: FLContext | None) -> Path:
    engine = None if fl_ctx is None else fl_ctx.get_engine()
    if fl_ctx is None or engine is None:
        return Path(out)
    return Path(engine.get_workspace().get_run_dir(fl_ctx.get_job_id())) / out
