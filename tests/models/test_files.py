from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bezoar.errors import ConfigError
from bezoar.models import LoRA, built
from bezoar.models.files import FROZEN, checksum, kept, load_files


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def saved(path: Path, net: nn.Module) -> Path:
    tensors, metadata = kept(net)
    save_file(tensors, path, metadata)
    return path


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_a_whole_model_comes_back(tmp_path: Path) -> None:
    net = model()
    path = saved(tmp_path / "whole.safetensors", net)
    other = model(1)
    found = load_files(other, [path])
    assert list(found) == [str(path)]
    assert len(found[str(path)]) == 64
    assert torch.equal(other(X), net(X))
    assert kept(net)[1] == {}


def test_a_trained_part_comes_back_onto_what_it_was_trained_of_and_nothing_else(tmp_path: Path) -> None:
    net = built(model(), trainable=["2"]).model
    with torch.no_grad():
        for parameter in net[2].parameters():  # type: ignore[index]
            parameter.add_(1.0)
    path = saved(tmp_path / "part.safetensors", net)
    tensors, metadata = kept(net)
    assert list(tensors) == ["2.weight", "2.bias"]
    assert set(metadata) == {FROZEN}
    again = model()
    load_files(again, [path])
    assert torch.equal(again(X), net(X))
    with pytest.raises(ConfigError, match=r"part.safetensors: holds what was trained of another model"):
        load_files(model(1), [path])
    # With the base before it, whatever the seed.
    base = saved(tmp_path / "base.safetensors", model())
    other = model(1)
    load_files(other, [base, path])
    assert torch.equal(other(X), net(X))


def test_adapters_come_back_and_are_told_from_their_base(tmp_path: Path) -> None:
    lora = LoRA(("0", "2"), rank=2, alpha=2.0)
    base = saved(tmp_path / "base.safetensors", model())
    net = built(model(1), [base], lora=lora).model
    with torch.no_grad():
        net[0].lora_B.weight.normal_()  # type: ignore[index,union-attr,operator]
    path = saved(tmp_path / "adapters.safetensors", net)
    assert all("lora_" in name for name in kept(net)[0])
    found = built(model(1), [base, path], lora=lora)
    assert torch.equal(found.model(X), net(X))
    assert list(found.facts["weights"]) == [str(base), str(path)]
    assert found.facts["frozen"] == 30
    assert found.facts["trainable"] == 2 * (4 + 4) + 2 * (4 + 2)
    with pytest.raises(ConfigError, match="holds what was trained of another model"):
        built(model(1), [path], lora=lora)
    with pytest.raises(ConfigError, match=r"is an adapter that the model does not have: see model\.lora"):
        built(model(1), [base, path])


def test_wrong_files_say_what_is_wrong(tmp_path: Path) -> None:
    whole = model().state_dict()

    def file(tensors: dict[str, torch.Tensor]) -> Path:
        save_file(tensors, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    cases = [
        (
            {**whole, "1.weight": torch.ones(2)},
            r"'1.weight' is no tensor of the model; did you mean '0.weight'|'2.weight",
        ),
        ({k: v for k, v in whole.items() if k != "2.bias"}, r"'2.bias' of the model not found in there"),
        ({**whole, "2.bias": torch.ones(3)}, r"'2.bias' has shape \[3\], in the model \[2\]"),
        ({**whole, "2.bias": torch.tensor([1.0, torch.nan])}, r"'2.bias' holds torch.float32 or is not finite"),
        ({**whole, "2.bias": torch.tensor([1, 2])}, r"'2.bias' holds torch.int64"),
        ({}, r"'0.bias', '0.weight', '2.bias' and 1 more of the model not found in there"),
    ]
    for tensors, words in cases:
        with pytest.raises(ConfigError, match=words):
            load_files(model(), [file(tensors)])
    with pytest.raises(ConfigError, match=r"nowhere.safetensors: can not be read"):
        load_files(model(), [tmp_path / "nowhere.safetensors"])
    torch.save(whole, tmp_path / "pickled.pt")
    with pytest.raises(ConfigError, match="can not be read as safetensors"):
        load_files(model(), [tmp_path / "pickled.pt"])
    load_files(net := model(1), [file({k: v.half().double() for k, v in whole.items()})])
    assert net[0].weight.dtype == torch.float32  # type: ignore[index,union-attr]


def test_checksums_see_names_types_shapes_and_values() -> None:
    one = {"a": torch.arange(4.0), "b": torch.ones(1)}
    others = [
        {"a": torch.arange(4.0), "c": torch.ones(1)},
        {"a": torch.arange(4.0).double(), "b": torch.ones(1)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.ones(1)},
        {"a": torch.arange(4.0) + 1e-7, "b": torch.ones(1)},
        {"a": torch.arange(4.0)},
    ]
    assert len({checksum(tensors) for tensors in [one, *others]}) == 6
    assert checksum({"a": torch.tensor(3), "b": torch.tensor([True])})
