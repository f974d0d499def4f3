"""A defence: a typed triple of pipeline, server and post-aggregators, and the usual ones by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from bezoar.aggregation import Aggregate, Clip, Pipeline, Rule, Sums, pipeline, pipeline_tables
from bezoar.aggregation.noise import POSTS, Post
from bezoar.aggregation.suspects import MoreThanF, more_than_f
from bezoar.errors import ConfigError, nearest
from bezoar.servers import MODEL_POSTS, SERVERS, SGD, ModelPost, Server

#: A schedule may reach zero, a radius may not.
_TINY = 1e-300

#: Trusted samples, as in the paper of FLTrust.
ROOT_SAMPLES = 100


@dataclass(frozen=True)
class Defence:
    """What the server does with a round's updates: ``pipeline``, then ``post``, then ``server``, then ``model_post``.

    ``adaptive_clip`` multiplies every clipping radius by the round's learning rate, as updates of several local
    steps shrink with it. ``root_samples`` training samples, drawn uniformly from the seed, are the server's own where
    the rule asks for an update from data that it trusts (FLTrust). ``model_post`` changes the global model itself at
    the end of every round (CRFL), also of one that was skipped.

    ``more_than_f``: what becomes of a round in which more clients look hostile than the declared number f
    (:func:`bezoar.aggregation.suspects.more_than_f` says what counts): the rule's answer is used all the same
    (``"go-on"``), the model stays as it is (``"skip"``), or the run ends with an error (``"stop"``). f is the
    pipeline's own, or ``declared_f``, which rules without one need.
    """

    pipeline: Rule
    server: Server = field(default_factory=SGD)
    post: tuple[Post, ...] = ()
    adaptive_clip: bool = False
    root_samples: int = ROOT_SAMPLES
    model_post: tuple[ModelPost, ...] = ()
    more_than_f: MoreThanF = "go-on"
    declared_f: int | None = None

    def __post_init__(self) -> None:
        if self.more_than_f not in get_args(MoreThanF):
            known = nearest(str(self.more_than_f), get_args(MoreThanF))
            raise ConfigError(f"more_than_f must be 'go-on', 'skip' or 'stop', got {self.more_than_f!r}; {known}")
        f = self.declared_f
        if f is not None and (isinstance(f, bool) or not isinstance(f, int) or f < 0):
            raise ConfigError(f"declared_f must be a whole number >= 0, got {f!r}")
        if self.more_than_f != "go-on" and self.f is None:
            raise ConfigError(f"more_than_f: {self.pipeline.name} declares no f: say how many with declared_f")
        if self.more_than_f == "go-on" and f is not None:
            raise ConfigError("declared_f decides nothing where more_than_f is 'go-on': set that to 'skip' or 'stop'")
        if isinstance(self.root_samples, bool) or not isinstance(self.root_samples, int) or self.root_samples < 1:
            raise ConfigError(f"root_samples must be a whole number >= 1, got {self.root_samples!r}")

    @property
    def f(self) -> int | None:
        """The declared number of bad clients, None if nothing declares one."""
        return self.pipeline.tolerated if self.declared_f is None else self.declared_f

    def refusal(self, answer: Aggregate) -> str | None:
        """Why ``answer`` must not move the model, as more clients look hostile than declared; None if it may."""
        return None if self.more_than_f == "go-on" or self.f is None else more_than_f(answer, self.f)

    @property
    def sums(self) -> Sums | None:
        """What sums of the clients' vectors suffice; None: the server must see single updates (see docs).

        Servers and noise work on the aggregate alone, so the pipeline decides.
        """
        return self.pipeline.sums

    def radius(self, lr: float) -> float:
        """The smallest clipping radius of the pipeline in a round with learning rate ``lr``; infinity without one."""
        rule = self.rule(lr)
        parts = rule.mixings if isinstance(rule, Pipeline) else ()
        return min((part.radius for part in parts if isinstance(part, Clip)), default=math.inf)

    def rule(self, lr: float) -> Rule:
        """The pipeline for a round with learning rate ``lr``."""
        if not self.adaptive_clip or not isinstance(self.pipeline, Pipeline):
            return self.pipeline
        scaled = tuple(
            replace(part, radius=max(part.radius * lr, _TINY)) if isinstance(part, Clip) else part
            for part in self.pipeline.mixings
        )
        return replace(self.pipeline, mixings=scaled)

    def table(self) -> dict[str, Any]:
        """The table that describes this defence, presets resolved."""
        table = {
            "pipeline": pipeline_tables(self.pipeline),
            "server": SERVERS.table(self.server),
            "post": [POSTS.table(part) for part in self.post],
            "adaptive_clip": self.adaptive_clip,
        }
        # Where it decides nothing, it stays out of the hash.
        if self.pipeline.uses_root or self.root_samples != ROOT_SAMPLES:
            table["root_samples"] = self.root_samples
        if self.model_post:
            table["model_post"] = [MODEL_POSTS.table(part) for part in self.model_post]
        if self.more_than_f != "go-on":
            table["more_than_f"] = self.more_than_f
        if self.declared_f is not None:
            table["declared_f"] = self.declared_f
        return table


def _clip(radius: float | None) -> list[dict[str, Any]]:
    return [] if radius is None else [{"kind": "clip", "radius": radius}]


def _mean(weighted: bool) -> dict[str, Any]:
    return {"kind": "mean", "weighted": True} if weighted else {"kind": "mean"}


def _sgd(pipeline: list[dict[str, Any]], momentum: float) -> dict[str, Any]:
    return {"pipeline": pipeline, "server": {"kind": "sgd", "momentum": momentum}}


def _none(*, momentum: float = 0.9, weighted: bool = False) -> dict[str, Any]:
    """No defence: the mean of all updates, of equal weight or weighted by samples."""
    return _sgd([_mean(weighted)], momentum)


def _clip_preset(*, radius: float = 5.0, momentum: float = 0.9, weighted: bool = False) -> dict[str, Any]:
    """Clip every update to ``radius``, then the mean."""
    return _sgd([*_clip(radius), _mean(weighted)], momentum)


def _adaptive_clip(*, radius: float = 5.0, momentum: float = 0.9) -> dict[str, Any]:
    """Clip every update to ``radius`` times the round's learning rate, then the mean."""
    return _clip_preset(radius=radius, momentum=momentum) | {"adaptive_clip": True}


