"""Write the pages that are made from docstrings and registries: ``python docs/make_pages.py``."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bezoar.aggregation import RULES, Columnwise, Mixing, Part, Sums
from bezoar.aggregation.noise import POSTS
from bezoar.attacks import ATTACKS, Attack, DataAttack, Knowledge, UpdateAttack
from bezoar.experiments.defence import PRESETS, defence
from bezoar.experiments.readings import READINGS, ROWS, Choice
from bezoar.registry import Entry
from bezoar.servers import SERVERS
from bezoar.updates import Needs

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
[experiments.md](experiments.md) tells who attacks, when, and what the adversary knows;
[writing-attacks.md](writing-attacks.md) how to write one.

This page is written by `python docs/make_pages.py` from the docstrings; `bezoar list attacks NAME` prints the same.
"""

SUMS_HEAD = """# Secure aggregation

With secure aggregation (Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS
2017) clients mask what they send so that the server learns the sum of a group's vectors and nothing else of them.
Robust rules look at single updates, which is what secure aggregation forbids; so privacy and robustness are at
odds, except for rules that need sums only. SparseFed is one of them: clients clip, the server adds up, and
momentum, error feedback and top-k work on the sum.

```python
from bezoar.aggregation import Bucketing, CenteredClipping, Clip, Krum, Mean, Median, Sums
from bezoar.experiments.defence import defence

assert defence("sparsefed").sums is Sums.ONE
assert CenteredClipping(radius=1.0, iterations=3).sums is Sums.TURNS
assert (Clip(5.0) >> Krum(f=2)).sums is None
assert (Clip(5.0) >> Bucketing(s=4) >> Median()).sums is Sums.GROUPS
assert Mean(weighted=True, cap=0.1).sums is None
```

The simulator sees all updates, and nothing here is computed in masks: `sums` says what a defence could be given by
such a protocol, and the tests compute every part that claims sums through an interface that hands out nothing else.

## Which rules work

- **one sum**: of vectors that every client computes from its own update and from what the server has made public (the
  model, a radius, the last aggregate).
- **sums in turn**: several such sums, the server publishing something between them. All clients must stay to the end,
  and attackers may answer each sum as if they had another update.
- **sums of groups**: the server learns the sums of small groups; what follows is done to the groups' means.
- **single updates**: the rule asks for more. What it asks of them is in the last column.

Where sums suffice, clients compute, and attackers compute what they like: the last column says what would have to be
proved of what they send for the rule to be the rule. Nothing enforces it here; see the end of this page.
"""

SUMS_SERVERS = """## Servers, noise and presets

Every server works on the aggregate alone, so the pipeline before it decides.
"""

SUMS_TAIL = """## What is not counted

Whatever sorts (`median`, `trimmed-mean`, the radius of `arc`, the nearest rows of `monna`) can be had from sums of
votes by bisection: "is your value above m?", a bit at a time for all coordinates, some 30 sums for float32. That is
neither cheap nor what is proved of these rules, as attackers may contradict themselves from one sum to the next.
`bayes-mean` iterates with sums, but starts from the row nearest to all others. `krum`, `nnm` and their kin need the
distances between clients, which no sum over clients holds.

Where the server sees sums only, it also can not leave out updates that are not finite, say who was flagged, or skip
a round for hostile rows. (Protocols sum integers modulo some number, so there is no NaN; but sums that wrap around
must be excluded by a bound on every entry.)

## What clients must prove (future work)

A sum hides who spoils it. If attackers do not clip, one of them moves the mean wherever it likes, and SparseFed's
top-k then picks the attacker's coordinates. So the norm bound must be enforced without seeing the update: a client
commits to its quantised update and proves in zero knowledge that the sum of squares is at most L^2 (a *range
proof*); the server drops those whose proof fails, and opens the sum of the others. RoFL (Lycklama, Burkhalter,
Viand, Küchler, Hithnawi: IEEE S&P 2023), EIFFeL (Roy Chowdhury, Guo, Jha, van der Maaten: CCS 2022) and ACORN (Bell
et al.: USENIX Security 2023) do this for norms. For SparseFed nothing else has to be proved; for FetchSGD the bound
is on the update, and the sketch has to be proved to be its sketch. None of this is in bezoar.
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


#: A bar that ends no cell of a table.
BAR = "\\|"

#: What a part without sums asks of single clients, for the least it needs.
SEEN = {
    Needs.GRAM: "distances between clients",
    Needs.COLUMNS: "some of every client's entries",
    Needs.BLOCKS: "all of every client's entries",
    Needs.DOT: "products with every update",
    Needs.NORMS: "every client's norm",
}


def built(name: str, registry: Any = RULES) -> Any:
    """A part with its defaults, and 1 for the parameters that have none."""
    part = registry[name]
    required = [spec.name for spec in dataclasses.fields(part) if spec.init and _required(spec)]
    return part(**dict.fromkeys(required, 1))


def _required(spec: dataclasses.Field[Any]) -> bool:
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def sums_page() -> str:
    """The page of secure aggregation: its table is made from what every part says of itself."""
    lines = [
        SUMS_HEAD,
        "| rule | server sees | of what; what clients would have to prove, or what is asked of single updates |",
        "|---|---|---|",
    ]
    order = {sums: i for i, sums in enumerate([*Sums, None])}
    parts: dict[str, Part] = {name: built(name) for name in RULES}
    for name, part in sorted(parts.items(), key=lambda item: (order[item[1].sums], item[0])):
        if part.sums is None:
            seen = ", ".join(text for need, text in SEEN.items() if need in part.needs)
            lines.append(f"| `{name}` | **single updates** | {seen} |")
        else:
            said = dict(next(entry for entry in RULES.entries() if entry.name == name).card)["Sums"]
            lines.append(f"| `{name}` | {part.sums.value} | {said.replace('``', '`').replace('|', BAR)} |")
    lines += ["", SUMS_SERVERS, "| server | a client sends, of d = 1,000,000 | what is summed |", "|---|---|---|"]
    for name in sorted(SERVERS):
        up = built(name, SERVERS).traffic(1_000_000).up
        kind = "updates" if up == 4_000_000 else "sketches, which are linear: the sum of sketches is that of the sum"
        lines.append(f"| `{name}` | {up:,} bytes | {kind} |")
    noises = ", ".join(f"`{name}`" for name in sorted(POSTS))
    lines += ["", f"Noise that is added to the aggregate ({noises}) asks for nothing more."]
    lines += ["", "| preset | server sees |", "|---|---|"]
    for name, preset in sorted(PRESETS.items()):
        needed = {key: 1 for key, spec in inspect.signature(preset).parameters.items() if spec.default is spec.empty}
        sums = defence({"preset": name, **needed}).sums
        lines.append(f"| `{name}` | {'**single updates**' if sums is None else sums.value} |")
    return "\n".join([*lines, "", SUMS_TAIL])


PAGES = {
    DOCS / "rules.md": rules_page,
    DOCS / "attacks.md": attacks_page,
    DOCS / "secure-aggregation.md": sums_page,
    DOCS / "readings.md": readings_page,
}


def api_pages() -> dict[Path, str]:
    """A page for every package of the reference; what is on it is found when the site is built."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        from reference import packages
    finally:
        sys.path.remove(str(DOCS / "_ext"))
    return {DOCS / "api" / f"{name}.md": f"# {name}\n\n```{{package}} {name}\n```\n" for name in packages()}


if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
    for path, text in api_pages().items():
        path.write_text(text, encoding="utf-8")
