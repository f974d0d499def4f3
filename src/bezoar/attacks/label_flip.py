"""Label flipping: honest training on wrong labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import PlainSerializer
from torch import Tensor

from bezoar.attacks._samples import check_class, check_pair, check_share, chosen
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Knowledge, Poisoned, Tests
from bezoar.errors import ConfigError
from bezoar.seeding import generator

_MODES = ("static", "next", "random", "swap", "source-target", "furthest")
_PAIRS = ("swap", "source-target")

#: Samples that the model classifies at a time.
_CHUNK = 256


@dataclass(frozen=True)
class LabelFlip(DataAttack):
    r"""Attackers train honestly on flipped labels.

    .. math:: y \mapsto C - 1 - y, \quad y + 1 \bmod C, \quad \arg\min_c z_c(x; \theta^t), \quad \dots

    ``mode`` says how a label y of C classes is flipped: ``"static"`` to C - 1 - y, ``"next"`` to (y + 1) mod C,
    ``"random"`` to a uniformly random wrong class (drawn anew every round), ``"swap"`` exchanges the classes
    ``source`` and ``target``, ``"source-target"`` turns source into target only, ``"furthest"`` takes the class to
    which the current global model gives the least logit z (dynamic label flipping; where the model is that wrong, it
    is the true class). Of all samples that an attacker holds a share of ``poisoning_ratio`` is flipped, to the nearest
    count: the same ones in every round, however few of them a round sees. With the pairs, the share is of the samples
    of all classes, those that keep their label included.

    Knows: its own samples, which it trains on as any client does; "furthest" reads the global model that every client
        is sent.
    Cost: none; "furthest" one forward pass over the attackers' samples.
    Peers: ByzFL flips static, on honest clients' samples; FLPoison has targeted, all2one, all2all
        and random.
    Reference: Tolpegin, Truex, Gursoy, Liu: Data Poisoning Attacks Against Federated Learning Systems, ESORICS 2020
        (source to target); Peng, Li, Vlaski, Ling: Mean Aggregator is More Robust than Robust Aggregators under Label
        Poisoning Attacks, IJCAI 2024 (static, and furthest as the dynamic attack).
    """

    mode: Literal["static", "next", "random", "swap", "source-target", "furthest"] = "static"
    source: int | None = None
    target: int | None = None
    # Left out of tables at its default: experiments from before it existed keep their hashes.
    poisoning_ratio: Annotated[float, PlainSerializer(lambda ratio: None if ratio == 1 else ratio)] = 1.0

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"label-flip: mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        check_share("label-flip", "poisoning_ratio", self.poisoning_ratio)
        pair = (self.source, self.target)
        if self.mode in _PAIRS:
            if None in pair:
                raise ConfigError(f"label-flip: mode {self.mode!r} needs two classes, source and target")
            check_pair("label-flip", *pair)  # type: ignore[arg-type]
        elif pair != (None, None):
            raise ConfigError(f"label-flip: source and target belong to the modes {' and '.join(_PAIRS)}")

    @property
    def least(self) -> Knowledge:  # type: ignore[override]
        """The mode "furthest" reads the global model."""
        return Knowledge.MODEL if self.mode == "furthest" else Knowledge.NONE

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        for key in ("source", "target"):
            check_class("label-flip", key, getattr(self, key), tests.classes)
        return None

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        if self.mode == "furthest":
            flipped = furthest(batch.inputs, context).to(batch.targets.device)
        else:
            draws = generator(context.seed, "attack", context.round)
            flipped = self.labels(batch.targets, context.classes, draws)
        mask = chosen(batch, self.poisoning_ratio, context, "flipped samples").to(batch.targets.device)
        return Poisoned(replace(batch, targets=torch.where(mask, flipped, batch.targets)))

    def labels(self, targets: Tensor, classes: int, draws: torch.Generator) -> Tensor:
        """Flipped labels for the true labels ``targets`` [N]; all modes but "furthest", which needs the samples."""
        if self.mode == "static":
            return classes - 1 - targets
        if self.mode == "next":
            return (targets + 1) % classes
        if self.mode == "random":
            return wrong_labels(targets, classes, draws)
        if self.source is None or self.target is None:
            raise ConfigError("label-flip: mode 'furthest' flips labels by the samples; call poison")
        flipped = torch.where(targets == self.source, self.target, targets)
        return torch.where(targets == self.target, self.source, flipped) if self.mode == "swap" else flipped


def wrong_labels(targets: Tensor, classes: int, draws: torch.Generator) -> Tensor:
    """A uniformly random wrong class for every target [N]."""
    shift = torch.randint(1, classes, targets.shape, generator=draws).to(targets.device)
    return (targets + shift) % classes


def furthest(inputs: Tensor, context: AttackContext) -> Tensor:
    """The class to which the global model, in evaluation mode, gives the least logit [N]; ties go to the lowest."""
    module, training = context.scratch.module, context.scratch.module.training
    context.scratch.load(context.weights)
    module.eval()
    with torch.no_grad():
        found = torch.cat([module(part).argmin(1) for part in torch.split(inputs, _CHUNK)])
    module.train(training)
    return found
