"""Models by name, or by import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bezoar.errors import ConfigError, nearest
from bezoar.models._checks import whole
from bezoar.models.huggingface import huggingface
from bezoar.models.lstm import lstm
from bezoar.models.resnet9 import resnet9
from bezoar.models.resnet101 import resnet101_layernorm
from bezoar.models.simple import cnn, linear, mlp
from bezoar.models.transformer import transformer
from bezoar.seeding import derive

#: What a factory is told of the data set beside shape and classes, if it has a parameter of this name.
_NAMES = "names"


@dataclass(frozen=True)
class ModelKind:
    """A model by name: ``factory(shape, classes, **options)`` and what it is.

    With ``tokens`` its samples are tokens [N, T] and its classes the vocabulary; otherwise they are numbers.
    """

    name: str
    factory: Callable[..., nn.Module]
    tokens: bool = False

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, object]:
        """Option -> default; an option without a default is ``inspect.Parameter.empty``."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != _NAMES}


#: Name in a config -> model.
MODELS: dict[str, ModelKind] = {
    kind.name: kind
    for kind in (
        ModelKind("linear", linear),
        ModelKind("mlp", mlp),
        ModelKind("cnn", cnn),
        ModelKind("resnet9", resnet9),
        ModelKind("resnet101-layernorm", resnet101_layernorm),
        ModelKind("lstm", lstm, tokens=True),
        ModelKind("transformer", transformer, tokens=True),
        ModelKind("huggingface", huggingface, tokens=True),
    )
}


def make_model(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    *,
    names: Sequence[str] = (),
    **options: object,
) -> nn.Module:
    """The model called ``name`` for samples of ``shape`` (C, H, W), initialised from ``seed``.

    ``name`` is one of :data:`MODELS` or an import path ``package.module:factory`` of a callable that takes
    ``shape`` and ``classes`` and the options, and if it has such a parameter ``names``, what tokens stand for. The
    same seed gives the same bits; torch's global random state stays as it was. Raises ConfigError for an unknown name
    or option and for a path that does not give an ``nn.Module``.

    >>> sum(p.numel() for p in make_model("cnn", (1, 28, 28), 10, seed=0).parameters())
    421642
    """
    whole("classes", classes)
    for size in shape:
        whole("shape", size)
    factory = _import(name) if ":" in name else _known(name, options)
    try:
        if names and _NAMES in inspect.signature(factory).parameters:
            options[_NAMES] = tuple(names)
        inspect.signature(factory).bind(shape=shape, classes=classes, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name!r} can not be called with shape, classes and its options: {error}") from error
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also seed the accelerators, which the fork above does not restore.
        torch.default_generator.manual_seed(derive(seed, "model"))
        model = factory(shape=shape, classes=classes, **options)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name!r} gave a {type(model).__name__}, not an nn.Module")
    return model


def _known(name: str, options: dict[str, object]) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: {nearest(name, MODELS)}, or a path 'package.module:factory'")
    known = MODELS[name].options
    for option in options:
        if option not in known:
            has = nearest(option, known) if known else "it has none"
            raise ConfigError(f"model {name!r} has no option {option!r}: {has}")
    return MODELS[name].factory


def _import(path: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model {path!r} can not be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"model {path!r} is a {type(found).__name__}, not callable")
    return found
