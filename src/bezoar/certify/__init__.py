"""What can be promised: robustness constants, certified radii and predictions, the choice of k, and what nobody can.

>>> from bezoar.aggregation import TrimmedMean
>>> kappa(TrimmedMean(f=3), n=9)
1.0
"""

from bezoar.certify.choose_f import ChosenF, best_f
from bezoar.certify.choose_k import LossCurve, choose_k, loss_curve
from bezoar.certify.constants import breakdown, constants, kappa
from bezoar.certify.convergence import contraction, ef_sgd_bound, ef_sgd_lr
from bezoar.certify.crfl import NoisyRound, certified_labels, distance_radius, divergence, label_divergence, total_shift
from bezoar.certify.ensemble import all_subsets, exact_ensemble, fixed_groups, random_subsets, sampled_ensemble
from bezoar.certify.expected import ExpectedGuarantee, expected_guarantee
from bezoar.certify.families import family_constants, rho
from bezoar.certify.flcert import disjoint_groups, flcert_d
from bezoar.certify.frontier import Frontier, Looks, frontiers, least_bound
from bezoar.certify.lipschitz import lower_estimate, softmax_constant, softmax_growth, softmax_smoothness
from bezoar.certify.lower_bound import Dilemma, aggregation_floor, dilemma, dissimilarity, learnable, learning_floor
from bezoar.certify.objectives import Reading, expected_loss, worst_case_loss, worst_case_weights
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
from bezoar.certify.votes import ABSTAINED, Certified, count_votes

__all__ = [
    "ABSTAINED",
    "Certified",
    "ChosenF",
    "Dilemma",
    "ExpectedGuarantee",
    "Frontier",
    "Looks",
    "LossCurve",
    "NoisyRound",
    "Reading",
    "aggregation_floor",
    "all_subsets",
    "best_f",
    "breakdown",
    "certified",
    "certified_labels",
    "choose_k",
    "constants",
    "contraction",
    "count_votes",
    "dilemma",
    "disjoint_groups",
    "dissimilarity",
    "distance_radius",
    "divergence",
    "ef_sgd_bound",
    "ef_sgd_lr",
    "error_feedback_bound",
    "exact_ensemble",
    "exact_solution",
    "expected_guarantee",
    "expected_loss",
    "family_constants",
    "fixed_groups",
    "flcert_d",
    "frontiers",
    "guaranteed_loss_rate",
    "invalid_below_lr_one",
    "kappa",
    "label_divergence",
    "learnable",
    "learning_floor",
    "least_bound",
    "log_radius",
    "log_reach",
    "loss_curve",
    "lower_estimate",
    "poison_bound",
    "random_subsets",
    "rho",
    "safe_bound",
    "sampled_ensemble",
    "softmax_constant",
    "softmax_growth",
    "softmax_smoothness",
    "total_shift",
    "update_bound",
    "worst_case_loss",
    "worst_case_weights",
]
