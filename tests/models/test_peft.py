"""Our adapters are peft's: same names, same first values' law, same outputs and gradients, files go both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar.errors import ConfigError
from bezoar.models import LoRA, built, make_model
from bezoar.models.files import kept, load_files
from tests.models.test_lora import TARGETS, shaken
from tests.updates.test_ghost_models import tokens
from tests.updates.test_gradients import losses

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:peft"),
]


def theirs(rank: int = 2, alpha: int = 8) -> Any:
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), lora_dropout=0.0)
    return peft.get_peft_model(make_model("transformer", (6,), 7, 0, width=8, heads=2), config)


def ours(rank: int = 2, alpha: float = 8.0) -> Any:
    model = make_model("transformer", (6,), 7, 0, width=8, heads=2)
    return built(model, lora=LoRA(TARGETS, rank=rank, alpha=alpha)).model


def test_outputs_and_gradients_are_pefts(tmp_path: Path) -> None:
    mine, peer = shaken(ours()), theirs()
    state = {f"base_model.model.{name}": value for name, value in mine.state_dict().items()}
    state = {
        name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): value
        for name, value in state.items()
    }
    peer.load_state_dict(state)
    x, y = tokens(5, 6, 7), torch.arange(5)
    torch.testing.assert_close(mine(x), peer(x))
    names = [name for name, p in mine.named_parameters() if p.requires_grad]
    their_names = [name for name, p in peer.named_parameters() if p.requires_grad]
    assert their_names == [f"base_model.model.{name.replace('.weight', '.default.weight')}" for name in names]
    gradients = [
        torch.autograd.grad(losses(model(x), y).sum(), [p for p in model.parameters() if p.requires_grad])
        for model in (mine, peer)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_pefts_adapter_file_is_read(tmp_path: Path) -> None:
    peer = theirs()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    peer.save_pretrained(tmp_path)
    mine = ours()
    with pytest.raises(ConfigError, match=r"of the model not found in there"):
        load_files(mine, [tmp_path / "adapter_model.safetensors"])
    from safetensors.torch import save_file

    save_file(make_model("transformer", (6,), 7, 0, width=8, heads=2).state_dict(), tmp_path / "base.safetensors")
    load_files(mine, [tmp_path / "base.safetensors", tmp_path / "adapter_model.safetensors"])
    x = tokens(5, 6, 7)
    torch.testing.assert_close(mine(x), peer(x))


def test_our_adapters_are_read_by_peft() -> None:
    mine, peer = shaken(ours()), theirs()
    tensors, _ = kept(mine)
    found = peft.set_peft_model_state_dict(peer, {f"base_model.model.{name}": value for name, value in tensors.items()})
    assert not found.unexpected_keys
    x = tokens(5, 6, 7)
    torch.testing.assert_close(mine(x), peer(x))
