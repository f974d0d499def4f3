"""A certificate on disk: ``certificate.json``, the experiment, figures of every round, tables and plots."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments import environment
from bezoar.experiments.certificates.base import Outcome, Request
from bezoar.experiments.records import CONFIG, guarded, plain, write_atomically

CERTIFICATE, ROUNDS = "certificate.json", "rounds.jsonl"


def write(outcome: Outcome, request: Request, folder: Path, command: str | None, seconds: float) -> dict[str, Any]:
    """Write everything to ``folder`` (an older certificate of the same experiment is replaced); returns the record.

    Raises ConfigError if the folder holds the certificate of another experiment.
    """
    check_free(folder, request)
    experiment = request.experiment
    record = plain(
        {
            "kind": "certificate",
            "name": experiment.name,
            "seed": experiment.seed,
            "rounds": experiment.rounds,
            **outcome.record,
            "seconds": seconds,
            "command": command,
            "versions": environment.versions(),
            "hardware": environment.hardware(request.device),
            "commit": environment.commit(),
            "hash": experiment.hash(),
        }
    )
    with guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, experiment.dumps())
    if outcome.rounds:
        lines = (json.dumps(plain(entry), allow_nan=False) + "\n" for entry in outcome.rounds)
        write_atomically(folder / ROUNDS, "".join(lines))
    with guarded(folder):
        # Of values of k that an older certificate was about.
        for stale in folder.glob("attacks-k*.csv"):
            stale.unlink()
        for table in outcome.tables:
            write_atomically(folder / f"{table.name}.csv", table.csv())
        for plot in outcome.plots:
            plot.write(folder)
    # Last: its presence says that the rest is there.
    write_atomically(folder / CERTIFICATE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def check_free(folder: Path, request: Request) -> None:
    """Raise if ``folder`` holds something else than a certificate of this experiment, or can not be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BezoarError(f"{folder}: can not be written: {there} is {'read-only' if there.is_dir() else 'a file'}")
    known = folder / CERTIFICATE
    if known.exists():
        try:
            found = json.loads(known.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BezoarError(f"{known}: damaged: {error}") from None
        if not isinstance(found, dict) or found.get("hash") != request.experiment.hash():
            raise ConfigError(f"{folder}: holds the certificate of another experiment; choose another --out")
    elif (folder / CONFIG).exists():
        raise ConfigError(f"{folder}: already holds a run; choose another --out, e.g. {folder / 'certificate'}")
