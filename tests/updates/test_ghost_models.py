"""Whole models for which per-client gradients need more than one layer's form: recurrent, normalised, tied."""

from __future__ import annotations

import pytest
import torch

from bezoar.models import make_model
from bezoar.updates import client_gradients
from bezoar.updates.ghost import GhostUpdates

__all__ = ["one_thread"]
from tests.updates.test_gradients import RAGGED, check, close, losses, one_thread, oracle

pytestmark = pytest.mark.usefixtures("one_thread")

EVEN = torch.arange(8) // 2


def tokens(n: int, length: int, names: int) -> torch.Tensor:
    return torch.randint(names, (n, length), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("clients", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("length", "hidden", "layers"), [(6, 3, 2), (1, 4, 1), (2, 12, 1)])
def test_lstm(length: int, hidden: int, layers: int, dtype: torch.dtype, clients: torch.Tensor) -> None:
    model = make_model("lstm", (length,), 7, 0, embedding=3, hidden=hidden, layers=layers).to(dtype)
    assert isinstance(check(model, tokens(len(clients), length, 7), clients), GhostUpdates)


def test_lstm_of_one_sample() -> None:
    model = make_model("lstm", (4,), 7, 0, embedding=3, hidden=5).double()
    assert isinstance(check(model, tokens(1, 4, 7), torch.tensor([3])), GhostUpdates)


def test_resnet101_with_layer_norm() -> None:
    clients = torch.tensor([5, 2, 5])
    model = make_model("resnet101-layernorm", (1, 9, 8), 3, 0, width=2).double()
    images = torch.randn(3, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 2, 1])
    updates = client_gradients(model, losses, images, targets, clients, "ghost")
    assert isinstance(updates, GhostUpdates)
    rows = oracle(model, images, targets, clients)
    close(updates.squared_norms(), rows.square().sum(1), 1e-9)
    close(updates.materialise(), rows, 1e-9)
    weights = torch.tensor([0.5, -1.0], dtype=torch.float64)
    close(updates.combine(weights), weights @ rows, 1e-9)


@pytest.mark.parametrize("clients", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [("lstm", {"embedding": 4, "hidden": 4}), ("transformer", {"width": 8, "heads": 2}), ("lstm", {"embedding": 1})],
    ids=["lstm", "transformer", "narrow"],
)
def test_a_tied_table_counts_the_cross_terms_of_its_two_uses(
    name: str, options: dict[str, int], dtype: torch.dtype, clients: torch.Tensor
) -> None:
    options = {**options, **({"hidden": 1} if options == {"embedding": 1} else {})}
    model = make_model(name, (5,), 7, 0, tied=True, **options).to(dtype)
    assert isinstance(check(model, tokens(len(clients), 5, 7), clients), GhostUpdates)


@pytest.mark.parametrize("work", [1, 100, 2**24])
def test_parts_of_a_tied_table_of_different_kinds_are_cut_alike(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("parts", "tape", "updates"):
        monkeypatch.setattr(f"bezoar.updates.ghost.{module}.WORK_BYTES", work)
    model = make_model("lstm", (5,), 7, 0, embedding=4, hidden=4, tied=True).double()
    check(model, tokens(len(EVEN), 5, 7), EVEN)


def test_a_weight_shared_otherwise_is_taken_client_by_client() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)
            self.second.weight = self.first.weight
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x).tanh()))

    with pytest.warns(UserWarning, match=r"one client at a time .*'first.weight' is shared with 'second.weight'"):
        check(Shared().double(), torch.randn(len(EVEN), 4, dtype=torch.float64), EVEN, "auto")
