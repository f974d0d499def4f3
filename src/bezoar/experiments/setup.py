"""From an experiment's description to what its rounds need: data, model, attackers, test points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bezoar.attacks import ATTACKS, DataAttack, Goal, Knowledge, Tests, UpdateAttack
from bezoar.clients import CLIENTS, Scratch, check_memory
from bezoar.data import EpochSampling, Federation, compromised, load, partition
from bezoar.data.dataset import Dataset, Indices
from bezoar.errors import ConfigError
from bezoar.experiments.config import Adversary, Experiment
from bezoar.experiments.honesty import about, drawn, told
from bezoar.models import MODELS, flatten
from bezoar.priors import HonestPrior
from bezoar.ranks import ALONE, Ranks
from bezoar.seeding import numpy_generator
from bezoar.updates import Needs

T = TypeVar("T")


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample: logits [N, C], classes [N] -> [N]."""
    return functional.cross_entropy(outputs, targets, reduction="none")


@dataclass(frozen=True)
class Setup:
    """What stays the same in all rounds of a run.

    Attributes:
        experiment: what is run; rules of its defence that want a prior have one.
        federation: data set and partition.
        malicious: ids of the malicious clients, ascending.
        sybils: ids of the adversary's extra clients, above all others.
        model: the global model; its parameters are views into ``weights``.
        weights: the global model, flat [d]; rounds change it in place.
        scratch: a private copy for local training.
        goal: the attackers' test points and wrong labels, None without a targeted attack.
        root: training rows that the server trusts, empty unless the rule uses them.
        held: how many samples every client counts as holding when cohorts are drawn [n].
        device: where everything is computed.
        prior: what rules are told of who may be malicious, about the clients with data; None without ``[prior]``.
        source: what the malicious clients were drawn from, None if they were not drawn from a prior.
        facts: of the model's frozen part and the files it was read from (:class:`bezoar.models.Built`).
        ranks: the processes that play the rounds together.
    """

    experiment: Experiment
    federation: Federation
    malicious: Indices
    sybils: Indices
    model: nn.Module
    weights: Tensor
    scratch: Scratch
    goal: Goal | None
    root: Indices
    held: Indices
    device: torch.device
    prior: HonestPrior | None = None
    source: HonestPrior | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    ranks: Ranks = ALONE

    def draw(self, round: int) -> Indices:
        """The ids of the clients that are drawn for ``round`` (from 1), ascending."""
        experiment = self.experiment
        per_round = experiment.adversary.per_round
        return experiment.sampling.draw(
            self.federation.n, round - 1, experiment.seed, self.malicious, per_round, self.held
        )

    @property
    def attacker_share(self) -> float:
        """Share of all clients with data that are malicious."""
        return len(self.malicious) / self.federation.n

    @property
    def clients(self) -> int:
        """Number of clients, sybils included."""
        return self.federation.n + len(self.sybils)


def prepare(experiment: Experiment, data_dir: str | Path | None, device: torch.device) -> Setup:
    """Load the data, divide it, build the model and draw the attackers.

    Raises:
        DataError: the data set is missing or damaged.
        ConfigError: parts that do not fit together, found before the first round.
    """
    dataset = load(experiment.data.dataset, data_dir, normalise=experiment.data.normalise)
    groups = experiment.data.groups
    if groups is not None:
        dataset = _at("data.groups", lambda: dataset.of_groups(groups.column, groups.part, groups.parts))
    federation = _at("data.partition", lambda: partition(dataset, experiment.data.partition, experiment.seed))
    prior = None if experiment.prior is None else _at("prior", lambda: about(experiment.prior, federation))  # type: ignore[arg-type]
    source, malicious = _at("adversary", lambda: _malicious(experiment, federation, prior))
    return replace(assemble(experiment, federation, malicious, device, prior), source=source)


