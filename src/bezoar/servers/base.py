"""What a server does with an aggregate: explicit state in, a step and the new state out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.servers.traffic import Traffic, dense

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What to subtract from the model: ``values`` [d], or ``values`` [k] at ``index`` [k] (ascending)."""

    values: Tensor
    index: Tensor | None
    state: State

    def apply_(self, weights: Tensor) -> None:
        """Subtract the step from the flat model ``weights`` [d] in place."""
        with torch.no_grad():
            if self.index is None:
                weights -= self.values
            else:
                # Indices are distinct, so that nothing depends on an order.
                weights.index_add_(0, self.index, self.values, alpha=-1)

    def dense(self, d: int) -> Tensor:
        """The step as a vector [d]."""
        if self.index is None:
            return self.values
        out = torch.zeros(d, dtype=self.values.dtype, device=self.values.device)
        out[self.index] = self.values
        return out


@dataclass(frozen=True)
class Server(ABC):
    """Turns aggregates [d] into steps of the global model."""

    def check(self, d: int) -> None:  # noqa: B027 - most servers fit every model
        """Raise ``ConfigError`` unless the parameters fit a model of d parameters."""

    def traffic(self, d: int) -> Traffic:
        """Bytes that a client sends and fetches in a round, for a model of d parameters: all of it both ways.

        Servers whose steps are sparse say how much one step is: then every client fetches exactly what has moved
        since it last took part (see :mod:`bezoar.servers.traffic`).
        """
        return Traffic(up=dense(d), down=dense(d))

    @abstractmethod
    def step(self, aggregate: Tensor, lr: float, state: State) -> Step:
        """One round: ``aggregate`` [d] in descent sign, learning rate ``lr``, the state of the last call ({} first)."""


def check_momentum(owner: str, momentum: float) -> None:
    """Raise unless 0 <= momentum < 1."""
    if not 0 <= momentum < 1:
        raise ConfigError(f"{owner}: momentum must be at least 0 and below 1, got {momentum}")


def check_choices(server: Server) -> None:
    """Raise unless every option that is one of a few words is one of them."""
    owner = type(server)
    for name, hint in get_type_hints(owner).items():
        value = getattr(server, name, None)
        if get_origin(hint) is Literal and value not in get_args(hint):
            words = " or ".join(map(repr, get_args(hint)))
            raise ConfigError(f"{owner.__name__}: {name} must be {words}, got {value!r}")


def share_or_count(owner: str, name: str, value: int | str, d: int) -> int:
    """How many of d ``value`` means: a count, or a share such as ``"1%"``, rounded to the nearest count, at least 1."""
    if isinstance(value, str):
        try:
            share = float(value.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not value.endswith("%") or not 0 < share <= 1:
            raise ConfigError(f'{owner}: {name} must be a count or a share such as "1%", got {value!r}')
        return max(1, round(share * d))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{owner}: {name} must be at least 1, got {value!r}")
    return value
