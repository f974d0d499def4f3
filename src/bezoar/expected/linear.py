"""Ridge and softmax regression of n clients: all gradients at once, constants and minima known."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from bezoar.attacks import Batch
from bezoar.certify.lipschitz import softmax_smoothness
from bezoar.data import Federation
from bezoar.data.dataset import Dataset, Indices
from bezoar.errors import BezoarError, ConfigError
from bezoar.expected.task import Curvature, Task

#: A minimum counts as found when strong convexity proves that no more than this is left above it.
LEFT = 1e-9


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of n clients, padded to the same number m.

    Attributes:
        inputs: as data sets give them, client after client [N, ...].
        features: [n, m, p] float64, zero where padded.
        targets: [n, m], classes (int64) or numbers (float64).
        shares: what each sample weighs in its client's loss [n, m], 1/m_i, zero where padded.
    """

    inputs: Tensor
    owners: Tensor
    features: Tensor
    targets: Tensor
    shares: Tensor


def features_of(inputs: Tensor, pool: int, bias: bool) -> Tensor:
    """What linear models see of ``inputs`` [N, ...]: flat [N, p] float64, images averaged over squares of ``pool``."""
    if pool > 1:
        if inputs.ndim != 4:
            raise ConfigError(f"task.pool: only images can be averaged, not samples of shape {list(inputs.shape[1:])}")
        inputs = functional.avg_pool2d(inputs, pool)
    flat = inputs.flatten(1).double()
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1) if bias else flat


