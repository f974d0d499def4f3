"""A model's trainable parameters as one contiguous vector, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezoar.errors import ConfigError
from bezoar.updates import Layout
from bezoar.updates.gradients import layout_of


def flatten(model: nn.Module) -> Tensor:
    """Make the trainable parameters of ``model`` views into one contiguous vector [d], and return that vector.

    The order is that of ``model.parameters()``; values stay, buffers and frozen parameters are untouched. From then on
    an in-place change of the vector moves the model, and the parameters' version counters notice it. The parameters
    are new objects: flatten before an optimiser is made. ``copy.deepcopy`` and ``model.to`` break the tie; flatten
    again after them.

    Raises ConfigError if nothing is trainable or the parameters differ in dtype or device.

    >>> model = nn.Linear(2, 1)
    >>> vector = flatten(model)
    >>> _ = vector.fill_(3.0)
    >>> model.weight.tolist(), model.bias.tolist()
    ([[3.0, 3.0]], [3.0])
    """
    old = _trainable(model)
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in old])
    # A fresh Parameter on a view shares the vector's version counter; assigning to `.data` would not.
    pieces = torch.split(vector, [parameter.numel() for parameter in old])
    new = {
        id(parameter): nn.Parameter(piece.view(parameter.shape)) for parameter, piece in zip(old, pieces, strict=True)
    }
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in new:
                setattr(module, name, new[id(parameter)])
    return vector


def flat_copy(model: nn.Module) -> Tensor:
    """A copy of the trainable parameters as one vector [d], in ``model.parameters()`` order."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in _trainable(model)])


def load_vector(model: nn.Module, vector: Tensor) -> None:
    """Copy ``vector`` [d] into the trainable parameters of ``model``, in place, flattened or not.

    Raises ConfigError if the length is wrong.
    """
    parameters = _trainable(model)
    size = sum(parameter.numel() for parameter in parameters)
    if vector.shape != (size,):
        raise ConfigError(f"the model has {size} trainable parameters, the vector has shape {list(vector.shape)}")
    with torch.no_grad():
        pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.view(parameter.shape))


@dataclass(frozen=True, eq=False)
class FlatModel:
    """A model, the vector [d] that its trainable parameters are views of, and where each lives in it.

    >>> flat = FlatModel.of(nn.Linear(2, 1))
    >>> [(segment.name, segment.stop) for segment in flat.layout]
    [('weight', 2), ('bias', 3)]
    """

    model: nn.Module
    vector: Tensor
    layout: Layout

    @classmethod
    def of(cls, model: nn.Module) -> FlatModel:
        """Flatten ``model``; see :func:`flatten`."""
        vector = flatten(model)
        return cls(model, vector, layout_of(model))

    @property
    def d(self) -> int:
        """Number of trainable parameters."""
        return len(self.vector)

    def load(self, vector: Tensor) -> None:
        """Copy ``vector`` [d] into the model. Raises ConfigError if the length is wrong."""
        if vector.shape != self.vector.shape:
            raise ConfigError(f"the model has {self.d} trainable parameters, the vector has shape {list(vector.shape)}")
        self.vector.copy_(vector.detach())


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"{type(model).__name__} has no trainable parameters")
    kinds = sorted({f"{parameter.dtype} on {parameter.device}" for parameter in parameters})
    if len(kinds) > 1:
        raise ConfigError(
            f"{type(model).__name__} mixes parameters of {' and '.join(kinds)}: one vector needs one kind"
        )
    return parameters
