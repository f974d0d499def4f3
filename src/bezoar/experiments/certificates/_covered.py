"""What of an experiment the theory of the certified radius covers; everything else is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bezoar.aggregation import Clip, Mean, Pipeline
from bezoar.clients import CLIENTS, Gradient
from bezoar.errors import ConfigError, UnsupportedError
from bezoar.experiments.config import Experiment
from bezoar.servers import SERVERS, SGD, SparseFed


@dataclass(frozen=True)
class Server:
    """What the theory needs to know of the server, for a model of d parameters.

    Attributes:
        k: coordinates that move in a round; d for a server without top-k.
        momentum: of what enters top-k, 0 if momentum is not used.
        sparse: whether there is a top-k with error feedback.
    """

    k: int
    d: int
    momentum: float
    sparse: bool

    @property
    def width(self) -> int:
        """w: on how many coordinates the steps of two runs can differ."""
        return min(self.d, 2 * self.k) if self.sparse else self.d

    @property
    def recurrent(self) -> bool:
        """Whether the recurrence holds: momentum that top-k zeroes in places is outside of it."""
        return self.momentum == 0 or not self.sparse


def with_k(experiment: Experiment, k: int | str) -> Experiment:
    """The same experiment with another k. Raises UnsupportedError if its server has none."""
    server = experiment.defence.server
    if not isinstance(server, SparseFed):
        raise UnsupportedError(f"defence.server: {SERVERS.name(server)!r} has no k that --k could set; use 'sparsefed'")
    defence = replace(experiment.defence, server=replace(server, k=k))
    return experiment.model_copy(update={"defence": defence})


def check_covered(experiment: Experiment) -> None:
    """Raise UnsupportedError unless the certified radius is defined for ``experiment``."""
    if experiment.harmless:
        raise UnsupportedError(
            "adversary: nobody is malicious, so there is nothing to certify: set adversary.count or adversary.share"
        )
    clients, pipeline, server = experiment.clients, experiment.defence.pipeline, experiment.defence.server
    if not isinstance(clients, Gradient) or clients.momentum:
        kind = CLIENTS.name(clients) + (" with momentum" if clients.momentum else "")
        raise UnsupportedError(
            f"clients: the radius is certified for clients that send one gradient, not for {kind!r}, of whose updates "
            "it is not known how much they differ; use clients = 'gradient'"
        )
    if experiment.adversary.sybils:
        raise UnsupportedError(
            "adversary.sybils: the certificate compares runs with the same cohorts; sybils join them"
        )
    clips = isinstance(pipeline, Pipeline) and all(type(part) is Clip for part in pipeline.mixings)
    rule = pipeline.rule if isinstance(pipeline, Pipeline) else pipeline
    if not clips or math.isinf(experiment.defence.radius(1.0)):
        raise UnsupportedError(
            "defence.pipeline: the push of an attacker is bounded where updates are clipped, and nothing but clipped, "
            'before the mean; use preset = "sparsefed" or "clip" with a radius'
        )
    if not isinstance(rule, Mean) or rule.weighted:
        raise UnsupportedError(
            "defence.pipeline: the certificate is of the plain mean of clipped updates; for other rules there are "
            "robustness constants, see docs/robustness.md"
        )
    if experiment.defence.post:
        raise UnsupportedError("defence.post: noise after the mean is outside of the theory; leave it out")
    if experiment.defence.more_than_f != "go-on":
        raise UnsupportedError("defence.more_than_f: attackers can end rounds with it, which the bound does not count")
    if experiment.defence.model_post:
        raise UnsupportedError("defence.model_post: a model that is changed after its step is certified by 'crfl'")
    if not isinstance(server, SGD | SparseFed):
        raise UnsupportedError(f"defence.server: the theory covers 'sgd' and 'sparsefed', not {SERVERS.name(server)!r}")
    if server.lr_placement != "outside" and (isinstance(server, SparseFed) or server.momentum):
        raise UnsupportedError(
            f"defence.server: the theory has the learning rate outside of momentum and error feedback, not "
            f"{server.lr_placement!r}"
        )
    if _momentum(server) and isinstance(server, SparseFed) and server.masking == "subtract":
        raise UnsupportedError(
            'defence.server: masking = "subtract" leaves no bound on the momentum; use "zero" or momentum = 0'
        )


def _momentum(server: object) -> float:
    if isinstance(server, SparseFed) and server.error_input == "update":
        return 0.0
    assert isinstance(server, SGD | SparseFed)
    return server.momentum


def describe(experiment: Experiment, d: int) -> Server:
    """What the theory needs of the server of a covered ``experiment`` whose model has d parameters."""
    server = experiment.defence.server
    if isinstance(server, SparseFed):
        k = server.count(d)
        if k > d:
            raise ConfigError(f"k={server.k} is more than the model's {d} parameters")
        return Server(k, d, _momentum(server), True)
    return Server(d, d, _momentum(server), False)
