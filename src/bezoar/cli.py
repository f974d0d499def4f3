"""The command line: run, compare, report, list."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bezoar._version import __version__
from bezoar.allocator import tune
from bezoar.errors import BezoarError, ConfigError, nearest

if TYPE_CHECKING:
    from bezoar.experiments.grid import Outcome
    from bezoar.registry import Entry

app = typer.Typer(
    name="bezoar",
    help="Federated learning under poisoning: defend the model, measure the attack, say what can be promised.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[str, typer.Argument(help="A TOML file, or the name of a recipe (see 'bezoar list recipes').")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key, e.g. --set rounds=100. Repeatable.")
]
Seed = Annotated[int | None, typer.Option(help="The seed of all random draws.")]
Out = Annotated[Path | None, typer.Option(help="Directory for the records; runs/NAME by default.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie; BEZOAR_DATA or ./data by default.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON (progress goes to stderr).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; all cores by default.")]
Allocator = Annotated[
    str, typer.Option(help="'tuned' keeps freed memory (faster on a CPU, higher peak), 'default' leaves malloc alone.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the directory's checkpoint.")]
Jobs = Annotated[int, typer.Option(min=1, help="Cells to run at a time, each in a process of its own.")]


#: Columns that the whole comparison table needs; on narrower terminals the report has the rest.
_WIDE = 130


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bezoar {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def _prepare(allocator: str, threads: int | None, device: str) -> None:
    """Settings of the process, before anything is computed."""
    if allocator not in ("tuned", "default"):
        raise ConfigError(f"--allocator must be 'tuned' or 'default', got {allocator!r}")
    if allocator == "tuned":
        tune()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        kind = torch.device(device)
        torch.zeros(1, device=kind).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {device}: not available here: {str(error).splitlines()[0]}") from None


def _read(source: str, settings: list[str] | None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The table that SOURCE names, what --set asks for, and what to call the table in errors."""
    from bezoar.experiments.config import parse_value, read_toml
    from bezoar.recipes import find

    path = find(source)
    table = read_toml(path)
    values = {}
    for setting in settings or []:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, e.g. --set rounds=100, got {setting!r}")
        values[key.strip()] = parse_value(text.strip())
    return table, values, str(path)


def _command() -> str:
    return shlex.join(["bezoar", *sys.argv[1:]])


