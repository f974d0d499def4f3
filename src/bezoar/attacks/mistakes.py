"""Honest mistakes: clients without intent whose data are wrong, incomplete, in another unit, or picked badly.

What goes wrong is drawn once for every client and sample: it lies in the data and is the same in every round. Shares
are of all samples that a client holds, of which a round may see a few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bezoar.attacks._samples import check_class, check_pair, check_share, chosen, numbers
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Poisoned, Tests
from bezoar.errors import ConfigError
from bezoar.seeding import generator


@dataclass(frozen=True)
class LabelNoise(DataAttack):
    r"""Mistake: a share of a client's labels is replaced by uniformly random wrong classes.

    .. math:: y \mapsto (y + s) \bmod C, \quad s \sim U\{1, \dots, C - 1\}

    ``ratio`` of each client's samples, to the nearest count.

    Knows: nothing; there is no intent.
    Reference: Angluin, Laird: Learning From Noisy Examples, Machine Learning 2, 1988 (random classification noise).
    """

    ratio: float = 0.3

    def __post_init__(self) -> None:
        check_share("label-noise", "ratio", self.ratio)

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        classes = context.classes
        mask = chosen(batch, self.ratio, context, "label noise").to(batch.targets.device)
        drawn = numbers(batch, context.seed, "noisy label")
        shift = 1 + torch.from_numpy(np.minimum(drawn * (classes - 1), classes - 2).astype(np.int64))
        wrong = (batch.targets + shift.to(batch.targets.device)) % classes
        return Poisoned(replace(batch, targets=torch.where(mask, wrong, batch.targets)))


@dataclass(frozen=True)
class MislabelledClass(DataAttack):
    r"""Mistake: a client takes one class for another.

    .. math:: (x, s) \mapsto (x, t)

    ``ratio`` of each client's samples of class ``source`` get the label ``target``, to the nearest count.

    Knows: nothing; there is no intent.
    Reference: Frenay, Verleysen: Classification in the Presence of Label Noise: a Survey, IEEE TNNLS 25(5), 2014
        (noise at random that depends on the class).
    """

    source: int = 0
    target: int = 1
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_pair("mislabelled-class", self.source, self.target)
        check_share("mislabelled-class", "ratio", self.ratio)

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        for key in ("source", "target"):
            check_class("mislabelled-class", key, getattr(self, key), tests.classes)
        return None

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:

        def source(owner: int, targets: Tensor) -> Tensor:
            return targets == self.source

        mask = chosen(batch, self.ratio, context, "mislabelled", source).to(batch.targets.device)
        return Poisoned(replace(batch, targets=torch.where(mask, self.target, batch.targets)))


@dataclass(frozen=True)
class MissingFeatures(DataAttack):
    r"""Mistake: a client does not have some features and fills in the training mean.

    .. math:: x_j \mapsto 0 \quad\text{(after normalisation)}, \quad j \in J_i

    J_i are the ``features`` (indices into the flattened sample); if none are given, a ``share`` of all features, drawn
    once for every client, at least one. ``ratio`` of each client's samples lack them, to the nearest count.

    Knows: nothing; there is no intent.
    Reference: Little, Rubin: Statistical Analysis with Missing Data, Wiley 1987 (imputation of unconditional means).
    """

    numeric: ClassVar[bool] = True

    features: tuple[int, ...] = ()
    share: float = 0.3
    ratio: float = 1.0

    def __post_init__(self) -> None:
        _check_features("missing-features", self.features, self.share, self.ratio)

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        _inside("missing-features", self.features, math.prod(tests.dataset.shape))
        return None

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        wrong = _spots("missing features", self.features, self.share, self.ratio, batch, context)
        return Poisoned(replace(batch, inputs=torch.where(wrong, torch.zeros_like(batch.inputs), batch.inputs)))


@dataclass(frozen=True)
class UnitError(DataAttack):
    r"""Mistake: a client records some features in another unit.

    .. math:: x_j \mapsto \bigl(c\,(\sigma_j x_j + \mu_j) - \mu_j\bigr) / \sigma_j, \quad j \in J_i

    The raw value is multiplied by ``factor`` c (x is normalised by mean mu and standard deviation sigma); J_i are the
    ``features`` (indices into the flattened sample), or a ``share`` drawn once for every client, at least one.
    ``ratio`` of each client's samples have the mistake, to the nearest count.

    Knows: nothing; there is no intent.
    Reference: none; the usual example is mg/dl for mmol/l (cholesterol: 38.67).
    """

    numeric: ClassVar[bool] = True

    factor: float = 10.0
    features: tuple[int, ...] = ()
    share: float = 0.1
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise ConfigError(f"unit-error: factor must be a finite number, got {self.factor}")
        _check_features("unit-error", self.features, self.share, self.ratio)

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        _inside("unit-error", self.features, math.prod(tests.dataset.shape))
        return None

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        if context.mean is None or context.std is None:
            raise ConfigError("unit-error needs AttackContext.mean and .std: what inputs were normalised with")
        wrong = _spots("unit error", self.features, self.share, self.ratio, batch, context)
        raw = batch.inputs * context.std + context.mean
        return Poisoned(
            replace(batch, inputs=torch.where(wrong, (self.factor * raw - context.mean) / context.std, batch.inputs))
        )


@dataclass(frozen=True)
class BiasedSampling(DataAttack):
    r"""Mistake: a client picks its samples badly: it keeps one class and few of the others.

    .. math:: D_i \mapsto \{(x, y) \in D_i : y = c_i\} \cup R_i

    c_i is the class ``favoured``, by default drawn once for every client from the classes that it holds; R_i is a share
    of ``keep`` of its samples of other classes, to the nearest count. A client of whom nothing would be left in a round
    keeps the first of the samples that it has there.

    Knows: nothing; there is no intent.
    Reference: Heckman: Sample Selection Bias as a Specification Error, Econometrica 47(1), 1979.
    """

    favoured: int | None = None
    keep: float = 0.1

    def __post_init__(self) -> None:
        if self.favoured is not None and self.favoured < 0:
            raise ConfigError(f"biased-sampling: favoured must be a class, got {self.favoured}")
        if not 0 <= self.keep < 1:
            raise ConfigError(f"biased-sampling: keep must be at least 0 and below 1, got {self.keep}")

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        check_class("biased-sampling", "favoured", self.favoured, tests.classes)
        return None

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        owners, targets = batch.owners.cpu(), batch.targets.cpu()
        likes = {owner: self._favoured(owner, batch, context) for owner in torch.unique(owners).tolist()}

        def others(owner: int, targets: Tensor) -> Tensor:
            return targets != likes[owner]

        kept = chosen(batch, self.keep, context, "biased sampling", others).cpu()
        for owner, favoured in likes.items():
            mine = owners == owner
            kept |= mine & (targets == favoured)
            if not kept[mine].any():
                kept[mine.nonzero()[0]] = True
        return Poisoned(batch.select(kept.to(batch.owners.device)))

    def _favoured(self, owner: int, batch: Batch, context: AttackContext) -> int:
        """c_i of client i = ``owner``."""
        if self.favoured is not None:
            return self.favoured
        targets = batch.targets[batch.owners == owner] if context.held is None else context.held(owner).targets
        held = torch.unique(targets.cpu())
        draw = torch.randint(len(held), (), generator=generator(context.seed, "favoured class", owner))
        return int(held[draw])


@dataclass(frozen=True)
class DuplicatedRecords(DataAttack):
    r"""Mistake: a share of a client's records was entered several times.

    .. math:: D_i \mapsto D_i \uplus \underbrace{R_i \uplus \dots \uplus R_i}_{k}

    R_i is a share of ``ratio`` of its samples, to the nearest count, k = ``copies`` says how often they are there once
    more. A server that weights clients by their number of samples is told the larger number.

    Knows: nothing; there is no intent.
    Reference: none; the merging of records is an old problem, e.g. Fellegi, Sunter: A Theory for Record Linkage, JASA
        64, 1969.
    """

    ratio: float = 0.2
    copies: int = 4

    def __post_init__(self) -> None:
        check_share("duplicated-records", "ratio", self.ratio)
        if self.copies < 1:
            raise ConfigError(f"duplicated-records: copies must be at least 1, got {self.copies}")

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        times = 1 + self.copies * chosen(batch, self.ratio, context, "duplicated records").long()
        rows = torch.arange(len(batch), device=times.device).repeat_interleave(times)
        return Poisoned(batch.select(rows.to(batch.owners.device)))


def _check_features(who: str, features: tuple[int, ...], share: float, ratio: float) -> None:
    if min(features, default=0) < 0 or len(set(features)) < len(features):
        raise ConfigError(f"{who}: features must be different indices >= 0, got {list(features)}")
    check_share(who, "share", share)
    check_share(who, "ratio", ratio)


def _inside(who: str, features: tuple[int, ...], size: int) -> None:
    """Raise unless a sample has all ``features``."""
    if max(features, default=0) >= size:
        raise ConfigError(f"{who}: feature {max(features)} does not exist: features are 0..{size - 1}")


def _spots(
    purpose: str, features: tuple[int, ...], share: float, ratio: float, batch: Batch, context: AttackContext
) -> Tensor:
    """Which values of ``batch.inputs`` are wrong: bool [N, ...]."""
    size = math.prod(batch.inputs.shape[1:])
    _inside(purpose, features, size)
    owners = batch.owners.cpu()
    wrong = torch.zeros(len(batch), size, dtype=torch.bool)
    for owner in torch.unique(owners).tolist():
        draws = generator(context.seed, purpose, owner)
        drawn = torch.randperm(size, generator=draws)[: max(1, math.floor(share * size + 0.5))]
        spots = torch.zeros(size, dtype=torch.bool)
        spots[torch.tensor(features) if features else drawn] = True
        wrong |= (owners == owner)[:, None] & spots
    wrong &= chosen(batch, ratio, context, f"{purpose}, samples").cpu()[:, None]
    return wrong.view(batch.inputs.shape).to(batch.inputs.device)
