"""Write docs/rules.md from the docstrings of the rules: ``python docs/make_rules.py``."""

from __future__ import annotations

from pathlib import Path

from bezoar.aggregation import RULES, Columnwise, Mixing
from bezoar.registry import Entry

PAGE = Path(__file__).parent / "rules.md"

HEAD = """# All rules

n rows of d parameters, f of them declared bad, q of them bad in truth. A *constant* kappa promises
|F(x) - mean_S|^2 <= kappa Var_S for the honest rows S, whatever the others send; [robustness.md](robustness.md) has the
proofs of what is marked exact or proved. It ranks worst cases, not benchmarks. *Peers* says how the defaults of other
libraries differ.

This page is written by `python docs/make_rules.py` from the docstrings; `bezoar list rules NAME` prints the same.
"""

TAIL = """## Not here

**DeepSight** (Rieger, Nguyen, Miettinen, Sadeghi: NDSS 2022) clusters clients by three votes. One of them, the division
differences, compares what each client's whole model answers to random inputs with what the global model answers. A
rule here sees updates, not models to run, and DeepSight without that vote would be another, weaker rule under its name.
"""


def page() -> str:
    """The whole page."""
    groups: dict[str, list[Entry]] = {"Rules on whole updates": [], "Rules on coordinates": [], "Pre-aggregators": []}
    for entry in RULES.entries():
        part = RULES[entry.name]
        kinds = {Mixing: "Pre-aggregators", Columnwise: "Rules on coordinates"}
        group = next((title for base, title in kinds.items() if issubclass(part, base)), "Rules on whole updates")
        groups[group].append(entry)
    lines = [HEAD]
    for title, entries in groups.items():
        lines += [f"## {title}\n"]
        for entry in sorted(entries, key=lambda entry: entry.name):
            lines += _section(entry)
    return "\n".join([*lines, TAIL])


def _section(entry: Entry) -> list[str]:
    lines = [f"### {entry.name}\n", f"{entry.summary.replace('``', '`')}\n"]
    card = dict(entry.card)
    if formula := card.pop("Formula", None):
        lines += ["```math", formula, "```\n"]
    lines += [f"- **Parameters**: `{entry.parameters}`" if entry.parameters else "- **Parameters**: none"]
    lines += [f"- **{label}**: {text.replace('``', '`')}" for label, text in card.items()]
    return [*lines, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
