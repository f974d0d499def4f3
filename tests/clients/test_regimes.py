"""What clients do beside plain gradients: weight decay, clipped steps, rates of their own; numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bezoar.clients import CLIENTS, Clients, Gradient, LocalSGD, Scratch, Work
from bezoar.errors import ConfigError
from bezoar.models import flatten


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets) ** 2 / 2


def work(weights: list[float], inputs: list[list[float]], targets: list[float], owners: list[int], **more: Any) -> Work:
    """A linear model without bias, x . w, under half the squared error: its gradient is (x . w - y) x."""
    model = nn.Linear(len(weights), 1, bias=False)
    vector = flatten(model)
    with torch.no_grad():
        vector.copy_(torch.tensor(weights))
    fields: dict[str, Any] = {"lr": 0.5, "round": 1, "seed": 0, "cohort": 4, **more}
    return Work(
        model, vector, Scratch(model), half_square, torch.tensor(inputs), torch.tensor(targets), torch.tensor(owners),
        **fields,
    )  # fmt: skip


def sent(clients: Clients, at: Work) -> list[list[float]]:
    return clients.updates(at).materialise().tolist()


#: Client 0: (1 * 2 + 0 - 1) (1, 0) = (1, 0); client 1: (2 * 4 - 3) (0, 2) = (0, 10).
TWO = ([2.0, 4.0], [[1.0, 0.0], [0.0, 2.0]], [1.0, 3.0], [0, 1])


def test_weight_decay_by_hand() -> None:
    assert sent(Gradient(), work(*TWO)) == [[1.0, 0.0], [0.0, 10.0]]
    # 0.5 w = (1, 2) on top.
    assert sent(Gradient(weight_decay=0.5), work(*TWO)) == [[2.0, 2.0], [1.0, 12.0]]
    # Split over a cohort of four: 0.125 w = (0.25, 0.5).
    assert sent(Gradient(weight_decay=0.5, split_decay=True), work(*TWO)) == [[1.25, 0.5], [0.25, 10.5]]
    assert sent(Gradient(split_decay=True), work(*TWO)) == [[1.0, 0.0], [0.0, 10.0]]
    # One step of local training, in one pass or client by client: lr times that.
    for clients in (LocalSGD(weight_decay=0.5), LocalSGD(weight_decay=0.5, batch_size=1)):
        assert sent(clients, work(*TWO)) == [[1.0, 1.0], [0.5, 6.0]]


def test_weight_decay_lies_inside_the_clipped_vector() -> None:
    from bezoar.aggregation import Clip, Mean

    decayed = Gradient(weight_decay=0.5).updates(work(*TWO))
    # Norms sqrt(8) and sqrt(145), both brought down to 1.
    expected = torch.tensor([[2.0, 2.0], [1.0, 12.0]])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close((Clip(1.0) >> Mean())(decayed), expected.mean(0))


def test_split_decay_moves_the_mean_by_that_much_less() -> None:
    """Each of n clients adds wd / n times the model: the mean over the round is decayed by wd / n, not by wd."""
    at = work(*TWO)
    plain, split = (Gradient(weight_decay=w, split_decay=s) for w, s in ((0.0, False), (0.5, True)))
    gap = torch.tensor(sent(split, at)).mean(0) - torch.tensor(sent(plain, at)).mean(0)
    assert gap.tolist() == [0.5 / 4 * 2.0, 0.5 / 4 * 4.0]


@pytest.mark.parametrize("method", ["ghost", "loop"])
def test_decayed_ghosts_are_decayed_rows(method: str) -> None:
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    vector = flatten(model)
    inputs, targets = torch.randn(10, 12, generator=draws), torch.randint(3, (10,), generator=draws)
    owners = torch.arange(10) // 2
    loss = nn.CrossEntropyLoss(reduction="none")
    at = Work(model, vector, Scratch(model), loss, inputs, targets, owners, 0.1, 1, 0, 5)
    rows = Gradient(method).updates(at).materialise()
    decayed = Gradient(method, weight_decay=0.3).updates(at)
    expected = rows + 0.3 * vector.detach()
    torch.testing.assert_close(decayed.materialise(), expected)
    torch.testing.assert_close(decayed.squared_norms(), expected.double().square().sum(1), rtol=1e-5, atol=1e-7)
    weights = torch.tensor([0.5, -1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(decayed.combine(weights), weights.float() @ expected, rtol=1e-4, atol=1e-5)


def test_clipped_steps_by_hand() -> None:
    # Gradients (1, 0) and (0, 10) clipped to 4 and then times 0.5.
    for clients in (LocalSGD(step_radius=4.0), LocalSGD(step_radius=4.0, batch_size=1)):
        assert sent(clients, work(*TWO)) == [[0.5, 0.0], [0.0, 2.0]]
    # Decay comes first: (1, 12) has norm sqrt(145).
    found = torch.tensor(sent(LocalSGD(step_radius=4.0, weight_decay=0.5), work(*TWO)))
    assert found[1].norm().item() == pytest.approx(0.5 * 4.0)
    assert found[1].tolist() == pytest.approx([2 / math.sqrt(145), 24 / math.sqrt(145)])
    # Two epochs: from 4 to 2, then the gradient there is (2 * 2 - 3) 2 = 2, which is short enough.
    assert sent(LocalSGD(epochs=2, step_radius=4.0), work(*TWO))[1] == [0.0, 3.0]
    # A whole update may be longer than the radius, unlike one that the server clips.
    far = work([100.0], [[1.0]], [0.0], [0], lr=1.0)
    assert sent(LocalSGD(epochs=3, step_radius=4.0), far) == [[12.0]]


def test_local_rate_decays_after_every_step() -> None:
    # Gradient w: 8 -> 8 (1 - 1/2) = 4 -> 4 (1 - 1/4) = 3 -> 3 (1 - 1/8) = 2.625.
    one = work([8.0], [[1.0]], [0.0], [0])
    assert sent(LocalSGD(epochs=3, lr_decay=0.5), one) == [[8.0 - 2.625]]
    assert sent(LocalSGD(epochs=3), one) == [[7.0]]
    # Two batches an epoch are two steps.
    two = work([8.0], [[1.0], [1.0]], [0.0, 0.0], [0, 0])
    assert sent(LocalSGD(batch_size=1, lr_decay=0.5), two) == [[8.0 - 3.0]]


def test_two_rates_square_the_schedule() -> None:
    assert LocalSGD().server_lr(0.2) == 1.0
    assert LocalSGD(server_lr_factor=2.0).server_lr(0.2) == 2.0
    assert LocalSGD(server_schedule=True).server_lr(0.2) == 0.2
    assert LocalSGD(server_schedule=True, server_lr_factor=2.0).server_lr(0.2) == pytest.approx(0.4)
    # A model that sees one client moves by lr * server's lr * gradient = lr^2 * gradient.
    clients = LocalSGD(server_schedule=True)
    at = work([2.0], [[1.0]], [1.0], [0], lr=0.2)
    assert clients.server_lr(at.lr) * sent(clients, at)[0][0] == pytest.approx(0.2**2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gradient(weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: LocalSGD(weight_decay=math.nan), "weight_decay must be at least 0"),
        (lambda: LocalSGD(step_radius=-1.0), "step_radius must be a number >= 0"),
        (lambda: LocalSGD(step_radius=math.inf), "step_radius must be a number >= 0"),
        (lambda: LocalSGD(lr_decay=0.0), "lr_decay must be above 0"),
        (lambda: LocalSGD(lr_decay=1.1), "lr_decay must be above 0 and at most 1"),
    ],
)
def test_nonsense_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_tables_round_trip() -> None:
    for clients in (
        Gradient(weight_decay=0.1, split_decay=True),
        LocalSGD(step_radius=2.0, lr_decay=0.9, server_schedule=True, weight_decay=0.5),
    ):
        assert CLIENTS.build(CLIENTS.table(clients)) == clients
