"""What is recorded of each training: one cell for each rule, attack and honest set."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from bezoar.aggregation import Rule
from bezoar.attacks import Attack
from bezoar.certify import family_constants
from bezoar.certify.frontier import least_bound, remaining
from bezoar.errors import ConfigError, UnsupportedError
from bezoar.expected.config import Expected, Sets
from bezoar.expected.play import Floats, Masks, Steps, Trace, Training, play, play_once
from bezoar.expected.tasks import Curvature, Problem, shares
from bezoar.experiments.honesty import told
from bezoar.priors import Family, HonestPrior
from bezoar.seeding import derive

Cell = dict[str, Any]

#: What tells a cell from the others of its run.
Key = tuple[str, str, int]


@dataclass(frozen=True, eq=False)
class HonestSets:
    """The sets that are tried: ``honest`` [K, n], with ``log_prob`` [K] if they are all there are, None for draws."""

    honest: Masks
    log_prob: Floats | None

    def __len__(self) -> int:
        return len(self.honest)


@lru_cache(maxsize=4)
def honest_sets(prior: HonestPrior, sets: Sets, seed: int) -> HonestSets:
    """Every set of the support if there are few, else draws.

    Raises:
        ConfigError: the prior is about no certain number of clients.
    """
    if prior.n is None:
        raise ConfigError("prior: say how many clients it is about")
    try:
        family = prior.support()
    except ConfigError:
        family = None
    if family is not None and len(family) <= sets.most:
        return HonestSets(family.honest, family.log_prob)
    return HonestSets(prior.sample(sets.draws, derive(seed, "expected sets")), None)


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells of a run share.

    ``rules`` know their prior; ``kappas`` [rules][K] are infinite where nothing is promised; ``weights`` [K, n] say
    what a set's score is the mean of, ``minima`` its least value and ``curvature`` its constants, None where unknown.
    """

    experiment: Expected
    problem: Problem
    sets: HonestSets
    rules: tuple[Rule, ...]
    kappas: tuple[Floats, ...]
    weights: Floats
    minima: tuple[float | None, ...]
    curvature: tuple[Curvature | None, ...]
    steps: Steps

    @property
    def count(self) -> int:
        """How many cells the run has."""
        return len(self.rules) * len(self.experiment.attack) * len(self.sets)


def prepare(experiment: Expected, problem: Problem) -> Bench:
    """Sets, rules, constants and minima.

    Raises:
        ConfigError: the prior or a rule does not fit the clients.
    """
    n = problem.n
    prior, assumed = _about("prior", experiment.prior, n), _about("assumed", experiment.assumed or experiment.prior, n)
    if experiment.reading == "R2":
        sets = HonestSets(np.ones((1, n), dtype=np.bool_), np.zeros(1))
        weights = prior.weights()[None]
    else:
        sets = honest_sets(prior, experiment.sets, experiment.seed)
        weights = np.stack([shares(mask) for mask in sets.honest])
    rules, kappas = [], []
    first = problem.gradients(range(n)).at(problem.start, 1)
    for entry in experiment.rule:
        try:
            rule = told(entry.pipeline, assumed, n)
            rule.check(n)
            if rule.uses_root:
                raise ConfigError("it wants an update from data that the server trusts; there are none here")
            # What R2 scores is no mean over a set, so no constant is about it.
            about = experiment.reading == "R1"
            uniform = Family.uniform(sets.honest)
            kappas.append(family_constants(rule, uniform) if about else np.full(1, math.inf))
            # What a rule finds only when it is asked, it shall find now.
            play_once(rule, first, problem, experiment.seed)
        except (ConfigError, UnsupportedError) as error:
            raise ConfigError(f"rule {entry.label!r}: {error}") from None
        rules.append(rule)
    curvature = [problem.curvature(mask) for mask in sets.honest]
    known = [found.smoothness for found in curvature if found is not None]
    lr = experiment.lr
    if lr is None:
        lr = 1 / max(known)
    minima = tuple(problem.minimum(row) for row in weights)
    steps = Steps(experiment.rounds, lr, experiment.momentum, experiment.seed)
    return Bench(experiment, problem, sets, tuple(rules), tuple(kappas), weights, minima, tuple(curvature), steps)


