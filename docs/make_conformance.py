"""Write docs/conformance.md, what Flower's own strategies survive: ``python docs/make_conformance.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import flwr

from bezoar.integrations.conformance import CASES, Result, Setting, results, target

PAGE = Path(__file__).parent / "conformance.md"

#: Column -> target.
TARGETS = {
    "bezoar": "bezoar:nnm > trimmed-mean",
    "FedAvg": "flower:FedAvg",
    "FedMedian": "flower:FedMedian",
    "FedTrimmedAvg": "flower:FedTrimmedAvg",
    "Krum": "flower:Krum",
    "MultiKrum": "flower:MultiKrum",
    "Bulyan": "flower:Bulyan",
    "DP fixed": "flower:DifferentialPrivacyServerSideFixedClipping",
    "DP adaptive": "flower:DifferentialPrivacyServerSideAdaptiveClipping",
}

HEAD = """# Conformance of Flower strategies

Clients of a federation are strangers. `bezoar conformance` plays a Flower `Strategy` in a small federation in which
some of them send what they should not, or nothing, and says what it does wrong:

    bezoar conformance flower:Krum
    bezoar conformance my_package.server:make_strategy --clients 13 -f 2
    bezoar conformance "bezoar:nnm > trimmed-mean" --json
    bezoar conformance flower:FedMedian --case nan --case wrong-key
    bezoar conformance --list

The target is `MODULE:OBJECT` (a strategy, its class, or a function that makes one), one of Flower's own, or a preset or
rules of bezoar behind `RobustStrategy`. It exits with 1 if the strategy fails in any case. In a test of your own:

```python
from flwr.serverapp.strategy import FedMedian

from bezoar.aggregation import TrimmedMean
from bezoar.integrations.conformance import check
from bezoar.integrations.flower import RobustStrategy

names = ["wrong-key", "nan", "claim-huge", "missing"]
assert all(result.passed for result in check(lambda: RobustStrategy(TrimmedMean(f=2)), f=2, cases=names))

failed = {result.case: result.fault for result in check(FedMedian, f=2, cases=names) if not result.passed}
assert failed["nan"] == "not finite"
```

Every case plays a fresh strategy, with a round of honest clients after the one in question. Unless the case says more,
a strategy passes if it raises nothing, does not lose the round, keeps the model's names, shapes and types, and ends at
most 1.25 times the longest honest update away from the mean of the honest models. Honest updates have the norm of about
a third of the model's; all clients claim the same number of samples but where a case says otherwise. The strategy is
told of the f liars as far as it can be (`num_malicious_nodes` = f, `beta` just above f / n, `num_nodes_to_select` =
n - f), and n = 13 is as many as Bulyan needs when f = 2 clients stay away. Wrappers for differential privacy stand
around FedAvg, with clipping to twice the honest norm and next to no noise.
"""

TAIL = """
Some of these are no promises that the strategy ever made: FedAvg is no robust rule, and nobody expects it to survive
`large`. What ends a run is another matter. An exception leaves Flower's `start`, so a client that sends one wrong name
ends the training of all others.

What the words mean: *raises*, an exception leaves the strategy and ends the run; *not finite*, the new model holds NaN
or infinity; *moved away*, it is farther from the honest ones than said above; *round lost*, the old model is kept, so
that these clients can stop training for ever; *becomes float64*, the model changes its type; *a claim decides*, a
claimed number of samples hands the model to who claims it; *a liar decides*, a metric is reported that no honest client
has seen; *invents a model*, there is a new model without a usable reply; *other order*, *other values*, the order of
one client's arrays decides; *other choice*, the size of the weights decides which updates are near each other;
*depends on order*, the bits depend on who answers first; *buffers moved*, a measured array leaves the range of honest
ones; *replies changed*, what wraps the strategy can no longer read them; *says nothing*, the operator can not learn who
sent it.

This page is written by `python docs/make_conformance.py`.
"""


def column(name: str) -> list[str]:
    """What goes wrong with a strategy, a cell a case; "" where nothing does."""
    setting = Setting()
    return [_cell(result) for result in results(target(TARGETS[name], setting), setting, list(CASES.values()))]


def page(columns: Mapping[str, Sequence[str]]) -> str:
    """The whole page, of the cells of every strategy."""
    lines = [HEAD, "## What fails\n", f"Flower {flwr.__version__}, n = 13, f = 2, 1000 parameters. Empty: passed.\n"]
    lines += ["| case | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for number, name in enumerate(CASES):
        lines.append(f"| {name} | " + " | ".join(cells[number] for cells in columns.values()) + " |")
    total = [f"{sum(not cell for cell in cells)} of {len(cells)}" for cells in columns.values()]
    lines += ["| **passed** | " + " | ".join(total) + " |", TAIL]
    lines += ["## Cases\n", "| case | what happens | what is right |", "|---|---|---|"]
    lines += [f"| {case.name} | {case.summary} | {case.right} |" for case in CASES.values()]
    return "\n".join(lines) + "\n"


def _cell(result: Result) -> str:
    """What went wrong; the type of an exception depends on the version of NumPy, and is left out."""
    return "raises" if result.fault.startswith("raises ") else result.fault


if __name__ == "__main__":
    PAGE.write_text(page({name: column(name) for name in TARGETS}), encoding="utf-8")
