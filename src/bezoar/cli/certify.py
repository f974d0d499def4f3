"""Certify what an experiment's attackers can do to its model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bezoar.cli.app import DataDir, Device, Json, Quiet, Seed, Set, Threads, app, command, prepare, read
from bezoar.errors import ConfigError

RunOrFile = Annotated[
    str, typer.Argument(metavar="RUN_OR_FILE", help="A run's directory, a TOML file, or the name of a recipe.")
]
CertificateOut = Annotated[
    Path | None, typer.Option(help="Directory for the records; RUN/certificate or runs/NAME-certificate by default.")
]


@app.command()
def certify(
    source: RunOrFile,
    method: Annotated[str, typer.Option(help="How: radius, ensemble, flcert-d, crfl or expected.")] = "radius",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the methods other than radius. Repeatable."),
    ] = None,
    k: Annotated[
        list[str] | None,
        typer.Option("--k", help="A value of SparseFed's k, a count or a share: 1000, 1%. Repeatable."),
    ] = None,
    c: Annotated[
        float | None,
        typer.Option("--c", help="The coordinate-Lipschitz constant; proved for softmax regression, else estimated."),
    ] = None,
    attacks: Annotated[int, typer.Option(min=0, help="Further attacks to try against the radius.")] = 0,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Run nothing: certify from the settings.")] = False,
    settings: Set = None,
    seed: Seed = None,
    out: CertificateOut = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    threads: Threads = None,
    jobs: Annotated[int, typer.Option(min=1, help="Models to train at a time, for methods that train many.")] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Certify how far attackers can move the model, measure how far they do, and say what that is worth.

    Prints one table and, in words, whether the certificate is vacuous and what it rests on.
    """
    from rich.console import Console

    import bezoar.experiments.certificates as certificates
    from bezoar.experiments import Experiment
    from bezoar.experiments.config import override, parse_value
    from bezoar.experiments.records import CONFIG

    run = certificates.method(method)
    prepare("tuned", threads, device)
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder}: no run: there is no {CONFIG} in it")
        table, values, name = read(str(folder / CONFIG), settings)
        target = folder / ("certificate" if method == "radius" else method)
    else:
        table, values, name = read(source, settings)
        target = None
    _refuse(table, name)
    if seed is not None:
        values["seed"] = seed
    experiment = Experiment.from_table(override(table, values), name)
    target = out or target or Path("runs") / f"{experiment.name}-{'certificate' if method == 'radius' else method}"
    console = Console(highlight=False, quiet=quiet)
    notes = Console(highlight=False, quiet=quiet, stderr=True)
    import torch

    request = certificates.Request(
        experiment,
        data_dir,
        torch.device(device),
        tuple(_k(parse_value(text)) for text in k or ()),
        c,
        not no_measure,
        attacks,
        lambda text: notes.print(text, markup=False),
        _options(method, options),
        target,
        jobs,
    )
    certificates.check_free(target, request)
    begin = time.perf_counter()
    outcome = run(request)
    record = certificates.write(outcome, request, target, command(), time.perf_counter() - begin)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for shown in outcome.tables:
        console.print(shown.rich())
    for sentence in outcome.words:
        console.print(sentence, markup=False)
    console.print(f"records: {target}", markup=False, soft_wrap=True)


def _refuse(table: dict[str, Any], name: str) -> None:
    if "grid" in table:
        raise ConfigError(
            f"{name}: this is a grid; certify one of its cells: run it, then 'bezoar certify RUN/cells/CELL'"
        )
    if table.get("kind") == "personalized":
        raise ConfigError(f"{name}: a personalised run has no server whose steps could be certified")
    if table.get("kind") == "pretraining":
        raise ConfigError(f"{name}: pretraining has no clients; certify a federation that starts from its weights")


def _options(method: str, settings: list[str] | None) -> dict[str, Any]:
    from bezoar.experiments.config import parse_value

    if settings and method == "radius":
        raise ConfigError("--option belongs to the other methods; radius has --k and --c")
    found = {}
    for setting in settings or []:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--option takes KEY=VALUE, e.g. --option models=500, got {setting!r}")
        found[key.strip()] = parse_value(text.strip())
    return found


def _k(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f'--k is a count or a share such as "1%", got {value!r}')
    return value