@dataclass(frozen=True, eq=False)
class Linear(Task):
    r"""L_i = the mean loss of client i's samples + l2/2 |theta|^2.

    ``targets`` are numbers for ridge regression and classes for softmax regression, one for each training sample of
    the data set [N].
    """

    dataset: Dataset
    owners: Tensor
    inputs: Tensor
    targets: Tensor
    n: int
    l2: float
    pool: int = 1
    bias: bool = True
    rows: Tensor | None = None

    @classmethod
    def of(
        cls, federation: Federation, rows: Indices, owners: Indices, l2: float, pool: int, targets: Tensor | None = None
    ) -> Self:
        """The task of ``federation``'s clients with the training samples ``rows`` [N], each of its ``owners`` [N]."""
        dataset, at = federation.dataset, torch.from_numpy(rows)
        own = dataset.train.targets if targets is None else targets
        inputs = dataset.batch(dataset.train, rows)
        return cls(dataset, torch.from_numpy(owners), inputs, own[at], federation.n, l2, pool, rows=at)

    @cached_property
    def samples(self) -> Samples:
        """The padded form."""
        counts = torch.bincount(self.owners, minlength=self.n)
        if (counts == 0).any():
            raise ConfigError(f"task: client {int((counts == 0).int().argmax())} has no samples")
        flat = features_of(self.inputs, self.pool, self.bias)
        m, p = int(counts.max()), flat.shape[1]
        order = torch.argsort(self.owners, stable=True)
        owners = self.owners[order]
        starts = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(owners)) - starts[owners]
        features = torch.zeros(self.n, m, p, dtype=torch.float64)
        targets = torch.zeros(self.n, m, dtype=self.targets.dtype)
        shares = torch.zeros(self.n, m, dtype=torch.float64)
        features[owners, place] = flat[order]
        targets[owners, place] = self.targets[order]
        shares[owners, place] = 1 / counts[owners].double()
        return Samples(self.inputs, self.owners, features, targets, shares)

    @property
    def counts(self) -> Tensor:
        return torch.bincount(self.owners, minlength=self.n)

    @property
    def p(self) -> int:
        """Number of features, the constant one included."""
        return self.samples.features.shape[2]

    def batch(self, clients: Tensor) -> Batch:
        chosen = torch.isin(self.owners, clients)
        rows = None if self.rows is None else self.rows[chosen]
        return Batch.join(Batch(self.inputs[chosen], self.targets[chosen], self.owners[chosen], rows))

    def holding(self, batch: Batch) -> Self:
        kept = ~torch.isin(self.owners, batch.owners)
        return dataclasses.replace(
            self,
            owners=torch.cat([self.owners[kept], batch.owners]),
            inputs=torch.cat([self.inputs[kept], batch.inputs.to(self.inputs.dtype)]),
            targets=torch.cat([self.targets[kept], batch.targets.to(self.targets.dtype)]),
            rows=None,
        )

    @abstractmethod
    def value(self, theta: Tensor, weights: Tensor) -> tuple[float, Tensor]:
        """sum_i w_i L_i and its gradient [d]."""

    def second(self, weights: Tensor) -> Tensor:
        """The weighted mean of x x^T [p, p], each client's samples counting as one."""
        rows, shares = self._flat(weights)
        return (rows * shares[:, None]).T @ rows

    def _flat(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.samples.shares * weights.double()[:, None]
        return self.samples.features.flatten(0, 1), shares.flatten()


class Ridge(Linear):
    r"""Half the squared residual of theta.x, and l2/2 |theta|^2."""

    @property
    def classes(self) -> int:
        return 0

    @cached_property
    def _normal(self) -> tuple[Tensor, Tensor, Tensor]:
        """H [n, p, p], b [n, p], c [n] of the losses 1/2 theta H theta - b theta + c/2, without l2."""
        x, y, w = self.samples.features, self.samples.targets, self.samples.shares
        weighted = x * w[:, :, None]
        return weighted.mT @ x, (weighted.mT @ y[:, :, None])[:, :, 0], (w * y.square()).sum(1)

    def start(self) -> Tensor:
        return torch.zeros(self.p, dtype=torch.float64)

    def gradients(self, theta: Tensor, t: int) -> Tensor:
        h, b, _ = self._normal
        return h @ theta - b + self.l2 * theta

    def losses(self, theta: Tensor) -> Tensor:
        residual = self.samples.features @ theta - self.samples.targets
        return (self.samples.shares * residual.square()).sum(1) / 2 + self.l2 / 2 * theta.square().sum()

    def value(self, theta: Tensor, weights: Tensor) -> tuple[float, Tensor]:
        return float(weights @ self.losses(theta)), weights @ self.gradients(theta, 0)

    def curvature(self, weights: Tensor) -> Curvature:
        spectrum = torch.linalg.eigvalsh(self.second(weights))
        l2 = self.l2 * float(weights.sum())
        return Curvature(max(0.0, float(spectrum[0])) + l2, float(spectrum[-1]) + l2)

    def minimum(self, weights: Tensor) -> float:
        h, b, _ = self._normal
        total = torch.einsum("n,npq->pq", weights, h) + self.l2 * weights.sum() * torch.eye(self.p, dtype=h.dtype)
        theta = torch.linalg.lstsq(total, (weights @ b)[:, None]).solution[:, 0]
        return float(weights @ self.losses(theta))


class Softmax(Linear):
    r"""Cross-entropy of softmax(W x + b), and l2/2 |theta|^2; theta is (W, b) [C, p] row by row, b the last column."""

    @property
    def classes(self) -> int:
        return len(self.dataset.classes)

    def start(self) -> Tensor:
        return torch.zeros(self.classes * self.p, dtype=torch.float64)

    def _logits(self, theta: Tensor) -> Tensor:
        return self.samples.features @ theta.view(self.classes, self.p).T

    @cached_property
    def _wanted(self) -> Tensor:
        """The shares of the samples at their classes [n, m, C]."""
        return functional.one_hot(self.samples.targets, self.classes) * self.samples.shares[:, :, None]

    def gradients(self, theta: Tensor, t: int) -> Tensor:
        off = torch.softmax(self._logits(theta), 2) * self.samples.shares[:, :, None] - self._wanted
        return (off.mT @ self.samples.features).flatten(1) + self.l2 * theta

    def losses(self, theta: Tensor) -> Tensor:
        logs = torch.log_softmax(self._logits(theta), 2)
        return -(self._wanted * logs).sum((1, 2)) + self.l2 / 2 * theta.square().sum()

    def value(self, theta: Tensor, weights: Tensor) -> tuple[float, Tensor]:
        logs = torch.log_softmax(self._logits(theta), 2)
        l2 = self.l2 * float(weights.sum())
        off = (logs.exp() * self.samples.shares[:, :, None] - self._wanted) * weights[:, None, None]
        slope = (off.flatten(0, 1).T @ self.samples.features.flatten(0, 1)).flatten() + l2 * theta
        loss = -float((self._wanted * logs).sum((1, 2)) @ weights) + l2 / 2 * float(theta.square().sum())
        return loss, slope

    def accuracy(self, theta: Tensor) -> float | None:
        features, targets = self._tests
        if not len(targets):
            return None
        logits = features @ theta.view(self.classes, self.p).T
        return float((logits.argmax(1) == targets).double().mean())

    @cached_property
    def _tests(self) -> tuple[Tensor, Tensor]:
        test = self.dataset.test
        return features_of(self.dataset.batch(test, slice(None)), self.pool, self.bias), test.targets

    def curvature(self, weights: Tensor) -> Curvature:
        rows, shares = self._flat(weights)
        l2 = self.l2 * float(weights.sum())
        return Curvature(l2, softmax_smoothness(rows, shares) + l2)

    def minimum(self, weights: Tensor) -> float:
        known = self.curvature(weights)
        if known.convexity <= 0:
            raise ConfigError("task.l2 must be positive: softmax regression has no minimum without it")

        def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
            loss, slope = self.value(torch.from_numpy(flat), weights)
            return loss, slope.numpy()

        goal = np.sqrt(2 * known.convexity * LEFT)
        found = minimize(
            function,
            self.start().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20000, "maxfun": 40000, "ftol": 0.0, "gtol": goal / np.sqrt(len(self.start()))},
        )
        left = float(np.square(found.jac).sum()) / (2 * known.convexity)
        if not left <= 100 * LEFT:
            raise BezoarError(f"the minimum was not found: up to {left:.1e} may be left; raise task.l2={self.l2}")
        return float(found.fun)