def assemble(
    experiment: Experiment,
    federation: Federation,
    malicious: Indices,
    device: torch.device,
    prior: HonestPrior | None = None,
) -> Setup:
    """As :func:`prepare`, for a federation that exists, with these malicious clients (ascending).

    ``prior``, about its clients, is what rules without a prior of their own are told.

    Raises:
        ConfigError: parts that do not fit together, found before the first round.
    """
    adversary, dataset = experiment.adversary, federation.dataset
    pipeline = _at("defence.pipeline", lambda: told(experiment.defence.pipeline, prior, federation.n, adversary.sybils))
    experiment = experiment.model_copy(update={"defence": replace(experiment.defence, pipeline=pipeline)})
    sybils = np.arange(federation.n, federation.n + adversary.sybils, dtype=np.int64)
    if len(sybils) and not len(malicious) and isinstance(experiment.attack, DataAttack):
        raise ConfigError(
            "adversary.sybils: there is no malicious client whose data they could copy: set adversary.count"
        )
    own_only = Knowledge.NONE < adversary.knowledge < Knowledge.HONEST_UPDATES
    attack = experiment.attack
    if len(sybils) and not len(malicious) and isinstance(attack, UpdateAttack) and (attack.uses_own or attack.trains):
        raise ConfigError("adversary.sybils: they have no data, and this attack trains on the attackers': set count")
    if own_only and len(sybils) and not len(malicious) and isinstance(attack, UpdateAttack):
        raise ConfigError(
            f"adversary.knowledge is {adversary.knowledge.label!r}, but no malicious client has data: set count"
        )
    counts = federation.counts()
    if (counts == 0).any():
        raise ConfigError(f"data.partition: client {int((counts == 0).argmax())} has no samples and can not take part")
    # Before the goal, which an attack would try to make of samples that it can not read.
    _readable(experiment, dataset)
    goal = _goal(experiment, dataset, device)
    held = counts if goal is None else counts.copy()
    if goal is not None and isinstance(attack, UpdateAttack) and not attack.trains:
        # Attackers who train on the aux points have these; those who poison their own samples have as many as before.
        held[malicious] = len(goal.labels)
    _at(
        "sampling",
        lambda: experiment.sampling.draw(federation.n, 0, experiment.seed, malicious, adversary.per_round, held),
    )
    made = _at("model", lambda: experiment.model.build(dataset, experiment.seed))
    model = made.model.to(device)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"model: {name!r} is a {type(module).__name__}, which mixes the samples of different clients and keeps "
                f"statistics that no client sends; use GroupNorm"
            )
    weights = flatten(model)
    _at("defence.server", lambda: experiment.defence.server.check(weights.numel()))
    _fits(experiment, held, weights)
    if isinstance(experiment.attack, UpdateAttack) and adversary.knowledge >= Knowledge.DEFENCE:
        update_attack = experiment.attack
        _at("attack", lambda: update_attack.check(experiment.defence.pipeline))
    root, scratch = _root(experiment, dataset), Scratch(model)
    return Setup(
        experiment,
        federation,
        malicious,
        sybils,
        model,
        weights,
        scratch,
        goal,
        root,
        held,
        device,
        prior,
        facts=made.facts,
    )


def _readable(experiment: Experiment, dataset: Dataset) -> None:
    """Raise unless model and attack take what the samples are, numbers or tokens."""
    tokens, model, attack = dataset.vocabulary is not None, MODELS.get(experiment.model.name), experiment.attack
    if model is not None and model.tokens != tokens:
        others = ", ".join(name for name, kind in MODELS.items() if kind.tokens == tokens)
        what = "tokens" if tokens else "numbers"
        raise ConfigError(
            f"model.name: {model.name!r} can not read {dataset.name}, whose samples are {what}: {others} can"
        )
    if tokens and experiment.data.augment:
        raise ConfigError(f"data.augment: {dataset.name} is text and has no augmentation")
    if tokens and attack is not None and attack.numeric:
        raise ConfigError(f"attack: {ATTACKS.name(attack)!r} changes inputs that are numbers; {dataset.name} is text")


def _malicious(
    experiment: Experiment, federation: Federation, prior: HonestPrior | None
) -> tuple[HonestPrior | None, Indices]:
    """The prior from which the malicious clients are drawn, if they are, and their ids, ascending."""
    adversary, n = experiment.adversary, federation.n
    if adversary.prior is not None:
        source = about(adversary.prior, federation)
        return source, drawn(source, n, experiment.seed, somebody=False)
    if prior is not None and adversary.clients is None:
        return prior, drawn(prior, n, experiment.seed, somebody=True)
    return None, _named(adversary, n, experiment.seed)


