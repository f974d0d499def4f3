"""Many attacks against one clean run, to see how near they come to what is certified."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks import ATTACKS, Attack, AttackContext, Knowledge, Tests, UpdateAttack
from bezoar.attacks.base import stack
from bezoar.certify.prediction import endurance
from bezoar.certify.radius import linear
from bezoar.data import UniformSampling
from bezoar.experiments.certificates._bounds import March
from bezoar.experiments.certificates._facts import rounds
from bezoar.experiments.certificates._predictions import Predictions, scores, test_features
from bezoar.experiments.certificates.base import Request
from bezoar.experiments.config import Experiment
from bezoar.experiments.setup import Setup
from bezoar.seeding import generator, numpy_generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked

Norm = Literal["l1", "l2"]
NORMS: tuple[Norm, ...] = ("l1", "l2")


@dataclass(frozen=True, eq=False)
class Push(UpdateAttack):
    """All attackers send one update of length L, every round the way in which the models lie apart already.

    ``how`` is the shape of the push: along the displacement ("along"), along its signs, which is the longest in the l1
    norm ("signs"), along its largest coordinate ("coordinate"), or always along ``first`` ("steady"). ``path`` [T + 1]
    is the clean run, ``first`` [d] the push while the models agree.
    """

    path: Sequence[Tensor]
    first: Tensor
    how: Literal["along", "signs", "coordinate", "steady"]

    least: ClassVar[Knowledge] = Knowledge.DEFENCE

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        apart = context.weights - self.path[context.round - 1]
        push = self.first if self.how == "steady" or not apart.any() else apart
        if self.how == "signs":
            push = torch.where(push == 0, self.first.sign(), push.sign())
        elif self.how == "coordinate":
            place = push.abs().argmax()
            push = torch.zeros_like(push).index_fill_(0, place, 1.0) * push[place].sign()
        length = torch.linalg.vector_norm(push)
        # Updates are subtracted from the model.
        return stack(view, (-context.radius / length * push)[None], context.clients)


@dataclass(frozen=True)
class Trial:
    """One attack: the largest shares of the certified radii that it reached in any round, and whose labels changed.

    ``l1`` and ``l2`` are measured over certified distance; ``distances`` the final ones; None where there is no radius.
    """

    name: str
    l1: float
    l2: float | None
    distances: tuple[float, float]
    flipped: Tensor | None


@dataclass(frozen=True)
class Search:
    """All attacks that were tried."""

    trials: tuple[Trial, ...]
    certified: Tensor | None

    @property
    def flipped(self) -> Tensor | None:
        """Which predictions at least one attack changed, bool [N]; None for a model without certified predictions."""
        known = [trial.flipped for trial in self.trials if trial.flipped is not None]
        return torch.stack(known).any(0) if known else None

    def broken(self) -> int:
        """How many certified predictions changed: more than none refutes the certificate."""
        flipped = self.flipped
        return 0 if flipped is None or self.certified is None else int((flipped & self.certified).sum())

    def beyond(self) -> int:
        """How many attacks got out of a radius: more than none refutes the certificate."""
        return sum(trial.l1 > 1 or (trial.l2 or 0) > 1 for trial in self.trials)

    def nearest(self, norm: Norm) -> Trial | None:
        """The attack that came nearest to the radius."""
        known = [trial for trial in self.trials if getattr(trial, norm) is not None]
        return max(known, key=lambda trial: float(getattr(trial, norm))) if known else None

    def kinds(self) -> dict[str, list[Trial]]:
        """The trials of every kind of attack."""
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            found.setdefault(trial.name, []).append(trial)
        return found

    def record(self) -> dict[str, Any]:
        """For certificate.json."""
        flipped = self.flipped
        near = {norm: self.nearest(norm) for norm in NORMS}
        return {
            "attacks": len(self.trials),
            "kinds": {
                name: {
                    "attacks": len(trials),
                    "largest_share_of_l1_radius": max(trial.l1 for trial in trials),
                    "largest_share_of_l2_radius": max((t.l2 for t in trials if t.l2 is not None), default=None),
                    "largest_distance_l1": max(trial.distances[0] for trial in trials),
                    "largest_distance_l2": max(trial.distances[1] for trial in trials),
                    "most_predictions_flipped": max(
                        (int(t.flipped.sum()) for t in trials if t.flipped is not None), default=None
                    ),
                }
                for name, trials in self.kinds().items()
            },
            "nearest": {
                norm: None if trial is None else {"attack": trial.name, "share": getattr(trial, norm)}
                for norm, trial in near.items()
            },
            "beyond_radius": self.beyond(),
            "flipped_by_any": None if flipped is None else float(flipped.double().mean()),
            "certified_but_flipped": self.broken(),
        }


def search(
    request: Request,
    experiment: Experiment,
    clean: Setup,
    start: Tensor,
    path: Sequence[Tensor],
    log_bound: Sequence[float],
    convex: March | None,
    predictions: Predictions | None,
) -> Search:
    """Try ``request.attacks`` attacks of all kinds, each with clients and directions of its own.

    Where every client is in every round, each attack also draws which clients are malicious: the radius depends on
    their number only. ``path`` is the clean run; radii are natural logarithms.
    """
    trials = []
    kinds = list(_kinds(clean, path, predictions).items())
    uniform = isinstance(experiment.sampling, UniformSampling) and experiment.adversary.per_round is None
    everyone = uniform and experiment.sampling.cohort == clean.federation.n
    # The certificate holds whatever attackers know.
    adversary = experiment.adversary.model_copy(update={"knowledge": Knowledge.DEFENCE})
    for i in range(request.attacks):
        name, make = kinds[i % len(kinds)]
        attack = make(i)
        if not i % 20:
            request.progress(f"attack {i + 1} of {request.attacks}")
        attacked = experiment.model_copy(update={"attack": attack, "adversary": adversary})
        malicious = clean.malicious
        if everyone:
            draws = numpy_generator(experiment.seed, "certificate's attackers", i)
            malicious = np.sort(draws.choice(clean.federation.n, len(malicious), replace=False))
        goal = attack.goal(Tests(clean.federation.dataset, clean.device), experiment.seed + i)
        with torch.no_grad():
            clean.weights.copy_(start)
        setup = replace(clean, experiment=attacked, malicious=malicious, goal=goal)
        trials.append(_trial(name, setup, path, log_bound, convex, predictions))
    with torch.no_grad():
        clean.weights.copy_(path[-1])
    return Search(tuple(trials), None if predictions is None else predictions.any)


def _trial(
    name: str,
    setup: Setup,
    path: Sequence[Tensor],
    log_bound: Sequence[float],
    convex: March | None,
    predictions: Predictions | None,
) -> Trial:
    shares1, shares2 = [0.0], [0.0]
    distances = (0.0, 0.0)
    for t, measured in enumerate(rounds(setup)):
        gap = (measured.weights.double() - path[t + 1].double()).abs()
        distances = float(gap.sum()), float(gap.norm())
        shares1.append(_share(distances[0], log_bound[t]))
        if convex is not None:
            shares2.append(_share(distances[1], convex.log_radius[t]))
    flipped = None
    if predictions is not None:
        x = test_features(setup)
        flipped = scores(setup.weights, x).argmax(1) != scores(path[-1], x).argmax(1)
    return Trial(name, max(shares1), None if convex is None else max(shares2), distances, flipped)


def _share(distance: float, log_radius: float) -> float:
    """Measured over certified distance; 0 where the models agree."""
    radius = linear(log_radius)
    return distance / radius if radius else (0.0 if distance == 0 else math.inf)


def _kinds(clean: Setup, path: Sequence[Tensor], predictions: Predictions | None) -> dict[str, Callable[[int], Attack]]:
    """Kinds of attacks by name; each makes the i-th attack."""
    seed, d, device = clean.experiment.seed, len(path[0]), clean.device
    aux = max(1, min(50, len(clean.federation.dataset.test) // 10))

    def noise(i: int) -> Tensor:
        draws = generator(seed, "certificate's direction", i)
        return torch.randn(d, generator=draws).to(device, path[0].dtype)

    def push(how: Literal["along", "signs", "coordinate", "steady"]) -> Callable[[int], Attack]:
        return lambda i: Push(path, noise(i), how)

    def table(kind: str, **options: object) -> Callable[[int], Attack]:
        return lambda i: ATTACKS.build({"kind": kind, **options})

    def back(i: int) -> Attack:
        gone = path[-1] - path[0]
        return Push(path, torch.where(gone == 0, noise(i) * 1e-9, -gone), "steady")

    kinds: dict[str, Callable[[int], Attack]] = {
        "random directions": table("random-direction"),
        "one direction": push("steady"),
        "along the displacement": push("along"),
        "signs of the displacement": push("signs"),
        "one coordinate": push("coordinate"),
        "back to the start": back,
        "sign flip": table("sign-flip", scale=1000.0),
        "PGD": lambda i: ATTACKS.build({"kind": "pgd", "aux": aux, "lr": (0.1, 1.0, 10.0)[i % 3]}),
        "label flip": table("label-flip"),
    }
    if predictions is not None:
        kinds["one test point"] = lambda i: Push(path, _towards(clean, path[-1], predictions, i), "steady")
    return kinds


def _towards(clean: Setup, weights: Tensor, predictions: Predictions, i: int) -> Tensor:
    """The shortest way to another label of the certified (or any) test point that is i-th nearest to losing its own."""
    x = test_features(clean)
    logits = scores(weights, x)
    weakest = endurance(logits, x, "l2")
    chosen = predictions.any if predictions.any.any() else torch.ones_like(predictions.any)
    order = torch.where(chosen, weakest, math.inf).argsort()
    point = order[(i // 10) % max(1, int(chosen.sum()))]
    first, second = logits[point].topk(2).indices.tolist()
    m, classes = x.shape[1] - 1, logits.shape[1]
    way = torch.zeros(classes, m + 1, dtype=weights.dtype, device=weights.device)
    way[second], way[first] = x[point].to(way.dtype), -x[point].to(way.dtype)
    return torch.cat([way[:, :m].reshape(-1), way[:, m]])
