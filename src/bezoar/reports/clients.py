"""What became of single clients in a federation whose records keep a verdict for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bezoar.reports.records import Comparison, Run, as_comparison
from bezoar.reports.rows import Grid, grid
from bezoar.reports.tables import Column, Entry, Table

#: What can become of a client beside "kept", the worst first.
VERDICTS = ("excluded", "flagged", "failed", "missing")

#: A page shows so many clients.
MOST = 50


@dataclass
class _Client:
    """Rounds in which a client met each verdict, and the last reason that is on record."""

    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""


def clients_table(records: Comparison | Run | Grid) -> Table | None:
    """Clients that were not simply kept, those left out most often first; None if all were or nobody kept verdicts.

    Only for a single run: in a comparison clients are not the same.
    """
    g = records if isinstance(records, Grid) else grid(as_comparison(records))
    if not g.comparison.single:
        return None
    found: dict[str, _Client] = {}
    for run in (cell.run for cell in g.comparison.cells if cell.run is not None):
        for played in run.rounds:
            for client, said in played.verdicts.items():
                known = found.setdefault(client, _Client())
                verdict, _, reason = said.partition(": ")
                known.counts[verdict] += 1
                known.last = f"round {played.round}, {verdict}" + (f": {reason}" if reason else "")
    if not found:
        return None
    order = sorted(found, key=lambda c: ([-found[c].counts[verdict] for verdict in VERDICTS], _number(c)))
    columns = (
        Column("client", "client", numeric=False),
        *(Column(verdict, verdict, "rounds") for verdict in VERDICTS),
        Column("last", "last time", numeric=False),
    )
    rows: list[tuple[Entry, ...]] = [
        (client, *(found[client].counts[verdict] for verdict in VERDICTS), found[client].last)
        for client in order[:MOST]
    ]
    notes = [
        "Excluded: malformed, not finite or left out as hostile. Flagged: read, but the rule gave it no weight, as "
        "some rules do with most honest clients. Failed: the client reported an error. Missing: it did not answer. "
        "Clients that are not listed were kept whenever they were asked."
    ]
    if len(found) > MOST:
        notes.insert(0, f"The first {MOST} of {len(found)} clients; all of them are in metrics.jsonl.")
    return Table("clients", "What became of the clients", columns, tuple(rows), tuple(notes))


def _number(client: str) -> tuple[int, str]:
    return (int(client) if client.isdecimal() else 0, client)
