"""Run an experiment on expected robustness, cell by cell, and go on where it was broken off."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bezoar.errors import ConfigError
from bezoar.expected.cells import Bench, Cell, Key, cells, honest_sets, prepare
from bezoar.expected.config import KIND, Expected
from bezoar.expected.problems import make_problem
from bezoar.experiments import environment
from bezoar.experiments.config import read_toml
from bezoar.experiments.records import (
    CONFIG,
    METRICS,
    SUMMARY,
    alone,
    guarded,
    plain,
    read_summary,
    write_atomically,
    write_summary,
)
from bezoar.experiments.run import Interrupted

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class ExpectedResult:
    """A finished run: its summary, and one record for each rule, attack and honest set."""

    summary: dict[str, Any]
    cells: list[Cell]
    directory: Path | None


def run(
    experiment: Expected,
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    command: str | None = None,
    wait: bool = False,
) -> ExpectedResult:
    """Run all rules against all attacks for all honest sets, recorded in the directory ``out`` (None: in memory).

    With ``resume`` cells that are recorded are not made again, and a finished run is returned; ``wait`` waits for
    another process that is running in ``out``. ``progress`` is told of every cell, as a "round" of so many.

    Raises:
        ConfigError: the experiment can not run, or ``out`` holds another run.
        BusyError: another process is running in ``out``.
        DataError: data are missing or damaged.
        Interrupted: stopped by Ctrl-C; finished cells are kept.
    """
    if torch.device(device).type != "cpu":
        raise ConfigError("expected robustness is computed on the CPU: its matrices are small; leave --device out")
    if out is None:
        return _run(experiment, None, data_dir, {}, progress, command)
    folder = Path(out)
    with alone(folder, wait):
        if (folder / CONFIG).exists():
            _same(folder, experiment, resume)
        done = _recorded(folder)
        finished = read_summary(folder)
        if finished is not None:
            return ExpectedResult(finished, list(done.values()), folder)
        if not (folder / CONFIG).exists():
            write_atomically(folder / CONFIG, experiment.dumps())
        return _run(experiment, folder, data_dir, done, progress, command)


def _same(folder: Path, experiment: Expected, resume: bool) -> None:
    """Raise unless the directory holds this very experiment, to be resumed."""
    if not resume:
        raise ConfigError(f"{folder}: already holds a run; go on with --resume, or choose another --out")
    if read_toml(folder / CONFIG).get("kind") != KIND or Expected.load(folder / CONFIG).hash() != experiment.hash():
        raise ConfigError(f"{folder}: holds a run of another configuration; choose another --out")


def _recorded(folder: Path) -> dict[Key, Cell]:
    """The cells on disk. A last line that was cut off is removed."""
    path = folder / METRICS
    if not path.exists():
        return {}
    with guarded(path):
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with path.open("ab") as file:
                file.truncate(len(whole))
    found: dict[Key, Cell] = {}
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), start=1):
        try:
            cell = json.loads(line)
            found[(cell["rule"], cell["attack"], cell["set"])] = cell
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}, line {number}: damaged; start again in another --out") from None
    return found


def _run(
    experiment: Expected,
    folder: Path | None,
    data_dir: str | Path | None,
    done: dict[Key, Cell],
    progress: Progress | None,
    command: str | None,
) -> ExpectedResult:
    begin = time.perf_counter()
    bench = prepare(experiment, make_problem(experiment.task, experiment.seed, data_dir))
    found = dict(done)
    try:
        for cell in cells(bench, done):
            entry = plain(cell)
            found[(entry["rule"], entry["attack"], entry["set"])] = entry
            if folder is not None:
                with guarded(folder / METRICS), (folder / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry, allow_nan=False) + "\n")
            if progress is not None:
                progress({"kind": "round", "round": len(found)})
    except KeyboardInterrupt:
        where = "" if folder is None else f" in {folder}"
        raise Interrupted(f"stopped after {len(found)} of {bench.count} cells{where}; go on with --resume") from None
    summary = plain(_summary(bench, list(found.values()), time.perf_counter() - begin, command))
    if folder is not None:
        write_summary(folder, summary)
    return ExpectedResult(summary, list(found.values()), folder)


def count(experiment: Expected) -> int:
    """How many cells the run will have, where that is known before data are loaded; else 0."""
    sets = 1
    if experiment.reading == "R1":
        task = experiment.task
        n = experiment.prior.n or task.clients or sum(task.groups) or getattr(task.partition, "clients", None)
        if n is None:
            return 0
        sets = len(honest_sets(experiment.prior.of(n), experiment.sets, experiment.seed))
    return len(experiment.rule) * len(experiment.attack) * sets


def _summary(bench: Bench, found: Sequence[Cell], seconds: float, command: str | None) -> dict[str, Any]:
    experiment = bench.experiment
    return {
        "kind": KIND,
        "name": experiment.name,
        "seed": experiment.seed,
        "reading": experiment.reading,
        "clients": bench.problem.n,
        "parameters": len(bench.problem.start),
        "sets": len(bench.sets),
        "exact": bench.sets.log_prob is not None,
        "lr": bench.steps.lr,
        "smoothness": max((c.smoothness for c in bench.curvature if c is not None), default=None),
        "convexity": min((c.convexity for c in bench.curvature if c is not None), default=None),
        "results": results(found),
        "seconds": {"total": seconds, "cells": sum(cell["seconds"] for cell in found)},
        "command": command,
        "versions": environment.versions(),
        "hardware": environment.hardware(torch.device("cpu")),
        "commit": environment.commit(),
        "hash": experiment.hash(),
    }


def results(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every rule and attack, over the honest sets weighted by their probability (draws: equally):

    ``expected`` is the mean of the excess loss (of the loss, where no minimum is known), None if a training diverged;
    ``holding`` that over the sets for which the rule promises something, ``broken`` the probability of the others,
    ``bound`` what is promised on average where it does, ``worst`` the set of greatest loss.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in found:
        groups.setdefault((cell["rule"], cell["attack"]), []).append(cell)
    return [{"rule": rule, "attack": attack, **_over_sets(group)} for (rule, attack), group in groups.items()]


def _over_sets(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    measure = "excess" if all(cell["excess"] is not None or cell["diverged"] for cell in group) else "loss"
    values = [math.inf if cell["diverged"] else float(cell[measure]) for cell in group]
    logs = [float(cell["log_prob"]) if "log_prob" in cell else 0.0 for cell in group]
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    total = math.fsum(weights)

    def mean(numbers: Sequence[float], chosen: Sequence[bool]) -> float | None:
        pairs = [(w, x) for w, x, keep in zip(weights, numbers, chosen, strict=True) if keep and w > 0]
        mass = math.fsum(w for w, _ in pairs)
        return sum(w * x for w, x in pairs) / mass if pairs else None

    everything, holds = [True] * len(group), [not cell["broke"] for cell in group]
    bounded = [keep and cell["bound"] is not None for keep, cell in zip(holds, group, strict=True)]
    worst = max(range(len(group)), key=lambda i: values[i])
    return {
        "measure": measure,
        "expected": mean(values, everything),
        "holding": mean(values, holds),
        "broken": math.fsum(w for w, keep in zip(weights, holds, strict=True) if not keep) / total,
        "bound": mean([cell["bound"] or 0.0 for cell in group], bounded),
        "diverged": math.fsum(w for w, cell in zip(weights, group, strict=True) if cell["diverged"]) / total,
        "worst": values[worst],
        "worst_set": group[worst]["set"],
        "skipped": sum(cell["skipped"] for cell in group),
    }


def table_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table that is printed: rule, attack, expected, worst, and of the promises."""

    def shown(value: float | None, missing: str = "-") -> str:
        return missing if value is None else f"{value:.3g}"

    return [
        (row["rule"], row["attack"], shown(row["expected"], "diverged"), shown(row["worst"], "diverged"),
         shown(row["holding"]), shown(row["bound"]), f"{row['broken']:.3g}")
        for row in summary["results"]
    ]  # fmt: skip


__all__ = ["SUMMARY", "ExpectedResult", "count", "results", "run", "table_rows"]
