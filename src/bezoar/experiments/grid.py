"""Grids: one base experiment, axes that vary, a cell for every combination."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from bezoar.allocator import tune
from bezoar.errors import BezoarError, BusyError, ConfigError
from bezoar.experiments.config import Experiment, override
from bezoar.experiments.records import (
    SUMMARY,
    WEIGHTS,
    alone,
    load_tensors,
    plain,
    read_summary,
    write_atomically,
    write_summary,
)
from bezoar.experiments.run import Interrupted, Progress, distances, run
from bezoar.experiments.scales import at_scale, holds, label, labels
from bezoar.models.files import check_unchanged
from bezoar.recipes.paper import Claim, claims


class Settled(Protocol):
    """An experiment of any kind, all of it resolved."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def rounds(self) -> int: ...

    def hash(self) -> str:
        """Tells it from all others."""


class Ended(Protocol):
    """What a finished run says of itself."""

    @property
    def summary(self) -> dict[str, Any]: ...


#: Reads an experiment from ``(table, source)``.
Reader = Callable[[Mapping[str, Any], str], Settled]

#: Runs one: ``(experiment, folder, *, data_dir, resume, device, progress, wait)``; workers are sent it by its name.
Runner = Callable[..., Ended]


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid, with its label on every axis."""

    labels: dict[str, Any]
    experiment: Settled

    @cached_property
    def key(self) -> str:
        """Its directory's name among those of other cells: the hash of its full configuration."""
        return self.experiment.hash()

    @property
    def folder(self) -> str:
        """Where it is recorded, below the comparison's directory, unless cells are kept elsewhere."""
        return f"cells/{self.key}"

    @property
    def title(self) -> str:
        """The labels in one line."""
        return ", ".join(str(v) if k not in ("seed",) else f"seed {v}" for k, v in self.labels.items())


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


#: Told when a cell starts (None), and with every record of it while it runs in this process.
CellProgress = Callable[[Cell], Progress | None]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its summary, or what went wrong."""

    cell: Cell
    summary: dict[str, Any] | None
    error: str | None
    skipped: bool = False


def compare(
    grid: Grid,
    out: str | Path,
    *,
    cells: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    jobs: int = 1,
    allocator: str = "default",
    command: str | None = None,
    runner: Runner = run,
    progress: CellProgress | None = None,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run all cells of a grid that have not finished yet, then measure distances to unattacked twins.

    A cell is recorded under the hash of its full configuration in the directory ``cells``, by default ``out/cells``:
    cells that have finished are skipped, interrupted ones go on from their checkpoint. Comparisons that share ``cells``
    share what they have in common, also when they run at the same time: a cell that another process is running is left
    for last, and waited for. A cell that fails does not stop the others. ``jobs``
    cells run at a time, in processes of their own that share the processor's threads; ``allocator`` is ``"tuned"``
    or ``"default"`` for those processes. ``runner`` runs a cell, as :func:`bezoar.experiments.run.run` does.
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
    if jobs == 1:
        running = _in_turn(todo, store, data_dir, device, progress, runner)
    else:
        running = _at_once(todo, store, data_dir, device, jobs, allocator, progress, runner)
    for outcome in running:
        outcomes.append(outcome)
        if finished:
            finished(outcome)
    _measure_twins(grid, store)
    return [
        outcome if outcome.summary is None else replace(outcome, summary=read_summary(store / outcome.cell.key))
        for outcome in outcomes
    ]


def _one(
    cell: Cell,
    folder: Path,
    data_dir: str | Path | None,
    device: str,
    progress: Progress | None,
    wait: bool,
    runner: Runner,
) -> Outcome | None:
    """Run a cell; None if another process is running it, and we do not ``wait``."""
    try:
        result = runner(
            cell.experiment,
            folder / cell.key,
            data_dir=data_dir,
            resume=True,
            device=device,
            progress=progress,
            wait=wait,
        )
    except Interrupted:
        raise
    except BusyError:
        return None
    except BezoarError as error:
        return Outcome(cell, None, str(error))
    except Exception as error:
        return Outcome(cell, None, f"{type(error).__name__}: {error}")
    return Outcome(cell, result.summary, None)


def _in_turn(
    cells: Sequence[Cell],
    folder: Path,
    data_dir: str | Path | None,
    device: str,
    progress: CellProgress | None,
    runner: Runner,
) -> Iterator[Outcome]:
    left = [(cell, False) for cell in cells]
    for cell, busy in left:
        watch = _Lazy(progress, cell) if progress else None
        try:
            outcome = _one(cell, folder, data_dir, device, watch, busy, runner)
        except Interrupted:
            raise Interrupted(f"stopped in [{cell.title}]; run the same command to go on from there") from None
        if outcome is None:
            left.append((cell, True))
        else:
            yield outcome


class _Lazy:
    """Says that a cell starts with its first record: before that, another process may be running it."""

    def __init__(self, progress: CellProgress, cell: Cell) -> None:
        self._start = progress
        self._cell = cell

    @cached_property
    def _watch(self) -> Progress | None:
        return self._start(self._cell)

    def __call__(self, record: Mapping[str, Any]) -> None:
        if self._watch is not None:
            self._watch(record)


#: Seconds between two messages of a worker about its progress.
_NEWS_SECONDS = 0.2

_news: Any = None


def _start_worker(news: Any, threads: int, allocator: str) -> None:
    """Runs once in every worker process. Ctrl-C is the parent's to handle."""
    global _news
    _news = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if allocator == "tuned":
        tune()
    torch.set_num_threads(threads)


def _in_worker(
    cell: Cell, folder: Path, data_dir: str | Path | None, device: str, runner: Runner, wait: bool = False
) -> Outcome | None:
    last = 0.0
    parent = os.getppid()

    def tell(record: Mapping[str, Any]) -> None:
        nonlocal last
        if os.getppid() != parent:
            # Whoever asked for this cell is gone; its checkpoint stays.
            os._exit(1)
        if record["kind"] == "evaluation" or time.monotonic() - last > _NEWS_SECONDS:
            last = time.monotonic()
            _news.put((cell.key, plain(record)))

    return _one(cell, folder, data_dir, device, tell, wait, runner)


def _at_once(
    cells: Sequence[Cell],
    folder: Path,
    data_dir: str | Path | None,
    device: str,
    jobs: int,
    allocator: str,
    progress: CellProgress | None,
    runner: Runner,
) -> Iterator[Outcome]:
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    by_folder = {cell.key: cell for cell in cells}
    watchers: dict[str, _Lazy] = {}
    news = spawn.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(news, threads, allocator))
    try:
        running = {pool.submit(_in_worker, cell, folder, data_dir, device, runner): cell for cell in cells}
        while running:
            done, _ = wait(running, timeout=_NEWS_SECONDS, return_when=FIRST_COMPLETED)
            with contextlib.suppress(queue.Empty):
                while True:
                    name, record = news.get_nowait()
                    if progress:
                        watchers.setdefault(name, _Lazy(progress, by_folder[name]))(record)
            for future in done:
                cell = running.pop(future)
                try:
                    outcome = future.result()
                    if outcome is None:
                        # Behind everything else that there is to do.
                        running[pool.submit(_in_worker, cell, folder, data_dir, device, runner, True)] = cell
                except BrokenProcessPool:
                    raise BezoarError(
                        "a worker process ended abruptly (out of memory?); run the same command to go on, "
                        "perhaps with fewer --jobs"
                    ) from None
                if outcome is not None:
                    yield outcome
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise Interrupted("stopped; run the same command to go on from the last checkpoints") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
