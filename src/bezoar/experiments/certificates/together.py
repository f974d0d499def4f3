"""Several certificates of voting models in one table and one figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments.certificates.outcome import Curve, accuracy_plot
from bezoar.experiments.certificates.records import CERTIFICATE
from bezoar.reports.style import Plot
from bezoar.reports.tables import Column, Entry, Table


def read_certificate(folder: str | Path) -> dict[str, Any]:
    """The record of a certificate with certified accuracy. Raises BezoarError or ConfigError if there is none."""
    path = Path(folder) / CERTIFICATE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BezoarError(f"{path}: can not be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("certified_accuracy"), list):
        raise ConfigError(f"{path}: has no certified accuracy; use ensemble, flcert-d or crfl")
    return found


def together(
    folders: Mapping[str, str | Path], malicious: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
) -> tuple[Table, Plot]:
    """Certified accuracy of several certificates, by name, for numbers of ``malicious`` clients; and all of the curves.

    Certificates that hold against attackers who know the groups stand as "NAME, groups known".
    """
    records = {name: read_certificate(folder) for name, folder in folders.items()}
    curves, rows, points = [], [], []
    for name, record in records.items():
        attack = record["attack"]
        for label, values in {name: record["certified_accuracy"], **_further(name, record)}.items():
            curves.append(Curve(label, np.array(values)))
            certified: list[Entry] = [values[m] if m < len(values) else 0.0 for m in malicious]
            measured: list[Entry] = [record["test_accuracy"], attack and attack["test_accuracy"]]
            rows.append((label, record["models"], *measured, *certified))
        if attack:
            points.append((attack["malicious"], attack["test_accuracy"], f"{name}, measured"))
    columns = (
        Column("certificate", "certificate", numeric=False),
        Column("models", "models"),
        Column("test_accuracy", "no attack", "%", 100, 1),
        Column("attacked_accuracy", "attacked", "%", 100, 1),
        *(Column(f"certified_{m}", f"m = {m}", "%", 100, 1) for m in malicious),
    )
    title = "Certified accuracy by number of malicious clients"
    return Table("certificates", title, columns, tuple(rows)), accuracy_plot(curves, points, title, title)


def _further(name: str, record: Mapping[str, Any]) -> dict[str, list[float]]:
    return {f"{name}, {what}": values for what, values in record["further"].items()}
