"""Who may be malicious: probabilities over honest sets."""

from bezoar.priors.base import Estimate, HonestPrior
from bezoar.priors.count import Count, Subsets
from bezoar.priors.explicit import Explicit
from bezoar.priors.family import Family
from bezoar.priors.graphs import edges_of_adjacency, edges_of_graph, edges_of_labels, edges_of_metadata
from bezoar.priors.groups import Groups
from bezoar.priors.independent import Independent
from bezoar.priors.ising import Ising
from bezoar.priors.known_bad import KnownBad
from bezoar.priors.mixture import Mixture, contaminated
from bezoar.registry import Registry

PRIORS: Registry[HonestPrior] = Registry(
    "prior",
    {
        "independent": Independent,
        "subsets": Subsets,
        "count": Count,
        "groups": Groups,
        "ising": Ising,
        "explicit": Explicit,
        "mixture": Mixture,
        "known-bad": KnownBad,
    },
    group="bezoar.priors",
)

__all__ = [
    "PRIORS",
    "Count",
    "Estimate",
    "Explicit",
    "Family",
    "Groups",
    "HonestPrior",
    "Independent",
    "Ising",
    "KnownBad",
    "Mixture",
    "Subsets",
    "contaminated",
    "edges_of_adjacency",
    "edges_of_graph",
    "edges_of_labels",
    "edges_of_metadata",
]
