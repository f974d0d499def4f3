"""The application, and what its commands share: options, settings of the process, reading a SOURCE."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bezoar._version import __version__
from bezoar.allocator import tune
from bezoar.errors import ConfigError

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
Cells = Annotated[
    Path | None, typer.Option(help="Directory of the cells; OUT/cells by default. Comparisons may share one.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie; BEZOAR_DATA or ./data by default.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON (progress goes to stderr).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; all cores by default.")]
Allocator = Annotated[
    str, typer.Option(help="'tuned' keeps freed memory (faster on a CPU, higher peak), 'default' leaves malloc alone.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the directory's checkpoint.")]
RankTimeout = Annotated[
    float, typer.Option(min=1.0, help="Seconds that the processes of torchrun wait for each other before they give up.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Cells to run at a time, each in a process of its own.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help='Follow it in tensorboard, mlflow or wandb too, e.g. --track wandb, --track \'{kind="wandb", '
        "project=\"x\"}'. Repeatable; see 'bezoar list trackers'.",
    ),
]
EngineName = Annotated[str, typer.Option("--engine", help="Where cells run: local (processes here), ray (a cluster).")]
RayAddress = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster; RAY_ADDRESS, or one on this machine by default.")
]
Cpus = Annotated[float | None, typer.Option("--cpus-per-cell", help="CPUs that a cell holds on Ray; 1 by default.")]
Gpus = Annotated[float | None, typer.Option("--gpus-per-cell", help="GPUs that a cell holds on Ray; none by default.")]
Retries = Annotated[
    int | None, typer.Option(min=0, help="How often a cell goes on after its worker has died; 2 by default.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bezoar {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def prepare(allocator: str, threads: int | None, device: str) -> None:
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


def read(source: str, settings: list[str] | None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The table that SOURCE names, what --set asks for, and what to call the table in errors.

    A scale that --set asks for is applied, unless the table is a grid: ``Grid.from_table`` does that.
    """
    from bezoar.experiments.config import parse_value, read_toml
    from bezoar.experiments.scales import at_scale
    from bezoar.recipes import find

    path = find(source)
    table = read_toml(path)
    values = {}
    for setting in settings or []:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, e.g. --set rounds=100, got {setting!r}")
        values[key.strip()] = parse_value(text.strip())
    if "grid" not in table:
        table, values, _ = at_scale(table, values, str(path))
    return table, values, str(path)


def trackers(asked: list[str] | None) -> tuple[Any, ...]:
    """What --track asks for: names, or tables."""
    from bezoar.experiments.config import parse_value
    from bezoar.tracking import chosen

    return tuple(chosen(parse_value(text) if text.lstrip().startswith("{") else text for text in asked or ()).values())


def command() -> str:
    """The shell command that is running, for summaries."""
    return shlex.join(["bezoar", *sys.argv[1:]])
