"""What enters the server's top-k at one model: the vectors by which k is chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bezoar.experiments.adversary import Mind, play_clients
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import Setup
from bezoar.experiments.work import Round, root_update
from bezoar.seeding import derive, generator
from bezoar.servers import SparseFed


def trained(setup: Setup, rounds: int) -> State:
    """Play the first ``rounds`` rounds; the model in ``setup`` moves, and the state is that after them."""
    state = State()
    for _ in range(rounds):
        state, _, _ = play(setup, state)
    return state


def aggregates(setup: Setup, state: State, count: int) -> Iterator[Tensor]:
    """The vectors [d] that the next ``count`` rounds that take place would give top-k if no model or memory moved.

    That is the defence's aggregate of a cohort's updates (clipped, averaged, with its noise); where the server is
    SparseFed, on top of what its momentum and error feedback remember. Cohorts, batches and learning rates are those of
    the rounds after ``state``; all clients are honest, so ``setup`` must be of an experiment without attack. A rule
    with memory answers as if for the first time.

    Raises:
        HostileRowsError: too many updates are not finite.
    """
    experiment = setup.experiment
    assert experiment.attack is None
    nobody = np.empty(0, dtype=np.int64)
    drawn = ((t, setup.draw(t)) for t in itertools.count(state.round + 1))
    playing = ((t, cohort) for t, cohort in drawn if experiment.sampling.plays(len(cohort)))
    for t, cohort in itertools.islice(playing, count):
        torch.manual_seed(derive(experiment.seed, "round", t))
        lr = experiment.learning_rate.at(min(t, experiment.rounds), experiment.rounds)
        rule = experiment.defence.rule(lr)
        root = root_update(setup, state.clients, lr, t)[0] if rule.uses_root else None
        at = Round(setup, t, lr, cohort, nobody, rule, root, state.last.get("aggregate"))
        cast = play_clients(at, state.clients, Mind({}, {}, {}, {}), lambda phase: None)
        draws = generator(experiment.seed, "defence", t)
        vector = rule.aggregate(cast.updates, {}, at.server_context(cast.claims), draws).vector
        for i, part in enumerate(experiment.defence.post):
            vector = part(vector, generator(experiment.seed, "post", t, i))
        server = experiment.defence.server
        if isinstance(server, SparseFed):
            vector = server.entering(vector, experiment.clients.server_lr(lr), state.server)
        yield vector
