"""Write docs/reproduction.md from recipes and records: ``python docs/make_reproduction.py``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bezoar.experiments.config import read_toml
from bezoar.experiments.grid import Grid as Cells
from bezoar.experiments.scales import FULL, label
from bezoar.recipes import recipes
from bezoar.recipes.paper import METRICS, SEED, Claim, Labels, claims
from bezoar.reports import Estimate, load
from bezoar.reports.published import DECIMALS, Judged, judged, measured, worst
from bezoar.reports.records import Comparison
from bezoar.reports.rows import Grid, grid

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "sparsefed"
PAGE = ROOT / "docs" / "reproduction.md"

HEAD = """# SparseFed, reproduced

Every table and figure of *SparseFed: Mitigating Model Poisoning Attacks in Federated Learning with Sparsification*
(Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal: AISTATS 2022) is a recipe, `sparsefed/table-2` and so on. As it is
written a recipe is at full scale, the paper's, which is for a GPU; `--set scale=small` is for a CPU:

```sh
bezoar compare sparsefed/table-4 --set scale=small --jobs 2 --cells runs/cells --out runs/table-4
```

**What is claimed is a shape**: which defence breaks, which holds, what rises with what. Each claim has rules, written
in its recipe before its records were made, and the verdict below follows from them and from the means over seeds
alone: all rules hold, *agrees*; some, *partly*; none, *differs*. A difference is a finding: the sentence after it
says what explains it, as far as we know.

**The small scale** changes the same things in every recipe: Fashion-MNIST for CIFAR, a network of one hidden layer (d
= 50,890) for ResNet9, 300 rounds for 2,400 (eight times fewer), 50 aux points for 500, and k so that k T / d, the
number of times that an average coordinate moves in T rounds, is the paper's (k = 1e3 of 6.57M becomes 0.12% of d).
The federation of 10,000 one-class clients, 100 a round, the share of attackers, the radius L = 5 and the rates are
those of the paper. Nothing was tuned for a single table.

MNIST with the names of its 539 writers, ten devices each, stands in for FEMNIST (35 devices a round, 150 rounds for
1,000), and the roles of Shakespeare's plays, whose next character is to be told, for Reddit's users. Recipes have
runs in common; with `--cells` in one place they are computed once.

**Three regimes** are mixed in the paper, and numbers of different regimes can not be compared: *uncompressed*
(clients send one gradient), *FedAvg with a fixed radius*, where honest updates shrink with the learning rate and
attackers' do not, and *FedAvg with adaptive clipping*, where the radius follows the rate. Where the paper does not
say which, the recipe says what it assumes.

Accuracies are in %, on the whole test set, after the last round; mean over seeds ± half width of the 95% Student t
interval, and the worst seed. Published numbers are of the full scale. Table 9 is empty in the paper's text; there is
no recipe for it.

