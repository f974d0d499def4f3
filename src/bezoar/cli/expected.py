"""Run experiments on expected robustness, and grids of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bezoar.cli.app import command
from bezoar.expected.config import Expected
from bezoar.expected.run import count, run, table_rows
from bezoar.experiments.config import override
from bezoar.experiments.grid import Grid, Outcome, compare
from bezoar.experiments.progress import Display
from bezoar.reports import write_report

#: Rows of the table that is printed; the report has all of them.
_MOST_ROWS = 40


def run_one_or_all(
    table: Mapping[str, Any],
    values: dict[str, Any],
    name: str,
    seed: int | None,
    out: Path | None,
    data_dir: Path | None,
    resume: bool,
    device: str,
    allocator: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """``bezoar run``: one experiment, or a grid as with ``bezoar compare``."""
    if "grid" in table:
        compare_all(table, values, name, seed, out, None, data_dir, device, 1, allocator, quiet, as_json)
        return
    values = values if seed is None else {**values, "seed": seed}
    experiment = Expected.from_table(override(table, values), name)
    folder = out or Path("runs") / experiment.name
    with Display(quiet=quiet, stderr=as_json) as display:
        progress = display.start(experiment.name, count(experiment), "trainings")
        result = run(
            experiment, folder, data_dir=data_dir, resume=resume, device=device, progress=progress, command=command()
        )
    page = write_report(folder)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    elif not quiet:
        _print(result.summary)
        typer.echo(f"report: {page}")


def compare_all(
    table: Mapping[str, Any],
    values: dict[str, Any],
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
    """``bezoar compare``: all runs of a grid; those that have finished are skipped, others go on."""
    grid = Grid.from_table(table, name, seed, values, read=Expected.from_table)
    folder = out or Path("runs") / grid.name
    with Display(quiet=quiet, stderr=as_json, cells=len(grid.cells)) as display:
        outcomes = compare(
            grid,
            folder,
            cells=cells,
            data_dir=data_dir,
            device=device,
            jobs=jobs,
            allocator=allocator,
            command=command(),
            runner=run,
            progress=lambda cell: display.start(cell.title, count(_expected(cell.experiment)), "trainings"),
            finished=lambda outcome: display.finished(outcome.cell.title, _ending(outcome)),
        )
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    page = write_report(folder) if len(failed) < len(outcomes) else None
    if as_json:
        shown = [{"labels": o.cell.labels, "summary": o.summary, "error": o.error} for o in outcomes]
        typer.echo(json.dumps({"name": grid.name, "cells": shown, "report": str(page)}, indent=2))
    elif not quiet and page is not None:
        typer.echo(f"report: {page}")
    for outcome in failed:
        typer.echo(f"bezoar: [{outcome.cell.title}] failed: {outcome.error}", err=True)
    if failed:
        raise typer.Exit(1)


def _expected(experiment: object) -> Expected:
    assert isinstance(experiment, Expected)
    return experiment


def _ending(outcome: Outcome) -> str:
    if outcome.summary is None:
        return f"failed: {outcome.error}"
    if outcome.skipped:
        return "finished before"
    rows = outcome.summary["results"]
    diverged = sum(row["diverged"] > 0 for row in rows)
    note = f", {diverged} with a training that diverged" if diverged else ""
    return f"{len(rows)} pairs of rule and attack in {outcome.summary['seconds']['total']:.0f} s{note}"


def _print(summary: Mapping[str, Any]) -> None:
    rows = table_rows(summary)
    table = Table(
        "rule", "attack", "expected", "worst", "where promised", "bound", "P(broken)", box=None, pad_edge=False
    )
    for row in rows[:_MOST_ROWS]:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(f"... and {len(rows) - _MOST_ROWS} more rows: see the report")
