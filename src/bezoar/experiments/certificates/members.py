"""Many models of one experiment, each with some of the clients or with its own draws, and their votes on the test set.

Votes are saved as they come, one small file a model; what has been trained is not trained again.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.data.dataset import Indices, as_input
from bezoar.errors import BezoarError, ConfigError, DivergedError
from bezoar.experiments.config import Experiment
from bezoar.experiments.defence import Defence
from bezoar.experiments.records import guarded, load_tensors, save_tensors
from bezoar.experiments.rounds import State, play, predicted_classes
from bezoar.experiments.setup import Setup, assemble, prepare
from bezoar.seeding import derive

#: Told how many of how many models have voted.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Member:
    """One model: the ``clients`` that train it (None: all of them), and the ``seed`` of its start and draws."""

    clients: Indices | None
    seed: int

    def size(self) -> int:
        """Number of clients it names."""
        return 0 if self.clients is None else len(self.clients)

    @classmethod
    def of(cls, clients: Indices, seed: int) -> Member:
        """A model whose draws follow from who trains it, so that its vote is a function of its clients alone."""
        return cls(clients, derive(seed, "member", *clients.tolist()))


def check(experiment: Experiment) -> None:
    """Raise ConfigError for an experiment whose models can not be trained group by group."""
    if experiment.adversary.sybils:
        raise ConfigError("adversary.sybils: certificates count clients that exist; sybils would be in every group")
    if experiment.adversary.per_round is not None:
        raise ConfigError("adversary.per_round: a group may not have that many malicious clients; leave it out")


class Trainer:
    """Trains members of one experiment; data are loaded once, the partition follows the experiment's seed.

    Attributes:
        setup: the whole federation.
        targets: true labels of the test points [N].
        classes: number of classes.
    """

    def __init__(self, experiment: Experiment, data_dir: str | Path | None, device: str | torch.device) -> None:
        check(experiment)
        self.experiment = experiment
        self.setup = prepare(experiment, data_dir, torch.device(device))
        dataset = self.setup.federation.dataset
        self._inputs = as_input(dataset.batch(dataset.test, slice(None)), self.setup.device)
        self.targets = dataset.test.targets.numpy()
        self.classes = len(dataset.classes)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return self.setup.federation.n

    def malicious_in(self, member: Member) -> Indices:
        """The malicious clients among the member's, by their place in it."""
        if member.clients is None:
            return self.setup.malicious
        return np.flatnonzero(np.isin(member.clients, self.setup.malicious)).astype(np.int64)

    def assemble(self, member: Member) -> Setup:
        """The member before its first round. Raises ConfigError if the experiment does not fit its clients."""
        experiment = self.experiment.model_copy(update={"seed": member.seed})
        federation, prior = self.setup.federation, self.setup.prior
        if member.clients is not None:
            prior = None if prior is None else prior.among(member.clients.tolist())
            federation = federation.subset(member.clients)
            fitting = min(experiment.sampling.cohort, federation.n)
            experiment = experiment.model_copy(update={"sampling": replace(experiment.sampling, cohort=fitting)})  # type: ignore[type-var]
        return assemble(experiment, federation, self.malicious_in(member), self.setup.device, prior)

    def train(self, member: Member, last: Defence | None = None) -> Setup:
        """The member after its last round, in which ``last`` replaces the defence if given.

        A model that is no longer finite stops where it is.
        """
        setup = self.assemble(member)
        experiment = setup.experiment
        state, cuda = State(), [self.setup.device] if self.setup.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), contextlib.suppress(DivergedError):
            for t in range(1, experiment.rounds + 1):
                if last is not None and t == experiment.rounds:
                    setup = replace(setup, experiment=experiment.model_copy(update={"defence": last}))
                state, _, _ = play(setup, state)
        return setup

    def predict(self, setup: Setup) -> Tensor:
        """The class that a trained model gives to every test point [N]."""
        setup.model.eval()
        return predicted_classes(setup, self._inputs)

    def vote(self, member: Member) -> Tensor:
        """Train the member, and predict."""
        return self.predict(self.train(member))


def collect(
    trainer: Trainer,
    members: Sequence[Member],
    folder: Path | None,
    *,
    data_dir: str | Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """The votes [S, N] of all members, those from ``folder`` that are there already.

    ``jobs`` members are trained at a time, in processes of their own.

    Raises:
        ConfigError: the folder holds votes of another experiment.
    """
    digests = [_digest(trainer.experiment, member) for member in members]
    files = [None if folder is None else folder / f"{i:05d}.safetensors" for i in range(len(members))]
    found: dict[int, Tensor] = {}
    for i, file in enumerate(files):
        if file is not None and file.exists():
            found[i] = _load(file, digests[i], len(trainer.targets))
    todo = [i for i in range(len(members)) if i not in found]
    if folder is not None:
        with guarded(folder):
            folder.mkdir(parents=True, exist_ok=True)
    for i, votes in _trained(trainer, members, todo, data_dir, jobs):
        file = files[i]
        if file is not None:
            save_tensors(file, {"votes": votes}, {"digest": digests[i]})
        found[i] = votes
        if progress:
            progress(len(found), len(members))
    return torch.stack([found[i] for i in range(len(members))]).numpy().astype(np.int64)


def _trained(
    trainer: Trainer, members: Sequence[Member], todo: Sequence[int], data_dir: str | Path | None, jobs: int
) -> Iterator[tuple[int, Tensor]]:
    if jobs == 1 or len(todo) < 2:
        for i in todo:
            yield i, trainer.vote(members[i])
        return
    threads = max(1, torch.get_num_threads() // jobs)
    spawn = multiprocessing.get_context("spawn")
    settings = (trainer.experiment, data_dir, str(trainer.setup.device), threads)
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=settings) as pool:
        try:
            for i, votes in zip(todo, pool.map(_in_worker, [members[i] for i in todo]), strict=True):
                yield i, torch.tensor(votes)
        except BrokenProcessPool:
            raise BezoarError(
                "a worker process ended abruptly (out of memory?); run the same command to go on, perhaps with fewer "
                "--jobs"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: Trainer | None = None


def _start_worker(experiment: Experiment, data_dir: str | Path | None, device: str, threads: int) -> None:
    global _worker
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    _worker = Trainer(experiment, data_dir, device)


def _end_with(parent: BaseProcess | None) -> None:
    """End this process when its parent has ended, however abruptly: it would wait for more work for ever."""
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(member: Member) -> list[int]:
    assert _worker is not None
    found: list[int] = _worker.vote(member).tolist()
    return found


def _digest(experiment: Experiment, member: Member) -> str:
    clients = "all" if member.clients is None else ",".join(map(str, member.clients.tolist()))
    return hashlib.sha256(f"{experiment.hash()} {member.seed} {clients}".encode()).hexdigest()[:16]


def _load(file: Path, digest: str, points: int) -> Tensor:
    tensors, metadata = load_tensors(file)
    if metadata.get("digest") != digest:
        raise ConfigError(f"{file}: holds a vote of another experiment or group; choose another --out")
    if "votes" not in tensors or tensors["votes"].shape != (points,):
        raise BezoarError(f"{file}: damaged: no votes on {points} points; delete it and run the same command again")
    return tensors["votes"]
