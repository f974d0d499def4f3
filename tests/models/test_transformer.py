from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from bezoar.errors import ConfigError
from bezoar.models import make_model
from bezoar.models.transformer import Transformer
from bezoar.updates import client_gradients
from bezoar.updates.ghost import GhostUpdates
from tests.updates.test_ghost_models import tokens
from tests.updates.test_gradients import RAGGED, check, losses

EVEN = torch.arange(8) // 2


def made(length: int = 6, **options: object) -> Transformer:
    model = make_model("transformer", (length,), 7, 0, **{"width": 8, "heads": 2, "layers": 2, **options}).double()
    assert isinstance(model, Transformer)
    # GPT-2's first weights leave the attention nearly uniform: tests would not see it.
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return model


def by_hand(model: Transformer, x: torch.Tensor) -> torch.Tensor:
    """Logits at every position, attention written out with an explicit mask."""
    weights = dict(model.named_parameters())

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    length = x.shape[1]
    h = weights["tokens.weight"][x] + weights["positions.weight"][:length]
    hidden = torch.ones(length, length).triu(1).bool()
    for i, block in enumerate(model.blocks):
        a = norm(h, f"blocks.{i}.norm1")
        heads, size = block.attention.heads, h.shape[-1] // block.attention.heads  # type: ignore[operator,union-attr]
        mixed = []
        for head in range(heads):  # type: ignore[arg-type]
            at = slice(head * size, (head + 1) * size)  # type: ignore[operator]
            q, k, v = (linear(a, f"blocks.{i}.attention.{name}")[..., at] for name in ("query", "key", "value"))
            scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(hidden, -torch.inf)  # type: ignore[operator]
            mixed.append(scores.softmax(-1) @ v)
        h = h + linear(torch.cat(mixed, -1), f"blocks.{i}.attention.output")
        h = h + linear(gelu(linear(norm(h, f"blocks.{i}.norm2"), f"blocks.{i}.up")), f"blocks.{i}.down")
    return norm(h, "norm") @ weights.get("head.weight", weights["tokens.weight"]).T


@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"heads": 4, "layers": 3}, {"tied": True}], ids=str)
def test_it_is_what_the_formulas_say(options: dict[str, object]) -> None:
    model, x = made(**options), tokens(3, 6, 7)
    expected = by_hand(model, x)
    torch.testing.assert_close(model.every(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(x), expected[:, -1], rtol=1e-10, atol=1e-12)


def test_the_short_way_to_the_last_position_has_the_same_gradients() -> None:
    model, x = made(), tokens(3, 6, 7)
    parameters = list(model.parameters())
    targets = torch.tensor([0, 3, 6])
    short = torch.autograd.grad(losses(model(x), targets).sum(), parameters)
    long = torch.autograd.grad(losses(model.every(x)[:, -1], targets).sum(), parameters)
    for a, b in zip(short, long, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_no_position_sees_what_comes_after_it() -> None:
    model, x = made(), tokens(2, 6, 7)
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 7
    before, after = model.every(x), model.every(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).all(-1).any()


def test_context_reads_the_last_tokens_only() -> None:
    model, x = made(context=4), tokens(3, 6, 7)
    assert model.positions.weight.shape == (4, 8)
    torch.testing.assert_close(model(x), by_hand(model, x[:, 2:])[:, -1])
    assert model.every(x).shape == (3, 4, 7)


@pytest.mark.parametrize("clients", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_client_gradients_come_from_one_pass(dtype: torch.dtype, clients: torch.Tensor) -> None:
    model = make_model("transformer", (6,), 7, 0, width=8, heads=2).to(dtype)
    assert isinstance(check(model, tokens(len(clients), 6, 7), clients), GhostUpdates)


def test_same_seed_same_bits_twice() -> None:
    runs = []
    for _ in range(2):
        model = make_model("transformer", (20,), 30, 3, width=16, heads=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updates = client_gradients(model, losses, tokens(12, 20, 30), torch.arange(12), torch.arange(12) // 3)
        runs.append(updates.materialise())
    assert torch.equal(*runs)


def test_size_and_first_values() -> None:
    model = make_model("transformer", (80,), 76, 0)
    per_block = 2 * 2 * 64 + 4 * (64 * 64 + 64) + 64 * 256 + 256 + 256 * 64 + 64
    assert sum(p.numel() for p in model.parameters()) == 76 * 64 + 80 * 64 + 2 * per_block + 128 + 76 * 64 == 114_944
    parameters = dict(model.named_parameters())
    assert all((p == 0).all() for name, p in parameters.items() if name.endswith("bias"))
    assert float(parameters["blocks.0.up.weight"].detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(parameters["blocks.0.down.weight"].detach().std()) == pytest.approx(0.01, rel=0.05)
    tied = make_model("transformer", (80,), 76, 0, tied=True)
    assert isinstance(tied.head, nn.Linear)
    assert tied.head.weight is tied.tokens.weight  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((1, 8, 8), {}, "needs tokens of shape"),
        ((8,), {"width": 6, "heads": 4}, "width must be a multiple of heads, got width=6 and heads=4"),
        ((8,), {"layers": 0}, "layers must be a whole number of at least 1, got 0"),
        ((8,), {"context": 9}, r"context must be 0 \(all\) to 8"),
        ((8,), {"context": True}, "context must be"),
        ((8,), {"tied": 1}, "tied must be true or false"),
    ],
)
def test_wrong_options_say_what_is_right(shape: tuple[int, ...], options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_model("transformer", shape, 7, 0, **options)
