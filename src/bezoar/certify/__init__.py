"""What can be promised: robustness constants, certified radii and predictions, the choice of k, and what nobody can.

>>> from bezoar.aggregation import TrimmedMean
>>> kappa(TrimmedMean(f=3), n=9)
1.0
"""

from bezoar.certify.choose_k import LossCurve, choose_k, loss_curve
from bezoar.certify.constants import breakdown, constants, kappa
from bezoar.certify.convergence import contraction, ef_sgd_bound, ef_sgd_lr
from bezoar.certify.lipschitz import (
    lower_estimate,
    softmax_constant,
    softmax_growth,
    softmax_smoothness,
)
from bezoar.certify.lower_bound import (
    Dilemma,
    aggregation_floor,
    dilemma,
    dissimilarity,
    learnable,
    learning_floor,
)
from bezoar.certify.prediction import certified
from bezoar.certify.radius import (
    error_feedback_bound,
    exact_solution,
    guaranteed_loss_rate,
    invalid_below_lr_one,
    log_radius,
    log_reach,
    poison_bound,
    safe_bound,
    update_bound,
)

__all__ = [
    "Dilemma",
    "LossCurve",
    "aggregation_floor",
    "breakdown",
    "certified",
    "choose_k",
    "constants",
    "contraction",
    "dilemma",
    "dissimilarity",
    "ef_sgd_bound",
    "ef_sgd_lr",
    "error_feedback_bound",
    "exact_solution",
    "guaranteed_loss_rate",
    "invalid_below_lr_one",
    "kappa",
    "learnable",
    "learning_floor",
    "log_radius",
    "log_reach",
    "loss_curve",
    "lower_estimate",
    "poison_bound",
    "safe_bound",
    "softmax_constant",
    "softmax_growth",
    "softmax_smoothness",
    "update_bound",
]
