"""Who may be malicious: probabilities over honest sets."""

from bezoar.priors.base import HonestPrior
from bezoar.priors.explicit import Explicit
from bezoar.priors.family import Family
from bezoar.priors.groups import Groups
from bezoar.priors.independent import Independent
from bezoar.registry import Registry

PRIORS: Registry[HonestPrior] = Registry(
    "prior", {"independent": Independent, "groups": Groups, "explicit": Explicit}, group="bezoar.priors"
)

__all__ = ["PRIORS", "Explicit", "Family", "Groups", "HonestPrior", "Independent"]
