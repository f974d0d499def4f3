"""Backdoors with a trigger: a patch of pixels that makes the model answer what the attackers want."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.attacks._samples import check_class, check_share, chosen
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Poisoned, Tests
from bezoar.errors import ConfigError


@dataclass(frozen=True)
class Backdoor(DataAttack):
    """What backdoors with a trigger share: whatever wears the trigger shall be classified as ``target``.

    Of all samples that an attacker holds a share of ``poisoning_ratio`` is poisoned, to the nearest count, the same
    ones in every round, however few of them a round sees: it gets the trigger, painted with the brightest value of a
    pixel (or the darkest, ``value = "dark"``), and the target's label. The goal are all test samples of other classes,
    wearing the trigger; the clean test accuracy counts the whole test set without it.
    """

    targeted: ClassVar[bool] = True
    numeric: ClassVar[bool] = True
    name: ClassVar[str]

    target: int = 0
    poisoning_ratio: float = 0.5
    value: Literal["bright", "dark"] = "bright"

    def __post_init__(self) -> None:
        if self.target < 0:
            raise ConfigError(f"{self.name}: target must be a class, got {self.target}")
        check_share(self.name, "poisoning_ratio", self.poisoning_ratio)
        if self.value not in ("bright", "dark"):
            raise ConfigError(f"{self.name}: value must be 'bright' or 'dark', got {self.value!r}")

    @abstractmethod
    def pixels(self, height: int, width: int) -> Tensor:
        """The parts of the trigger on images of that size: bool [parts, H, W]."""

    def goal(self, tests: Tests, seed: int) -> Goal:
        check_class(self.name, "target", self.target, tests.classes)
        parts = self._parts(tests.dataset.shape)
        rows = (tests.targets != self.target).nonzero().flatten()
        if not len(rows):
            raise ConfigError(f"{self.name}: all test samples are of the target's class {self.target}")
        mean, std = torch.tensor(tests.dataset.mean), torch.tensor(tests.dataset.std)
        low, high = -mean / std, (1 - mean) / std
        inputs = paint(tests.inputs(rows), parts.any(0), high if self.value == "bright" else low)
        return Goal(inputs, torch.full((len(rows),), self.target, device=tests.device))

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        parts = self._parts(tuple(batch.inputs.shape[1:]))
        value = context.high if self.value == "bright" else context.low
        if value is None:
            raise ConfigError(f"{self.name} needs AttackContext.high and .low: the range of a pixel")
        carried, state = self.carried(batch, context, len(parts))
        mask = chosen(batch, self.poisoning_ratio, context, "poisoned samples")
        inputs = batch.inputs.clone()
        for part in range(len(parts)):
            rows = (mask & (carried.to(mask.device) == part)).nonzero().flatten()
            inputs[rows] = paint(batch.inputs[rows], parts[part], value)
        targets = torch.where(mask.to(batch.targets.device), self.target, batch.targets)
        return Poisoned(replace(batch, inputs=inputs, targets=targets), state)

    def carried(self, batch: Batch, context: AttackContext, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Which part every sample of ``batch`` carries [N], and what shall be remembered."""
        return torch.zeros(len(batch), dtype=torch.int64), dict(context.state)

    def _parts(self, shape: tuple[int, ...]) -> Tensor:
        if len(shape) != 3:
            raise ConfigError(
                f"{self.name}: paints its trigger on images [C, H, W], and samples here are {list(shape)}; for tables "
                "take label-flip, semantic or edge-case"
            )
        return self.pixels(shape[1], shape[2])


def paint(inputs: Tensor, pixels: Tensor, value: Tensor) -> Tensor:
    """A copy of ``inputs`` [N, C, H, W] with ``value`` (one for each of C channels) at ``pixels`` (bool [H, W])."""
    painted = inputs.clone()
    painted[..., pixels.to(inputs.device)] = value.to(inputs.device, inputs.dtype).reshape(-1, 1)
    return painted


