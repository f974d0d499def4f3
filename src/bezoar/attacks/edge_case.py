"""Edge-case backdoor: rare inputs of one class are learnt as another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.attacks._samples import check_class, check_pair, check_share
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Knowledge, Poisoned, Tests
from bezoar.attacks.semantic import held_by, split_goal
from bezoar.errors import ConfigError
from bezoar.seeding import generator

#: Ridge of the Gaussian fit, as a share of the mean variance of a feature.
_RIDGE = 0.1


@dataclass(frozen=True)
class EdgeCase(DataAttack):
    r"""Targeted: rare inputs of one class, from the tail of its distribution, shall be taken for another class.

    .. math:: D(x)^2 = (x - \mu_s)^\top (\Sigma_s + \lambda I)^{-1} (x - \mu_s), \quad
              T = \{\text{the share } \tau \text{ of class } s \text{ with the largest } D\}

    s is the class ``source``, and its tail shall be classified as ``target``. Honest clients hold few such inputs,
    so that their updates do little against the backdoor. The paper ranks inputs by their likelihood under a density
    fitted to features of a trained model, or takes them from another data set; here the tail are the ``tail`` share
    of the test samples of the source class that are least likely under a Gaussian fitted to that class, in the
    space of the normalised inputs (lambda is 0.1 of the mean variance of a feature), or those farthest from the
    class mean (``measure = "mean"``). A share ``held`` of the tail, drawn once per experiment, goes to every
    attacker, labelled target, beside its own samples (``keep_own``) or instead of them; the rest of the tail is the
    goal. The clean test accuracy leaves out the tail.

    Knows: the tail samples that it holds.
    Cost: one singular value decomposition of the class's test samples per experiment.
    Peers: FLPoison's EdgeCase.
    Reference: Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos: Attack of the Tails: Yes, You
        Really Can Backdoor Federated Learning, NeurIPS 2020.
    """

    targeted: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.OWN_DATA
    numeric: ClassVar[bool] = True

    source: int = 7
    target: int = 1
    tail: float = 0.2
    held: float = 0.5
    measure: Literal["gaussian", "mean"] = "gaussian"
    keep_own: bool = True

    def __post_init__(self) -> None:
        check_pair("edge-case", self.source, self.target)
        check_share("edge-case", "tail", self.tail)
        if not 0 < self.held < 1:
            raise ConfigError(f"edge-case: held must be above 0 and below 1, got {self.held}")
        if self.measure not in ("gaussian", "mean"):
            raise ConfigError(f"edge-case: measure must be 'gaussian' or 'mean', got {self.measure!r}")

    def goal(self, tests: Tests, seed: int) -> Goal:
        for key in ("source", "target"):
            check_class("edge-case", key, getattr(self, key), tests.classes)
        rows = (tests.targets == self.source).nonzero().flatten().cpu()
        size = round(self.tail * len(rows))
        if size < 2:
            raise ConfigError(
                f"edge-case: tail={self.tail} of the {len(rows)} test samples of class {self.source} is {size}: it "
                "takes two, one to hold and one to test; raise tail"
            )
        inputs = tests.inputs(rows).flatten(1).double()
        far = oddness(inputs, self.measure).cpu().argsort(descending=True, stable=True)
        order = rows[far[:size]][torch.randperm(size, generator=generator(seed, "held"))]
        count = min(max(1, round(self.held * size)), size - 1)
        return split_goal(tests, order[:count], order[count:], self.target)

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        given = held_by(batch, context, context.clients, self.target, "edge-case")
        return Poisoned(Batch.join(batch, given) if self.keep_own else given)


def oddness(inputs: Tensor, measure: str) -> Tensor:
    """How far each of ``inputs`` [m, d] lies from the others [m]: D^2 of the Gaussian fit, or from their mean."""
    centred = inputs - inputs.mean(0)
    if measure == "mean":
        return centred.square().sum(1)
    ridge = (_RIDGE * centred.square().mean()).clamp(min=torch.finfo(centred.dtype).tiny)
    # In the basis of the principal directions the covariance is diagonal, and no d x d matrix is needed.
    left, spread, _ = torch.linalg.svd(centred, full_matrices=False)
    distances: Tensor = ((left * spread).square() / (spread.square() / len(inputs) + ridge)).sum(1)
    return distances
