"""Each supported layer with each of its options, in every form its client gradients can take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bezoar.updates import client_gradients
from bezoar.updates.ghost import GhostUpdates
from bezoar.updates.ghost.parts import Held, Rows

__all__ = ["one_thread"]
from tests.updates.test_gradients import RAGGED, check, close, losses, one_thread, oracle

pytestmark = pytest.mark.usefixtures("one_thread")

EVEN = torch.arange(8) // 2


class Head(nn.Module):
    """Some nonlinear but cheap way to three logits, so that a layer stands alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.tanh(self.layer(x)).flatten(1)
        return flat[:, : flat.shape[1] // 3 * 3].unflatten(1, (3, -1)).square().sum(2)


def inputs_for(shape: tuple[int, ...], n: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(n))


def check_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    for clients, dtype in ((RAGGED, torch.float64), (EVEN, torch.float32)):
        torch.manual_seed(0)
        for p in layer.parameters():
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        check(Head(layer).to(dtype), inputs_for(shape, len(clients), dtype), clients)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("features", "shape"), [(4, (6,)), (4, (7, 6)), (30, (2, 2, 40)), (3, (50, 2))])
def test_linear(features: int, shape: tuple[int, ...], bias: bool) -> None:
    check_layer(nn.Linear(shape[-1], features, bias=bias), shape)


CONVOLUTIONS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"in_channels": 3, "out_channels": 4, "kernel_size": 3}, (3, 5, 6)),
    ({"in_channels": 5, "out_channels": 4, "kernel_size": 3, "padding": 1}, (5, 4, 5)),
    ({"in_channels": 5, "out_channels": 4, "kernel_size": (3, 2), "padding": (2, 1), "stride": (2, 1)}, (5, 5, 4)),
    ({"in_channels": 3, "out_channels": 4, "kernel_size": 3, "dilation": 2, "padding": 2, "bias": False}, (3, 5, 6)),
    ({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "padding": 1}, (4, 4, 4)),
    ({"in_channels": 4, "out_channels": 8, "kernel_size": 3, "groups": 4}, (4, 4, 4)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": "same"}, (2, 4, 4)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": (4, 2), "padding": "same"}, (2, 4, 4)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 2, "padding": "valid"}, (2, 4, 4)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (2, 4, 4)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"}, (2, 4, 5)),
    ({"in_channels": 40, "out_channels": 30, "kernel_size": 1}, (40, 2, 2)),
    # Few positions, many parameters: the ghost form, by shifted windows and by unfolding.
    ({"in_channels": 30, "out_channels": 40, "kernel_size": 3, "padding": 1}, (30, 2, 3)),
    ({"in_channels": 30, "out_channels": 40, "kernel_size": 3, "padding": (1, 2), "dilation": (1, 2)}, (30, 3, 2)),
    ({"in_channels": 30, "out_channels": 40, "kernel_size": 3, "padding": 1, "stride": 2}, (30, 4, 4)),
    ({"in_channels": 40, "out_channels": 40, "kernel_size": (1, 2), "stride": (3, 2)}, (40, 4, 4)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("options", "shape"), CONVOLUTIONS)
def test_conv2d(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    check_layer(nn.Conv2d(**options), shape)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"in_channels": 2, "out_channels": 3, "kernel_size": 3}, (2, 7)),
        ({"in_channels": 20, "out_channels": 6, "kernel_size": 3, "padding": 1, "stride": 2}, (20, 8)),
        ({"in_channels": 4, "out_channels": 6, "kernel_size": 2, "padding": "same", "groups": 2}, (4, 5)),
        ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 2, "padding_mode": "replicate"}, (2, 5)),
        ({"in_channels": 30, "out_channels": 40, "kernel_size": 3, "padding": 1}, (30, 4)),
    ],
)
def test_conv1d(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    check_layer(nn.Conv1d(**options), shape)


@pytest.mark.parametrize("options", [{}, {"bias": False}])
@pytest.mark.parametrize(("normalised", "shape"), [((6,), (6,)), ((6,), (3, 6)), ((2, 6), (3, 2, 6)), ((4, 3), (4, 3))])
def test_layer_norm(normalised: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]) -> None:
    check_layer(nn.LayerNorm(normalised, **options), shape)


@pytest.mark.parametrize(("groups", "shape"), [(2, (4,)), (1, (4, 3)), (4, (4, 3, 3)), (2, (6, 2, 2, 2))])
def test_group_norm(groups: int, shape: tuple[int, ...]) -> None:
    layer = nn.GroupNorm(groups, shape[0])
    if shape == (4,):
        layer.eps = 0.1
    check_layer(layer, shape)


