from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from bezoar.errors import ConfigError
from bezoar.models import MODELS, make_model
from bezoar.models.resnet101 import ResNet101LayerNorm

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
PICTURES = [name for name, kind in MODELS.items() if not kind.tokens]
NARROW: dict[str, dict[str, object]] = {
    "resnet9": {"width": 4},
    "resnet101-layernorm": {"width": 2},
    "lstm": {"embedding": 4, "hidden": 4},
    "transformer": {"width": 4, "heads": 2},
}


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
        ("resnet101-layernorm", (1, 28, 28), 62, 43_124_350),
        ("lstm", (80,), 76, 76 * 8 + (8 + 256 + 1) * 1024 + (256 + 256 + 1) * 1024 + 257 * 76),
        ("lstm", (80,), 76, 816_812),
    ],
)
def test_published_sizes(name: str, shape: tuple[int, ...], classes: int, expected: int) -> None:
    assert size(name, shape, classes) == expected


def test_the_layer_normalisations_of_resnet101_are_over_whole_samples() -> None:
    model = make_model("resnet101-layernorm", (1, 28, 28), 62, 0)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 608_768
    assert all(len(norm.normalized_shape) == 3 for norm in norms)
    # A hundred convolutions and the classifier; four convolutions more on the skip connections.
    assert len(norms) == sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 100 + 4


def test_resnet101_is_torchvisions_network_with_other_norms() -> None:
    model = make_model("resnet101-layernorm", (3, 20, 17), 5, 0, width=2)
    assert isinstance(model, ResNet101LayerNorm)
    sizes = []
    for part in (model.stem, *model.stages):
        part.register_forward_hook(lambda module, given, out: sizes.append(tuple(out.shape[1:])))
    images = torch.randn(2, 3, 20, 17)
    logits = model(images)
    assert sizes == [(2, 5, 5), (8, 5, 5), (16, 3, 3), (32, 2, 2), (64, 1, 1)]
    assert [len(stage) for stage in model.stages] == [3, 4, 23, 3]  # type: ignore[arg-type]
    block = model.stages[1][0]  # type: ignore[index]
    weights = dict(block.named_parameters())
    x = torch.randn(2, 8, 5, 5)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        centred = x - x.mean((1, 2, 3), keepdim=True)
        return centred / (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias

    def conv(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return nn.functional.conv2d(x, weights[f"{name}.weight"], **options)

    inner = norm(conv(x, "block.0"), "block.1").relu()
    inner = norm(conv(inner, "block.3", stride=2, padding=1), "block.4").relu()
    expected = (norm(conv(inner, "block.6"), "block.7") + norm(conv(x, "skip.0", stride=2), "skip.1")).relu()
    torch.testing.assert_close(block(x), expected)
    logits.square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def recurrent(model: nn.Module, inputs: int, hidden: int, layers: int) -> nn.LSTM:
    """torch's LSTM with the weights of ours."""
    theirs = nn.LSTM(inputs, hidden, layers, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for place in range(layers):
            layer = model.layers[place]  # type: ignore[union-attr,index]
            getattr(theirs, f"weight_ih_l{place}").copy_(layer.input.weight)
            getattr(theirs, f"weight_hh_l{place}").copy_(layer.recurrent.weight)
            getattr(theirs, f"bias_ih_l{place}").copy_(layer.input.bias)
            getattr(theirs, f"bias_hh_l{place}").zero_()
    return theirs


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_lstm_is_torchs_lstm_step_by_step_and_in_one_call(layers: int, length: int) -> None:
    model = make_model("lstm", (length,), 11, 0, embedding=3, hidden=5, layers=layers).double()
    tokens = torch.randint(11, (4, length))
    theirs = recurrent(model, 3, 5, layers)
    x = model.embedding(tokens)  # type: ignore[operator]
    states, _ = theirs(x)
    stepwise = x
    for layer in model.layers:  # type: ignore[union-attr]
        stepwise = layer.unrolled(stepwise)  # plainly, as on a GPU
    torch.testing.assert_close(stepwise, states, rtol=1e-12, atol=1e-14)
    logits = model(tokens)
    torch.testing.assert_close(logits, model.decoder(states[:, -1]), rtol=1e-12, atol=1e-14)  # type: ignore[operator]
    watched: list[int] = []
    for layer in model.layers:  # type: ignore[union-attr]
        layer.recurrent.register_forward_hook(lambda *_: watched.append(1))
    torch.testing.assert_close(model(tokens), logits, rtol=1e-12, atol=1e-14)
    assert len(watched) == layers * (length - 1)


def test_tied_lstm_shares_one_table() -> None:
    model = make_model("lstm", (4,), 30, 0, embedding=6, hidden=6, tied=True)
    assert model.decoder.weight is model.embedding.weight  # type: ignore[union-attr]
    assert (
        size("lstm", (4,), 30, embedding=6, hidden=6) - size("lstm", (4,), 30, embedding=6, hidden=6, tied=True) == 180
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PICTURES)
def test_every_model_takes_every_image(name: str, shape: tuple[int, ...]) -> None:
    logits = make_model(name, shape, 7, 0, **NARROW.get(name, {}))(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "huggingface"])
def test_same_seed_same_bits_and_the_global_stream_stays(name: str) -> None:
    options, shape = NARROW.get(name, {}), (5,) if MODELS[name].tokens else (1, 8, 8)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = make_model(name, shape, 10, 0, **options)
    assert torch.equal(torch.rand(3), expected)
    again, other = (make_model(name, shape, 10, seed, **options) for seed in (0, 1))
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    # Normalisations start as the identity, whatever the seed.
    assert not any(torch.equal(a, c) for a, _, c in pairs if not (a == a.flatten()[0]).all())


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
        "resnet101-layernorm": {"width": 64},
        "lstm": {"embedding": 8, "hidden": 256, "layers": 2, "tied": False},
        "transformer": {"width": 64, "layers": 2, "heads": 4, "context": 0, "tied": False},
        "huggingface": {
            "repo": inspect.Parameter.empty,
            "revision": None,
            "task": "next-token",
            "tokens": "tokenizer",
            "pretrained": True,
        },
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
        ("resnet101-layernorm", (1, 3, 3), {}, "at least 4x4"),
        ("resnet101-layernorm", (1, 28, 28), {"width": 0}, "width must be"),
        ("lstm", (1, 28, 28), {}, r"needs tokens of shape \(T,\)"),
        ("lstm", (5,), {"hidden": 0}, "hidden must be"),
        ("lstm", (5,), {"layers": True}, "layers must be"),
        ("lstm", (5,), {"tied": True}, "tied needs embedding = hidden, got 8 and 256"),
        ("lstm", (5,), {"tied": 1}, "tied must be true or false"),
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
