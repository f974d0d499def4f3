from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from bezoar.errors import ConfigError
from bezoar.models import MODELS, make_model

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def size(name: str, shape: tuple[int, ...], classes: int, **options: object) -> int:
    return sum(parameter.numel() for parameter in make_model(name, shape, classes, 0, **options).parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("linear", (1, 28, 28), 10, 7_850),
        ("mlp", (1, 28, 28), 10, 50_890),
        ("cnn", (1, 28, 28), 10, 421_642),
        ("cnn", (1, 8, 8), 10, 320 + 18_496 + 256 * 128 + 128 + 1_290),
        ("resnet9", (3, 32, 32), 10, 6_568_640),
        ("resnet9", (1, 28, 28), 10, 6_567_488),
        ("resnet9", (3, 32, 32), 100, 6_614_720),
    ],
)
def test_published_sizes(name: str, shape: tuple[int, ...], classes: int, expected: int) -> None:
    assert size(name, shape, classes) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_takes_every_image(name: str, shape: tuple[int, ...]) -> None:
    options = {"width": 4} if name == "resnet9" else {}
    logits = make_model(name, shape, 7, 0, **options)(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", list(MODELS))
def test_same_seed_same_bits_and_the_global_stream_stays(name: str) -> None:
    options = {"width": 4} if name == "resnet9" else {}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = make_model(name, (1, 8, 8), 10, 0, **options)
    assert torch.equal(torch.rand(3), expected)
    again, other = (make_model(name, (1, 8, 8), 10, seed, **options) for seed in (0, 1))
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


def test_resnet9_is_page_s_network() -> None:
    model = make_model("resnet9", (3, 32, 32), 10, 0, width=2)
    weights = dict(model.named_parameters())
    images = torch.randn(3, 3, 32, 32)

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.relu(nn.functional.conv2d(x, weights[name], padding=1))

    def pool(x: torch.Tensor, by: int = 2) -> torch.Tensor:
        return nn.functional.max_pool2d(x, by)

    x = pool(conv(conv(images, "prep.0.weight"), "layer1.0.weight"))
    x = x + conv(conv(x, "layer1.3.block.0.weight"), "layer1.3.block.2.weight")
    x = pool(conv(pool(conv(x, "layer2.0.weight")), "layer3.0.weight"))
    x = x + conv(conv(x, "layer3.3.block.0.weight"), "layer3.3.block.2.weight")
    logits = pool(x, 4).flatten(1) @ weights["linear.weight"].T * 0.125
    torch.testing.assert_close(model(images), logits)


def test_models_list_their_options() -> None:
    assert {name: kind.options for name, kind in MODELS.items()} == {
        "linear": {"zero": False},
        "mlp": {"hidden": (64,)},
        "cnn": {"width": 32, "hidden": 128},
        "resnet9": {"width": 64},
    }
    assert all(kind.summary.endswith((".", ":")) for kind in MODELS.values())


def test_mlp_widths() -> None:
    assert size("mlp", (1, 8, 8), 10, hidden=[]) == size("linear", (1, 8, 8), 10)
    assert size("mlp", (5,), 2, hidden=[3, 4]) == 5 * 3 + 3 + 3 * 4 + 4 + 4 * 2 + 2


@pytest.mark.parametrize(
    ("name", "shape", "options", "words"),
    [
        ("resnet", (3, 32, 32), {}, "did you mean 'resnet9'.*package.module:factory"),
        ("cnn", (1, 28, 28), {"widht": 3}, "no option 'widht': did you mean 'width'"),
        ("linear", (1, 28, 28), {"width": 3}, "no option 'width': known: zero"),
        ("cnn", (1, 28, 28), {"width": 0}, "width must be a whole number of at least 1, got 0"),
        ("cnn", (1, 28, 28), {"hidden": 2.5}, "hidden must be"),
        ("mlp", (1, 28, 28), {"hidden": 64}, "hidden must be a list"),
        ("mlp", (1, 28, 28), {"hidden": "64"}, "hidden must be a list"),
        ("mlp", (1, 28, 28), {"hidden": [64, True]}, "hidden must be a whole number"),
        ("cnn", (13,), {}, "needs images"),
        ("cnn", (1, 3, 28), {}, "at least 4x4"),
        ("resnet9", (1, 7, 7), {}, "at least 8x8"),
    ],
)
def test_wrong_descriptions_are_refused(
    name: str, shape: tuple[int, ...], options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_model(name, shape, 10, 0, **options)


def test_a_model_by_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebodys_models")

    def factory(shape: tuple[int, ...], classes: int, bias: bool = True) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], classes, bias=bias))

    module.factory = factory  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    module.text = lambda shape, classes: "no module"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_models", module)
    assert size("somebodys_models:factory", (4,), 3) == 15
    assert size("somebodys_models:factory", (4,), 3, bias=False) == 12
    for path, words in {
        "somebodys_models:nothing": "can not be imported",
        "nobodys_models:factory": "can not be imported: No module named",
        "somebodys_models:": "can not be imported",
        ":factory": "can not be imported",
        "somebodys_models:number": "is a int, not callable",
        "somebodys_models:text": "gave a str, not an nn.Module",
    }.items():
        with pytest.raises(ConfigError, match=words):
            make_model(path, (4,), 3, 0)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'depth'"):
        make_model("somebodys_models:factory", (4,), 3, 0, depth=2)