def _named(adversary: Adversary, n: int, seed: int) -> Indices:
    """The ids of the malicious clients where no prior says them, ascending."""
    if adversary.clients is not None:
        ids = np.array(sorted(adversary.clients), dtype=np.int64)
        if len(ids) and ids[-1] >= n:
            raise ConfigError(f"clients: client {ids[-1]} does not exist: clients are 0..{n - 1}")
        return ids
    if adversary.count is None and adversary.share is None:
        return np.empty(0, dtype=np.int64)
    last = adversary.which == "last"
    return compromised(n, count=adversary.count, share=adversary.share, seed=seed, last=last)


def _fits(experiment: Experiment, held: Indices, weights: Tensor) -> None:
    """Raise unless pipeline, attack and clients fit the cohorts and each other: nobody waits for round 300 to hear."""
    clients, pipeline, sybils = experiment.clients, experiment.defence.pipeline, experiment.adversary.sybils
    n, cohort = len(held), experiment.sampling.cohort
    d, itemsize = weights.numel(), weights.dtype.itemsize
    for size in _cohorts(experiment, held):
        _at("defence.pipeline", lambda size=size: pipeline.check(size))  # type: ignore[misc]
    if clients.momentum:
        if cohort < n:
            raise ConfigError(
                f"clients.momentum: needs every client in every round, but sampling.cohort={cohort} of {n} clients: "
                f"set sampling.cohort = {n}, or leave momentum to the server (defence.server.momentum)"
            )
        _at("clients.momentum", lambda: check_memory(n + sybils, d, itemsize, clients.max_bytes))
        return
    offers = clients.offers(cohort + sybils, d * itemsize)
    _answers("defence.pipeline", pipeline.name, pipeline.needs & ~offers, experiment, d)
    attack = experiment.attack
    if isinstance(attack, UpdateAttack):
        _answers("attack", type(attack).__name__, attack.needs & ~offers, experiment, d)


def _answers(key: str, who: str, missing: Needs, experiment: Experiment, d: int) -> None:
    if missing:
        names = ", ".join(str(flag.name).lower() for flag in missing)
        raise ConfigError(
            f"{key}: {who} needs {names} of {experiment.sampling.cohort} updates x {d} parameters, which "
            f"clients {CLIENTS.name(experiment.clients)!r} do not keep with "
            f"max_bytes={experiment.clients.max_bytes}: raise clients.max_bytes"
        )


def _cohorts(experiment: Experiment, held: Indices) -> set[int]:
    """The sizes of the cohorts that the run will see."""
    sampling, adversary = experiment.sampling, experiment.adversary
    n, cohort = len(held), sampling.cohort
    sizes = {cohort}
    if isinstance(sampling, EpochSampling) and not sampling.skip_tail:
        if sampling.batch_size:
            sizes = {len(sampling.draw(n, t, experiment.seed, held=held)) for t in range(experiment.rounds)}
        elif n % cohort and experiment.rounds >= sampling.rounds_per_epoch(n):
            sizes = {cohort, n % cohort}
    if not adversary.sybils or experiment.attack is None:
        return sizes
    joined = {size + adversary.sybils for size in sizes}
    always = adversary.start == adversary.every == 1 and adversary.stop is None
    return joined if always else sizes | joined


def _root(experiment: Experiment, dataset: Dataset) -> Indices:
    """The server's own samples: uniform draws from all training samples, clients' or not."""
    if not experiment.defence.pipeline.uses_root:
        return np.empty(0, dtype=np.int64)
    wanted, have = experiment.defence.root_samples, len(dataset.train)
    if wanted > have:
        raise ConfigError(f"defence.root_samples: {wanted} of {have} training samples: at most {have}")
    return np.sort(numpy_generator(experiment.seed, "root").choice(have, wanted, replace=False))


def _goal(experiment: Experiment, dataset: Dataset, device: torch.device) -> Goal | None:
    if experiment.attack is None:
        return None
    attack, tests = experiment.attack, Tests(dataset, device)
    return _at("attack", lambda: attack.goal(tests, experiment.seed))


def _at(key: str, action: Callable[[], T]) -> T:
    """Name the section of the experiment in errors that ``action`` raises."""
    try:
        return action()
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