class Tokens(nn.Module):
    def __init__(self, twice: bool = False, **options: Any) -> None:
        super().__init__()
        self.table, self.twice = nn.Embedding(11, 5, **options), twice
        self.out = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.table(tokens).tanh().flatten(1, -2)
        if self.twice:
            features = features + self.table(tokens.flip(0).flip(0) // 2).flatten(1, -2)
        logits: Tensor = self.out(features).sum(1)
        return logits


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"twice": True}])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 2)])
def test_embedding(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    for clients, dtype in ((RAGGED, torch.float64), (EVEN, torch.float32)):
        torch.manual_seed(0)
        tokens = torch.randint(11, (len(clients), *shape))
        check(Tokens(**options).to(dtype), tokens, clients)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embedding_options_that_tie_clients_are_refused(options: dict[str, Any]) -> None:
    tokens = torch.randint(11, (13, 4))
    with pytest.raises(ValueError, match=next(iter(options))):
        client_gradients(Tokens(**options), losses, tokens, torch.zeros(13, dtype=torch.int64), RAGGED, "ghost")


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Conv2d(5, 4, 3), (5, 4, 4)),
        (nn.LayerNorm(6), (6,)),
        (nn.GroupNorm(2, 4), (4, 3)),
    ],
)
def test_half_frozen_layers(layer: nn.Module, shape: tuple[int, ...], frozen: str) -> None:
    getattr(layer, frozen).requires_grad_(False)
    try:
        check_layer(layer, shape)
    finally:
        getattr(layer, frozen).requires_grad_(True)


def test_a_frozen_first_layer_and_a_frozen_layer_in_between() -> None:
    torch.manual_seed(0)
    for frozen in (0, 2):
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
        model[frozen].requires_grad_(False)
        check(model, torch.randn(13, 6), RAGGED)


def test_in_place_after_the_first_layer_with_positions() -> None:
    """The first layer's output needs no gradient of its own; what follows may change it in place."""
    torch.manual_seed(0)
    for first, shape in ((nn.Linear(6, 4), (5, 6)), (nn.Conv1d(6, 4, 2), (6, 6)), (nn.LayerNorm(4), (5, 4))):
        model = nn.Sequential(first, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(20, 3))
        check(model, torch.randn(13, *shape), RAGGED)


def parts_of(model: nn.Module, inputs: Tensor, clients: Tensor) -> list[type]:
    updates = client_gradients(
        model, losses, inputs, torch.zeros(len(inputs), dtype=torch.int64), clients, method="ghost"
    )
    assert isinstance(updates, GhostUpdates)
    return [type(part) for part in updates._parts]


def test_the_cheaper_form_is_chosen() -> None:
    wide, narrow = nn.Linear(30, 40, bias=False), nn.Linear(4, 4, bias=False)
    assert parts_of(Head(wide), torch.randn(8, 30), EVEN) == [Held]
    assert parts_of(Head(narrow), torch.randn(8, 9, 4), EVEN) == [Rows]


def test_rows_too_large_to_keep_are_formed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bezoar.updates.ghost.tape.WORK_BYTES", 0)
    monkeypatch.setattr("bezoar.updates.ghost.linear.LinearLayer.prefers_ghost", lambda *_: False)
    torch.manual_seed(0)
    many = torch.arange(30) // 2
    convolution = nn.Conv2d(6, 6, 3, padding=1, bias=False)
    for layer, shape in ((nn.Linear(30, 20, bias=False), (30,)), (convolution, (6, 3, 3))):
        model = Head(layer).double()
        inputs = inputs_for(shape, 30, torch.float64)
        assert parts_of(model, inputs, many) == [Held]
        check(model, inputs, many)
    model = Head(nn.Sequential(convolution, nn.Tanh(), convolution)).double()
    inputs = inputs_for((6, 3, 3), 30, torch.float64)
    assert parts_of(model, inputs, many) == [Held]
    check(model, inputs, many)


def test_work_in_small_pieces_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bezoar.updates.ghost.conv._TABLE_BYTES", 1)
    monkeypatch.setattr("bezoar.updates.ghost.conv._PIECE_BYTES", 1)
    monkeypatch.setattr("bezoar.updates.ghost.parts.WORK_BYTES", 1)
    for options, shape in (CONVOLUTIONS[1], CONVOLUTIONS[4], CONVOLUTIONS[12], CONVOLUTIONS[14]):
        check_layer(nn.Conv2d(**options), shape)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_unfolded_rows_equal_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other devices use, here on the CPU."""
    monkeypatch.setattr("bezoar.updates.ghost.conv._FEW_TAPS", 10**6)
    for options, shape in CONVOLUTIONS:
        if options.get("groups", 1) == 1:
            check_layer(nn.Conv2d(**options), shape)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_rows_client_by_client_equal_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What large samples use."""
    monkeypatch.setattr("bezoar.updates.ghost.conv._LARGE_SAMPLE", 1)
    monkeypatch.setattr("bezoar.updates.ghost.conv._FEW_TAPS", 0)
    for options, shape in CONVOLUTIONS:
        check_layer(nn.Conv2d(**options), shape)


def test_many_samples_a_client() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    inputs, clients = torch.randn(400, 6).double(), torch.arange(400) // 200
    targets = torch.randint(3, (400,))
    updates = client_gradients(model, losses, inputs, targets, clients, "ghost")
    close(updates.squared_norms(), oracle(model, inputs, targets, clients).square().sum(1), 1e-12)
