"""Ridge regression: everything in closed form."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.attacks import Batch
from bezoar.expected.data import Shards
from bezoar.expected.tasks import Curvature, Floats, Gradients, Linear, by_owner, indicators, shares, with_bias


class Ridge(Linear):
    r"""Squared error of linear predictions, with targets that are numbers or the indicators of classes.

    .. math:: L_i(\theta) = \frac1{2 m_i} \|X_i \theta - Y_i\|^2 + \frac{l_2}2 \|\theta\|^2, \quad
        \nabla L_i(\theta) = A_i \theta - b_i

    L and mu of L_S are the extreme eigenvalues of the mean A_S, min L_S solves A_S theta = b_S.
    """

    def __init__(self, shards: Shards, l2: float) -> None:
        super().__init__(shards, l2)
        self._a, self._b, self._c = _quadratics(
            list(self.features), [indicators(part, self.outputs) for part in self.targets], l2
        )

    def _gradients(self, batch: Batch) -> Gradients:
        clients, places = by_owner(batch)
        features, targets = with_bias(batch.inputs), indicators(batch.targets, self.outputs)
        a, b, _ = _quadratics([features[at] for at in places], [targets[at] for at in places], self.l2)
        return _Quadratic(clients, a, b)

    def losses(self, theta: Tensor) -> Floats:
        x = self.matrix(theta)
        quadratic = (x * (self._a @ x)).sum((1, 2)) / 2 - (x * self._b).sum((1, 2)) + self._c
        return np.asarray(quadratic.numpy())

    def curvature(self, honest: NDArray[np.bool_]) -> Curvature:
        spectrum = torch.linalg.eigvalsh(torch.tensordot(torch.from_numpy(shares(honest)), self._a, 1))
        return Curvature(float(spectrum[-1]), max(float(spectrum[0]), self.l2))

    def minimum(self, weights: Floats) -> float:
        w = torch.from_numpy(np.asarray(weights, dtype=np.float64))
        a, b = torch.tensordot(w, self._a, 1), torch.tensordot(w, self._b, 1)
        found = torch.linalg.solve(a, b)
        return float(w.numpy() @ self.losses(found.flatten()))


def _quadratics(features: list[Tensor], targets: list[Tensor], l2: float) -> tuple[Tensor, Tensor, Tensor]:
    """A [m, D, D], b [m, D, C] and the losses at zero [m]."""
    eye = torch.eye(features[0].shape[1], dtype=torch.float64)
    a = torch.stack([x.T @ x / len(x) + l2 * eye for x in features])
    b = torch.stack([x.T @ y / len(x) for x, y in zip(features, targets, strict=True)])
    return a, b, torch.stack([y.square().sum() / (2 * len(y)) for y in targets])


class _Quadratic(Gradients):
    def __init__(self, clients: Tensor, a: Tensor, b: Tensor) -> None:
        self.clients, self._a, self._b = clients, a, b
        m, self._d, self._c = b.shape
        self._flat = a.reshape(m * self._d, self._d)

    def at(self, theta: Tensor, round: int) -> Tensor:
        # One product of a tall matrix: batches of small ones are slower.
        products = (self._flat @ theta.view(self._d, self._c)).view(self._b.shape)
        return products.sub_(self._b).view(len(self._b), -1)