def _weak_dp(*, radius: float = 5.0, std: float = 0.025, momentum: float = 0.9) -> dict[str, Any]:
    """Weak differential privacy: clip, mean, and Gaussian noise of standard deviation ``std`` on the aggregate."""
    return _clip_preset(radius=radius, momentum=momentum) | {"post": [{"kind": "gaussian-noise", "std": std}]}


def _trimmed_mean(*, f: int, radius: float | None = None, momentum: float = 0.9) -> dict[str, Any]:
    """Coordinate-wise trimmed mean, after clipping if ``radius`` is given."""
    return _sgd([*_clip(radius), {"kind": "trimmed-mean", "f": f}], momentum)


def _median(*, radius: float | None = None, momentum: float = 0.9) -> dict[str, Any]:
    """Coordinate-wise median, after clipping if ``radius`` is given."""
    return _sgd([*_clip(radius), {"kind": "median"}], momentum)


def _krum(*, f: int, radius: float | None = None, momentum: float = 0.9) -> dict[str, Any]:
    """Krum, after clipping if ``radius`` is given."""
    return _sgd([*_clip(radius), {"kind": "krum", "f": f}], momentum)


def _bulyan(*, f: int, radius: float | None = None, momentum: float = 0.9) -> dict[str, Any]:
    """Bulyan, after clipping if ``radius`` is given."""
    return _sgd([*_clip(radius), {"kind": "bulyan", "f": f}], momentum)


def _sparsefed(
    *, radius: float = 5.0, k: int | str = "1%", momentum: float = 0.9, weighted: bool = False
) -> dict[str, Any]:
    """SparseFed: clip, mean, top-k with error feedback."""
    server = {"kind": "sparsefed", "k": k, "momentum": momentum}
    return {"pipeline": [*_clip(radius), _mean(weighted)], "server": server}


