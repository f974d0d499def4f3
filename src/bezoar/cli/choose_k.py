"""How many coordinates SparseFed should move in a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bezoar.cli.app import DataDir, Device, Json, Seed, Set, Threads, app, prepare, read
from bezoar.errors import ConfigError

if TYPE_CHECKING:
    pass


@app.command("choose-k")
def choose_k(
    source: Annotated[str, typer.Argument(help="A TOML file, the name of a recipe, or the directory of a run.")],
    omega: Annotated[float, typer.Option(help="The share of the l1 norm that top-k may lose.")] = 0.1,
    gradients: Annotated[int, typer.Option(min=1, help="Cohorts whose aggregates are looked at.")] = 8,
    round_: Annotated[
        int | None, typer.Option("--round", min=0, help="Train that many rounds first; 0: the initial model.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Look at this model (safetensors); by default at a run's final one.")
    ] = None,
    absolute: Annotated[bool, typer.Option("--absolute", help="Omega is an l1 norm, no share of it.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Try only that many multiples of d/STEPS.")] = None,
    settings: Set = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for table and plot; by default runs/NAME/choose-k.")
    ] = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Choose k of SparseFed: the smallest with which top-k loses at most omega.

    Looked at are the vectors that enter top-k: the defence's aggregates (clipped, averaged) of honest cohorts, with
    what momentum and error feedback remember after --round. Prints the loss for every k, writes table and plot.
    """
    prepare("tuned", threads, device)
    import torch

    from bezoar.certify.choose_k import check_omega, loss_curve
    from bezoar.certify.k_plot import k_plot, k_table
    from bezoar.experiments.aggregates import aggregates, trained
    from bezoar.experiments.config import Experiment, override
    from bezoar.experiments.records import CONFIG, WEIGHTS, write_atomically
    from bezoar.experiments.setup import prepare as prepare_experiment
    from bezoar.models.files import load_files
    from bezoar.servers import SparseFed

    check_omega(omega, relative=not absolute)
    if round_ is not None and weights is not None:
        raise ConfigError("--round trains a model and --weights reads one: give one of them")
    folder = Path(source) if Path(source).is_dir() else None
    if folder is not None and not (folder / CONFIG).exists():
        raise ConfigError(f"{folder}: no {CONFIG} here; give the directory of a run, a TOML file or a recipe")
    table, values, name = read(source if folder is None else str(folder / CONFIG), settings)
    if "grid" in table:
        raise ConfigError(f"{name}: this is a grid of experiments; k is chosen for one: give the directory of a cell")
    if table.get("kind") == "personalized":
        raise ConfigError(f"{name}: a personalised run has no server whose k could be chosen")
    if table.get("kind") == "pretraining":
        raise ConfigError(f"{name}: pretraining has no server whose k could be chosen")
    if seed is not None:
        values["seed"] = seed
    experiment = Experiment.from_table(override(table, values), name).without_attack()
    if round_ is not None and round_ > experiment.rounds:
        raise ConfigError(f"--round {round_}: the experiment has {experiment.rounds} rounds")
    if folder is not None and round_ is None and weights is None:
        weights = folder / WEIGHTS
        if not weights.exists():
            raise ConfigError(f"{folder}: the run is not finished and has no {WEIGHTS}; give --round")
    with torch.random.fork_rng():
        setup = prepare_experiment(experiment, data_dir, torch.device(device))
        if weights is not None:
            load_files(setup.model, [weights])
        state = trained(setup, round_ or 0)
        curve = loss_curve(aggregates(setup, state, gradients), relative=not absolute)
    k = curve.smallest(omega, steps)
    server = experiment.defence.server
    used = server.count(curve.d) if isinstance(server, SparseFed) else None
    model = f"the model in {weights}" if weights is not None else f"the model after {state.round} rounds"
    note = f"Aggregates of {curve.vectors} cohorts without attackers, as they enter top-k at {model}."
    if curve.zeros:
        note += f" {curve.zeros} of them are zero" + (" and left out." if not absolute else ".")
    shown = k_table(curve, omega, k, note, used)
    found: dict[str, Any] = {
        "k": k,
        "parameters": curve.d,
        "loss": float(curve.losses[k]),
        "omega": omega,
        "relative": curve.relative,
        "steps": steps,
        "vectors": curve.vectors,
        "zeros": curve.zeros,
        "rounds_trained": state.round,
        "weights": None if weights is None else str(weights),
        "k_used": used,
        "loss_used": None if used is None else float(curve.losses[used]),
        "hash": experiment.hash(),
        "curve": [{"k": row[0], "loss": row[2]} for row in shown.rows],
    }
    out = out or (folder or Path("runs") / experiment.name) / "choose-k"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "choose-k.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_atomically(out / "choose-k.csv", shown.csv())
    write_atomically(out / "choose-k.tex", shown.latex())
    k_plot(curve, omega, k, used).write(out)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    from rich.console import Console

    Console(highlight=False).print(shown.rich())
    lost = f"{found['loss']:.2%} of the l1 norm" if curve.relative else f"an l1 norm of {found['loss']:g}"
    typer.echo(f"k = {k:,} of {curve.d:,} ({k / curve.d:.2%}) loses {lost}\ntable and plot: {out}")
