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
from bezoar.cli.grids import Kind, compare
from bezoar.expected.config import Expected
from bezoar.expected.run import count, run, table_rows
from bezoar.experiments.config import override
from bezoar.experiments.grid import Cell
from bezoar.experiments.progress import Display
from bezoar.experiments.run import Progress
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
    quiet: bool,
    as_json: bool,
) -> None:
    """``bezoar run``: one experiment, or a grid as with ``bezoar compare``."""
    if "grid" in table:
        compare(KIND, table, values, name, seed, out, None, data_dir, device, quiet, as_json)
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


def _expected(experiment: object) -> Expected:
    assert isinstance(experiment, Expected)
    return experiment


def _start(display: Display, cell: Cell) -> Progress:
    return display.start(cell.title, count(_expected(cell.experiment)), "trainings")


def _ending(summary: Mapping[str, Any]) -> str:
    rows = summary["results"]
    diverged = sum(row["diverged"] > 0 for row in rows)
    note = f", {diverged} with a training that diverged" if diverged else ""
    return f"{len(rows)} pairs of rule and attack in {summary['seconds']['total']:.0f} s{note}"


#: How they are compared; without a finished run there is nothing to report.
KIND = Kind(Expected.from_table, run, _start, _ending, show=None, partial=False, tracked=False)


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