def _about(key: str, prior: HonestPrior, n: int) -> HonestPrior:
    try:
        return prior.of(n)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def cells(bench: Bench, done: Mapping[Key, Cell]) -> Iterator[Cell]:
    """All cells that are not ``done``, each as soon as it is known.

    Trainings that are the same are made once: those of one set that was drawn twice, those without a bad client under
    all attacks, and those without an attack for all sets.
    """
    for rule, entry in enumerate(bench.experiment.rule):
        unattacked: dict[int, Cell] = {}
        made: dict[tuple[str, bytes], Cell] = {}
        for attack in bench.experiment.attack:
            for index in range(len(bench.sets)):
                mask = bench.sets.honest[index]
                attacked = attack.attack is not None and not mask.all()
                name = (attack.label if attacked else "", mask.tobytes())
                before = done.get((entry.label, attack.label, index))
                if before is not None:
                    made.setdefault(name, before)
                    continue
                cell = made.get(name)
                if cell is None and attacked:
                    cell = _trained(bench, rule, attack.attack, [index])[0]
                elif cell is None:
                    if not unattacked:
                        # Nobody attacks: all sets look at one training.
                        everyone = list(range(len(bench.sets)))
                        unattacked = dict(zip(everyone, _trained(bench, rule, None, everyone), strict=True))
                    cell = unattacked[index]
                else:
                    cell = {**cell, "seconds": 0.0}
                made[name] = cell
                yield {"kind": "cell", "rule": entry.label, "attack": attack.label, **_identity(bench, index),
                       **{key: value for key, value in cell.items() if key in _MEASURED}}  # fmt: skip


_MEASURED = ("excess", "loss", "accuracy", "error", "variance", "worst_ratio", "kappa", "bound", "optimisation",
             "broke", "diverged", "skipped", "seconds")  # fmt: skip


def _identity(bench: Bench, index: int) -> Cell:
    bad = np.flatnonzero(~bench.sets.honest[index]).tolist()
    logs = bench.sets.log_prob
    return {"set": index, "bad": bad, **({"draw": index} if logs is None else {"log_prob": float(logs[index])})}


def _trained(bench: Bench, rule: int, attack: Attack | None, indices: Sequence[int]) -> list[Cell]:
    """One training, as the sets ``indices`` see it."""
    begin = time.perf_counter()
    honest = bench.sets.honest[list(indices)]
    bad = np.flatnonzero(~honest[0]).tolist() if attack is not None else []
    training = play(bench.problem, bench.rules[rule], attack, bad, bench.steps, honest)
    losses = None if training.diverged else bench.problem.losses(training.theta)
    accuracy = None if training.diverged else bench.problem.accuracy(training.theta)
    spent = (time.perf_counter() - begin) / len(indices)
    return [
        _cell(bench, rule, index, training, trace, losses, accuracy, spent)
        for index, trace in zip(indices, training.traces, strict=True)
    ]


def _cell(
    bench: Bench, rule: int, index: int, training: Training, trace: Trace, losses: Floats | None,
    accuracy: float | None, seconds: float
) -> Cell:  # fmt: skip
    kappa, curvature, minimum = float(bench.kappas[rule][index]), bench.curvature[index], bench.minima[index]
    loss = math.inf if losses is None else float(bench.weights[index] @ losses)
    diverged = not math.isfinite(loss)
    excess = None if minimum is None or diverged else max(loss - minimum, 0.0)
    bound = optimisation = None
    steps = bench.steps
    # The promise is about plain gradients, steps of at most 1 / L, and every round.
    proved = curvature is not None and not steps.momentum and steps.lr * curvature.smoothness <= 1 + 1e-9
    if proved and curvature is not None and not training.skipped and not diverged and len(trace.variances):
        found = least_bound(kappa, curvature.convexity, trace.variances, trace.gradients)
        if found is not None and minimum is not None:
            first = float(bench.weights[index] @ bench.problem.losses(bench.problem.start)) - minimum
            bound = found.value
            optimisation = remaining(found, kappa, curvature.convexity, steps.lr, steps.rounds, first)
    broke = bench.experiment.reading == "R1" and not math.isfinite(kappa)
    return {
        "excess": excess,
        "loss": None if diverged else loss,
        "accuracy": accuracy,
        "error": _mean(trace.errors),
        "variance": _mean(trace.variances),
        "worst_ratio": trace.worst_ratio,
        "kappa": kappa if math.isfinite(kappa) else None,
        "bound": bound,
        "optimisation": optimisation,
        "broke": broke,
        "diverged": diverged,
        "skipped": training.skipped,
        "seconds": seconds,
    }


def _mean(values: Floats) -> float | None:
    """Of the numbers among ``values``; None if there are none, or it is not finite."""
    seen = values[~np.isnan(values)]
    if not len(seen):
        return None
    with np.errstate(over="ignore"):
        found = float(seen.mean())
    return found if math.isfinite(found) else None
