"""Write the generated pages, rules.md, attacks.md and readings.md: ``python docs/make_pages.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bezoar.aggregation import RULES, Columnwise, Mixing
from bezoar.attacks import ATTACKS, Attack, DataAttack, Knowledge, UpdateAttack
from bezoar.experiments.readings import READINGS, ROWS, Choice
from bezoar.registry import Entry

DOCS = Path(__file__).parent

RULES_HEAD = """# All rules

n rows of d parameters, f of them declared bad, q of them bad in truth. A *constant* kappa promises
|F(x) - mean_S|^2 <= kappa Var_S for the honest rows S, whatever the others send; [robustness.md](robustness.md) has the
proofs of what is marked exact or proved. It ranks worst cases, not benchmarks. *Peers* says how the defaults of other
libraries differ.

This page is written by `python docs/make_pages.py` from the docstrings; `bezoar list rules NAME` prints the same.
"""

RULES_TAIL = """## Not here

**DeepSight** (Rieger, Nguyen, Miettinen, Sadeghi: NDSS 2022) clusters clients by three votes. One of them, the division
differences, compares what each client's whole model answers to random inputs with what the global model answers. A
rule here sees updates, not models to run, and DeepSight without that vote would be another, weaker rule under its name.
"""

ATTACKS_HEAD = """# All attacks

n clients in a round, q of them attackers, the honest set S with mean update x_S. Updates are in descent sign (global
minus local model). *Knows* is the least that attackers must know (`adversary.knowledge`); with less than the honest
updates of the round, attacks that are made from updates are made from the attackers' own. *Targeted* attacks want
certain inputs misclassified, and `attack_accuracy` is the share of those that are.

Attacks on updates also work alone: `ALIE()(honest, n=25, q=5)` gives five rows against twenty honest ones (a tensor, an
array or a list), `ALIE()(honest)` one vector; attacks that adapt take `defence=`.
[experiments.md](experiments.md) tells who attacks, when, and what the adversary knows; [extending.md](extending.md) how
to write one.

This page is written by `python docs/make_pages.py` from the docstrings; `bezoar list attacks NAME` prints the same.
"""


READINGS_HEAD = """# Readings of the SparseFed paper

The paper (Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal: SparseFed, AISTATS 2022) prints algorithms that disagree
with each other, and its code exists in three public revisions (2021-05-27, 2021-06-04, 2021-08-28) that disagree with
the paper and among themselves. Nobody can tell which of them made the published tables. bezoar does what can be meant,
each other reading is an option, and one key sets them all:

```toml
reading = "code-2021-05"

[defence]
preset = "sparsefed"
radius = 5.0
k = 1000
```

sets the keys below that the experiment leaves open, where they apply: those of a kind of server, rule or attack, those
of one regime (`gradient` or `local`). What the experiment says itself wins. The record of a run has every key resolved.
A reading is an axis of a grid like any other (`reading = ["paper", "code-2021-05"]`).

```python
from bezoar import Experiment

table = {
    "rounds": 24,
    "data": {"dataset": "digits", "partition": {"kind": "one-class", "clients": 600, "samples": 2}},
    "model": {"name": "linear"},
    "learning_rate": {"kind": "triangular", "peak": 0.2},
    "sampling": {"kind": "epoch", "cohort": 100},
    "defence": {"preset": "bulyan", "f": 2, "radius": 5.0},
}
assert Experiment.from_table(table).defence.pipeline.rule.variant == "el-mhamdi"
coded = Experiment.from_table({**table, "reading": "code-2021-05"})
assert coded.defence.pipeline.rule.variant == "code-2021-05"
assert coded.clients.weight_decay == 5e-4 and coded.regime == "uncompressed"
```

Three things that follow:

- With Algorithm 1 as it is printed (reading `paper`) momentum never reaches the model, and what is subtracted from it
  matters to nothing.
- In the code of 2021-05 and 2021-06 trimmed mean and Bulyan move all coordinates by the same number, which trains no
  model: on digits (60 clients, 20 a round, 200 rounds, nobody malicious, f = 2) trimmed mean ends at 95.8% test
  accuracy as coded in 2021-08 and at 12.8% as coded before, Bulyan at 95.3% and 12.8%. The paper's clean accuracies of
  these rules (80%) can not come from there. The variants are called broken, and their robustness constant is infinite.
- In the code of 2021-05 the attackers of SparseFed, and of all defences without local training, take one gradient step,
  not PGD; the adaptive attack is PGD in every revision that has it.

