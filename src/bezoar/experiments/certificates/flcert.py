"""An experiment as FLCert-D: disjoint groups of clients, a model each, a majority vote, certified."""

from __future__ import annotations

from pathlib import Path

import torch

from bezoar.certify.flcert import disjoint_groups, flcert_d
from bezoar.certify.votes import count_votes, majority
from bezoar.experiments.certificates.ensemble import single, vote
from bezoar.experiments.certificates.members import Progress, Trainer
from bezoar.experiments.certificates.outcome import Certificate
from bezoar.experiments.config import Experiment


def certify(
    experiment: Experiment,
    *,
    groups: int,
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Certificate:
    """Train the experiment in each of ``groups`` disjoint groups of clients and certify the majority of the models.

    The other arguments, and how the experiment's attack is used, are as for
    :func:`bezoar.experiments.certificates.ensemble.certify`.

    Raises:
        ConfigError: options out of range, or an experiment that can not be divided.
    """
    trainer = Trainer(experiment.without_attack(), data_dir, device)
    parts = disjoint_groups(trainer.clients, groups, experiment.seed)
    votes, attacked = vote(trainer, experiment, parts, data_dir, device, out, jobs, progress)
    counts = count_votes(votes, trainer.classes)
    return Certificate(
        "flcert-d",
        f"Holds whatever m of {trainer.clients} clients do, who may know the {groups} groups.",
        experiment,
        {"groups": groups},
        len(parts),
        flcert_d(counts),
        trainer.targets,
        float((majority(counts) == trainer.targets).mean()),
        trainer.setup,
        attacked,
        {},
        single(votes, trainer.targets),
    )
