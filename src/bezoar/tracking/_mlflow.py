"""MLflow."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bezoar.tracking.base import Started, needs
from bezoar.tracking.telling import values

#: The run's folder, or the comparison's, with a store of its own.
FOLDER = "mlflow"

#: The tag that tells a run from others.
TAG = "bezoar.run"

#: MLflow takes at most so many metrics at once, so many parameters, and values of so many letters.
_MOST_METRICS, _MOST_PARAMETERS, _LONGEST = 1000, 100, 500

#: Seconds after which metrics are written although they are few.
_SECONDS = 2.0


@dataclass(frozen=True)
class MLflow:
    """A run in an MLflow store: a local database, or a server.

    Without a ``uri`` it is that in MLFLOW_TRACKING_URI, else ``mlflow/mlflow.db`` in the run's folder (one for all runs
    of a comparison on this machine): ``mlflow ui --backend-store-uri sqlite:///PATH``. ``experiment`` is the name under
    which runs are listed, that of the comparison or of the experiment by default. When a run goes on, so does its
    series; rounds that MLflow holds already are not written twice, since it removes nothing.

    Reference: https://mlflow.org
    """

    uri: str | None = None
    experiment: str | None = None

    def __post_init__(self) -> None:
        needs("mlflow", "mlflow")

    def together(self, name: str, folder: Path | None) -> MLflow:
        """One store for all runs of a comparison, if they share a disk."""
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or (None if folder is None else _database(folder))
        return replace(self, uri=uri, experiment=self.experiment or name)

    def start(self, run: Started) -> Metrics:
        """See :class:`bezoar.tracking.Tracker`."""
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or _database(run.folder)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Opening a new store makes its tables: two at once would spoil it.
        with _quiet(), _alone(uri):
            client = _client(uri)
            name = self.experiment or run.name
            known = client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else _create(client, name, uri)
        here = f"{run.key} {run.folder.resolve()}"
        where = f"tags.`{TAG}` = '{_quoted(here)}'"
        found = client.search_runs([experiment], where, max_results=1)
        if found and not run.round:
            # An earlier one in the same folder, that was stopped before its first checkpoint or removed.
            if found[0].info.status == "RUNNING":
                client.set_terminated(found[0].info.run_id, status="KILLED")
        elif found:
            number = found[0].info.run_id
            client.update_run(number, status="RUNNING")
            return Metrics(client, number, _last_step(client, found[0]))
        number = client.create_run(experiment, run_name=run.name, tags={TAG: _quoted(here)}).info.run_id
        _parameters(client, number, run.parameters)
        return Metrics(client, number, 0)


@dataclass
class Metrics:
    """A run of MLflow, written some rounds at a time."""

    _client: Any
    _run: str
    logged: int
    _waiting: list[Any] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)
    _last: int = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._last = step
        # A round is written whole or not at all, so that the next process can go on after it.
        if len(self._waiting) + len(values) > _MOST_METRICS or time.monotonic() - self._written > _SECONDS:
            self._write()
        self._waiting += [Metric(_name(name), value, now, step) for name, value in values.items()]

    def _write(self) -> None:
        waiting, self._waiting, self._written = self._waiting, [], time.monotonic()
        for start in range(0, len(waiting), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=waiting[start : start + _MOST_METRICS])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self.log(self._last or self.logged, values({"kind": "summary", **summary}))
        self._write()
        self._client.set_terminated(self._run, status="KILLED" if summary is None else "FINISHED")


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _create(client: Any, name: str, uri: str) -> str:
    """A new experiment; what belongs to its runs beside numbers lies beside a local store."""
    path = _local(uri)
    options = {} if path is None else {"artifact_location": (path.parent.resolve() / "artifacts").as_uri()}
    return str(client.create_experiment(name, **options))


def _parameters(client: Any, run: str, parameters: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    shown = [Param(_name(name), str(value)[:_LONGEST]) for name, value in parameters.items()]
    for start in range(0, len(shown), _MOST_PARAMETERS):
        client.log_batch(run, params=shown[start : start + _MOST_PARAMETERS])


def _last_step(client: Any, found: Any) -> int:
    """The last round that the store holds; every round has a rate."""
    name = "round/lr" if "round/lr" in found.data.metrics else next(iter(found.data.metrics), None)
    if name is None:
        return 0
    history = client.get_metric_history(found.info.run_id, name)
    return max(int(metric.step) for metric in history)


def _name(name: str) -> str:
    """Letters that MLflow does not take, as underscores."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _quoted(text: str) -> str:
    return text.replace("'", "_").replace("`", "_")


def _database(folder: Path) -> str:
    path = folder.resolve() / FOLDER / "mlflow.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def _local(uri: str) -> Path | None:
    """The file or directory of a local store, None for a server."""
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///"))
    return Path(uri.removeprefix("file://")) if uri.startswith("file:") or "://" not in uri else None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time, where the store is local."""
    path = _local(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow and its libraries say of themselves when a store is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # It sets the levels of its loggers when it is imported.
        importlib.import_module("mlflow.tracking")
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
