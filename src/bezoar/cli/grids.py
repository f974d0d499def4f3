"""What comparing is for every kind of experiment: run the cells, show how each ended, write one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bezoar.cli.app import command

if TYPE_CHECKING:
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
    """

    read: Reader
    run: Runner
    start: Callable[[Display, Cell], Progress]
    ending: Callable[[Mapping[str, Any]], str]
    show: Callable[[Path], None] | None
    partial: bool


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
    jobs: int,
    allocator: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """All cells of a grid; those that have finished are skipped, others go on. Exits with 1 if one failed."""
    from bezoar.experiments.grid import Grid
    from bezoar.experiments.grid import compare as compare_grid
    from bezoar.experiments.progress import Display
    from bezoar.reports import write_report

    grid = Grid.from_table(table, name, seed, values, read=kind.read)
    folder = out or Path("runs") / grid.name
    with Display(quiet=quiet, stderr=as_json, cells=len(grid.cells)) as display:
        outcomes = compare_grid(
            grid,
            folder,
            cells=cells,
            data_dir=data_dir,
            device=device,
            jobs=jobs,
            allocator=allocator,
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
