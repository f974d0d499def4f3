"""From a name on the command line to strategies: ``module:object``, ``flower:Krum``, ``bezoar:trimmed-mean``."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as theirs
from flwr.serverapp.strategy import FedAvg, Strategy

from bezoar.aggregation import RULES, pipeline
from bezoar.errors import ConfigError, nearest
from bezoar.experiments.defence import PRESETS, defence
from bezoar.integrations.conformance.stage import STEP, Setting
from bezoar.integrations.flower.strategy import RobustStrategy

Factory = Callable[[], Strategy]


def target(name: str, setting: Setting) -> Factory:
    """What makes the strategy that ``name`` stands for, with parameters that fit the federation.

    Raises:
        ConfigError: there is no such thing, or it is no strategy.
    """
    where, separator, what = name.partition(":")
    if not separator or not what:
        raise ConfigError(f"TARGET is MODULE:OBJECT, flower:NAME or bezoar:NAME, e.g. flower:Krum; got {name!r}")
    if where == "flower":
        return flower(what, setting)
    if where == "bezoar":
        return ours(what, setting)
    return from_object(_imported(where, what), name)


def flower(name: str, setting: Setting) -> Factory:
    """One of Flower's own; wrappers for differential privacy go around FedAvg, with noise that does no harm."""
    known = [n for n in theirs.__all__ if n not in ("Strategy", "Result")]
    if name not in known:
        raise ConfigError(f"Flower has no strategy {name!r}; {nearest(name, known)}")
    norm = 2 * STEP * setting.dimension**0.5
    fitting: dict[str, Callable[[], Any]] = {
        "strategy": FedAvg,
        "num_malicious_nodes": lambda: setting.f,
        "num_nodes_to_select": lambda: setting.clients - setting.f,
        "beta": lambda: (setting.f + 0.5) / setting.clients,
        "noise_multiplier": lambda: 1e-6,
        "clipping_norm": lambda: norm,
        "initial_clipping_norm": lambda: norm,
        "num_sampled_clients": lambda: setting.clients,
    }
    kind = getattr(theirs, name)
    wanted = inspect.signature(kind).parameters
    return lambda: kind(**{key: value() for key, value in fitting.items() if key in wanted})


def ours(name: str, setting: Setting) -> Factory:
    """A preset, or rules joined by ``>``; where they have a parameter f, it is that of the federation."""
    presets = name in PRESETS and name not in RULES
    if presets:
        made = defence(_filled({"preset": name}, inspect.signature(PRESETS[name]).parameters, setting))
        return lambda: RobustStrategy(made, seed=setting.seed)
    tables = []
    for part in (piece.strip() for piece in name.split(">")):
        if part not in RULES:
            raise ConfigError(f"no rule or preset {part!r}; {nearest(part, [*RULES, *PRESETS])}")
        tables.append(_filled({"kind": part}, inspect.signature(RULES[part]).parameters, setting))
    rule = pipeline(tables)
    return lambda: RobustStrategy(rule, seed=setting.seed)


def _filled(table: dict[str, Any], known: Any, setting: Setting) -> dict[str, Any]:
    fitting = {"f": setting.f, "radius": 2 * STEP * setting.dimension**0.5}
    needed = {key for key, spec in known.items() if spec.default is inspect.Parameter.empty}
    return {**table, **{key: value for key, value in fitting.items() if key in needed or (key == "f" and key in known)}}


def from_object(found: Any, name: str) -> Factory:
    """Fresh strategies from a class, a function without required arguments, or an instance, which is copied."""
    if isinstance(found, Strategy):
        return lambda: copy.deepcopy(found)
    if not callable(found):
        raise ConfigError(f"{name} is {type(found).__name__}: neither a strategy nor something that makes one")

    def make() -> Strategy:
        try:
            made = found()
        except Exception as error:
            raise ConfigError(f"{name}() makes no strategy: {type(error).__name__}: {error}") from error
        if not isinstance(made, Strategy):
            raise ConfigError(f"{name}() gives {type(made).__name__}, not a flwr.serverapp.strategy.Strategy")
        return made

    return make


def _imported(module: str, path: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} can not be imported: {error}") from None
    finally:
        sys.path.remove(here)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{module} has no {path!r}; {nearest(part, [n for n in dir(found) if n[0] != '_'])}")
        found = getattr(found, part)
    return found
