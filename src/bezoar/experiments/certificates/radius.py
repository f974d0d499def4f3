"""The certified radius of an experiment, against what its attack achieves: twins in lockstep, one cell for every k."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bezoar.certify.lipschitz import lower_estimate
from bezoar.certify.radius import guaranteed_loss_rate, invalid_below_lr_one
from bezoar.errors import ConfigError, UnsupportedError
from bezoar.experiments.certificates import _bounds, _words
from bezoar.experiments.certificates._cell import Cell
from bezoar.experiments.certificates._covered import Server, check_covered, describe, with_k
from bezoar.experiments.certificates._facts import Fact, Facts, is_softmax_regression, mean_update, rounds
from bezoar.experiments.certificates._figure import radius_plot
from bezoar.experiments.certificates._predictions import predictions
from bezoar.experiments.certificates._record import round_records, summary
from bezoar.experiments.certificates._search import search
from bezoar.experiments.certificates.base import Outcome, Request
from bezoar.experiments.config import Experiment
from bezoar.experiments.setup import Setup, prepare
from bezoar.seeding import generator


def certify(request: Request) -> Outcome:
    """The certified radius, measured against the twins (unless ``request.measure`` is false).

    Raises:
        UnsupportedError: the theory does not cover the experiment.
        ConfigError: the experiment can not run.
        BezoarError: the server gave up on a round.
    """
    experiment = request.experiment
    check_covered(experiment)
    if request.measure and experiment.attack is None:
        raise UnsupportedError("there is no attack whose distance could be measured: set attack, or use --no-measure")
    if request.attacks and not request.measure:
        raise ConfigError("--attacks measures, and --no-measure does not: leave one out")
    if request.c is not None and not 0 < request.c < math.inf:
        raise ConfigError(f"c must be a positive number, got {request.c}")
    cells = tuple(_cell(request, with_k(experiment, k)) for k in request.ks) or (_cell(request, experiment),)
    if not any(fact.attackers for fact in cells[0].facts):
        raise UnsupportedError(
            "no malicious client took part in any round: the certified radius is zero for want of attackers"
        )
    words = _words.words(cells, request.c is not None)
    tables = (_words.table(cells), *(tried for cell in cells if (tried := _words.search_table(cell)) is not None))
    records = tuple(record for cell in cells for record in round_records(cell, range(len(cell.facts))))
    return Outcome(summary(cells, words), tables, words, (radius_plot(cells),), records)


def _cell(request: Request, experiment: Experiment) -> Cell:
    cuda = [request.device] if request.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        clean = prepare(experiment.without_attack(), request.data_dir, request.device)
        poisoned = clean
        if experiment.attack is not None:
            poisoned = prepare(experiment, request.data_dir, request.device)
            # How many samples attackers hold may decide who is drawn: the twins' cohorts are those of the attacked run.
            clean = replace(clean, held=poisoned.held)
        start = clean.weights.clone()
        server = describe(experiment, len(start))
        request.progress(f"k = {server.k} of {server.d} coordinates")
        proved = request.c is None and is_softmax_regression(clean.model)
        if not request.measure:
            plan = Facts(clean, lengths=False)
            facts = tuple(plan.at(t) for t in range(1, experiment.rounds + 1))
            return _bounded(request, clean, server, facts, proved, ((), ()))
        run = _Run(request, experiment, clean, proved)
        found = run.play(poisoned)
        cell = _bounded(request, clean, server, tuple(run.facts), proved, found.loss_rates)
        sure = None
        if proved:
            sure = predictions(clean, found.weights, cell.bound[-1], cell.convex.last if cell.convex else None)
        tried = None
        if request.attacks:
            tried = search(request, experiment, clean, start, run.path, cell.bound, cell.convex, sure)
        moved = float((clean.weights.double() - start.double()).abs().sum())
    return replace(
        cell,
        loss_rates=found.loss_rates,
        distances=found.distances,
        moved=moved,
        predictions=sure,
        search=tried,
    )


@dataclass(frozen=True, eq=False)
class _Twins:
    loss_rates: tuple[tuple[float, ...], tuple[float, ...]]
    distances: tuple[tuple[float, ...], tuple[float, ...]]
    weights: Tensor


@dataclass(eq=False)
class _Run:
    """The clean run, its facts, and its path where further attacks will be held against it."""

    request: Request
    experiment: Experiment
    clean: Setup
    proved: bool
    facts: list[Fact] = field(default_factory=list)
    path: list[Tensor] = field(default_factory=list)

    def play(self, poisoned: Setup) -> _Twins:
        """Both runs, round by round."""
        if self.request.attacks:
            _check_memory(self.experiment.rounds, self.clean.weights)
        plan = Facts(self.clean, lengths=self.proved)
        rates: tuple[list[float], list[float]] = ([], [])
        l1, l2 = [], []
        for fact, mine, theirs in self._rounds(plan, poisoned):
            if fact.attackers != theirs.attackers:
                raise UnsupportedError(
                    f"round {fact.round}: {theirs.attackers} attackers where {fact.attackers} were due"
                )
            length = float(mine.weights.double().norm())
            self.facts.append(replace(fact, update=mine.update, memory=mine.memory, length=length))
            gap = (mine.weights.double() - theirs.weights.double()).abs()
            l1.append(float(gap.sum()))
            l2.append(float(gap.norm()))
            rates[0].append(mine.loss_rate)
            rates[1].append(theirs.loss_rate)
        return _Twins((tuple(rates[0]), tuple(rates[1])), (tuple(l1), tuple(l2)), poisoned.weights)

    def _rounds(self, plan: Facts, poisoned: Setup) -> Iterator[tuple[Fact, Any, Any]]:
        runs = rounds(self.clean), rounds(poisoned)
        for t in range(1, self.experiment.rounds + 1):
            if self.request.attacks:
                self.path.append(self.clean.weights.clone())
            fact = plan.at(t)
            yield fact, next(runs[0]), next(runs[1])
        if self.request.attacks:
            self.path.append(self.clean.weights.clone())


def _check_memory(rounds: int, weights: Tensor) -> None:
    size = rounds * weights.numel() * weights.dtype.itemsize
    if size > 2**30:
        raise UnsupportedError(
            f"--attacks holds the clean run's model of all {rounds} rounds, {size / 2**30:.1f} GiB: more than 1; use "
            "fewer rounds or a smaller model"
        )


def _bounded(
    request: Request,
    clean: Setup,
    server: Server,
    facts: tuple[Fact, ...],
    proved: bool,
    rates: tuple[Sequence[float], Sequence[float]],
) -> Cell:
    c = request.c
    if not proved and c is None and server.recurrent:
        draws = generator(request.experiment.seed, "coordinate-lipschitz")
        c = lower_estimate(mean_update(clean), clean.weights, draws)
    certain = guaranteed_loss_rate(server.k, server.d) if server.sparse else 0.0
    always = _bounds.march(facts, server, certain, c)
    measured = max([*rates[0], *rates[1]], default=None)
    conditional = None if measured is None else _bounds.march(facts, server, min(measured, certain), c)
    invalid = None
    if always is not None:
        growth = max(always.growth) if c is None else server.width * c
        force = max(always.rho) + 2 * (conditional or always).gamma
        invalid = invalid_below_lr_one([fact.lr for fact in facts], growth, force)
    convex = _bounds.convex(facts, server) if proved else None
    estimated = c is not None and request.c is None
    reach = _bounds.reach(facts, server)
    return Cell(server, facts, c, always, conditional, convex, reach, invalid, estimated=estimated)
