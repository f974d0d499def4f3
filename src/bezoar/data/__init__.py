"""Data sets, who holds which sample, and who takes part in a round."""

from bezoar.data.dataset import Dataset, Samples
from bezoar.data.federation import Federation
from bezoar.data.loaders import DATASETS, Source, load
from bezoar.data.partitions import (
    PARTITIONS,
    Dirichlet,
    Iid,
    Natural,
    OneClass,
    Partition,
    Similarity,
    Sorted,
    partition,
)
from bezoar.data.sampling import (
    SAMPLINGS,
    EpochSampling,
    Sampling,
    UniformSampling,
    compromised,
)

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "SAMPLINGS",
    "Dataset",
    "Dirichlet",
    "EpochSampling",
    "Federation",
    "Iid",
    "Natural",
    "OneClass",
    "Partition",
    "Samples",
    "Sampling",
    "Similarity",
    "Sorted",
    "Source",
    "UniformSampling",
    "compromised",
    "load",
    "partition",
]
