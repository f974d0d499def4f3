"""An experiment with noise on its global model (CRFL), certified: how many clients may be malicious in every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bezoar.aggregation import Clip, Mean, Pipeline
from bezoar.certify.crfl import NoisyRound, certified_labels, distance_radius, divergence, mean_shift, total_shift
from bezoar.certify.votes import check_alpha, count_votes, label_bounds, majority
from bezoar.data import EpochSampling
from bezoar.errors import ConfigError
from bezoar.experiments.certificates.members import Member, Progress, Trainer, collect
from bezoar.experiments.certificates.outcome import Attacked, Certificate
from bezoar.experiments.config import Experiment
from bezoar.experiments.setup import Setup
from bezoar.seeding import derive, generator
from bezoar.servers.model_post import ClipModel, ModelNoise
from bezoar.servers.sgd import SGD


def certify(
    experiment: Experiment,
    *,
    models: int = 500,
    alpha: float = 0.001,
    joint: bool = True,
    copies: int = 0,
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Certificate:
    """Train the whole experiment ``models`` times, each with noise of its own, and certify the likeliest labels.

    In every round in which the adversary is active (``adversary.start``, ``.stop``, ``.every``) up to m malicious
    clients may send what they like, knowing everything but the noise to come.

    Args:
        experiment: clipped updates, their mean, SGD without momentum, a clipped model with noise (preset ``crfl``).
        models: independent trainings; one vote each.
        alpha: probability that anything certified is wrong.
        joint: for all test points together, else for each by itself.
        copies: noisy copies of *one* trained model, for the published way to predict; 0: none. They certify how far
            (l2) that model may be moved, not how many clients may be malicious.
        data_dir, device, out, jobs, progress: as for
            :func:`bezoar.experiments.certificates.ensemble.certify`.

    Raises:
        ConfigError: options out of range, or a defence that the theory does not cover.
    """
    if models < 1 or copies < 0 or jobs < 1:
        raise ConfigError(f"models and jobs must be at least 1, copies at least 0, got {models}, {jobs}, {copies}")
    check_alpha(alpha)
    check(experiment)
    trainer = Trainer(experiment.without_attack(), data_dir, device)
    attacks = attacked_rounds(experiment, trainer.clients)
    members = [Member(None, derive(experiment.seed, "training", i)) for i in range(models)]
    folder = None if out is None else Path(out)
    votes = collect(trainer, members, folder and folder / "votes", data_dir=data_dir, jobs=jobs, progress=progress)
    counts = count_votes(votes, trainer.classes)
    attacked = None
    poisoned = Trainer(experiment, data_dir, device) if experiment.attack is not None else None
    if poisoned is not None:
        under = collect(
            poisoned, members, folder and folder / "votes-attacked", data_dir=data_dir, jobs=jobs, progress=progress
        )
        attacked = Attacked(len(poisoned.setup.malicious), majority(count_votes(under, trainer.classes)))
    facts: dict[str, Any] = {
        "single_model_accuracy_mean": float((votes == trainer.targets).mean()),
        "total_shift": [total_shift(one) for one in attacks[:20]],
        "divergence": [divergence(one) for one in attacks[:20]],
    }
    if copies:
        facts |= _moved(trainer, poisoned, copies, alpha, joint)
    each = "for all points together" if joint else "for each point by itself"
    return Certificate(
        "crfl",
        f"Holds with probability {1 - alpha:g} {each}, whatever m of {trainer.clients} clients do in every round of "
        f"the attack: the likeliest label over all noise of the training.",
        experiment,
        {"models": models, "alpha": alpha, "joint": joint, "copies": copies},
        models,
        certified_labels(counts, attacks, alpha=alpha, joint=joint),
        trainer.targets,
        float((majority(counts) == trainer.targets).mean()),
        trainer.setup,
        attacked,
        {},
        facts,
    )


def check(experiment: Experiment) -> None:
    """Raise ConfigError, with what would be right, unless the theory covers the experiment's defence."""
    defence = experiment.defence
    right = 'e.g. defence = {preset = "crfl", radius = 1.0, std = 0.01}'
    pipeline = defence.pipeline
    clipped = isinstance(pipeline, Pipeline) and any(isinstance(part, Clip) for part in pipeline.mixings)
    if not (clipped and isinstance(pipeline, Pipeline) and all(isinstance(part, Clip) for part in pipeline.mixings)):
        raise ConfigError(f"defence.pipeline: the certificate needs clipped updates and their mean, {right}")
    if not isinstance(pipeline.rule, Mean) or pipeline.rule.weighted or defence.post:
        raise ConfigError(f"defence.pipeline: the certificate is for the plain mean of clipped updates, {right}")
    if not isinstance(defence.server, SGD) or defence.server.momentum or experiment.clients.momentum:
        raise ConfigError(
            "defence.server, clients: the certificate needs SGD without momentum (what it remembers carries the attack "
            "past the noise)"
        )
    if isinstance(experiment.sampling, EpochSampling) and experiment.sampling.batch_size:
        raise ConfigError(
            "sampling.batch_size: the certificate needs cohorts that do not depend on how many samples clients hold or "
            "say they hold; leave it out"
        )
    kinds = [type(part) for part in defence.model_post]
    if kinds != [ClipModel, ModelNoise]:
        raise ConfigError(f"defence.model_post: the certificate needs clip, then gaussian-noise, {right}")


