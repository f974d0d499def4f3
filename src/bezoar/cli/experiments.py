"""Run experiments and grids, and rebuild their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bezoar.cli.app import (
    Allocator,
    Cells,
    Cpus,
    DataDir,
    Device,
    EngineName,
    Gpus,
    Jobs,
    Json,
    Out,
    Quiet,
    RankTimeout,
    RayAddress,
    Resume,
    Retries,
    Seed,
    Set,
    Source,
    Threads,
    Track,
    app,
    command,
    prepare,
    read,
    trackers,
)
from bezoar.cli.grids import Kind, engine_of
from bezoar.cli.grids import compare as compare_grid
from bezoar.errors import ConfigError

if TYPE_CHECKING:
    from bezoar.experiments.run import RunResult

#: Columns that the whole comparison table needs; on narrower terminals the report has the rest.
_WIDE = 130


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
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
    rank_timeout: RankTimeout = 600.0,
) -> None:
    """Run one experiment and write its records, summary, weights and report.

    A recipe that is a grid runs as with 'bezoar compare'. Started by torchrun, all its processes play one experiment.
    """
    from bezoar.ranks import many_asked_for

    if many_asked_for():
        from bezoar.cli.ranks import run_on_ranks

        run_on_ranks(
            source,
            settings,
            seed,
            out,
            data_dir,
            resume,
            device,
            threads,
            allocator,
            quiet,
            as_json,
            rank_timeout,
            trackers(track),
            lambda result, folder: _show(result, folder, quiet, as_json),
        )
        return
    prepare(allocator, threads, device)
    followers = trackers(track)
    table, values, name = read(source, settings)
    if table.get("kind") in ("expected", "personalized") and followers:
        raise ConfigError(f"{name}: --track follows rounds, and experiments of this kind have none")
    if table.get("kind") == "expected":
        from bezoar.cli import expected

        expected.run_one_or_all(table, values, name, seed, out, data_dir, resume, device, quiet, as_json)
        return
    if "grid" in table:
        kind = _federations()
        compare_grid(kind, table, values, name, seed, out, None, data_dir, device, quiet, as_json, followers)
        return
    if table.get("kind") == "personalized":
        if resume:
            raise ConfigError(f"{name}: a personalised run can not be resumed; start again in another --out")
        _run_personalized(table, values, name, seed, out, data_dir, device, quiet, as_json)
        return
    if table.get("kind") == "pretraining":
        if resume:
            raise ConfigError(f"{name}: a pretraining can not be resumed; start again in another --out")
        _pretrain(table, values, name, seed, out, data_dir, device, quiet, as_json)
        return
    from bezoar.experiments import Experiment
    from bezoar.experiments import run as run_experiment
    from bezoar.experiments.config import override
    from bezoar.experiments.progress import Display

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
            command=command(),
            trackers=followers,
        )
    _show(result, folder, quiet, as_json)


def _show(result: RunResult, folder: Path, quiet: bool, as_json: bool) -> None:
    """Write the report of a finished run, and print what there is to say."""
    from bezoar.reports import write_report

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
    result = run_equivalence(experiment, folder, data_dir=data_dir, device=device, command=command())
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    elif not quiet:
        shown = Table("regulariser", "attack", "test (%)", "users (%)", "to target", box=None, pad_edge=False)
        for row in table_rows(result.summary):
            shown.add_row(*row)
        Console(highlight=False).print(shown)
        typer.echo(f"records: {folder}")


def _pretrain(
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
    from bezoar.experiments.config import override
    from bezoar.experiments.records import WEIGHTS
    from bezoar.pretraining import Pretraining
    from bezoar.pretraining import run as pretrain

    values = values if seed is None else {**values, "seed": seed}
    experiment = Pretraining.from_table(override(table, values), name)
    folder = out or Path("runs") / experiment.name

    def tell(record: Mapping[str, Any]) -> None:
        if not quiet:
            shown = f"step {record['step']} of {experiment.steps}: test {record['test_accuracy']:.1%}"
            typer.echo(f"{shown}, loss {record['test_loss']:.3f}", err=as_json)

    summary = pretrain(experiment, folder, data_dir=data_dir, device=device, progress=tell, command=command()).summary
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    elif not quiet:
        typer.echo(f"weights: {folder / WEIGHTS}, sha256 {summary['weights_sha256']}")


@app.command()
def compare(
    source: Source,
    settings: Set = None,
    seed: Seed = None,
    out: Out = None,
    cells: Cells = None,
    data_dir: DataDir = None,
    jobs: Jobs = 1,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = None,
    device: Device = "cpu",
    threads: Threads = None,
    allocator: Allocator = "tuned",
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid of experiments, skip the cells that have finished, print one table and write one report."""
    chosen = engine_of(engine, jobs, allocator, ray_address, cpus, gpus, retries)
    # On a cluster other machines compute: this one needs no GPU.
    prepare(allocator, threads, device if engine == "local" else "cpu")
    followers = trackers(track)
    table, values, name = read(source, settings)
    if table.get("kind") in ("personalized", "pretraining"):
        raise ConfigError(f"{name}: this is one {table['kind']} run, no grid; run it with 'bezoar run'")
    kind = _federations()
    if table.get("kind") == "expected":
        from bezoar.cli import expected

        kind = expected.KIND
    compare_grid(kind, table, values, name, seed, out, cells, data_dir, device, quiet, as_json, followers, chosen)


def _federations() -> Kind:
    from bezoar.experiments import Experiment
    from bezoar.experiments import run as run_experiment

    return Kind(
        read=Experiment.from_table,
        run=run_experiment,
        start=lambda display, cell: display.start(cell.title, cell.experiment.rounds),
        ending=_ending,
        show=_print_tables,
        partial=True,
        tracked=True,
    )


def _ending(summary: Mapping[str, Any]) -> str:
    if not summary["converged"]:
        return str(summary["convergence_note"])
    attack = summary["attack_accuracy"]
    shown = "" if attack is None else f", attack {attack:.1%}"
    return f"test {summary['test_accuracy']:.1%}{shown}"


def _print_tables(folder: Path) -> None:
    from rich.console import Console

    from bezoar.reports import comparison_table, load, published_table
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
    published = published_table(records)
    if published is not None:
        console.print(published.rich())


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run's or a comparison's directory.")]) -> None:
    """Rebuild the page, tables and figures of a directory from its records."""
    from bezoar.reports import write_report

    typer.echo(f"report: {write_report(directory)}")
