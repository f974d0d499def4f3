"""What a prior over honest sets says and allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bezoar.cli.app import DataDir, Json, Set, app, read
from bezoar.errors import ConfigError

if TYPE_CHECKING:
    from bezoar.aggregation import Rule
    from bezoar.priors import HonestPrior

group = typer.Typer(
    help="Who may be malicious: what a prior says, and what can be promised under it.", no_args_is_help=True
)
app.add_typer(group, name="priors")


@group.command()
def describe(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A TOML file with a table prior, the name of a recipe, or the directory of a run."
        ),
    ],
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients, where neither prior nor data say it.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability that the candidate sets may leave out.")] = 0.05,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Look at this pipeline, too: a name or a TOML list of tables. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws, where something is not known exactly.")] = 0,
    settings: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for tables and picture; by default runs/NAME/prior.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say who may be bad, which rules that breaks, what overlaps of the candidate sets allow, and what would help.

    Labels that are columns of the data set, and a number of clients that the prior leaves open, are read from the
    experiment's federation.
    """
    from rich.console import Console

    from bezoar.certify.prior_facts import prior_facts, rule_fact
    from bezoar.certify.prior_plot import prior_plot
    from bezoar.certify.prior_words import client_table, count_table, record, rule_table, shown, words
    from bezoar.experiments.records import CONFIG, write_atomically

    folder = Path(source) if Path(source).is_dir() else None
    if folder is not None and not (folder / CONFIG).exists():
        raise ConfigError(f"{folder}: no {CONFIG} here; give the directory of a run, a TOML file or a recipe")
    table, values, name = read(source if folder is None else str(folder / CONFIG), settings)
    prior, own = _prior(table, values, name, clients, data_dir)
    facts = prior_facts(prior, delta, seed)
    own += [(text, _rule(text)) for text in rule or ()]
    rules = tuple(rule_fact(label, pipeline.given(prior), facts.n, facts.law) for label, pipeline in own)
    out = out or (folder or Path("runs") / str(table.get("name", Path(source).stem))) / "prior"
    out.mkdir(parents=True, exist_ok=True)
    tables = (client_table(facts), count_table(facts), rule_table(facts, rules))
    found = record(facts, rules)
    write_atomically(out / "prior.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    for part in tables:
        write_atomically(out / f"{part.name}.csv", part.csv())
        write_atomically(out / f"{part.name}.tex", part.latex())
    prior_plot(facts, seed).write(out)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    for part in tables:
        console.print(shown(part).rich())
    for sentence in words(facts):
        console.print(sentence, markup=False)
    console.print(f"tables and picture: {out}", markup=False, soft_wrap=True)


def _prior(
    table: dict[str, Any], values: dict[str, Any], name: str, clients: int | None, data_dir: Path | None
) -> tuple[HonestPrior, list[tuple[str, Rule]]]:
    """The prior that the table holds, about a stated number of clients, and the experiment's own pipeline, if any."""
    from bezoar.experiments.config import Experiment, override
    from bezoar.experiments.honesty import FromData, read_prior

    table = override(table, values)
    whole = "data" in table and "grid" not in table and table.get("kind") is None
    try:
        given = read_prior(table.get("prior"))
        if given is None and isinstance(table.get("adversary"), dict):
            given = read_prior(table["adversary"].get("prior"))
    except ConfigError as error:
        raise ConfigError(f"{name}: prior: {error}") from None
    if given is None:
        raise ConfigError(
            f'{name}: there is no table [prior] in it, e.g. prior = {{kind = "groups", sizes = [8, 4, 4, 4], p = 0.1}}'
        )
    experiment = Experiment.from_table(table, name) if whole else None
    own = [] if experiment is None else [("this experiment's", experiment.defence.pipeline)]
    if isinstance(given, FromData) or (given.n is None and clients is None):
        if experiment is None:
            what = "labels are columns of data" if isinstance(given, FromData) else "it is about any number of clients"
            more = "" if isinstance(given, FromData) else ", or say how many: --clients 20"
            raise ConfigError(f"{name}: prior: {what}: give the file of one whole experiment{more}")
        return _from_data(experiment, given, name, data_dir), own
    try:
        return given if clients is None else given.of(clients), own
    except ConfigError as error:
        raise ConfigError(f"{name}: prior: {error}") from None


def _from_data(experiment: Any, given: Any, name: str, data_dir: Path | None) -> HonestPrior:
    from bezoar.data import load, partition
    from bezoar.experiments.honesty import about

    dataset = load(experiment.data.dataset, data_dir, normalise=experiment.data.normalise)
    federation = partition(dataset, experiment.data.partition, experiment.seed)
    try:
        return about(given, federation)
    except ConfigError as error:
        raise ConfigError(f"{name}: prior: {error}") from None


def _rule(text: str) -> Rule:
    from bezoar.aggregation import pipeline
    from bezoar.experiments.config import parse_value

    try:
        return pipeline(parse_value(text))
    except ConfigError as error:
        raise ConfigError(f"--rule {text}: {error}") from None
