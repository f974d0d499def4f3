"""Between NVFlare's models and named arrays: nothing that a client can put into a model leaves here as an exception."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from bezoar.errors import ConfigError
from bezoar.integrations.gate import Array, GateError
from bezoar.integrations.reported import weight_of

#: What NVFlare calls a client that says no name.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sent:
    """What one client sent: ``likes`` are its parameters as they came, ``arrays`` the same numbers for NumPy."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    likes: Mapping[str, Any] = field(default_factory=dict)
    difference: bool = False
    weight: float = float("nan")
    metrics: Mapping[Any, Any] = field(default_factory=dict)
    flaw: str = ""


def name_of(model: Any) -> str:
    """Who sent a model: NVFlare's controllers write the name into ``meta`` themselves, over what the client wrote."""
    meta = getattr(model, "meta", None)
    name = meta.get("client_name") if isinstance(meta, Mapping) else None
    return name if isinstance(name, str) and name else UNKNOWN


def sent_by(model: Any) -> Sent:
    """A client's model, read; never raises."""
    try:
        if not isinstance(model, FLModel):
            return Sent(flaw=f"no FLModel but {type(model).__name__}")
        difference = model.params_type == ParamsType.DIFF
        arrays = arrays_of(model.params)
        meta = model.meta if isinstance(model.meta, Mapping) else {}
        metrics = model.metrics if isinstance(model.metrics, Mapping) else {}
        weight = weight_of(meta.get(FLMetaKey.NUM_STEPS_CURRENT_ROUND))
        return Sent(arrays, model.params, difference, weight, metrics)
    except GateError as error:
        return Sent(flaw=str(error))
    except Exception as error:  # Numbers of a library that we do not know fail in its own ways.
        return Sent(flaw=f"can not be read: {type(error).__name__}")


def model_of(params: Any) -> dict[str, Array]:
    """The server's own model as arrays.

    Raises:
        ConfigError: it is no mapping of names to arrays.
    """
    try:
        return arrays_of(params)
    except GateError as error:
        raise ConfigError(f"the global model: {error}; rules need a mapping of names to arrays or tensors") from None


def arrays_of(params: Any) -> dict[str, Array]:
    """Parameters as arrays of NumPy, without a copy where that is possible.

    Raises:
        GateError: names or values of other kinds.
    """
    if not isinstance(params, Mapping):
        raise GateError(f"not a mapping of names to arrays but {type(params).__name__}")
    return {_name(name): _array(name, value) for name, value in params.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise GateError(f"an array's name is no text but {type(name).__name__}")
    return name


def _array(name: str, value: Any) -> Array:
    load = getattr(value, "materialize", None)
    if callable(load):  # Tensors that NVFlare has put on disk.
        value = load()
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach()
        # NumPy knows no bfloat16; float32 holds all of its numbers.
        return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy())
    if isinstance(value, np.generic):
        # The difference of two arrays without dimensions is none any more (a BatchNorm's counter).
        return np.asarray(value)
    raise GateError(f"{name[:60]!r} is no array but {type(value).__name__}")


def params_of(arrays: Mapping[str, Array], likes: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as parameters of the kind (NumPy or torch), type and device of ``likes``."""
    return {name: _like(value, likes.get(name)) for name, value in arrays.items()}


def _like(array: Array, like: Any) -> Any:
    if not isinstance(like, torch.Tensor):
        return array
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)).to(like.device, like.dtype)


def common_layout(sent: Sequence[Sent]) -> Sent | None:
    """One of the clients' models, whose names, their order, shapes and types more than half of all clients agree on."""
    layouts = [tuple((name, a.shape, a.dtype.str) for name, a in one.arrays.items()) for one in sent]
    found = Counter(layout for layout in layouts if layout).most_common(1)
    return sent[layouts.index(found[0][0])] if found and 2 * found[0][1] > len(sent) else None


def natural(name: str) -> tuple[list[Any], str]:
    """A key that puts site-10 after site-9.

    >>> sorted(["site-10", "site-9"], key=natural)
    ['site-9', 'site-10']
    """
    parts: list[Any] = re.split(r"([0-9]+)", name)
    for i in range(1, len(parts), 2):
        digits = parts[i].lstrip("0")
        parts[i] = len(digits), digits
    return parts, name
