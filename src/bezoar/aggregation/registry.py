"""Names of mixings and rules, and pipelines from lists of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bezoar.aggregation.base import Mixing, Part, Pipeline, Rule
from bezoar.aggregation.clip import Clip
from bezoar.aggregation.krum import Krum
from bezoar.aggregation.mean import Mean
from bezoar.aggregation.median import Median
from bezoar.aggregation.trimmed_mean import TrimmedMean
from bezoar.errors import ConfigError
from bezoar.registry import Registry

RULES: Registry[Part] = Registry(
    "rule",
    {"clip": Clip, "mean": Mean, "median": Median, "trimmed-mean": TrimmedMean, "krum": Krum},
)


def pipeline(tables: Any) -> Rule:
    """A rule, or mixings and a rule, from a list such as ``[{kind = "clip", radius = 5}, {kind = "mean"}]``.

    >>> pipeline([{"kind": "clip", "radius": 5.0}, "mean"])
    Pipeline(mixings=(Clip(radius=5.0),), rule=Mean())
    """
    if isinstance(tables, Rule):
        return tables
    if isinstance(tables, str) or not isinstance(tables, Sequence):
        tables = [tables]
    parts = [RULES.build(table) for table in tables]
    if not parts:
        raise ConfigError('a pipeline needs at least a rule, e.g. ["mean"]')
    *mixings, last = parts
    for part in mixings:
        if not isinstance(part, Mixing):
            raise ConfigError(f"{part.name} is a rule and must come last in the pipeline")
    if not isinstance(last, Rule):
        raise ConfigError(f"a pipeline ends in a rule, not in {last.name}: append one, for example 'mean'")
    return Pipeline(tuple(m for m in mixings if isinstance(m, Mixing)), last) if mixings else last


def pipeline_tables(rule: Rule) -> list[dict[str, Any]]:
    """The list of tables that describes ``rule``."""
    parts: list[Part] = [*rule.mixings, rule.rule] if isinstance(rule, Pipeline) else [rule]
    return [RULES.table(part) for part in parts]
