"""The report: one HTML page that needs nothing beside it, and tables and figures in files for a paper."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from bezoar.reports import plots as figures
from bezoar.reports import style, words
from bezoar.reports.clients import clients_table
from bezoar.reports.estimates import Estimate
from bezoar.reports.expected import is_expected, write_page
from bezoar.reports.published import published_table
from bezoar.reports.records import Cell, Comparison, Run, as_comparison, load
from bezoar.reports.rows import Grid, grid
from bezoar.reports.tables import (
    Entry,
    Table,
    adversary_table,
    communication_table,
    comparison_table,
    matrix_table,
    over_attacks_table,
    per_class_table,
    runs_table,
    tables,
    timing_table,
)

DEFINITIONS = (
    (
        "Test accuracy",
        "Share of the test points that the model classifies rightly after the final round, never the best round. "
        "“Without aux” leaves out the test points whose labels the attack tries to flip, or that attackers train on.",
    ),
    (
        "Attack accuracy",
        "Share of the attacker's aux points that the model classifies as the attacker wishes, after the final round. "
        "For backdoors these are all test images that wear the trigger, or the samples of one class. "
        "No value: the run had no targeted attack.",
    ),
    (
        "OIF",
        "Outsized impact factor: aux points (or backdoored samples) won / (attacker share × training samples that "
        "clients hold). 1 means that the attackers won as many points as their share of the training samples.",
    ),
    (
        "ℓ1 and ℓ2 distance",
        "Distance between the final parameters and those of the unattacked twin: the same settings and seed without "
        "the attack.",
    ),
    (
        "Regime",
        "Uncompressed: clients send gradients and the server applies the learning rate. FedAvg: clients train with it "
        "and send displacements. Adaptive clipping: the clipping radius is multiplied by the round's learning rate. "
        "Numbers of different regimes can not be compared.",
    ),
    (
        "Time per round",
        "Sum of the mean seconds per round spent in the clients, the attack, the aggregation, the server and the "
        "evaluation.",
    ),
    (
        "Bytes up and down",
        "What clients send to the server and fetch from it, attackers included, with values as float32 and places as "
        "int32. Messages are not compressed further, and nothing is lost or sent twice.",
    ),
    (
        "Interval",
        "95% Student t interval over seeds: mean ± t · s / √n with n − 1 degrees of freedom. It covers the "
        "randomness of the seed, and nothing else.",
    ),
    (
        "Converged",
        "Finished runs whose training converged / finished runs; the reason stands in the list of runs.",
    ),
)


def write_report(directory: str | Path, out: str | Path | None = None) -> Path:
    """Writes ``report.html``, ``tables/`` and ``figures/`` for a run or comparison directory.

    They go to ``out``, by default ``directory/report``. The same records give the same bytes. Returns the page's path.
    Runs of expected robustness have a page of their own (:mod:`bezoar.reports.expected`).
    """
    directory = Path(directory)
    if is_expected(directory):
        return write_page(directory, out)
    g = grid(as_comparison(load(directory)))
    out = directory / "report" if out is None else Path(out)
    for folder in (out / "tables", out / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
    for table in (published_table(g), *tables(g), clients_table(g)):
        if table is None:
            continue
        (out / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8", newline="")
        (out / "tables" / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8", newline="")
    for plot in figures.plots(g):
        plot.write(out / "figures")
    page = out / "report.html"
    partial = page.with_suffix(".html.part")
    partial.write_text(render(g), encoding="utf-8", newline="")
    os.replace(partial, page)
    return page


def render(records: Comparison | Run | Grid) -> str:
    """The page as text."""
    g = records if isinstance(records, Grid) else grid(as_comparison(records))
    template = resources.files("bezoar.reports").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(g.comparison.name),
        light=style.css(),
        dark=style.css(style.DARK),
        body="\n".join(part for part in _parts(g) if part),
    )


def _parts(g: Grid) -> Iterable[str]:
    c = g.comparison
    plots = {plot.name: plot for plot in figures.plots(g)}
    yield f'<p class="kicker">{"Run" if c.single else "Comparison"} · bezoar</p><h1>{escape(c.name)}</h1>'
    yield f"<p>{escape(c.description)}</p>" if c.description else ""
    yield f'<p class="summary">{escape(" ".join(words.summary(g)))}</p>'
    for targeted in (False, True):
        yield _table_section(g, matrix_table(g, targeted))
    yield _table_section(g, comparison_table(g), "Results at the final round")
    yield _table_section(g, published_table(g))
    yield _table_section(g, over_attacks_table(g))
    yield _table_section(g, adversary_table(g))
    yield _table_section(g, clients_table(g))
    yield _missing(g.missing, c)
    for name in ("curves", "plane", "impact", "distances", "timing"):
        if name in plots:
            yield _figure(plots[name])
        if name == "timing":
            yield _table_section(g, timing_table(g), "" if name in plots else None)
    yield _table_section(g, communication_table(g))
    yield _per_class(g, plots.get("per_class"))
    yield _settings(g)
    yield _table_section(g, runs_table(g), "Every run by itself")
    yield _provenance(g)
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in DEFINITIONS)
    yield f"<h2>How each number is defined</h2><dl>{terms}</dl>"


def _table_section(g: Grid, table: Table | None, title: str | None = None) -> str:
    if table is None:
        return ""
    heading = table.title if title is None else title
    body = table.html(_decorator(g, table))
    return (f"<h2>{escape(heading)}</h2>" if heading else "") + body + _table_files(table)


def _table_files(table: Table, plot: style.Plot | None = None) -> str:
    files = [f"tables/{table.name}.{kind}" for kind in ("csv", "tex")]
    files += [f"figures/{plot.name}.{kind}" for kind in ("pdf", "png")] if plot is not None else []
    links = " · ".join(f'<a href="{file}">{file.rpartition(".")[2]}</a>' for file in files)
    return f'<p class="files">In files beside this page: {links}</p>'


def _decorator(g: Grid, table: Table) -> Any:
    """Puts the line of the figures before each name of a series."""
    look = figures.series_looks(g)
    at = next((i for i, column in enumerate(table.columns) if column.key == g.series_axis), None)
    if len(look) < 2 or at is None:
        return None

    def decorate(row: int, column: int, inner: str) -> str:
        name = table.rows[row][at]
        return style.swatch(look[name]) + inner if column == at and isinstance(name, str) else inner

    return decorate


def _figure(plot: style.Plot) -> str:
    panels = "".join(f"<div>{svg}</div>" for svg in plot.svgs())
    kind = " wide" if plot.width > style.WIDTH else ""
    links = " · ".join(f'<a href="figures/{plot.name}.{kind}">{kind}</a>' for kind in ("pdf", "png"))
    return (
        f'<h2>{escape(plot.title)}</h2><figure><div class="panels{kind}">{panels}</div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        f'<p class="files">In files beside this page: {links}</p>'
    )


def _per_class(g: Grid, plot: style.Plot | None) -> str:
    """Up to 20 classes: a table that is a heat map; more: the drawn heat map, with the table in a file."""
    table = per_class_table(g)
    if table is None or plot is None:
        return ""
    classes = sum(column.key.startswith("class_") for column in table.columns)
    if classes > 20:
        return _figure(plot) + _table_files(table)
    first = len(table.columns) - classes
    slim = Table(table.name, table.title, table.columns, tuple(map(_means, table.rows)))
    body = slim.html(_decorator(g, table))
    rows = iter(slim.rows)

    def paint(match: re.Match[str]) -> str:
        entries = list(next(rows))
        cells = match.group(1).split("<td")[1:]
        for index in range(first, len(cells)):
            cells[index] = cells[index].replace(' class="n"', f' class="heat" style="{_heat(entries[index])}"', 1)
        return "<tr>" + "".join(f"<td{cell}" for cell in cells) + "</tr>"

    head, rest = body.split("<tbody>", 1)
    head = head.replace('<th scope="col" class="n">', '<th scope="col" class="n" style="text-align:center">')
    body = head + "<tbody>" + re.sub(r"<tr>(.*?)</tr>", paint, rest)
    caption = f'<p class="note">{escape(plot.caption)}</p>'
    return f"<h2>{escape(plot.title)}</h2>{body}{caption}" + _table_files(table, plot)


def _means(row: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(entry.mean if isinstance(entry, Estimate) else entry for entry in row)


def _heat(entry: Entry) -> str:
    """The colour of a share: mixed by the browser, so that it suits a light and a dark page."""
    if not isinstance(entry, float) or not math.isfinite(entry):
        return "color:var(--muted)"
    lost = 100 * (1 - min(1.0, max(0.0, entry)))
    text = "#fff" if lost > 82 else "var(--ink)"
    return f"background:color-mix(in oklab,var(--lost) {lost:.0f}%,var(--paper));color:{text}"


def _missing(cells: Sequence[Cell], c: Comparison) -> str:
    if not cells:
        return ""
    items = []
    for cell in cells:
        labels = ", ".join(f"{axis} {cell.labels[axis]}" for axis in c.axes)
        state = "no records" if cell.run is None else f"unfinished, last round on record {cell.run.last_round}"
        items.append(f"<li>{escape(labels)}: {escape(state)} (<code>{escape(cell.dir)}</code>)</li>")
    return f"<h2>Missing and unfinished runs</h2><ul>{''.join(items)}</ul>"


# Settings and provenance -------------------------------------------------------------------------------------------


def _settings(g: Grid) -> str:
    runs = [(cell, cell.run) for cell in g.comparison.cells if cell.run is not None and cell.run.settings_text]
    if not runs:
        return ""
    if len(runs) == 1:
        return f'<h2>Settings</h2><pre tabindex="0">{escape(runs[0][1].settings_text.strip())}</pre>'
    keys = list(dict.fromkeys(key for _, run in runs for key in run.settings))
    texts = {key: [toml_value(run.settings[key]) if key in run.settings else None for _, run in runs] for key in keys}
    differing = [key for key in keys if len(set(texts[key])) > 1]
    parts = ["<h2>Settings</h2>"]
    if differing:
        rows = []
        for key in differing:
            for index, (where, value) in enumerate(_explain(texts[key], [cell for cell, _ in runs], g.comparison.axes)):
                name = f"<code>{escape(key)}</code>" if index == 0 else ""
                first = ' class="next"' if index == 0 else ""
                rows.append(
                    f"<tr{first}><td>{name}</td><td>{escape(where)}</td><td><code>{escape(value)}</code></td></tr>"
                )
        parts.append(
            '<h3>What differs between the runs</h3><div class="scroll" tabindex="0" role="region" '
            'aria-label="What differs between the runs"><table class="wrap"><thead><tr><th scope="col">key</th>'
            '<th scope="col">where</th><th scope="col">value</th></tr></thead><tbody>'
            f"{''.join(rows)}</tbody></table></div>"
            '<p class="note">Where a key is not listed, it is not set.</p>'
        )
    common = "\n".join(f"{key} = {texts[key][0]}" for key in keys if key not in differing)
    parts.append(f'<h3>What all runs share</h3><pre tabindex="0">{escape(common)}</pre>')
    return "".join(parts)


def _explain(values: Sequence[str | None], cells: Sequence[Cell], axes: Sequence[str]) -> list[tuple[str, str]]:
    """Says by the fewest axes which cells have which value: "defence Krum" rather than twelve cells.

    None values are keys that are not set; they are left out.
    """
    for count in range(1, len(axes) + 1):
        for chosen in _subsets(axes, count):
            found: dict[tuple[str, ...], set[str | None]] = {}
            for value, cell in zip(values, cells, strict=True):
                found.setdefault(tuple(cell.labels[axis] for axis in chosen), set()).add(value)
            if all(len(options) == 1 for options in found.values()):
                one = {key: value for key, options in found.items() if (value := next(iter(options))) is not None}
                if (
                    len(one) == len(found)
                    and count == 1
                    and all(value.strip('"') == key[0] for key, value in one.items())
                ):
                    return [(f"by {chosen[0]}", ", ".join(one.values()))]
                return [("; ".join(_where(chosen, one, value)), value) for value in dict.fromkeys(one.values())]
    return [(cell.dir, value) for value, cell in zip(values, cells, strict=True) if value is not None]


def _where(axes: Sequence[str], values: Mapping[tuple[str, ...], str], value: str) -> list[str]:
    """The places with this value: "defence None, Krum", or "defence Krum, attack PGD" for each pair."""
    keys = [key for key, found in values.items() if found == value]
    if len(axes) == 1:
        return [f"{axes[0]} {', '.join(key[0] for key in keys)}"]
    return [", ".join(f"{axis} {label}" for axis, label in zip(axes, key, strict=True)) for key in keys]


def _subsets(axes: Sequence[str], count: int) -> Iterable[tuple[str, ...]]:
    return itertools.combinations(axes, count)


def toml_value(value: object) -> str:
    """A value as TOML writes it.

    >>> toml_value([1, 0.5, True, "a"])
    '[1, 0.5, true, "a"]'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)


def _provenance(g: Grid) -> str:
    command = g.comparison.command
    parts = ["<h2>To reproduce this</h2>"]
    parts.append(f'<pre class="command">{escape(command)}</pre>' if command else "<p>No command is on record.</p>")
    summaries = [run.summary for run in g.finished if run.summary is not None]
    if not summaries:
        return "".join(parts)
    facts = {
        "versions": [_pairs(s.versions) for s in summaries],
        "hardware": [_pairs(s.hardware) for s in summaries],
        "commit": [s.commit or "not recorded" for s in summaries],
        "parameters": [f"{s.parameters:,}" if s.parameters is not None else "not recorded" for s in summaries],
    }
    if len(summaries) == 1:
        facts["hash of the settings"] = [summaries[0].hash or "not recorded"]
    items = []
    for name, values in facts.items():
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        many = len(counts) > 1
        text = "; ".join(f"{value} ({n} of {len(values)} runs)" if many else value for value, n in counts.items())
        items.append(f"<dt>{escape(name.capitalize())}</dt><dd>{escape(text)}</dd>")
    return "".join(parts) + f"<dl>{''.join(items)}</dl>"


def _pairs(mapping: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping.items()) or "not recorded"