This page is written by `python docs/make_pages.py`; `bezoar list readings NAME` prints one reading.
"""


def readings_page() -> str:
    """The page of all readings: what is open, and what each reading sets."""
    lines = [
        READINGS_HEAD,
        "## What is open\n",
        "| # | question | the paper | its code | here |",
        "|--:|---|---|---|---|",
    ]
    for number, row in ROWS.items():
        lines.append(f"| {number} | {row.name} | {row.printed} | {row.coded} | {row.here} |")
    lines += ["\n## What each reading sets\n", "Rows that no reading sets are left out.\n"]
    lines += [f"- `{name}`: {reading.summary}" for name, reading in READINGS.items()]
    lines += ["\n| # | question | " + " | ".join(f"`{name}`" for name in READINGS) + " |"]
    lines += ["|--:|---|" + "---|" * len(READINGS)]
    for number, row in ROWS.items():
        cells = [[choice for choice in reading.choices if choice.row == number] for reading in READINGS.values()]
        if any(cells):
            shown = " | ".join("<br>".join(map(_choice, cell)) or "–" for cell in cells)
            lines.append(f"| {number} | {row.name} | {shown} |")
    return "\n".join(lines) + "\n"


def _choice(choice: Choice) -> str:
    key, _, rest = str(choice).partition(" = ")
    value, _, where = rest.partition(" (")
    return f"`{key} = {value}`" + (f" ({where}" if where else "")


def rules_page() -> str:
    """The page of all rules."""
    groups: dict[str, list[Entry]] = {"Rules on whole updates": [], "Rules on coordinates": [], "Pre-aggregators": []}
    for entry in RULES.entries():
        part = RULES[entry.name]
        kinds = {Mixing: "Pre-aggregators", Columnwise: "Rules on coordinates"}
        group = next((title for base, title in kinds.items() if issubclass(part, base)), "Rules on whole updates")
        groups[group].append(entry)
    return _page(RULES_HEAD, groups, RULES_TAIL)


def attacks_page() -> str:
    """The page of all attacks."""
    titles = (
        "On updates",
        "On updates, adapting to the defence",
        "On updates, by training",
        "On data",
        "Honest mistakes",
    )
    groups: dict[str, list[Entry]] = {title: [] for title in titles}
    for entry in ATTACKS.entries():
        groups[titles[_group(ATTACKS[entry.name])]].append(entry)
    return _page(ATTACKS_HEAD, groups, "")


def _least(attack: type[Attack]) -> Knowledge:
    """The knowledge that the attack needs as it comes; with other parameters it may be more."""
    return attack.least if isinstance(attack.least, Knowledge) else attack().least


def _group(attack: type[Attack]) -> int:
    if issubclass(attack, DataAttack):
        return 4 if attack.__module__.endswith(".mistakes") else 3
    if _least(attack) is Knowledge.DEFENCE:
        return 1
    return 2 if attack.targeted or _least(attack) is Knowledge.MODEL else 0


def _page(head: str, groups: dict[str, list[Entry]], tail: str) -> str:
    lines = [head]
    for title, entries in groups.items():
        lines += [f"## {title}\n"]
        for entry in sorted(entries, key=lambda entry: entry.name):
            lines += _section(entry)
    return "\n".join([*lines, tail]) if tail else "\n".join(lines)


def _section(entry: Entry) -> list[str]:
    lines = [f"### {entry.name}\n", f"{entry.summary.replace('``', '`')}\n"]
    card = dict(entry.card)
    if formula := card.pop("Formula", None):
        lines += ["```math", formula, "```\n"]
    lines += [f"- **Parameters**: `{entry.parameters}`" if entry.parameters else "- **Parameters**: none"]
    lines += _facts(entry)
    lines += [f"- **{label}**: {text.replace('``', '`')}" for label, text in card.items() if label != "Knows"]
    return [*lines, ""]


def _facts(entry: Entry) -> Iterable[str]:
    """What a class says of an attack."""
    if entry.name not in ATTACKS or entry.name in RULES:
        return
    attack = ATTACKS[entry.name]
    knows = entry.card.get("Knows", "").replace("``", "`")
    yield f"- **Knows**: at least `{_least(attack).label}`" + (f"; {knows}" if knows else "")
    if attack.targeted:
        yield "- **Targeted**: yes"
    if issubclass(attack, UpdateAttack) and attack.uses_own is True:
        yield "- **Uses** the updates that the attackers would send honestly"


PAGES = {
    DOCS / "rules.md": rules_page,
    DOCS / "attacks.md": attacks_page,
    DOCS / "readings.md": readings_page,
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
