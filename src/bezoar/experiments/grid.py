"""Grids: one base experiment, axes that vary, a cell for every combination."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments.cells import Cell, CellProgress, Job, Outcome, Reader, Runner
from bezoar.experiments.config import Experiment, override
from bezoar.experiments.engines import Engine, local
from bezoar.experiments.records import (
    SUMMARY,
    WEIGHTS,
    alone,
    load_tensors,
    read_summary,
    write_atomically,
    write_summary,
)
from bezoar.experiments.run import distances, run
from bezoar.experiments.scales import at_scale, holds, label, labels
from bezoar.models.files import check_unchanged
from bezoar.recipes.paper import Claim, claims


@dataclass(frozen=True)
class Grid:
    """All cells of a comparison.

    In TOML the base experiment stands at the top, the axes in ``[grid]``: an axis is a section (``defence``,
    ``attack``) whose values replace that section, or a dotted key (``"model.width"``) with its values. A table may
    carry a ``label``, or several: ``label = { task = "digits", skew = "0.1" }``. The axis ``settings`` has tables of
    dotted keys that are set together, after the other axes: what belongs to a way of training, its rate and its
    radius. ``[scale.NAME]`` says what changes at
    another scale (:mod:`bezoar.experiments.scales`), ``[paper]`` what was published (:mod:`bezoar.recipes.paper`);
    neither is part of an experiment.
    """

    name: str
    description: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    scale: str = ""
    claims: tuple[Claim, ...] = ()

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Any],
        source: str = "grid",
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
        read: Reader = Experiment.from_table,
    ) -> Grid:
        """Check a table as read from TOML: every cell is validated.

        ``seed`` replaces the seed axis; ``settings`` (dotted keys) are set in every cell, after its axes, and
        ``settings["scale"]`` chooses a scale. ``read`` makes an experiment of a cell's table.

        Raises:
            ConfigError: names the file, the cell and the key.
        """
        written = table.get("grid")
        table, settings, scale = at_scale(table, settings, source)
        base = {key: value for key, value in table.items() if key not in ("grid", "paper")}
        axes = table.get("grid")
        if not isinstance(axes, Mapping) or not axes:
            raise ConfigError(f"{source}: no [grid] table; run it with 'bezoar run', or add axes such as seed = [0, 1]")
        if seed is not None:
            axes = {**axes, "seed": [seed]}
        for axis, values in axes.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{source}: grid.{axis} must be a list of at least one value")
            if holds(base, axis):
                raise ConfigError(f"{source}: {axis} is set above and is an axis of the grid; remove one of them")
            if axis in settings:
                raise ConfigError(f"{source}: {axis} can not be set, it is an axis of the grid")
        cells = []
        seen: dict[str, str] = {}
        for combination in itertools.product(*axes.values()):
            named: dict[str, Any] = {}
            chosen: dict[str, Any] = {}
            last: dict[str, Any] = {}
            for axis, value in zip(axes, combination, strict=True):
                named |= labels(axis, value)
                if axis == _SETTINGS:
                    last = _settings(value, source)
                else:
                    chosen[axis] = _unlabelled(value)
            title = ", ".join(str(label) for label in named.values())
            full = override(_as_tables(override(base, chosen)), last | settings)
            experiment = read(full, f"{source} [{title}]")
            cell = Cell(named, experiment)
            if cell.key in seen:
                raise ConfigError(f"{source}: the cells [{seen[cell.key]}] and [{title}] are the same experiment")
            seen[cell.key] = title
            cells.append(cell)
        first = cells[0].experiment
        for axis in axes:
            names = [label(value) for value in axes[axis]]
            if len(set(map(str, names))) < len(names):
                raise ConfigError(f"{source}: grid.{axis}: two values have the same label; add label = ...")
        # A scale may run less than what was published.
        known = {axis: [str(label(value)) for value in _listed(written, axis) + axes[axis]] for axis in axes}
        published = claims(table.get("paper"), known, f"{source}: paper")
        reported = dict.fromkeys(name for axis in axes for name in labels(axis, axes[axis][0]))
        for axis in axes:
            kinds = {tuple(labels(axis, value)) for value in axes[axis]}
            if len(kinds) > 1:
                raise ConfigError(f"{source}: grid.{axis}: labels must all name the same things, got {sorted(kinds)}")
        return cls(first.name, first.description, tuple(reported), tuple(cells), scale, published)


#: The axis whose values set several keys.
_SETTINGS = "settings"


def _settings(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source}: grid.settings must be a list of tables of dotted keys, got {value!r}")
    return dict(_unlabelled(value))


def _listed(grid: object, axis: str) -> list[Any]:
    values = grid.get(axis) if isinstance(grid, Mapping) else None
    return list(values) if isinstance(values, list) else []


def _as_tables(table: dict[str, Any]) -> dict[str, Any]:
    """Names of presets and kinds as tables, so that single keys of them can be set."""
    out = dict(table)
    for section, key in (("defence", "preset"), ("attack", "kind"), ("clients", "kind")):
        if isinstance(out.get(section), str):
            out[section] = {key: out[section]}
    return out


def _unlabelled(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "label"} if isinstance(value, Mapping) else value


def compare(
    grid: Grid,
    out: str | Path,
    *,
    cells: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    jobs: int = 1,
    allocator: str = "default",
    engine: Engine | None = None,
    options: Mapping[str, Any] | None = None,
    command: str | None = None,
    runner: Runner = run,
    progress: CellProgress | None = None,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run all cells of a grid that have not finished yet, then measure distances to unattacked twins.

    A cell is recorded under the hash of its full configuration in the directory ``cells``, by default ``out/cells``:
    cells that have finished are skipped, interrupted ones go on from their checkpoint. Comparisons that share ``cells``
    share what they have in common, also when they run at the same time: a cell that another process is running is left
    for last, and waited for. A cell that fails does not stop the others.

    Args:
        grid: the cells.
        out: directory of the comparison.
        cells: directory of the cells.
        data_dir: where data sets lie.
        device: on which each cell computes.
        jobs: cells that run at a time, in processes of their own that share the processor's threads.
        allocator: ``"tuned"`` or ``"default"`` for those processes.
        engine: runs the cells elsewhere than in local processes, for which the last two are.
        options: further arguments of ``runner``.
        command: shell command to note with the records.
        runner: runs a cell, as :func:`bezoar.experiments.run.run` does.
        progress: told when a cell starts; its answer is told of the cell's records.
        finished: told how each cell ended.
    """
    folder = Path(out)
    store = folder / "cells" if cells is None else Path(cells)
    for directory in (folder, store):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BezoarError(f"{directory}: can not be written: {error.strerror}") from None
    below = Path(os.path.relpath(store, folder)).as_posix()
    index = {
        "name": grid.name,
        "description": grid.description,
        "command": command,
        **({"scale": grid.scale} if grid.scale else {}),
        "axes": list(grid.axes),
        "cells": [{"labels": cell.labels, "dir": f"{below}/{cell.key}"} for cell in grid.cells],
        **({"paper": [claim.table() for claim in grid.claims]} if grid.claims else {}),
    }
    write_atomically(folder / "comparison.json", json.dumps(index, indent=2) + "\n")
    outcomes = []
    todo = []
    for cell in grid.cells:
        summary = read_summary(store / cell.key)
        if summary is not None:
            check_unchanged(summary.get("model", {}).get("weights", {}))
        if summary is None:
            todo.append(cell)
            continue
        outcomes.append(Outcome(cell, summary, None, skipped=True))
        if finished:
            finished(outcomes[-1])
    job = Job(runner, store, data_dir, device, options)
    for outcome in (engine or local(jobs, allocator)).run(todo, job, progress):
        outcomes.append(outcome)
        if finished:
            finished(outcome)
    _measure_twins(grid, store)
    return [
        outcome if outcome.summary is None else replace(outcome, summary=read_summary(store / outcome.cell.key))
        for outcome in outcomes
    ]


def _measure_twins(grid: Grid, folder: Path) -> None:
    """Write each attacked cell's distance to the cell that differs only by having no attack."""
    for cell in grid.cells:
        here = folder / cell.key
        summary = read_summary(here)
        experiment = cell.experiment
        if not isinstance(experiment, Experiment) or experiment.attack is None:
            continue
        if summary is None or summary["distance_l2"] is not None:
            continue
        twin = folder / experiment.without_attack().hash()
        if not all((twin / name).exists() for name in (SUMMARY, WEIGHTS)) or not (here / WEIGHTS).exists():
            continue
        weights, _ = load_tensors(here / WEIGHTS)
        unattacked, _ = load_tensors(twin / WEIGHTS)
        with alone(here, wait=True):
            write_summary(here, {**summary, **distances(weights, unattacked)})


__all__ = ["Cell", "CellProgress", "Grid", "Outcome", "Reader", "Runner", "compare"]
