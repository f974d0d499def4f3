"""From an experiment's description to what its rounds need: data, model, attackers, test points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bezoar.attacks import Attack, Goal, wrong_labels
from bezoar.clients import Scratch
from bezoar.data import EpochSampling, Federation, compromised, load, partition
from bezoar.data.dataset import Indices
from bezoar.errors import ConfigError
from bezoar.experiments.config import Experiment
from bezoar.models import flatten, make_model
from bezoar.seeding import generator

T = TypeVar("T")


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample: logits [N, C], classes [N] -> [N]."""
    return functional.cross_entropy(outputs, targets, reduction="none")


@dataclass(frozen=True)
class Setup:
    """What stays the same in all rounds of a run.

    Attributes:
        federation: data set and partition.
        malicious: ids of the malicious clients, ascending.
        model: the global model; its parameters are views into ``weights``.
        weights: the global model, flat [d]; rounds change it in place.
        scratch: a private copy for local training.
        goal: the attackers' test points and wrong labels, None without a targeted attack.
        aux: rows of those points in the test set.
        device: where everything is computed.
    """

    experiment: Experiment
    federation: Federation
    malicious: Indices
    model: nn.Module
    weights: Tensor
    scratch: Scratch
    goal: Goal | None
    aux: Indices
    device: torch.device

    @property
    def attacker_share(self) -> float:
        """Share of all clients that are malicious."""
        return len(self.malicious) / self.federation.n


def prepare(experiment: Experiment, data_dir: str | Path | None, device: torch.device) -> Setup:
    """Load the data, divide it, build the model and draw the attackers.

    Raises:
        DataError: the data set is missing or damaged.
        ConfigError: parts that do not fit together, found before the first round.
    """
    dataset = load(experiment.data.dataset, data_dir)
    federation = _at("data.partition", lambda: partition(dataset, experiment.data.partition, experiment.seed))
    adversary = experiment.adversary
    malicious = np.empty(0, dtype=np.int64)
    if not adversary.absent:
        malicious = _at(
            "adversary",
            lambda: compromised(federation.n, count=adversary.count, share=adversary.share, seed=experiment.seed),
        )
    counts = federation.counts()
    if (counts == 0).any():
        raise ConfigError(f"data.partition: client {int((counts == 0).argmax())} has no samples and can not take part")
    _at(
        "sampling",
        lambda: experiment.sampling.draw(federation.n, 0, experiment.seed, malicious, adversary.per_round),
    )
    for option in experiment.model.options:
        if option in ("shape", "classes", "seed"):
            raise ConfigError(f"model.{option}: follows from the data set and the experiment's seed; leave it out")
    model = make_model(
        experiment.model.name, dataset.shape, len(dataset.classes), experiment.seed, **experiment.model.options
    ).to(device)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"model: {name!r} is a {type(module).__name__}, which mixes the samples of different clients and keeps "
                f"statistics that no client sends; use GroupNorm"
            )
    weights = flatten(model)
    experiment.defence.server.check(weights.numel())
    _at("defence.pipeline", lambda: experiment.defence.pipeline.check(_smallest_cohort(experiment, federation.n)))
    goal, aux = _goal(experiment.attack, experiment, federation, device)
    return Setup(experiment, federation, malicious, model, weights, Scratch(model), goal, aux, device)


def _smallest_cohort(experiment: Experiment, n: int) -> int:
    cohort = experiment.sampling.cohort
    left = n % cohort
    return left if isinstance(experiment.sampling, EpochSampling) and left else cohort


def _goal(
    attack: Attack | None, experiment: Experiment, federation: Federation, device: torch.device
) -> tuple[Goal | None, Indices]:
    """Draw the aux points from the test set, each with a uniformly random wrong label."""
    if attack is None or not attack.targeted:
        return None, np.empty(0, dtype=np.int64)
    dataset = federation.dataset
    size = int(getattr(attack, "aux", 0))
    if size >= len(dataset.test):
        raise ConfigError(f"attack.aux: {size} aux points leave no clean one of {len(dataset.test)} test samples")
    draws = generator(experiment.seed, "aux")
    rows = torch.randperm(len(dataset.test), generator=draws)[:size].sort().values
    labels = wrong_labels(dataset.test.targets[rows], len(dataset.classes), draws)
    return Goal(as_input(dataset.batch(dataset.test, rows), device), labels.to(device)), rows.numpy()


def as_input(batch: Tensor, device: torch.device) -> Tensor:
    """Samples as the model takes them; images in the memory format that convolutions like."""
    batch = batch.to(device)
    if batch.ndim != 4:
        return batch
    # Spelt out: ``contiguous(memory_format=...)`` leaves the strides of one-channel images as they are, and layers
    # whose weights are views into one vector would then work in the slow format.
    return batch.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _at(key: str, action: Callable[[], T]) -> T:
    """Name the section of the experiment in errors that ``action`` raises."""
    try:
        return action()
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
