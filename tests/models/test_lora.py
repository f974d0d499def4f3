from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bezoar.errors import ConfigError
from bezoar.models import LoRA, LoRALinear, add_lora, built, flatten, make_model, merged
from bezoar.models.files import load_files
from bezoar.models.lora import only
from bezoar.updates import client_gradients
from bezoar.updates.ghost import GhostUpdates
from tests.updates.test_ghost_models import tokens
from tests.updates.test_gradients import RAGGED, check, losses

EVEN = torch.arange(8) // 2
TARGETS = ("query", "value", "up", "down")


def transformer(**options: Any) -> nn.Module:
    return make_model("transformer", (6,), 7, 0, width=8, heads=2, **options)


def shaken(model: nn.Module) -> nn.Module:
    """With adapters that do something."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return model


@given(
    inside=st.integers(1, 6),
    out=st.integers(1, 6),
    bias=st.booleans(),
    alpha=st.floats(0.1, 50),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=30)
def test_it_is_the_formula(inside: int, out: int, bias: bool, alpha: float, seed: int) -> None:
    base, rank = nn.Linear(inside, out, bias=bias).double(), min(inside, out)
    layer = LoRALinear(base, rank, alpha, torch.Generator().manual_seed(seed))
    x = torch.randn(3, 2, inside, dtype=torch.float64)
    assert torch.equal(layer(x), base(x))
    assert layer.lora_A.weight.abs().max() <= 1 / math.sqrt(inside)
    with torch.no_grad():
        layer.lora_B.weight.normal_()
    change = alpha / rank * layer.lora_B.weight @ layer.lora_A.weight
    torch.testing.assert_close(layer(x), base(x) + x @ change.T)
    torch.testing.assert_close(layer.merged(), base.weight + change)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["lora_A.weight", "lora_B.weight"]


def test_adapters_depend_on_seed_and_path_alone_and_leave_torchs_stream() -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    some, all_, other = transformer(), transformer(), transformer()
    paths = add_lora(some, 2, 4.0, ["blocks.1.attention.query"], seed=0)
    assert paths == ("blocks.1.attention.query",)
    assert len(add_lora(all_, 2, 4.0, ["*"], seed=0)) == 2 * 6 + 1
    add_lora(other, 2, 4.0, ["query"], seed=1)
    assert torch.equal(torch.rand(2), expected)
    name = "blocks.1.attention.query.lora_A.weight"
    drawn = [dict(model.named_parameters())[name] for model in (some, all_, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["quarry"]}, "lora.targets: 'quarry' is no linear layer of the model; did you mean 'query'"),
        ({"targets": ["norm1"]}, "'norm1' is no linear layer"),
        ({"rank": 9}, "lora.rank: 9 exceeds the size of 'blocks.0.attention.query', "),
        ({"rank": 0}, "lora.rank must be a whole number of at least 1"),
        ({"alpha": 0.0}, "lora.alpha must be a positive number"),
        ({"alpha": math.nan}, "lora.alpha must be a positive number"),
    ],
)
def test_wrong_adapters_say_what_is_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        add_lora(transformer(), **{"rank": 2, "alpha": 4.0, "targets": ["query"], "seed": 0, **options})


def test_patterns_name_parameters_and_modules() -> None:
    model = transformer()
    assert only(model, ["head", "blocks.1.norm?.bias"]) == (
        "blocks.1.norm1.bias", "blocks.1.norm2.bias", "head.weight",
    )  # fmt: skip
    assert [n for n, p in model.named_parameters() if p.requires_grad][-1] == "head.weight"
    with pytest.raises(
        ConfigError, match=r"trainable: 'block.1.\*' is no parameter of the model; did you mean 'blocks"
    ):
        only(model, ["block.1.*"])


def test_a_subset_beside_adapters_is_named_as_without_them() -> None:
    found = built(transformer(), trainable=["norm", "blocks.1.attention.query.bias"], lora=LoRA(("query",), rank=2))
    trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
    pair = ["lora_A.weight", "lora_B.weight"]
    assert trained == [
        *(f"blocks.0.attention.query.{name}" for name in pair),
        *(f"blocks.1.attention.query.{name}" for name in ["base_layer.bias", *pair]),
        "norm.weight", "norm.bias",
    ]  # fmt: skip
    assert found.facts["trainable"] == 2 * (2 * 8 + 8 * 2) + 8 + 16 == len(flatten(found.model))
    assert found.facts["adapters"] == ["blocks.0.attention.query", "blocks.1.attention.query"]
    assert built(transformer()).facts == {}


@pytest.mark.parametrize("clients", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_client_gradients_of_adapters_come_from_one_pass(dtype: torch.dtype, clients: torch.Tensor) -> None:
    model = shaken(built(transformer().to(dtype), lora=LoRA(TARGETS, rank=2, alpha=4.0)).model)
    updates = check(model, tokens(len(clients), 6, 7), clients)
    assert isinstance(updates, GhostUpdates)
    assert updates.shape[1] == 2 * 2 * (8 + 8 + 8 + 8 + 8 + 32 + 32 + 8)
    assert {segment.name.split(".")[-2] for segment in updates.layout} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("trainable", [["head"], ["blocks.1"], ["tokens", "norm"], ["positions"]], ids=str)
def test_client_gradients_of_the_last_layers_come_from_one_pass(trainable: list[str]) -> None:
    model = built(transformer().double(), trainable=trainable).model
    assert isinstance(check(model, tokens(8, 6, 7), EVEN), GhostUpdates)


def test_adapters_of_a_tied_head_leave_the_table_alone() -> None:
    model = built(transformer(tied=True).double(), lora=LoRA(("query", "head"), rank=2)).model
    assert model.head.base_layer.weight is model.tokens.weight  # type: ignore[union-attr]
    assert isinstance(check(shaken(model), tokens(8, 6, 7), EVEN), GhostUpdates)


def test_what_uses_the_frozen_weight_behind_the_layers_back_is_an_error() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(nn.functional.linear(x, self.inner.weight))

    model = built(Sly(), lora=LoRA(("inner",), rank=1)).model
    with pytest.raises(AttributeError, match="weight"):
        client_gradients(model, losses, torch.zeros(2, 3), torch.zeros(2).long(), torch.arange(2))


def test_merged_weights_are_those_of_a_model_without_adapters(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    model = shaken(built(transformer(tied=True).double(), lora=LoRA((*TARGETS, "head"), rank=2)).model)
    x = tokens(5, 6, 7)
    plain = transformer(tied=True).double()
    state = merged(model)
    assert state.keys() == plain.state_dict().keys()
    # The adapter changes the head, not the table that it shared its weight with.
    untied = transformer().double()
    save_file(state, tmp_path / "merged.safetensors")
    load_files(untied, [tmp_path / "merged.safetensors"])
    torch.testing.assert_close(untied(x), model(x), rtol=1e-10, atol=1e-12)
