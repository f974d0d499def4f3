"""Models by name, initialised from a seed, and their parameters as one vector."""

from bezoar.models.flat import FlatModel, flat_copy, flatten, load_vector
from bezoar.models.registry import MODELS, ModelKind, make_model

__all__ = ["MODELS", "FlatModel", "ModelKind", "flat_copy", "flatten", "load_vector", "make_model"]
