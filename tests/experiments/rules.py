"""Rules for tests of what the simulator hands to rules and keeps for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bezoar.aggregation import RULES, Aggregate, Context, Rule
from bezoar.aggregation.base import State
from bezoar.updates import Needs, Updates


@dataclass(frozen=True)
class Plain(Rule):
    """The mean; appends what it is shown to ``seen``."""

    f: int = 0
    needs: ClassVar[Needs] = Needs.LAYOUT
    seen: ClassVar[list[dict[str, Any]]] = []

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        vector = rows.materialise().mean(0)
        assert context.model is not None
        self.seen.append(
            {
                "round": context.round,
                "rows": rows.materialise().clone(),
                "clients": rows.clients.clone(),
                "layout": rows.layout,
                "model": context.model.clone(),
                "weights": context.client_weights,
                "root": context.root_gradient,
                "last": context.last_aggregate,
                "state": dict(state),
                "vector": vector.clone(),
            }
        )
        return Aggregate(vector, {"rounds": state.get("rounds", torch.tensor(0)) + 1})


@dataclass(frozen=True)
class Rooted(Plain):
    """The same with an update of the server."""

    uses_root: ClassVar[bool] = True


@dataclass(frozen=True)
class Remembering(Rule):
    """Every answer depends on all that is handed over and on memory of every kind."""

    f: int = 0
    needs: ClassVar[Needs] = Needs.NONE
    uses_root: ClassVar[bool] = True

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        assert context.root_gradient is not None
        assert context.client_weights is not None
        n = len(rows)
        weights = context.client_weights / context.client_weights.sum()
        vector = rows.combine(weights) + 0.1 * context.root_gradient
        if context.last_aggregate is not None:
            vector = vector + 0.1 * context.last_aggregate
        ids = rows.clients.to(torch.int64)
        history = state.get("history", torch.zeros(n, 3, dtype=torch.float64)) + rows.squared_norms()[:, None]
        vector = vector * (1 + 0.01 * torch.tanh(history.sum() + float(ids.sum())).to(vector.dtype))
        empty = state.get("empty", torch.empty(0, 4))
        assert empty.shape == (0, 4)
        count = state.get("a.dotted.name", torch.tensor(0)) + 1
        assert int(count) == context.round
        memory: dict[str, Tensor] = {
            "clients": ids,
            "history": history,
            "empty": empty,
            "a.dotted.name": count,
            "flags": torch.tensor([True, False]),
            "strided": torch.arange(6.0).view(2, 3).T,
            "half": torch.ones(2, dtype=torch.bfloat16),
        }
        for name, value in state.items():
            assert value.dtype == memory[name].dtype, name
            assert value.shape == memory[name].shape, name
        return Aggregate(vector, memory)


NAMES = {"test-plain": Plain, "test-rooted": Rooted, "test-remembering": Remembering}


def register() -> None:
    """Make the rules known in this process."""
    for name, rule in NAMES.items():
        if name not in list(RULES):
            RULES.add(name, rule)
