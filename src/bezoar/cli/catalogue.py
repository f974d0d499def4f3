"""What experiments can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bezoar.cli.app import app
from bezoar.errors import ConfigError, nearest

if TYPE_CHECKING:
    from bezoar.registry import Entry


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="recipes, rules, attacks, datasets, models, partitions, samplings, clients, servers, schedules, "
            "priors, posts, presets, readings, trackers"
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
        lines += textwrap.wrap(f"    {label + ':':<11} {text}", 116, subsequent_indent=indent, break_long_words=False)
    return "\n".join(lines)
