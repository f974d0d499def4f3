"""The page of a run or a grid of expected robustness, with tables and heat maps in files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from bezoar.reports import style
from bezoar.reports.expected.board import VIEWS, Board
from bezoar.reports.expected.folder import Records, load_records
from bezoar.reports.expected.heat import loss_map, tightness_maps
from bezoar.reports.expected.tables import losses_table, pairs_table, tightness_table
from bezoar.reports.expected.verdict import leaders
from bezoar.reports.style import Plot
from bezoar.reports.tables import Table

DEFINITIONS = {
    "Reading R1": "For every honest set the training is run anew, with all other clients attacking; the loss is that "
    "of the honest clients. Expectations are over the honest sets.",
    "Reading R2": "Everybody is honest and there is one training; the loss is weighted by the probability of being "
    "honest. Numbers of the two readings are never in one table.",
    "Excess": "Loss over the honest clients after the last round, above the least that any model has for them.",
    "P(broken)": "The probability of the honest sets for which the rule promises nothing: more bad clients than it "
    "declares, or heterogeneity beyond what its constant allows.",
    "Bound": "kappa G² / (2 mu (1 - kappa B²)), with the (G, B) of the gradients that the training met and the best B.",
    "Diverged": "A training whose loss is no longer a finite number. It counts as infinite, and is never left out.",
}


def write_page(directory: str | Path, out: str | Path | None = None) -> Path:
    """Writes ``report.html``, ``tables/`` and ``figures/`` to ``out``. The same records give the same bytes.

    Returns the page's path.
    """
    directory = Path(directory)
    records = load_records(directory)
    board = Board.of(records.name, records.scores)
    out = directory / "report" if out is None else Path(out)
    for folder in (out / "tables", out / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
    for table in _tables(board):
        (out / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8", newline="")
        (out / "tables" / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8", newline="")
    for plot in _plots(board):
        plot.write(out / "figures")
    page = out / "report.html"
    partial = page.with_suffix(".html.part")
    partial.write_text(render(records), encoding="utf-8", newline="")
    os.replace(partial, page)
    return page


def render(records: Records) -> str:
    """The page as text."""
    template = resources.files("bezoar.reports").joinpath("template.html").read_text(encoding="utf-8")
    body = "\n".join(part for part in _parts(records) if part)
    light, dark = style.css(), style.css(style.DARK)
    return Template(template).substitute(title=escape(records.name), light=light, dark=dark, body=body)


def _tables(board: Board) -> list[Table]:
    found = [losses_table(board), pairs_table(board), tightness_table(board)]
    return [table for table in found if table is not None]


def _plots(board: Board) -> list[Plot]:
    return [*(loss_map(board, view) for view in VIEWS), *tightness_maps(board)]


def _parts(records: Records) -> Iterable[str]:
    board = Board.of(records.name, records.scores)
    yield f'<p class="kicker">Expected robustness, reading {escape(board.reading)} · bezoar</p>'
    yield f"<h1>{escape(records.name)}</h1>"
    yield f"<p>{escape(records.description)}</p>" if records.description else ""
    yield f'<p class="summary">{escape(" ".join(summary(records, board)))}</p>'
    if records.missing:
        listed = "".join(f"<li>{escape(text)}</li>" for text in records.missing)
        yield f"<h2>Missing and unfinished runs</h2><ul>{listed}</ul>"
    for plot in _plots(board):
        yield _figure(plot)
    for table in _tables(board):
        links = " · ".join(f'<a href="tables/{table.name}.{kind}">{kind}</a>' for kind in ("csv", "tex"))
        yield f'<h2>{escape(table.title)}</h2>{table.html()}<p class="files">In files beside this page: {links}</p>'
    yield _provenance(records)
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in DEFINITIONS.items())
    yield f"<h2>How each number is defined</h2><dl>{terms}</dl>"


def summary(records: Records, board: Board) -> list[str]:
    """What the records are, and who leads in how many regimes."""
    seeds = len(records.seeds)
    text = [
        f"{len(board.rules)} rules in {_count(len(board.regimes), 'regime')}, {_count(seeds, 'seed')}; "
        f"{records.runs} runs."
    ]
    for view in VIEWS:
        counts: dict[str, int] = {}
        alone = 0
        for regime in board.regimes:
            found = leaders(regime, regime.over(view))
            if found is not None:
                counts[found.first] = counts.get(found.first, 0) + 1
                alone += not found.level
        if counts:
            order = sorted(counts, key=lambda rule: -counts[rule])
            named = ", ".join(f"“{rule}” in {counts[rule]}" for rule in order)
            over = "on the mean over attacks" if view == "mean" else "on the worst attack"
            text.append(f"Least {over}: {named}; told apart from all others in {alone} of {len(board.regimes)}.")
    if seeds < 6:
        text.append("With fewer than six seeds no difference can be told from chance at 5%.")
    return text


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _figure(plot: Plot) -> str:
    panels = "".join(f"<div>{svg}</div>" for svg in plot.svgs())
    links = " · ".join(f'<a href="figures/{plot.name}.{kind}">{kind}</a>' for kind in ("pdf", "png"))
    return (
        f'<h2>{escape(plot.title)}</h2><figure><div class="panels wide">{panels}</div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        f'<p class="files">In files beside this page: {links}</p>'
    )


def _provenance(records: Records) -> str:
    commands = "\n".join(records.commands)
    facts = {
        "commit": "; ".join(records.commits),
        "hardware": "; ".join(records.hardware),
        "versions": "; ".join(records.versions),
        "seconds of computing": f"{records.seconds:,.0f}",
    }
    items = "".join(f"<dt>{escape(k.capitalize())}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    settings = f'<h3>Settings of the first run</h3><pre tabindex="0">{escape(records.settings.strip())}</pre>'
    shown = f'<pre class="command">{escape(commands)}</pre>' if commands else "<p>No command is on record.</p>"
    return f"<h2>To reproduce this</h2>{shown}<dl>{items}</dl>" + (settings if records.settings else "")
