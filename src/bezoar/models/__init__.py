"""Models by name, initialised from a seed, and their parameters as one vector."""

from bezoar.models.flat import FlatModel, flat_copy, flatten, load_vector
from bezoar.models.lora import LoRALinear, add_lora, merged
from bezoar.models.registry import MODELS, ModelKind, make_model
from bezoar.models.subset import Built, LoRA, built

__all__ = [
    "MODELS",
    "Built",
    "FlatModel",
    "LoRA",
    "LoRALinear",
    "ModelKind",
    "add_lora",
    "built",
    "flat_copy",
    "flatten",
    "load_vector",
    "make_model",
    "merged",
]
