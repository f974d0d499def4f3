"""Tables of a comparison, and the forms they are written in: text, rich, HTML, CSV, LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from bezoar.reports.estimates import Estimate
from bezoar.reports.records import PHASES, Comparison, Run, Summary, as_comparison
from bezoar.reports.rows import Grid, Row, grid

if TYPE_CHECKING:
    import rich.table

Entry: TypeAlias = "str | int | float | Estimate | None"
"""What a table cell holds; None (shown as an en dash) does not apply."""

BLANK = "–"


@dataclass(frozen=True)
class Column:
    """A column: ``key`` for CSV, ``title`` for readers; numbers are shown times ``scale`` with ``decimals``."""

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0
    decimals: int = 0
    numeric: bool = True

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def show(self, entry: Entry) -> str:
        """The entry as text, as in ``87.2 ± 0.4``."""
        if entry is None:
            return BLANK
        if isinstance(entry, Estimate):
            half = f" ± {self._number(entry.half)}" if entry.half is not None and math.isfinite(entry.half) else ""
            return self._number(entry.mean) + half
        return entry if isinstance(entry, str) else self._number(entry)

    def _number(self, value: float) -> str:
        value *= self.scale
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        if abs(value) >= 1e7:
            return f"{value:.2e}"
        return f"{value + 0.0:,.{self.decimals}f}"


@dataclass(frozen=True)
class Table:
    """Columns and rows, and the notes that a reader needs. ``keys`` are the row numbers in the comparison's grid."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()

    def without(self, *keys: str) -> Table:
        """The same table with fewer columns, for narrow places."""
        kept = [i for i, column in enumerate(self.columns) if column.key not in keys]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def shown(self) -> list[list[str]]:
        """All entries as text."""
        seeds = next((i for i, column in enumerate(self.columns) if column.key == "seeds"), None)
        return [
            [
                column.show(entry) + _fewer(entry, row[seeds] if seeds is not None else None)
                for column, entry in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def text(self) -> str:
        """Plain text, aligned with spaces."""
        lines = [[column.heading for column in self.columns], *self.shown()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def line(entries: list[str]) -> str:
            pairs = zip(entries, widths, self.columns, strict=True)
            return "  ".join(e.rjust(w) if c.numeric else e.ljust(w) for e, w, c in pairs).rstrip()

        body = [line(lines[0]), "  ".join("-" * width for width in widths), *map(line, lines[1:])]
        return "\n".join([self.title, "", *body, *(["", *self.notes] if self.notes else []), ""])

    def rich(self) -> rich.table.Table:
        """A ``rich`` table for the terminal."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        caption = Text("\n".join(self.notes)) if self.notes else None
        table = RichTable(title=Text(self.title), caption=caption, box=box.SIMPLE_HEAD, title_justify="left")
        for column in self.columns:
            side: Literal["right", "left"] = "right" if column.numeric else "left"
            table.add_column(Text(column.heading), justify=side, no_wrap=not column.numeric)
        for row in self.shown():
            table.add_row(*map(Text, row))
        return table

    def html(self, decorate: Callable[[int, int, str], str] | None = None) -> str:
        """An HTML table. ``decorate(row, column, cell)`` may change the inner HTML of a body cell."""
        head = "".join(
            f'<th scope="col"{_numeric(column)}><span class="h">{html.escape(column.title)}'
            + (f'&nbsp;<span class="unit">{html.escape(column.unit)}</span>' if column.unit else "")
            + "</span></th>"
            for column in self.columns
        )
        body = []
        for r, (row, shown) in enumerate(zip(self.rows, self.shown(), strict=True)):
            cells = []
            for c, (column, entry, text) in enumerate(zip(self.columns, row, shown, strict=True)):
                inner = html.escape(text).replace(" ± ", ' <span class="pm">± ') + ("</span>" if " ± " in text else "")
                if isinstance(entry, str):
                    inner = html.escape(text)
                inner = decorate(r, c, inner) if decorate is not None else inner
                label = ' class="l"' if not column.numeric and len(text) <= 24 else _numeric(column)
                cells.append(f"<td{label}{_sort_value(entry)}>{inner}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in self.notes)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(self.title)}">'
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + f"\n</tbody></table></div>{notes}"
        )

    def csv(self) -> str:
        """Unrounded numbers: for an estimate its mean, half width of the interval, and number of seeds."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        wide = [any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.columns))]
        head: list[str] = []
        for column, estimated in zip(self.columns, wide, strict=True):
            key = column.key
            head += [f"{key}_mean", f"{key}_half_width_95", f"{key}_n"] if estimated else [key]
        writer.writerow(head)
        for row in self.rows:
            line: list[object] = []
            for entry, estimated in zip(row, wide, strict=True):
                if isinstance(entry, Estimate):
                    line += [repr(entry.mean), "" if entry.half is None else repr(entry.half), entry.n]
                elif estimated:
                    line += ["", "", 0]
                else:
                    line.append("" if entry is None else entry)
            writer.writerow(line)
        return out.getvalue()

    def latex(self) -> str:
        """A ``booktabs`` table."""
        align = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(_tex(column.heading) for column in self.columns) + " \\\\",
            "\\midrule",
            *(" & ".join(map(_tex, row)) + " \\\\" for row in self.shown()),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"% {_one_line(note)}" for note in self.notes),
        ]
        return "\n".join(lines) + "\n"


def comparison_table(records: Comparison | Run | Grid) -> Table:
    """One row per combination of the axes that are not ``seed``, at the final round."""
    g = _grid(records)
    percent: dict[str, tuple[str, Callable[[Row], Estimate | None]]] = {
        "test_accuracy": ("test accuracy", lambda row: row.test_accuracy),
        "test_accuracy_clean": ("test accuracy without aux", lambda row: row.test_accuracy_clean),
        "attack_accuracy": ("attack accuracy", lambda row: row.attack_accuracy),
    }
    plain: dict[str, tuple[str, str, Callable[[Row], Estimate | None]]] = {
        "outsized_impact": ("OIF", "", lambda row: row.outsized_impact),
        "distance_l1": ("ℓ1 distance", "", lambda row: row.distance_l1),
        "distance_l2": ("ℓ2 distance", "", lambda row: row.distance_l2),
        "seconds_per_round": ("time per round", "s", lambda row: row.seconds_per_round),
    }
    columns = [*_label_columns(g), *(Column(k, title, "%", 100, 1) for k, (title, _) in percent.items())]
    readers = [reader for _, reader in percent.values()]
    for key, (title, unit, reader) in plain.items():
        estimates = [reader(row) for row in g.rows]
        columns.append(Column(key, title, unit, decimals=_decimals(e.mean for e in estimates if e)))
        readers.append(reader)
    columns += [Column("seeds", "seeds", numeric=False), Column("converged", "converged", numeric=False)]
    rows = tuple(
        (*_labels(g, row), *(reader(row) for reader in readers), _seeds(row), f"{row.converged}/{row.n}")
        for row in g.rows
    )
    return _named(g, Table("comparison", "All settings, at the final round", tuple(columns), rows, _notes(g)))


def over_attacks_table(records: Comparison | Run | Grid) -> Table | None:
    """Mean and worst over attacks, one row per defence; None unless there are several attacks."""
    g = _grid(records)
    if not g.over_attacks:
        return None
    axes = [axis for axis in g.axes if axis != g.attack_axis]
    columns = [
        *(Column(axis, axis, numeric=False) for axis in axes),
        Column("attacks", "attacks finished", numeric=False),
        Column("test_accuracy_unattacked", "test accuracy, no attack", "%", 100, 1),
        Column("test_accuracy_mean", "test accuracy, mean over attacks", "%", 100, 1),
        Column("test_accuracy_worst", "worst", "%", 100, 1),
        Column("test_accuracy_worst_attack", "under", numeric=False),
        Column("attack_accuracy_mean", "attack accuracy, mean over attacks", "%", 100, 1),
        Column("attack_accuracy_worst", "worst", "%", 100, 1),
        Column("attack_accuracy_worst_attack", "under", numeric=False),
    ]
    rows: list[tuple[Entry, ...]] = [
        (
            *(entry.labels[axis] for axis in axes),
            f"{len(entry.attacks)} of {entry.planned}",
            entry.unattacked,
            entry.mean_test,
            entry.worst_test,
            entry.worst_test_by or BLANK,
            entry.mean_attack,
            entry.worst_attack,
            entry.worst_attack_by or BLANK,
        )
        for entry in g.over_attacks
    ]
    idle = set()
    if all(len(entry.attacks) == entry.planned for entry in g.over_attacks):
        idle.add("attacks")
    if all(entry.unattacked is None for entry in g.over_attacks):
        idle.add("test_accuracy_unattacked")
    keep = [i for i, column in enumerate(columns) if column.key not in idle]
    notes = (
        "Test accuracy without the aux points. Worst: the attack with the worst mean over seeds.",
        "Means over attacks use the seeds that finished under every attack.",
    )
    table = Table(
        "over_attacks",
        "Mean and worst over attacks",
        tuple(columns[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        notes,
    )
    return _named(g, table)


def matrix_table(records: Comparison | Run | Grid, targeted: bool = False) -> Table | None:
    """Defences by attacks: test accuracy, or attack accuracy if ``targeted``; None unless there are several attacks.

    The last columns are the worst case over the attacks: of the means over seeds, and of the single runs.
    """
    g = _grid(records)
    attack = g.attack_axis
    if attack is None or not g.over_attacks:
        return None
    labels = g.values[attack]
    if targeted:
        labels = tuple(a for a in labels if any(a in e.rows and e.rows[a].attack_accuracy for e in g.over_attacks))
        if not labels:
            return None
    axes = [axis for axis in g.axes if axis != attack]
    columns = [
        *(Column(axis, axis, numeric=False) for axis in axes),
        *(Column(f"under_{label}", label, "", 100, 1) for label in labels),
        Column("worst", "worst", "", 100, 1),
        Column("worst_attack", "under", numeric=False),
        Column("worst_run", "worst run", "", 100, 1),
    ]
    rows: list[tuple[Entry, ...]] = []
    for entry in g.over_attacks:
        found = [entry.rows.get(label) for label in labels]
        if targeted:
            cells = [row.attack_accuracy if row else None for row in found]
            worst, by, run = entry.worst_attack, entry.worst_attack_by, entry.worst_attack_run
        else:
            cells = [row.test_accuracy_clean if row else None for row in found]
            worst, by, run = entry.worst_test, entry.worst_test_by, entry.worst_test_run
        rows.append((*(entry.labels[axis] for axis in axes), *cells, worst, by or BLANK, run))
    notes = [
        "Worst: over the attacks, the worst mean over seeds. Worst run: the worst single run under any attack.",
        "NaN: training diverged.",
    ]
    what = "Attack accuracy" if targeted else "Test accuracy"
    table = Table(
        "matrix_attack" if targeted else "matrix",
        f"{what} by defence and attack at the final round, in %",
        tuple(columns),
        tuple(rows),
        (*notes[: 2 if any(_diverged(entry) for row in rows for entry in row) else 1], *_notes(g)),
    )
    return _named(g, table)


def _diverged(entry: Entry) -> bool:
    value = entry.mean if isinstance(entry, Estimate) else entry
    return isinstance(value, float) and math.isnan(value)


def adversary_table(records: Comparison | Run | Grid) -> Table | None:
    """Who was flagged, and how far the aggregate went beside what no rule can promise; None if nothing is known."""
    g = _grid(records)
    flagged = {
        "detected": ("attackers flagged", lambda s: s.detected),
        "false_alarms": ("others flagged", lambda s: s.false_alarms),
    }
    measured = {
        "variance": ("variance of honest updates", lambda s: s.variance),
        "deviation": ("squared error of the aggregate", lambda s: s.deviation),
        "floor": ("floor", lambda s: s.floor),
    }
    found: list[tuple[Column, list[Estimate | None]]] = []
    readers: dict[str, tuple[str, Callable[[Summary], float | None]]] = {**flagged, **measured}
    for key, (title, reader) in readers.items():
        values = [row.of(reader) for row in g.rows]
        if any(value is not None for value in values):
            share = key in flagged
            decimals = 1 if share else _decimals(value.mean for value in values if value)
            found.append((Column(key, title, "%" if share else "", 100 if share else 1, decimals), values))
    rows = [row for row in g.rows if row.n]
    if not found or not rows:
        return None
    notes = ["Means over the rounds with an attack. Flagged: left out, not selected, or next to no weight."]
    lost = {
        "squared error": sum(s.deviation_infinite for row in g.rows for s in row.summaries),
        "floor": sum(s.floor_infinite for row in g.rows for s in row.summaries),
    }
    notes += [
        f"{count} rounds with an infinite {what} are left out of its means." for what, count in lost.items() if count
    ]
    if any(column.key == "floor" for column, _ in found):
        notes.append(
            "Floor: q/(n - 2q) times the variance of the honest updates, for q attackers among n clients. No rule can "
            "promise a smaller squared error against updates that lie so far apart, not even if attackers only poison "
            "data; a single attack need not reach it."
        )
    columns = (*_label_columns(g), *(column for column, _ in found))
    entries = tuple((*_labels(g, r), *(values[i] for _, values in found)) for i, r in enumerate(g.rows) if r.n)
    title = "What the defence noticed, and how far the aggregate went"
    return _named(g, Table("adversary", title, columns, entries, tuple(notes)))


def per_class_table(records: Comparison | Run | Grid) -> Table | None:
    """Accuracy of each class at the final round; None if it was not recorded."""
    g = _grid(records)
    classes = max((len(row.per_class) for row in g.rows), default=0)
    if not classes:
        return None
    columns = [*_label_columns(g), *(Column(f"class_{c}", str(c), "", 100, 1) for c in range(classes))]
    rows = tuple(
        (*_labels(g, row), *row.per_class, *([None] * (classes - len(row.per_class)))) for row in g.rows if row.n
    )
    return _named(g, Table("per_class", "Accuracy by class, in %", tuple(columns), rows))


def timing_table(records: Comparison | Run | Grid) -> Table | None:
    """Mean seconds per round of each phase; None if nothing was timed."""
    g = _grid(records)
    timed = [row for row in g.rows if row.seconds_per_round is not None]
    if not timed:
        return None
    estimates = [e for row in timed for e in row.seconds.values() if e is not None]
    places = _decimals(e.mean for e in estimates)
    totals = [row.of(lambda s: s.seconds.get("total")) for row in timed]
    columns = [
        *_label_columns(g),
        *(Column(phase, phase, "s", decimals=places) for phase in PHASES),
        Column("seconds_per_round", "sum per round", "s", decimals=places),
        Column("total", "whole run", "s", decimals=_decimals(e.mean for e in totals if e)),
    ]
    rows = tuple(
        (*_labels(g, row), *(row.seconds[phase] for phase in PHASES), row.seconds_per_round, total)
        for row, total in zip(timed, totals, strict=True)
    )
    return _named(g, Table("timing", "Where the time of a round goes", tuple(columns), rows))


def runs_table(records: Comparison | Run | Grid) -> Table:
    """Every cell by itself, unfinished and missing ones too."""
    g = _grid(records)
    axes = g.comparison.axes
    columns = [
        *(Column(axis, axis, numeric=False) for axis in axes),
        Column("state", "state", numeric=False),
        Column("rounds", "rounds"),
        Column("test_accuracy", "test accuracy", "%", 100, 1),
        Column("test_accuracy_clean", "test accuracy without aux", "%", 100, 1),
        Column("attack_accuracy", "attack accuracy", "%", 100, 1),
        Column("skipped", "skipped rounds"),
        Column("excluded", "excluded updates"),
        Column("note", "convergence", numeric=False),
        Column("dir", "directory", numeric=False),
    ]
    rows: list[tuple[Entry, ...]] = []
    for cell in g.comparison.cells:
        run, summary = cell.run, cell.run.summary if cell.run is not None else None
        rounds: Entry = None if run is None else (summary.rounds if summary else run.last_round)
        skipped = None if run is None else sum(r.skipped is not None for r in run.rounds)
        excluded = None if run is None else sum(r.excluded for r in run.rounds)
        numbers: tuple[Entry, ...] = (None, None, None)
        note = BLANK
        if summary is not None:
            numbers = (summary.test_accuracy, summary.test_accuracy_clean, summary.attack_accuracy)
            note = ("yes" if summary.converged else "no") + (
                f": {summary.convergence_note}" if summary.convergence_note else ""
            )
        labels = (cell.labels[axis] for axis in axes)
        rows.append((*labels, cell.state, rounds, *numbers, skipped, excluded, note, cell.dir))
    return _named(g, Table("runs", "Every run by itself", tuple(columns), tuple(rows)))


#: Bytes of a model's parameter as clients send and fetch it (float32).
_VALUE = 4


def communication_table(records: Comparison | Run | Grid) -> Table | None:
    """Bytes that clients send and fetch, and their share of dense models; None if nothing was counted."""
    g = _grid(records)
    rows = [row for row in g.rows if row.of(lambda s: s.bytes_up) or row.of(lambda s: s.bytes_down)]
    if not rows:
        return None
    readers: dict[str, tuple[str, Callable[[Summary], float | None]]] = {
        "bytes_up_per_client": ("up, client and round", lambda s: s.bytes_up_per_client),
        "bytes_up_share": ("of dense", lambda s: _of_dense(s, s.bytes_up_per_client)),
        "bytes_down_per_client": ("down, client and round", lambda s: s.bytes_down_per_client),
        "bytes_down_share": ("of dense", lambda s: _of_dense(s, s.bytes_down_per_client)),
        "bytes_up": ("up, whole run", lambda s: s.bytes_up),
        "bytes_down": ("down, whole run", lambda s: s.bytes_down),
    }
    found: list[tuple[Column, list[Estimate | None]]] = []
    for key, (title, reader) in readers.items():
        values = [row.of(reader) for row in rows]
        unit, size = ("%", 0.01) if key.endswith("share") else _bytes(e.mean for e in values if e)
        decimals = {"%": 1, "B": 0}.get(unit, _decimals(e.mean / size for e in values if e))
        found.append((Column(key, title, unit, 1 / size, decimals), values))
    columns = (*_label_columns(g), *(column for column, _ in found))
    entries = tuple((*_labels(g, row), *(values[i] for _, values in found)) for i, row in enumerate(rows))
    notes = (
        "Of dense: next to 4 bytes a parameter each way. Down: a client fetches the whole model when it first takes "
        "part; later, where steps are sparse, the coordinates that have moved since it last took part, 8 bytes each, "
        "or the whole model where that is shorter.",
        *_notes(g),
    )
    return _named(g, Table("communication", "What clients send and fetch", columns, entries, notes))


def _of_dense(summary: Summary, amount: float | None) -> float | None:
    return None if amount is None or not summary.parameters else amount / (_VALUE * summary.parameters)


def _bytes(values: Iterable[float]) -> tuple[str, float]:
    """The unit in which the greatest value has at least one digit before the point, and its bytes."""
    greatest = max((value for value in values if math.isfinite(value)), default=0.0)
    units = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
    return next(((unit, size) for unit, size in units.items() if greatest >= size), ("B", 1.0))


def tables(records: Comparison | Run | Grid) -> tuple[Table, ...]:
    """All tables that apply to the records, in the order of the report."""
    g = _grid(records)
    found = (
        comparison_table(g),
        matrix_table(g),
        matrix_table(g, targeted=True),
        over_attacks_table(g),
        adversary_table(g),
        communication_table(g),
        timing_table(g),
        per_class_table(g),
        runs_table(g),
    )
    return tuple(table for table in found if table is not None)


def _grid(records: Comparison | Run | Grid) -> Grid:
    return records if isinstance(records, Grid) else grid(as_comparison(records))


def _named(g: Grid, table: Table) -> Table:
    """The table with a note that names its regime: numbers of different ones can not be compared."""
    return replace(table, notes=(*table.notes, g.regime_note)) if g.regime_note else table


def _label_columns(g: Grid) -> list[Column]:
    return [Column("row", "#"), *(Column(axis, axis, numeric=False) for axis in g.axes)]


def _labels(g: Grid, row: Row) -> tuple[Entry, ...]:
    return (row.number, *(row.labels[axis] for axis in g.axes))


def _seeds(row: Row) -> str:
    planned = len(row.cells)
    return f"n={row.n}" if row.n == planned else f"n={row.n} of {planned}"


def _fewer(entry: Entry, seeds: Entry) -> str:
    """Says so where a number rests on fewer seeds than its row."""
    if not isinstance(entry, Estimate) or not isinstance(seeds, str):
        return ""
    n = int(seeds.removeprefix("n=").split()[0])
    return f" (n={entry.n})" if entry.n != n else ""


def _notes(g: Grid) -> tuple[str, ...]:
    notes = []
    if any(row.n > 1 for row in g.rows):
        notes.append("Mean over seeds ± half width of the 95% Student t interval.")
    if any(row.n == 2 for row in g.rows):
        notes.append("Two seeds say little about their spread: their interval is 12.7 standard errors to each side.")
    if any(row.n == 1 for row in g.rows):
        notes.append("n=1: the value of the only finished run, without an interval.")
    unfinished = len(g.missing)
    if unfinished:
        total = len(g.comparison.cells)
        notes.append(f"{unfinished} of {total} runs are missing or unfinished and enter no number of this table.")
    return tuple(notes)


def _decimals(values: Iterable[float]) -> int:
    """Three significant digits for the greatest value, at most four decimals."""
    greatest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 2 if greatest == 0 else min(4, max(0, 2 - math.floor(math.log10(greatest))))


def _numeric(column: Column) -> str:
    return ' class="n"' if column.numeric else ""


def _sort_value(entry: Entry) -> str:
    value = entry.mean if isinstance(entry, Estimate) else entry
    return f' data-v="{value!r}"' if isinstance(value, int | float) else ""


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "–": "--",
    "ℓ": r"$\ell$",
}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match.group()], _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
