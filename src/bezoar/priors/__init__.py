"""Who may be malicious: probabilities over honest sets."""

from bezoar.priors.base import Prior
from bezoar.priors.groups import Groups
from bezoar.priors.independent import Independent
from bezoar.registry import Registry

PRIORS: Registry[Prior] = Registry("prior", {"independent": Independent, "groups": Groups})

__all__ = ["PRIORS", "Groups", "Independent", "Prior"]
