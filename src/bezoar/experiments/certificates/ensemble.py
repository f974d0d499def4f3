"""An experiment as an ensemble of models on subsets of its clients, certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bezoar.certify.ensemble import all_subsets, exact_ensemble, fixed_groups, random_subsets, sampled_ensemble
from bezoar.certify.votes import check_alpha, count_votes, majority
from bezoar.data.dataset import Indices
from bezoar.errors import ConfigError
from bezoar.experiments.certificates.members import Member, Progress, Trainer, collect
from bezoar.experiments.certificates.outcome import Attacked, Certificate
from bezoar.experiments.config import Experiment


def certify(
    experiment: Experiment,
    *,
    k: int,
    models: int | None = 500,
    alpha: float = 0.001,
    joint: bool = True,
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Certificate:
    """Train the experiment on subsets of ``k`` clients, let the models vote, and certify the majority.

    The certificate is of the models without the attack; if the experiment has one, the groups that it reaches are
    trained again with it, to see what it achieves.

    Args:
        experiment: what every group trains; a cohort larger than the group becomes the group.
        k: clients in a group.
        models: how many subsets to draw, each at random (FLCert-P); None: every subset (exact).
        alpha: probability that anything certified from drawn subsets is wrong.
        joint: for all test points together, else for each by itself.
        data_dir: where data sets lie.
        device: where to train.
        out: directory for the votes (so that the command can go on after a stop), None: none.
        jobs: models to train at a time.
        progress: told how many models have voted.

    Raises:
        ConfigError: options out of range, or an experiment that can not be divided.
    """
    check_alpha(alpha)
    trainer = Trainer(experiment.without_attack(), data_dir, device)
    n = trainer.clients
    groups = all_subsets(n, k) if models is None else random_subsets(n, k, models, experiment.seed)
    votes, attacked = vote(trainer, experiment, groups, data_dir, device, out, jobs, progress)
    counts = count_votes(votes, trainer.classes)
    if models is None:
        certified = exact_ensemble(counts, n, k)
        claim = f"Holds whatever m clients do: the majority over all {math.comb(n, k)} subsets of {k} of {n} clients."
        further = {}
    else:
        certified = sampled_ensemble(counts, n, k, alpha=alpha, joint=joint)
        each = "for all points together" if joint else "for each point by itself"
        claim = (
            f"Holds with probability {1 - alpha:g} {each}, whatever m clients do that were chosen without knowledge of "
            f"the drawn groups: the majority over all subsets of {k} of {n} clients."
        )
        further = {"groups known": fixed_groups(votes, groups, n, trainer.classes)}
    options: dict[str, Any] = {"k": k, "models": models, "alpha": alpha, "joint": joint}
    accuracy = float((majority(counts) == trainer.targets).mean())
    return Certificate(
        "ensemble",
        claim,
        experiment,
        options,
        len(groups),
        certified,
        trainer.targets,
        accuracy,
        trainer.setup,
        attacked,
        further,
        single(votes, trainer.targets),
    )


def single(votes: NDArray[np.int64], targets: NDArray[np.int64]) -> dict[str, float]:
    """What one model alone is worth."""
    return {"single_model_accuracy_mean": float((votes == targets).mean())}


def vote(
    trainer: Trainer,
    experiment: Experiment,
    groups: Sequence[Indices],
    data_dir: str | Path | None,
    device: str | torch.device,
    out: str | Path | None,
    jobs: int,
    progress: Progress | None,
) -> tuple[NDArray[np.int64], Attacked | None]:
    """Votes [S, N] of one model a group without the attack, and what becomes of the majority with it."""
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    folder = None if out is None else Path(out)
    members = [Member.of(group, experiment.seed) for group in groups]
    # A defence may need more clients than the smallest group has: better heard before the others are trained.
    trainer.assemble(min(members, key=Member.size))
    honest = collect(trainer, members, folder and folder / "votes", data_dir=data_dir, jobs=jobs, progress=progress)
    if experiment.attack is None:
        return honest, None
    poisoned = Trainer(experiment, data_dir, device)
    reached = [i for i, member in enumerate(members) if len(poisoned.malicious_in(member))]
    votes = honest.copy()
    if reached:
        votes[reached] = collect(
            poisoned,
            [members[i] for i in reached],
            folder and folder / "votes-attacked",
            data_dir=data_dir,
            jobs=jobs,
            progress=progress,
        )
    labels = majority(count_votes(votes, trainer.classes))
    return honest, Attacked(len(poisoned.setup.malicious), labels)
