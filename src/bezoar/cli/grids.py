"""What comparing is for every kind of experiment: run the cells, show how each ended, write one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bezoar.cli.app import command
from bezoar.errors import ConfigError, nearest

if TYPE_CHECKING:
    from bezoar.experiments.engines import Engine
    from bezoar.experiments.grid import Cell, Outcome, Reader, Runner
    from bezoar.experiments.progress import Display
    from bezoar.experiments.run import Progress


@dataclass(frozen=True)
class Kind:
    """How experiments of one kind are compared.

    Attributes:
        read: makes an experiment of a cell's table.
        run: runs it.
        start: tells the display that a cell starts.
        ending: how a finished cell ended, in words.
        show: prints what there is to print beside the report, from the comparison's directory; None: nothing.
        partial: whether there is a report although every cell failed.
        tracked: whether its runs have rounds that trackers can follow.
    """

    read: Reader
    run: Runner
    start: Callable[[Display, Cell], Progress]
    ending: Callable[[Mapping[str, Any]], str]
    show: Callable[[Path], None] | None
    partial: bool
    tracked: bool


def engine_of(
    name: str,
    jobs: int,
    allocator: str,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    retries: int | None,
) -> Engine:
    """What --engine and its options ask for.

    Raises:
        ConfigError: an unknown engine, or an option that is not for it.
    """
    from bezoar.experiments.engines import RETRIES, InTurn, Processes, Ray

    tries = RETRIES if retries is None else retries
    if name == "ray":
        if jobs != 1:
            raise ConfigError("--jobs is for --engine local; on Ray as many cells run as there is room for")
        return Ray(address, 1.0 if cpus is None else cpus, gpus or 0.0, allocator, tries)
    if name != "local":
        raise ConfigError(f"--engine is local or ray, got {name!r}; {nearest(name, ('local', 'ray'))}")
    given = {"--ray-address": address, "--cpus-per-cell": cpus, "--gpus-per-cell": gpus}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} is for --engine ray")
    return InTurn() if jobs == 1 else Processes(jobs, allocator, tries)


def compare(
    kind: Kind,
    table: Mapping[str, Any],
    values: Mapping[str, Any],
    name: str,
    seed: int | None,
    out: Path | None,
    cells: Path | None,
    data_dir: Path | None,
    device: str,
    quiet: bool,
    as_json: bool,
    trackers: Sequence[Any] = (),
    engine: Engine | None = None,
) -> None:
    """All cells of a grid; those that have finished are skipped, others go on. Exits with 1 if one failed."""
    from bezoar.experiments.engines import Ray
    from bezoar.experiments.grid import Grid
    from bezoar.experiments.grid import compare as compare_grid
    from bezoar.experiments.progress import Display
    from bezoar.reports import write_report
    from bezoar.tracking import together

    grid = Grid.from_table(table, name, seed, values, read=kind.read)
    folder = out or Path("runs") / grid.name
    options = {}
    if trackers:
        if not kind.tracked:
            raise ConfigError(f"{name}: --track follows rounds, and experiments of this kind have none")
        options["trackers"] = together(trackers, grid.name, None if isinstance(engine, Ray) else folder)
    with Display(quiet=quiet, stderr=as_json, cells=len(grid.cells)) as display:
        outcomes = compare_grid(
            grid,
            folder,
            cells=cells,
            data_dir=data_dir,
            device=device,
            engine=engine,
            options=options,
            command=command(),
            runner=kind.run,
            progress=lambda cell: kind.start(display, cell),
            finished=lambda outcome: display.finished(outcome.cell.title, _ending(kind, outcome)),
        )
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    page = write_report(folder) if kind.partial or len(failed) < len(outcomes) else None
    if as_json:
        shown = [{"labels": o.cell.labels, "summary": o.summary, "error": o.error} for o in outcomes]
        typer.echo(json.dumps({"name": grid.name, "cells": shown, "report": str(page)}, indent=2))
    elif not quiet and page is not None:
        if kind.show is not None:
            kind.show(folder)
        typer.echo(f"report: {page}")
    for outcome in failed:
        typer.echo(f"bezoar: [{outcome.cell.title}] failed: {outcome.error}", err=True)
    if failed:
        raise typer.Exit(1)


def _ending(kind: Kind, outcome: Outcome) -> str:
    if outcome.summary is None:
        return f"failed: {outcome.error}"
    return "finished before" if outcome.skipped else kind.ending(outcome.summary)