This page is written by `python docs/make_reproduction.py` from the recipes and the records in
[results/sparsefed](../results/README.md).
"""


@dataclass(frozen=True)
class Item:
    """A recipe: its claims, and what was run of it, by scale."""

    name: str
    table: dict[str, Any]
    claims: tuple[Claim, ...]
    rows: tuple[Labels, ...]
    records: dict[str, Grid]


def items(results: Path = RESULTS) -> list[Item]:
    """All recipes of the paper, tables first."""
    found = []
    for name, path in recipes().items():
        if not name.startswith("sparsefed/"):
            continue
        table = read_toml(path)
        axes = {axis: [str(label(value)) for value in values] for axis, values in table["grid"].items()}
        stated = claims(table["paper"], axes, f"{path}: paper")
        kept = [axis for axis in axes if axis != SEED]
        rows = tuple(dict(zip(kept, labels, strict=True)) for labels in itertools.product(*(axes[a] for a in kept)))
        records = {}
        for scale in (FULL, *table["scale"]):
            folder = results / scale / name.removeprefix("sparsefed/")
            if folder.is_dir():
                read = load(folder)
                assert isinstance(read, Comparison)
                records[scale] = grid(replace(read, claims=stated))
        found.append(Item(name, table, stated, rows, records))
    return sorted(found, key=lambda item: "figure" in item.name)


def page(results: Path = RESULTS) -> str:
    """The page as text."""
    every = items(results)
    lines = [HEAD, "## Verdicts\n", "| in the paper | claim | verdict | recipe |", "|---|---|---|---|"]
    sections: list[str] = []
    for item in every:
        verdicts = {scale: judged(records) for scale, records in item.records.items()}
        sections += [f"## {item.table['paper']['title']}\n", *_facts(item)]
        for i, claim in enumerate(item.claims):
            found = {scale: each[i] for scale, each in verdicts.items()}
            words = "; ".join(f"{scale}: **{one.verdict.word}**" for scale, one in found.items()) or "not run yet"
            lines.append(f"| {claim.of} | {_cell(claim.says)} | {words} | `{item.name}` |")
            sections += _claim(item, claim, found)
    return "\n".join([*lines, "", *sections])


def _facts(item: Item) -> Iterable[str]:
    """Recipe, commands, seeds and machines."""
    yield f"{item.table['description']} Recipe `{item.name}`.\n"
    for scale, records in item.records.items():
        summaries = [run.summary for run in records.finished if run.summary is not None]
        seeds = sorted({summary.seed for summary in summaries if summary.seed is not None})
        seconds = sum(summary.seconds.get("total", 0.0) for summary in summaries)
        machines = sorted({s.hardware.get("gpu") or s.hardware.get("cpu", "unknown") for s in summaries})
        commits = sorted({s.commit[:12] for s in summaries if s.commit})
        planned = len(records.comparison.cells)
        state = f"{len(summaries)} federations" + (f" of {planned}" if len(summaries) < planned else "")
        yield (
            f"Scale {scale}: {state}, seeds {', '.join(map(str, seeds))}, {seconds:,.0f} s of computing, "
            f"{', '.join(machines)}, commit {', '.join(commits)}; `{records.comparison.command}`.\n"
        )
        known = {cell.key for cell in Cells.from_table(item.table, item.name, settings={"scale": scale}).cells}
        others = sum(Path(cell.dir).name not in known for cell in records.comparison.cells)
        if others:
            yield f"**{others} of the {planned} are not what the recipe says now: run it again.**\n"


def _claim(item: Item, claim: Claim, found: dict[str, Judged]) -> Iterable[str]:
    yield f"**{claim.of}.** {claim.says}" + (f" Regime: {claim.regime}." if claim.regime else "") + "\n"
    yield from _numbers(item, claim)
    for scale, one in found.items():
        yield f"Scale {scale}: **{one.words}**.\n"
        marks = {True: "holds", False: "does not hold", None: "not run"}
        for check, held in zip(claim.checks, one.verdict.holds, strict=True):
            yield f"- {check.words()}: {marks[held]}"
        yield ""
        if scale in claim.why:
            yield f"{claim.why[scale]}\n"
    if not found:
        yield "Not run yet. What must hold:\n"
        yield from (f"- {check.words()}" for check in claim.checks)
        yield ""


def _numbers(item: Item, claim: Claim) -> Iterable[str]:
    """The table of a claim: the paper's numbers and those of every scale that was run."""
    measured_at = {scale: {_key(row.labels): row for row in records.rows} for scale, records in item.records.items()}
    rows = [
        row
        for row in claim.rows(item.rows)
        if any(_key(row) in known for known in measured_at.values())
        or any(claim.number(row, metric) is not None for metric in claim.metrics)
    ]
    axes = [axis for axis in item.rows[0] if len({row[axis] for row in rows}) > 1]
    shown = []
    for metric in claim.metrics:
        columns = [[_published(claim.number(row, metric), metric) for row in rows]]
        heads = [f"{METRICS[metric]}: paper"]
        for scale, known in measured_at.items():
            found = [known.get(_key(row)) for row in rows]
            columns.append([_ours(measured(row, metric) if row else None, metric) for row in found])
            columns.append([_number(worst(row, metric) if row else None, metric) for row in found])
            heads += [scale, "worst seed"]
        for head, column in zip(heads, columns, strict=True):
            if set(column) != {"–"}:
                shown.append((head if ":" in head else f"{METRICS[metric]}: {head}", column))
    if not rows or not shown:
        return
    yield _row([*axes, *(head for head, _ in shown)])
    yield _row(["---"] * len(axes) + ["---:"] * len(shown))
    for i, row in enumerate(rows):
        yield _row([*(row[axis] for axis in axes), *(column[i] for _, column in shown)])
    yield ""


def _published(value: float | str | None, metric: str) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:,.{_places(value, metric)}f}"


def _places(value: float, metric: str) -> int:
    """As many decimals as are printed, but not more than the metric's and two."""
    places = next((n for n in range(5) if round(value, n) == value), 5)
    return min(places, DECIMALS[metric] + 2)


def _ours(estimate: Estimate | None, metric: str) -> str:
    if estimate is None:
        return "–"
    half = f" ± {_number(estimate.half, metric)}" if estimate.half is not None and math.isfinite(estimate.half) else ""
    return _number(estimate.mean, metric) + half


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "–"
    return f"{value + 0.0:,.{DECIMALS[metric]}f}" if math.isfinite(value) else "NaN"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
