"""Weights in safetensors files: a whole model, the trained part of one, or adapters, and how they come together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bezoar.errors import ConfigError, nearest
from bezoar.models.lora import bare

#: Key in the metadata of a file that holds the trained part alone: the checksum of all other tensors.
FROZEN = "frozen_sha256"

#: What the library peft writes before the names of tensors.
_PEFT = "base_model.model."

#: Endings of the names of adapters.
_ADAPTERS = ("lora_A.weight", "lora_B.weight")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names.

    >>> one, two = torch.zeros(1), torch.ones(2)
    >>> checksum({"a": one, "b": two}) == checksum({"b": two, "a": one}) != checksum({"a": two, "b": one})
    True
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        total.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def kept(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that a run leaves, and the metadata of their file.

    Of a model that is trained as a whole, all parameters and buffers, without metadata. Else the trained parameters
    alone; :data:`FROZEN` then is the checksum of the others, and :func:`load_files` accepts no other ones.
    """
    trained, frozen = _halves(model)
    copies = {name: value.detach().cpu().clone() for name, value in trained.items()}
    if not any(isinstance(value, nn.Parameter) for value in frozen.values()):
        return copies | {name: value.detach().cpu().clone() for name, value in frozen.items()}, {}
    return copies, {FROZEN: checksum(frozen)}


def frozen_facts(model: nn.Module) -> dict[str, Any]:
    """How many parameters are frozen and their checksum; empty if none is."""
    _, frozen = _halves(model)
    count = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {"frozen": count, FROZEN: checksum(frozen)} if count else {}


def _halves(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of the model, trained parameters apart from frozen ones and buffers."""
    state = model.state_dict(keep_vars=True)
    trained = {name: value for name, value in state.items() if value.requires_grad}
    return trained, {name: value for name, value in state.items() if name not in trained}


def load_files(model: nn.Module, paths: Sequence[str | Path]) -> dict[str, str]:
    """Copy the tensors of safetensors files into ``model``, in this order; returns the SHA-256 of every file.

    The files together must hold every tensor of the model, but for adapters, which otherwise keep what they were drawn
    as, and for what was frozen when a file with the trained part of a model was written: that must be in the model
    already, from another file or the same seed. The model's adapters may be missing in the files' names, and files of
    peft's are read as they are.

    Raises:
        ConfigError: a file can not be read or is no safetensors file, a tensor is unknown, missing, of another shape,
            or not finite, or a trained part belongs to another model than the one that is there.
    """
    state = model.state_dict(keep_vars=True)
    places = {bare(name): name for name in state} | {name: name for name in state}
    given: set[str] = set()
    parts: list[tuple[str | Path, set[str], str]] = []
    checksums = {}
    for path in paths:
        checksums[str(path)], tensors, metadata = _read(path)
        names = {_name(name): value for name, value in tensors.items()}
        for name, value in names.items():
            if name not in places:
                if name.endswith(_ADAPTERS):
                    raise ConfigError(f"{path}: {name!r} is an adapter that the model does not have: see model.lora")
                raise ConfigError(f"{path}: {name!r} is no tensor of the model; {nearest(name, places)}")
            _copy(path, name, value, state[places[name]])
        own = {places[name] for name in names}
        given |= own
        if FROZEN in metadata:
            parts.append((path, own, metadata[FROZEN]))
    missing = {name for name in state.keys() - given if not name.endswith(_ADAPTERS)}
    for path, own, expected in parts:
        rest = {name: value for name, value in state.items() if name not in own}
        if checksum(rest) != expected:
            raise ConfigError(
                f"{path}: holds what was trained of another model: frozen tensors have the checksum "
                f"{checksum(rest)[:12]}, there it was {expected[:12]}; give its base before it"
            )
        missing -= rest.keys()
    if missing:
        few = ", ".join(repr(name) for name in sorted(missing)[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(f"{', '.join(map(str, paths))}: {few}{more} of the model not found in there")
    return checksums


def check_unchanged(checksums: Mapping[str, str]) -> None:
    """Raise ConfigError if a file of weights that a finished run read has other content now; absent ones may be."""
    for path, before in checksums.items():
        if Path(path).is_file() and hashlib.sha256(Path(path).read_bytes()).hexdigest() != before:
            raise ConfigError(f"{path}: is not the file any more that this run read; choose another --out")


def _read(path: str | Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    try:
        data = Path(path).read_bytes()
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: can not be read as safetensors: {error}") from None
    return hashlib.sha256(data).hexdigest(), tensors, metadata


def _name(name: str) -> str:
    return name.removeprefix(_PEFT).replace(".default.", ".")


def _copy(path: str | Path, name: str, value: Tensor, target: Tensor) -> None:
    if value.shape != target.shape:
        raise ConfigError(f"{path}: {name!r} has shape {list(value.shape)}, in the model {list(target.shape)}")
    if value.is_floating_point() != target.is_floating_point() or not torch.isfinite(value).all():
        raise ConfigError(f"{path}: {name!r} holds {value.dtype} or is not finite; the model's is {target.dtype}")
    with torch.no_grad():
        target.copy_(value)
