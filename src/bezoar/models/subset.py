"""From a model by name to the one that is trained: adapters added, the rest frozen, weights read from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bezoar.models.files import frozen_facts, load_files
from bezoar.models.lora import add_lora, only


@dataclass(frozen=True)
class LoRA:
    """Which linear layers get adapters, and what these are: see :func:`bezoar.models.lora.add_lora`."""

    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 8.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Built:
    """A model, and ``facts`` about its frozen part for the records: ``frozen`` (how many parameters),
    ``frozen_sha256``, ``trainable`` (how many), ``adapters`` (paths) and ``weights`` (file -> SHA-256); empty if
    nothing is frozen and nothing was read."""

    model: nn.Module
    facts: Mapping[str, Any] = field(default_factory=dict)


def built(
    model: nn.Module,
    weights: Sequence[str | Path] = (),
    trainable: Sequence[str] | None = None,
    lora: LoRA | None = None,
) -> Built:
    """``model`` with the adapters of ``lora`` added, files of ``weights`` read, and all frozen but the adapters and
    what the patterns of ``trainable`` name (names of the model without adapters). The model is changed.

    Raises:
        ConfigError: see :func:`~bezoar.models.lora.add_lora`, :func:`~bezoar.models.lora.only` and
            :func:`~bezoar.models.files.load_files`.

    >>> found = built(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), trainable=["1"])
    >>> found.facts["frozen"], found.facts["trainable"]
    (20, 10)
    """
    chosen = []
    if trainable is not None:
        only(model, trainable)
        chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    facts: dict[str, Any] = {}
    if lora is not None:
        facts["adapters"] = list(add_lora(model, lora.rank, lora.alpha, lora.targets, lora.seed))
        for parameter in chosen:
            parameter.requires_grad_(True)
    if weights:
        facts["weights"] = load_files(model, weights)
    facts |= frozen_facts(model)
    if facts:
        facts["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Built(model, facts)
