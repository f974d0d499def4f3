"""Experiments that take milliseconds."""

from __future__ import annotations

from typing import Any

from bezoar.expected import Expected

RIDGE = {"kind": "ridge", "groups": [3, 2], "samples": 12, "features": 4, "heterogeneity": 0.7}
SOFTMAX = {"kind": "softmax", "clients": 5, "samples": 15, "features": 4, "classes": 3, "alpha": 0.5, "l2": 0.05}
PRIOR = {"kind": "explicit", "clients": 5, "bad": [[], [3, 4], [0]], "p": [0.5, 0.3, 0.2]}
RULES = [{"label": "mean", "pipeline": ["mean"]}, {"label": "trimmed", "pipeline": [{"kind": "trimmed-mean", "f": 2}]}]


def table(**changes: Any) -> dict[str, Any]:
    attacks = [{"kind": "none"}, {"label": "FOE", "kind": "ipm", "epsilon": 2.0}]
    base = {"kind": "expected", "name": "small", "rounds": 15, "task": RIDGE, "prior": PRIOR}
    return {**base, "rule": RULES, "attack": attacks, **changes}


def small(**changes: Any) -> Expected:
    return Expected.from_table(table(**changes))
