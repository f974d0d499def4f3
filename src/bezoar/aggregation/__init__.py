"""Robust rules: n updates in, one vector out.

>>> import torch
>>> (Clip(5.0) >> TrimmedMean(f=1))(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
tensor([2.3333, 1.6667])
"""

from bezoar.aggregation.base import Aggregate, Columnwise, Context, Mixing, Part, Pipeline, Rule, Weighting
from bezoar.aggregation.clip import Clip
from bezoar.aggregation.krum import Krum
from bezoar.aggregation.mean import Mean
from bezoar.aggregation.median import Median
from bezoar.aggregation.registry import RULES, pipeline, pipeline_tables
from bezoar.aggregation.trimmed_mean import TrimmedMean

__all__ = [
    "RULES",
    "Aggregate",
    "Clip",
    "Columnwise",
    "Context",
    "Krum",
    "Mean",
    "Median",
    "Mixing",
    "Part",
    "Pipeline",
    "Rule",
    "TrimmedMean",
    "Weighting",
    "pipeline",
    "pipeline_tables",
]