@app.command()
def run(
    source: Source,
    settings: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_dir: DataDir = None,
    resume: Resume = False,
    device: Device = "cpu",
    threads: Threads = None,
    allocator: Allocator = "tuned",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run one experiment and write its records, summary, weights and report.

    A recipe that is a grid runs as with 'bezoar compare'.
    """
    _prepare(allocator, threads, device)
    table, values, name = _read(source, settings)
    if "grid" in table:
        _compare(table, values, name, seed, out, data_dir, device, 1, allocator, quiet, as_json)
        return
    if table.get("kind") == "personalized":
        if resume:
            raise ConfigError(f"{name}: a personalised run can not be resumed; start again in another --out")
        _run_personalized(table, values, name, seed, out, data_dir, device, quiet, as_json)
        return
    from bezoar.experiments import Experiment
    from bezoar.experiments import run as run_experiment
    from bezoar.experiments.config import override
    from bezoar.experiments.progress import Display
    from bezoar.reports import write_report

    if seed is not None:
        values["seed"] = seed
    experiment = Experiment.from_table(override(table, values), name)
    folder = out or Path("runs") / experiment.name
    with Display(quiet=quiet, stderr=as_json) as display:
        progress = display.start(experiment.name, experiment.rounds)
        result = run_experiment(
            experiment,
            folder,
            data_dir=data_dir,
            resume=resume,
            device=device,
            progress=progress,
            command=_command(),
        )
    page = write_report(folder)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    elif not quiet:
        _print_tables(folder)
        typer.echo(f"{result.summary['convergence_note']}\nreport: {page}")
    if not result.summary["converged"]:
        typer.echo(f"bezoar: {result.summary['convergence_note']}", err=True)


def _run_personalized(
    table: dict[str, Any],
    values: dict[str, Any],
    name: str,
    seed: int | None,
    out: Path | None,
    data_dir: Path | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from bezoar.experiments.config import override
    from bezoar.personalized.experiment import Equivalence, table_rows
    from bezoar.personalized.experiment import run as run_equivalence

    values = values if seed is None else {**values, "seed": seed}
    experiment = Equivalence.from_table(override(table, values), name)
    folder = out or Path("runs") / experiment.name
    result = run_equivalence(experiment, folder, data_dir=data_dir, device=device, command=_command())
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    elif not quiet:
        shown = Table("regulariser", "attack", "test (%)", "users (%)", "to target", box=None, pad_edge=False)
        for row in table_rows(result.summary):
            shown.add_row(*row)
        Console(highlight=False).print(shown)
        typer.echo(f"records: {folder}")


@app.command()
def compare(
    source: Source,
    settings: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_dir: DataDir = None,
    jobs: Jobs = 1,
    device: Device = "cpu",
    threads: Threads = None,
    allocator: Allocator = "tuned",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid of experiments, skip the cells that have finished, print one table and write one report."""
    _prepare(allocator, threads, device)
    table, values, name = _read(source, settings)
    if table.get("kind") == "personalized":
        raise ConfigError(f"{name}: this is one personalised run, no grid; run it with 'bezoar run'")
    _compare(table, values, name, seed, out, data_dir, device, jobs, allocator, quiet, as_json)


def _compare(
    table: dict[str, Any],
    values: dict[str, Any],
    name: str,
    seed: int | None,
    out: Path | None,
    data_dir: Path | None,
    device: str,
    jobs: int,
    allocator: str,
    quiet: bool,
    as_json: bool,
) -> None:
    from bezoar.experiments.grid import Grid
    from bezoar.experiments.grid import compare as compare_grid
    from bezoar.experiments.progress import Display
    from bezoar.reports import write_report

    grid = Grid.from_table(table, name, seed, values)
    folder = out or Path("runs") / grid.name
    with Display(quiet=quiet, stderr=as_json, cells=len(grid.cells)) as display:
        outcomes = compare_grid(
            grid,
            folder,
            data_dir=data_dir,
            device=device,
            jobs=jobs,
            allocator=allocator,
            command=_command(),
            progress=lambda cell: display.start(cell.title, cell.experiment.rounds),
            finished=lambda outcome: display.finished(outcome.cell.title, _ending(outcome)),
        )
    page = write_report(folder)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        cells = [{"labels": o.cell.labels, "summary": o.summary, "error": o.error} for o in outcomes]
        typer.echo(json.dumps({"name": grid.name, "cells": cells, "report": str(page)}, indent=2))
    elif not quiet:
        _print_tables(folder)
        typer.echo(f"report: {page}")
    for outcome in failed:
        typer.echo(f"bezoar: [{outcome.cell.title}] failed: {outcome.error}", err=True)
    if failed:
        raise typer.Exit(1)


def _ending(outcome: Outcome) -> str:
    if outcome.summary is None:
        return f"failed: {outcome.error}"
    if outcome.skipped:
        return "finished before"
    if not outcome.summary["converged"]:
        return str(outcome.summary["convergence_note"])
    attack = outcome.summary["attack_accuracy"]
    shown = "" if attack is None else f", attack {attack:.1%}"
    return f"test {outcome.summary['test_accuracy']:.1%}{shown}"


def _print_tables(folder: Path) -> None:
    from rich.console import Console

    from bezoar.reports import comparison_table, load
    from bezoar.reports.tables import matrix_table

    console = Console(highlight=False)
    records = load(folder)
    table = comparison_table(records)
    if console.width < _WIDE:
        table = table.without("row", "test_accuracy_clean", "distance_l1", "seeds", "converged")
    console.print(table.rich())
    for targeted in (False, True):
        matrix = matrix_table(records, targeted)
        if matrix is not None:
            console.print(matrix.rich())


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run's or a comparison's directory.")]) -> None:
    """Rebuild the page, tables and figures of a directory from its records."""
    from bezoar.reports import write_report

    typer.echo(f"report: {write_report(directory)}")


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="recipes, rules, attacks, datasets, models, partitions, samplings, clients, servers, schedules, "
            "priors, posts, presets"
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="show all that is known about this one")] = None,
    long: Annotated[bool, typer.Option("--long", help="show all that is known about each")] = False,
) -> None:
    """List what an experiment can be made of: names, parameters, one line each.

    With a name, or --long, also formula, valid f, cost, robustness constant, how other libraries differ, reference.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bezoar.experiments.catalogue import entries

    found = entries(what)
    if name is not None:
        chosen = [entry for entry in found if entry.name == name]
        if not chosen:
            raise ConfigError(f"no {name!r} among {what}; {nearest(name, [entry.name for entry in found])}")
        found, long = chosen, True
    if long:
        typer.echo("\n\n".join(_card(entry) for entry in found))
        return
    table = Table("name", "parameters", "", box=None, header_style="bold", pad_edge=False)
    for entry in found:
        # Not as markup: brackets in a docstring are brackets.
        table.add_row(entry.name, Text(entry.parameters), Text(entry.summary))
    Console().print(table)


def _card(entry: Entry) -> str:
    """One part with everything its docstring says under a label."""
    import textwrap

    lines = [entry.name, f"    {entry.summary}"]
    for label, text in {"Parameters": entry.parameters or "none", **entry.card}.items():
        indent = " " * 16
        lines += textwrap.wrap(f"    {label + ':':<12}{text}", 116, subsequent_indent=indent, break_long_words=False)
    return "\n".join(lines)


def _stop(message: str, status: int) -> NoReturn:
    typer.echo(f"bezoar: {message}", err=True)
    sys.exit(status)


def main() -> None:
    """Entry point: errors are one line, wrong use exits with 2, other failures with 1, Ctrl-C with 130."""
    try:
        app()
    except ConfigError as error:
        _stop(str(error), 2)
    except BezoarError as error:
        from bezoar.experiments.run import Interrupted

        _stop(str(error), 130 if isinstance(error, Interrupted) else 1)
    except KeyboardInterrupt:
        _stop("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _stop(f"{error.filename or ''}: {error.strerror}".lstrip(": "), 1)
