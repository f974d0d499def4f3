"""Gram matrices of all clients' gradients along a training in which nobody attacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bezoar.clients import Gradient
from bezoar.errors import ConfigError
from bezoar.experiments.config import Experiment
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import Setup
from bezoar.experiments.work import Round, samples, updates_of


def clean(experiment: Experiment) -> Experiment:
    """``experiment`` without its attack. Raises ConfigError unless every client sends a gradient in every round."""
    if not isinstance(experiment.clients, Gradient):
        raise ConfigError("clients: a guarantee is about gradients, but these clients send several local steps")
    return experiment.without_attack()


def decay(experiment: Experiment) -> float:
    """What the model is multiplied by when clients add it to their gradient: they minimise L_i + decay/2 |theta|^2."""
    clients = experiment.clients
    return clients.weight_decay / (experiment.sampling.cohort if clients.split_decay else 1)


def grams(setup: Setup, rounds: int, every: int = 1) -> NDArray[np.float64]:
    r"""<g_i, g_j> of the gradients of all clients [T, n, n] at the models of the first ``rounds`` rounds.

    The model in ``setup``, of an experiment without attack (:func:`clean`), is trained by the experiment's own defence;
    gradients are looked at every ``every`` rounds, each on all of its client's samples whatever the experiment's
    batches are, so that there is no noise in them. Weight decay is part of them (:func:`decay`).
    """
    experiment = setup.experiment
    assert experiment.attack is None
    clients = Gradient(weight_decay=decay(experiment))
    whole = replace(setup, experiment=experiment.model_copy(update={"clients": clients}))
    everyone = np.arange(setup.federation.n)
    nobody = np.empty(0, dtype=np.int64)
    state, found = State(), []
    for t in range(1, rounds + 1):
        if (t - 1) % every == 0:
            lr = experiment.learning_rate.at(t, experiment.rounds)
            at = Round(whole, t, lr, everyone, nobody, experiment.defence.rule(lr), None, None)
            batch, _ = samples(at)
            updates, _ = updates_of(at, batch, {})
            found.append(updates.gram().cpu().double().numpy())
        state, _, _ = play(setup, state)
        if not torch.isfinite(setup.weights).all():
            raise ConfigError(f"the clean training diverged in round {t}: lower the learning rate")
    return np.stack(found)
