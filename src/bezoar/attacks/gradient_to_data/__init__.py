"""From a target gradient to data that have it: what a gradient attack can do, data poisoning can do as well."""

from bezoar.attacks.gradient_to_data.base import (
    GradientToData,
    Match,
    Points,
    compare,
    match,
    points_gradient,
    sample_losses,
)
from bezoar.attacks.gradient_to_data.equiprobable import Equiprobable, equiprobable_points
from bezoar.attacks.gradient_to_data.linear import LinearPoint, linear_point
from bezoar.attacks.gradient_to_data.logistic import LogisticCopies
from bezoar.attacks.gradient_to_data.matching import Found, GradientMatching
from bezoar.attacks.gradient_to_data.softmax import SoftmaxExact
from bezoar.registry import Registry

GRADIENT_TO_DATA: Registry[GradientToData] = Registry(
    "way from gradients to data",
    {
        "linear-point": LinearPoint,
        "logistic-copies": LogisticCopies,
        "softmax-exact": SoftmaxExact,
        "equiprobable": Equiprobable,
        "matching": GradientMatching,
    },
)

__all__ = [
    "GRADIENT_TO_DATA",
    "Equiprobable",
    "Found",
    "GradientMatching",
    "GradientToData",
    "LinearPoint",
    "LogisticCopies",
    "Match",
    "Points",
    "SoftmaxExact",
    "compare",
    "equiprobable_points",
    "linear_point",
    "match",
    "points_gradient",
    "sample_losses",
]