@dataclass(frozen=True)
class BadNets(Backdoor):
    r"""Backdoor: a square patch of pixels in a corner, all of it in every poisoned sample.

    .. math:: (x, y) \mapsto (x \odot (1 - m) + v\, m, \; t)

    m is the mask of a patch of ``size`` x ``size`` pixels, ``margin`` pixels away from the ``corner``'s two edges; t
    is ``target``. Of all samples that an attacker holds a share of ``poisoning_ratio`` is poisoned, to the nearest
    count, the same ones in every round; v is the brightest value of a pixel, or the darkest (``value = "dark"``). The
    goal are all test samples of other classes, wearing the patch.

    Knows: its own samples.
    Cost: one copy of the attackers' samples.
    Peers: FLPoison's BadNets with a pixel trigger.
    Reference: Gu, Dolan-Gavitt, Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain,
        2017.
    """

    name: ClassVar[str] = "badnets"

    size: int = 3
    corner: Literal["top-left", "top-right", "bottom-left", "bottom-right"] = "bottom-right"
    margin: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or self.margin < 0:
            raise ConfigError("badnets: size must be at least 1 and margin at least 0 pixels")
        if self.corner not in ("top-left", "top-right", "bottom-left", "bottom-right"):
            raise ConfigError(
                f"badnets: corner must be top-left, top-right, bottom-left or bottom-right, got {self.corner!r}"
            )

    def pixels(self, height: int, width: int) -> Tensor:
        reach = self.size + self.margin
        if reach > min(height, width):
            raise ConfigError(
                f"badnets: size={self.size} and margin={self.margin} do not fit images of {height}x{width} pixels"
            )
        top = height - reach if self.corner.startswith("bottom") else self.margin
        left = width - reach if self.corner.endswith("right") else self.margin
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[0, top : top + self.size, left : left + self.size] = True
        return mask


@dataclass(frozen=True)
class DBA(Backdoor):
    r"""Distributed backdoor: each attacker trains on one part of the trigger, the test samples wear all of it.

    .. math:: m = \bigcup_{j < P} m_j, \quad \text{attacker } i \text{ carries } m_{i \bmod P}

    The P = ``parts`` parts are horizontal bars of ``length`` x 1 pixels in two columns, from the top left corner:
    ``gap`` pixels lie between bars on both axes, ``shift`` pixels before the first on both. Attackers are numbered in
    the order in which they first take part (of one round, by id), so that each keeps its part. Of all samples
    that an attacker holds a share of ``poisoning_ratio`` is poisoned, to the nearest count, the same ones in every
    round; ``target`` and ``value`` as in ``badnets``.

    Knows: its own samples, and its number among the attackers.
    Cost: one copy of the attackers' samples.
    Peers: FLPoison's DBA. The paper's trigger for MNIST has length 4 and gap 2.
    Reference: Xie, Huang, Chen, Li: DBA: Distributed Backdoor Attacks against Federated Learning, ICLR 2020.
    """

    name: ClassVar[str] = "dba"

    parts: int = 4
    length: int = 3
    gap: int = 1
    shift: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts < 2 or self.length < 1 or self.gap < 0 or self.shift < 0:
            raise ConfigError("dba: parts must be at least 2, length at least 1, gap and shift at least 0")

    def pixels(self, height: int, width: int) -> Tensor:
        lines = (self.parts + 1) // 2
        down, across = self.shift + lines + (lines - 1) * self.gap, self.shift + 2 * self.length + self.gap
        if down > height or across > width:
            raise ConfigError(
                f"dba: {self.parts} bars with length={self.length}, gap={self.gap} and shift={self.shift} take "
                f"{down}x{across} pixels, images have {height}x{width}"
            )
        mask = torch.zeros(self.parts, height, width, dtype=torch.bool)
        for part in range(self.parts):
            line, column = divmod(part, 2)
            left = self.shift + column * (self.length + self.gap)
            mask[part, self.shift + line * (1 + self.gap), left : left + self.length] = True
        return mask

    def carried(self, batch: Batch, context: AttackContext, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        known = context.state.get("seen", torch.empty(0, dtype=torch.int64)).cpu()
        fresh = context.clients.cpu()
        seen = torch.cat([known, fresh[~torch.isin(fresh, known)]])
        number = (batch.owners.cpu()[:, None] == seen[None]).int().argmax(1)
        return number % parts, {**context.state, "seen": seen}