def rounds(experiment: Experiment, malicious: int, cohorts: Sequence[int]) -> list[NoisyRound]:
    """What ``malicious`` clients, all of them in every cohort, can do in rounds with cohorts of these sizes."""
    clip, noise = experiment.defence.model_post
    assert isinstance(clip, ClipModel)
    assert isinstance(noise, ModelNoise)
    found = []
    for t, cohort in enumerate(cohorts, 1):
        lr = experiment.learning_rate.at(t, experiment.rounds)
        shift = 0.0
        if experiment.adversary.active(t) and experiment.sampling.plays(cohort):
            step = experiment.clients.server_lr(lr)
            shift = mean_shift(experiment.defence.radius(lr), step, malicious, cohort)
        found.append(NoisyRound(shift, clip.at(t), noise.std))
    return found


def attacked_rounds(experiment: Experiment, clients: int) -> list[list[NoisyRound]]:
    """The rounds for m = 0, 1, ... malicious clients, until nothing can be certified any more or all are."""
    draws = (experiment.sampling.draw(clients, t, experiment.seed) for t in range(experiment.rounds))
    cohorts = [len(cohort) for cohort in draws]
    found = [rounds(experiment, 0, cohorts)]
    while len(found) <= clients and divergence(found[-1]) < _ENOUGH:
        found.append(rounds(experiment, len(found), cohorts))
    return found


#: No feasible number of votes certifies against a divergence like this.
_ENOUGH = 50.0


def clipped_model(trainer: Trainer, member: Member) -> tuple[Setup, float]:
    """The member after its last round, clipped but without that round's noise, and the noise that is due."""
    clip, noise = trainer.experiment.defence.model_post
    assert isinstance(noise, ModelNoise)
    quiet = replace(trainer.experiment.defence, model_post=(clip,))
    return trainer.train(member, last=quiet), noise.std


def smoothed(trainer: Trainer, setup: Setup, std: float, copies: int, seed: int) -> NDArray[np.int64]:
    """Votes [N, C] of noisy copies of one model."""
    center = setup.weights.clone()
    noise = ModelNoise(std)
    votes = []
    for i in range(copies):
        setup.weights.copy_(noise(center, 0, generator(seed, "copy", i)))
        votes.append(trainer.predict(setup).numpy())
    setup.weights.copy_(center)
    return count_votes(np.stack(votes), trainer.classes)


def distances(counts: NDArray[np.int64], std: float, alpha: float, joint: bool) -> NDArray[np.float64]:
    """How far (l2) the model behind ``counts`` may be moved without changing the likeliest label of each point [N]."""
    labels = majority(counts)
    least, most = label_bounds(counts, labels, alpha, joint)
    return distance_radius(least, most.max(axis=1), std)


def _moved(trainer: Trainer, poisoned: Trainer | None, copies: int, alpha: float, joint: bool) -> dict[str, Any]:
    """Certified distances of one model, and how far the attack moves it with the same noise."""
    member = Member(None, derive(trainer.experiment.seed, "training", 0))
    setup, std = clipped_model(trainer, member)
    counts = smoothed(trainer, setup, std, copies, trainer.experiment.seed)
    radii = distances(counts, std, alpha, joint)
    right = majority(counts) == trainer.targets
    found: dict[str, Any] = {
        "copies_accuracy": float(right.mean()),
        "distance_median": float(np.median(radii)),
        "distance_max": float(radii.max()),
    }
    if poisoned is not None:
        other, _ = clipped_model(poisoned, member)
        distance = float((other.weights.double() - setup.weights.double()).norm())
        held = radii > distance
        labels = majority(smoothed(poisoned, other, std, copies, trainer.experiment.seed))
        found |= {
            "distance_under_attack": distance,
            "certified_at_that_distance": float((held & right).mean()),
            "of_them_changed": int((held & (labels != majority(counts))).sum()),
        }
    return found


__all__ = ["attacked_rounds", "certify", "check", "clipped_model", "distances", "rounds", "smoothed"]
