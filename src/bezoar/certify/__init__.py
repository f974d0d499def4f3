"""What can be promised: robustness constants of rules and pipelines, and what nobody can promise.

>>> from bezoar.aggregation import TrimmedMean
>>> kappa(TrimmedMean(f=3), n=9)
1.0
"""

from bezoar.certify.constants import breakdown, constants, kappa
from bezoar.certify.lower_bound import (
    Dilemma,
    aggregation_floor,
    dilemma,
    dissimilarity,
    learnable,
    learning_floor,
)

__all__ = [
    "Dilemma",
    "aggregation_floor",
    "breakdown",
    "constants",
    "dilemma",
    "dissimilarity",
    "kappa",
    "learnable",
    "learning_floor",
]
