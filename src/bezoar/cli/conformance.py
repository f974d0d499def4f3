"""Does a Flower strategy survive what clients may send?"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from bezoar.cli.app import app
from bezoar.errors import ConfigError


@app.command()
def conformance(
    target: Annotated[
        str | None,
        typer.Argument(
            help="MODULE:OBJECT (a strategy, its class, or a function that makes one), flower:NAME (Krum, FedMedian, "
            "...) or bezoar:NAME (a preset, or rules such as 'nnm > trimmed-mean')."
        ),
    ] = None,
    clients: Annotated[int, typer.Option(min=5, help="Number of clients.")] = 13,
    dimension: Annotated[int, typer.Option(min=10, help="Parameters of the model.")] = 1000,
    f: Annotated[int, typer.Option("-f", min=1, help="Number of clients that lie.")] = 2,
    seed: Annotated[int, typer.Option(help="The seed of all random draws.")] = 0,
    case: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this case. Repeatable.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the cases and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Try a Flower strategy against malformed, hostile and missing replies; exit with 1 if it fails in any case.

    Without an -f of its own, the strategy should declare the same number of hostile clients.
    """
    try:
        from bezoar.integrations import conformance as suite
    except ImportError as error:
        raise ConfigError(str(error)) from None
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cases = suite.chosen(case)
    if list_:
        if as_json:
            facts = [{"case": one.name, "summary": one.summary, "right": one.right} for one in cases]
            typer.echo(json.dumps(facts, indent=2))
            return
        table = Table("case", "what happens", "what is right", box=None, header_style="bold", pad_edge=False)
        for one in cases:
            table.add_row(one.name, Text(one.summary), Text(one.right))
        Console().print(table)
        return
    if target is None:
        raise ConfigError("which strategy? give TARGET, e.g. flower:Krum, or --list for the cases")
    setting = suite.Setting(clients, dimension, f, seed)
    found = list(suite.results(suite.target(target, setting), setting, cases))
    failed = [result for result in found if not result.passed]
    if as_json:
        listed = [{**dataclasses.asdict(result), "passed": result.passed} for result in found]
        typer.echo(json.dumps({"target": target, **dataclasses.asdict(setting), "results": listed}, indent=2))
    else:
        table = Table("case", "", "what happened", box=None, header_style="bold", pad_edge=False)
        for result in found:
            told = Text(result.summary)
            if not result.passed:
                told = Text(f"{result.fault}: {result.detail}" if result.detail else result.fault, style="red")
                told.append(f"\nright: {result.right}", style="dim")
            mark = Text("pass", style="green") if result.passed else Text("FAIL", style="bold red")
            table.add_row(result.case, mark, told)
        console = Console()
        console.print(table)
        console.print(f"\n{target}: {len(found) - len(failed)} of {len(found)} cases passed", highlight=False)
    if failed:
        raise typer.Exit(1)
