"""Which layers of a model can be seen from inputs and output gradients, and why a model can not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bezoar.updates.ghost.conv import Conv1dLayer, Conv2dLayer
from bezoar.updates.ghost.embedding import EmbeddingLayer
from bezoar.updates.ghost.layer import GhostImpossibleError, Layer, Matrix
from bezoar.updates.ghost.linear import LinearLayer
from bezoar.updates.ghost.norm import GroupNormLayer, LayerNormLayer

#: By exact type: a subclass may use its parameters in ways of its own.
LAYERS: dict[type[nn.Module], type[Layer]] = {
    layer.kind: layer
    for layer in (LinearLayer, Conv1dLayer, Conv2dLayer, EmbeddingLayer, LayerNormLayer, GroupNormLayer)
}


@dataclass(frozen=True)
class Planned:
    """A module with trainable parameters: which of ``weight`` and ``bias`` are, by their position among them all.

    Modules that share a weight (an embedding and the head tied to it) have it at the same position.
    """

    module: nn.Module
    layer: Layer
    weight: int | None
    bias: int | None


def plan(model: nn.Module) -> list[Planned]:
    """The layers that own the trainable parameters; raises GhostImpossibleError with the reason if not all can be."""
    position = {id(p): i for i, p in enumerate(p for p in model.parameters() if p.requires_grad)}
    seen: dict[int, str] = {}
    matrices: set[str] = set()
    planned = []
    for path, module in model.named_modules():
        own = {name: p for name, p in module._parameters.items() if p is not None and p.requires_grad}
        for name, parameter in own.items():
            where = f"{path}.{name}" if path else name
            tied = name == "weight" and issubclass(LAYERS.get(type(module), Layer), Matrix)
            if id(parameter) in seen and not (tied and seen[id(parameter)] in matrices):
                raise GhostImpossibleError(f"parameter {seen[id(parameter)]!r} is shared with {where!r}")
            seen[id(parameter)] = where
            if tied:
                matrices.add(where)
            if type(module) not in LAYERS or name not in ("weight", "bias"):
                raise GhostImpossibleError(f"parameter {where!r} belongs to a layer of type {type(module).__name__}")
        if own:
            kind = LAYERS[type(module)]
            refusal = kind.refusal(module)
            if refusal:
                raise GhostImpossibleError(f"{path or 'the model'!r} is {refusal}")
            places = {name: position[id(p)] for name, p in own.items()}
            planned.append(Planned(module, kind(module), places.get("weight"), places.get("bias")))
    return planned
