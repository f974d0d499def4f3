"""Write results/hospitals.json, from which docs/hospitals.md has its numbers: ``python docs/make_hospitals.py``.

For every candidate set of the prior: a run in which exactly its bad wards make the mistake (reading R1), with every
rule told the same prior. A few minutes on one core; needs the heart disease data (docs/data.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bezoar.experiments import Experiment, run
from bezoar.experiments.config import override, read_toml
from bezoar.experiments.setup import prepare

ROOT = Path(__file__).resolve().parents[1]
DELTA = 0.02
SIP = {"kind": "sip", "delta": DELTA}
RULES: dict[str, list[Any]] = {
    "mean": ["mean"],
    "median": ["median"],
    "geometric median": ["geometric-median"],
    "trimmed mean, f = 6": [{"kind": "trimmed-mean", "f": 6}],
    "trimmed mean, f = 8": [{"kind": "trimmed-mean", "f": 8}],
    "SIP around the mean": [{**SIP, "base": ["mean"]}],
    "SIP around the geometric median": [{**SIP, "base": ["geometric-median"]}],
}
MISTAKES: dict[str, dict[str, Any]] = {
    "ill and healthy exchanged": {"kind": "label-noise", "ratio": 1.0},
    "three features times 10": {"kind": "unit-error", "factor": 10.0, "share": 0.14},
}


def main(data_dir: str | None = None) -> None:
    """Run everything and write the record."""
    table = read_toml(ROOT / "docs" / "hospitals.toml")
    prior = prepare(Experiment.from_table(table), data_dir, torch.device("cpu")).prior
    assert prior is not None
    family = prior.support(DELTA)
    shares = np.exp(family.log_prob)
    shares = shares / shares.sum()
    cells = []
    for mistake, attack in MISTAKES.items():
        for rule, pipeline in RULES.items():
            losses, accuracies = [], []
            for honest in family.honest:
                bad = np.flatnonzero(~honest).tolist()
                settings = {"adversary": {"clients": bad}, "attack": attack if bad else "none",
                            "defence.pipeline": pipeline}  # fmt: skip
                summary = run(Experiment.from_table(override(table, settings)), data_dir=data_dir).summary
                losses.append(summary["honesty"]["honest_loss"])
                accuracies.append(summary["test_accuracy"])
            found = np.array([np.inf if loss is None else loss for loss in losses])
            cells.append(
                {
                    "mistake": mistake,
                    "rule": rule,
                    "expected": float(shares @ found),
                    "worst": float(found.max()),
                    "accuracy_expected": float(shares @ np.array([a or 0.0 for a in accuracies])),
                    "accuracy_worst": min(a or 0.0 for a in accuracies),
                }
            )
            print(cells[-1])
    sets = [
        {"bad": np.flatnonzero(~row).tolist(), "share": float(p)} for row, p in zip(family.honest, shares, strict=True)
    ]
    record = {"reading": "R1", "delta": DELTA, "sets": sets, "cells": cells}
    (ROOT / "results" / "hospitals.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    page = ROOT / "docs" / "hospitals.md"
    before, after = page.read_text(encoding="utf-8").split("| mistake |")[0], "\n## 4. Decide"
    rest = page.read_text(encoding="utf-8").split(after)[1]
    page.write_text(before + markdown(record) + after + rest, encoding="utf-8")


def markdown(record: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| mistake | rule | expected loss | worst loss | expected accuracy | worst accuracy |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {cell['mistake']} | {cell['rule']} | {cell['expected']:.3f} | {cell['worst']:.3f} "
        f"| {cell['accuracy_expected']:.1%} | {cell['accuracy_worst']:.1%} |"
        for cell in record["cells"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
