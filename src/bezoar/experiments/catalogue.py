"""What experiments can be made of, for ``bezoar list``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bezoar.aggregation import RULES
from bezoar.aggregation.noise import POSTS
from bezoar.attacks import ATTACKS
from bezoar.clients import CLIENTS
from bezoar.data import DATASETS, PARTITIONS, SAMPLINGS
from bezoar.errors import ConfigError, nearest
from bezoar.experiments import readings
from bezoar.experiments.config import read_toml
from bezoar.experiments.defence import PRESETS
from bezoar.models import MODELS
from bezoar.priors import PRIORS
from bezoar.recipes import recipes
from bezoar.registry import Entry
from bezoar.servers import MODEL_POSTS, SERVERS
from bezoar.servers.schedules import SCHEDULES
from bezoar.tracking import TRACKERS


def _recipes() -> list[Entry]:
    found = []
    for name, path in recipes().items():
        table = read_toml(path)
        axes = " x ".join(table.get("grid", {})) or "one run"
        found.append(Entry(name, axes, str(table.get("description", ""))))
    return found


def _signature(function: Callable[..., Any]) -> str:
    shown = []
    for name, parameter in inspect.signature(function).parameters.items():
        empty = parameter.default is inspect.Parameter.empty
        shown.append(name if empty else f"{name}={parameter.default}")
    return ", ".join(shown)


def _presets() -> list[Entry]:
    return [Entry(n, _signature(p), (p.__doc__ or "").split("\n")[0]) for n, p in PRESETS.items()]


def _option(key: str, default: object) -> str:
    return key if default is inspect.Parameter.empty else f"{key}={default}"


def _models() -> list[Entry]:
    return [
        Entry(name, ", ".join(_option(key, default) for key, default in kind.options.items()), kind.summary)
        for name, kind in MODELS.items()
    ]


def _datasets() -> list[Entry]:
    return [
        Entry(name, ", ".join(names[0] for names in source.files.values()), source.summary)
        for name, source in DATASETS.items()
    ]


_KINDS: Mapping[str, Callable[[], list[Entry]]] = {
    "recipes": _recipes,
    "rules": RULES.entries,
    "posts": POSTS.entries,
    "model-posts": MODEL_POSTS.entries,
    "servers": SERVERS.entries,
    "presets": _presets,
    "readings": readings.entries,
    "attacks": ATTACKS.entries,
    "priors": PRIORS.entries,
    "datasets": _datasets,
    "models": _models,
    "partitions": PARTITIONS.entries,
    "samplings": SAMPLINGS.entries,
    "clients": CLIENTS.entries,
    "schedules": SCHEDULES.entries,
    "trackers": TRACKERS.entries,
}


def entries(what: str) -> list[Entry]:
    """All registered things of one sort, e.g. ``"rules"``. Raises ConfigError for an unknown sort."""
    if what not in _KINDS:
        raise ConfigError(f"nothing to list under {what!r}; {nearest(what, _KINDS)}")
    return _KINDS[what]()