def _crfl(
    *, radius: float, std: float, model_radius: float = 15.0, growth: float = 0.0, momentum: float = 0.0
) -> dict[str, Any]:
    """CRFL: clip updates, the mean, a step; then clip the model itself to model_radius + growth t and add noise."""
    return {
        "pipeline": [*_clip(radius), "mean"],
        "server": {"kind": "sgd", "momentum": momentum},
        "model_post": [
            {"kind": "clip", "radius": model_radius, "growth": growth},
            {"kind": "gaussian-noise", "std": std},
        ],
    }


def _fetchsgd(
    *,
    radius: float = 5.0,
    k: int | str = "1%",
    rows: int = 5,
    columns: int | str = "10%",
    momentum: float = 0.9,
) -> dict[str, Any]:
    """SparseFed with FetchSGD: clip, mean, top-k of a count sketch that holds momentum and error feedback."""
    server = {"kind": "fetchsgd", "k": k, "rows": rows, "columns": columns, "momentum": momentum}
    return {"pipeline": [*_clip(radius), "mean"], "server": server}


PRESETS: dict[str, Callable[..., dict[str, Any]]] = {
    "none": _none,
    "clip": _clip_preset,
    "adaptive-clip": _adaptive_clip,
    "weak-dp": _weak_dp,
    "trimmed-mean": _trimmed_mean,
    "median": _median,
    "krum": _krum,
    "bulyan": _bulyan,
    "sparsefed": _sparsefed,
    "crfl": _crfl,
    "fetchsgd": _fetchsgd,
}

_KEYS = ("pipeline", "server", "post", "adaptive_clip", "root_samples", "model_post", "more_than_f", "declared_f")


def expanded(table: str | Mapping[str, Any]) -> dict[str, Any]:
    """The triple's table that a preset's name, or a table with ``preset`` and its parameters, stands for.

    Keys of the triple beside the preset override. A table without ``preset`` is the triple itself.
    """
    if isinstance(table, str):
        table = {"preset": table}
    if "preset" not in table:
        return dict(table)
    name = table["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(str(name), PRESETS)}")
    preset = PRESETS[name]
    known = inspect.signature(preset).parameters
    given = {key: value for key, value in table.items() if key not in (*_KEYS, "preset")}
    for key in given:
        if key not in known:
            raise ConfigError(f"preset {name!r} has no parameter {key!r}; {nearest(key, [*known, *_KEYS])}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ConfigError(f"preset {name!r} needs the parameter {key!r}")
    triple = preset(**given)
    for key in _KEYS:
        if key in table:
            adds = key == "server" and isinstance(table[key], Mapping) and "kind" not in table[key]
            triple[key] = {**triple[key], **table[key]} if adds else table[key]
    return triple


def defence(table: Any) -> Defence:
    """A defence from a preset's name, a table with ``preset`` and its parameters, or the triple itself.

    >>> defence({"preset": "sparsefed", "radius": 5.0, "k": 1000}).server
    SparseFed(k=1000, momentum=0.9, error_input='momentum', masking='zero', lr_placement='outside')
    """
    if isinstance(table, Defence):
        return table
    if not isinstance(table, str | Mapping):
        raise ConfigError("a defence is a preset's name or a table with pipeline, server and post")
    table = expanded(table)
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"a defence has no key {key!r}; {nearest(key, [*_KEYS, 'preset'])}")
    if "pipeline" not in table:
        raise ConfigError('a defence needs the key \'pipeline\', e.g. [{kind = "clip", radius = 5.0}, "mean"]')
    if not isinstance(table.get("adaptive_clip", False), bool):
        raise ConfigError("adaptive_clip must be true or false")
    post, model_post = table.get("post", []), table.get("model_post", [])
    if not isinstance(post, list | tuple):
        raise ConfigError('post must be a list of post-aggregators, e.g. [{kind = "gaussian-noise", std = 0.1}]')
    if not isinstance(model_post, list | tuple):
        raise ConfigError('model_post must be a list of steps, e.g. [{kind = "clip", radius = 15.0}]')
    return Defence(
        pipeline(table["pipeline"]),
        SERVERS.build(table.get("server", "sgd")),
        tuple(POSTS.build(part) for part in post),
        table.get("adaptive_clip", False),
        table.get("root_samples", ROOT_SAMPLES),
        tuple(MODEL_POSTS.build(part) for part in model_post),
        table.get("more_than_f", "go-on"),
        table.get("declared_f"),
    )
