"""Methods that train many models, as the command line asks for them: their own options are KEY=VALUE."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from bezoar.errors import ConfigError, nearest
from bezoar.experiments.certificates.base import Outcome, Request
from bezoar.experiments.certificates.outcome import Certificate

#: What the request itself says.
_COMMON = ("data_dir", "device", "out", "jobs", "progress")


def voting(name: str, certify: Callable[..., Certificate]) -> Callable[[Request], Outcome]:
    """``certify`` as a method; its further keyword arguments are the options, checked by name and type."""

    def method(request: Request) -> Outcome:
        if request.ks or request.c is not None or request.attacks or not request.measure:
            raise ConfigError(f"--k, --c, --attacks and --no-measure belong to the method 'radius', not to {name!r}")
        return certify(
            request.experiment,
            data_dir=request.data_dir,
            device=request.device,
            out=request.folder,
            jobs=request.jobs,
            progress=_tell(request.progress),
            **_checked(name, certify, request.options),
        ).outcome()

    return method


def _checked(name: str, certify: Callable[..., Certificate], given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(certify).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _COMMON}
    hints = typing.get_type_hints(certify)
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"method {name!r} has no option {key!r}; {nearest(key, known)}")
        hint = hints[key]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits and not (value == "all" and types.NoneType in kinds):
            wanted = " or ".join("all" if kind is types.NoneType else kind.__name__ for kind in kinds)
            raise ConfigError(f"option {key!r} of method {name!r} must be {wanted}, got {value!r}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in given:
            raise ConfigError(
                f"method {name!r} needs the option {key!r}: --option {key}=...; it has {', '.join(known)}"
            )
    return {key: None if value == "all" else value for key, value in given.items()}


def _tell(progress: Callable[[str], None]) -> Callable[[int, int], None]:
    def tell(done: int, models: int) -> None:
        if done == models or done % max(1, models // 10) == 0:
            progress(f"{done} of {models} models have voted")

    return tell
