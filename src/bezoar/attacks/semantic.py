"""Semantic backdoor: one class of unchanged inputs is learnt as another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from bezoar.attacks._samples import check_class, check_pair, handed
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Knowledge, Poisoned, Tests
from bezoar.errors import ConfigError
from bezoar.seeding import generator


@dataclass(frozen=True)
class Semantic(DataAttack):
    r"""Targeted: samples of one class shall be taken for another class; the inputs stay as they are.

    .. math:: (x, y) \mapsto (x, t) \quad\text{where } y = s

    s is the class ``source``, t the class ``target``. Attackers relabel their own samples of the source class. An
    attacker who holds none trains on ``held`` test samples of that class instead, labelled target; they are drawn
    once per experiment. The other samples of an attacker stay as they are (``keep_own``), or are left out; then an
    attacker whose samples of a round are all of other classes trains on the held ones, too. The goal are the test
    samples of the source class that are not held back, with label target; the clean test accuracy leaves out the whole
    class.

    Knows: its own samples, and the held ones if it needs them.
    Cost: that of training on up to ``held`` more samples.
    Peers: FLPoison's targeted label flip, without samples that are held back.
    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov: How To Backdoor Federated Learning, AISTATS 2020 (semantic
        backdoors); Panda et al.: SparseFed, AISTATS 2022 (7 to 1, 4 to 9).
    """

    targeted: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.OWN_DATA

    source: int = 7
    target: int = 1
    held: int = 10
    keep_own: bool = True

    def __post_init__(self) -> None:
        check_pair("semantic", self.source, self.target)
        if self.held < 1:
            raise ConfigError(f"semantic: held must be at least 1, got {self.held}")

    def goal(self, tests: Tests, seed: int) -> Goal:
        for key in ("source", "target"):
            check_class("semantic", key, getattr(self, key), tests.classes)
        rows = (tests.targets == self.source).nonzero().flatten().cpu()
        if self.held >= len(rows):
            raise ConfigError(
                f"semantic: held={self.held} leaves nothing to test of the {len(rows)} test samples of class "
                f"{self.source}: at most {len(rows) - 1}"
            )
        order = rows[torch.randperm(len(rows), generator=generator(seed, "held"))]
        return split_goal(tests, order[: self.held], order[self.held :], self.target)

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        source = batch.targets == self.source
        relabelled = replace(batch, targets=torch.where(source, self.target, batch.targets))
        without = np.setdiff1d(context.clients.numpy(), batch.owners[source.to(batch.owners.device)].cpu().numpy())
        if self.keep_own and context.held is not None:
            # Whoever holds some goes without in a round that sees none of them.
            without = np.array([i for i in without.tolist() if not self._holds(i, context)], dtype=np.int64)
        own = relabelled if self.keep_own else relabelled.select(source)
        if not len(without):
            return Poisoned(own)
        return Poisoned(Batch.join(own, held_by(batch, context, torch.from_numpy(without), self.target, "semantic")))

    def _holds(self, client: int, context: AttackContext) -> bool:
        """Whether ``client`` holds any sample of the source class, in this round or not."""
        return context.held is not None and bool((context.held(client).targets == self.source).any())


def split_goal(tests: Tests, held: torch.Tensor, wanted: torch.Tensor, target: int) -> Goal:
    """``wanted`` test rows classified as ``target``; attackers hold the rows ``held``; both are not clean."""
    held, wanted = held.sort().values, wanted.sort().values
    labels = torch.full((len(wanted),), target, device=tests.device)
    rows = torch.cat([held, wanted]).sort().values.numpy()
    return Goal(tests.inputs(wanted), labels, rows, tests.inputs(held))


def held_by(batch: Batch, context: AttackContext, clients: torch.Tensor, target: int, who: str) -> Batch:
    """The goal's held samples, labelled ``target``, in the hands of each of ``clients``."""
    if context.goal is None or context.goal.held is None:
        raise ConfigError(f"{who} needs AttackContext.goal with the samples that attackers hold")
    inputs = context.goal.held
    return handed(batch, inputs, torch.full((len(inputs),), target), clients)
