"""Names of mixings and rules, and pipelines from lists of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bezoar.aggregation.arc import ARC
from bezoar.aggregation.at_quantile import AtQuantile
from bezoar.aggregation.base import Mixing, Part, Pipeline, Rule
from bezoar.aggregation.bayes_mean import BayesMean
from bezoar.aggregation.bucketing import Bucketing
from bezoar.aggregation.bulyan import Bulyan
from bezoar.aggregation.caf import CAF
from bezoar.aggregation.centered_clipping import CenteredClipping
from bezoar.aggregation.clip import Clip
from bezoar.aggregation.clipped_clustering import ClippedClustering
from bezoar.aggregation.dnc import DnC
from bezoar.aggregation.faba import FABA
from bezoar.aggregation.filter_l2 import FilterL2
from bezoar.aggregation.flame import FLAME
from bezoar.aggregation.fldetector import FLDetector
from bezoar.aggregation.fltrust import FLTrust
from bezoar.aggregation.foolsgold import FoolsGold
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.aggregation.guarded_sip import GuardedSIP
from bezoar.aggregation.krum import Krum
from bezoar.aggregation.lasa import LASA
from bezoar.aggregation.lfighter import LFighter
from bezoar.aggregation.mea_med import MeaMed
from bezoar.aggregation.mean import Mean
from bezoar.aggregation.median import Median
from bezoar.aggregation.multi_krum import MultiKrum
from bezoar.aggregation.nearest import CVA, MoNNA
from bezoar.aggregation.nnm import NNM
from bezoar.aggregation.posterior_mean import PosteriorMean
from bezoar.aggregation.prior_mean import PriorMean
from bezoar.aggregation.prior_trimmed_mean import PriorTrimmedMean
from bezoar.aggregation.sign_vote import SignVote
from bezoar.aggregation.signguard import SignGuard
from bezoar.aggregation.sip import SIP
from bezoar.aggregation.subsets import MDA, MVA, SMEA
from bezoar.aggregation.trimmed_mean import TrimmedMean
from bezoar.errors import ConfigError
from bezoar.registry import Registry


class _Rules(Registry[Part]):
    """A field that holds a rule may hold a pipeline, as a list."""

    def _build_within(self, table: Any) -> Rule:
        return pipeline(table)

    def _table_within(self, part: Rule) -> Any:
        return rule_table(part)


RULES: Registry[Part] = _Rules(
    "rule",
    {
        "clip": Clip,
        "arc": ARC,
        "nnm": NNM,
        "bucketing": Bucketing,
        "mean": Mean,
        "median": Median,
        "trimmed-mean": TrimmedMean,
        "mea-med": MeaMed,
        "sign-vote": SignVote,
        "krum": Krum,
        "multi-krum": MultiKrum,
        "bulyan": Bulyan,
        "geometric-median": GeometricMedian,
        "centered-clipping": CenteredClipping,
        "mda": MDA,
        "mva": MVA,
        "smea": SMEA,
        "caf": CAF,
        "filter-l2": FilterL2,
        "monna": MoNNA,
        "cva": CVA,
        "faba": FABA,
        "bayes-mean": BayesMean,
        "dnc": DnC,
        "fltrust": FLTrust,
        "foolsgold": FoolsGold,
        "flame": FLAME,
        "signguard": SignGuard,
        "clipped-clustering": ClippedClustering,
        "lfighter": LFighter,
        "lasa": LASA,
        "fldetector": FLDetector,
        "sip": SIP,
        "guarded-sip": GuardedSIP,
        "posterior-mean": PosteriorMean,
        "prior-mean": PriorMean,
        "chance-constrained": AtQuantile,
        "prior-trimmed-mean": PriorTrimmedMean,
    },
    group="bezoar.rules",
)


def pipeline(tables: Any) -> Rule:
    """A rule, or mixings and a rule, from a list such as ``[{kind = "clip", radius = 5}, {kind = "mean"}]``.

    >>> pipeline([{"kind": "clip", "radius": 5.0}, "mean"])
    Pipeline(mixings=(Clip(radius=5.0),), rule=Mean(weighted=False, cap=None))
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


def rule_table(rule: Rule) -> dict[str, Any] | list[dict[str, Any]]:
    """The table that describes ``rule``, or the list of them if it is a pipeline."""
    tables = pipeline_tables(rule)
    return tables if len(tables) > 1 else tables[0]
