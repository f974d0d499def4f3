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

__all__ = ["GradientToData", "Match", "Points", "compare", "match", "points_gradient", "sample_losses"]
