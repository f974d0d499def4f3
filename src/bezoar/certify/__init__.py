"""What can be promised: robustness constants of rules and pipelines, the choice of k, and what nobody can promise.

>>> from bezoar.aggregation import TrimmedMean
>>> kappa(TrimmedMean(f=3), n=9)
1.0
"""

from bezoar.certify.choose_k import LossCurve, choose_k, loss_curve
from bezoar.certify.constants import breakdown, constants, kappa
from bezoar.certify.convergence import contraction, ef_sgd_bound, ef_sgd_lr
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
    "LossCurve",
    "aggregation_floor",
    "breakdown",
    "choose_k",
    "constants",
    "contraction",
    "dilemma",
    "dissimilarity",
    "ef_sgd_bound",
    "ef_sgd_lr",
    "kappa",
    "learnable",
    "learning_floor",
    "loss_curve",
]
