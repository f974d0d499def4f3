"""Softmax regression: minima by Newton's method with conjugate gradients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.attacks import Batch
from bezoar.certify.lipschitz import softmax_smoothness
from bezoar.errors import ConfigError, DivergedError
from bezoar.expected.data import Shards
from bezoar.expected.tasks import GAP, Curvature, Floats, Gradients, Linear, by_owner, shares, with_bias


class Softmax(Linear):
    r"""Cross-entropy of linear logits.

    .. math:: L_i(\theta) = \frac1{m_i} \sum_s -\log \operatorname{softmax}(\theta^\top x_s)_{y_s}
        + \frac{l_2}2 \|\theta\|^2

    mu = l2 (a constant added to all classes changes no logit, so the data add nothing in that direction); L is l2 plus
    half the largest eigenvalue of the mean of x x^T (:func:`bezoar.certify.lipschitz.softmax_smoothness`).
    """

    def __init__(self, shards: Shards, l2: float) -> None:
        if shards.classes is None:
            raise ConfigError("task: softmax regression needs classes")
        super().__init__(shards, l2)
        self._every = torch.cat(self.features)
        self._classes = torch.cat(self.targets)
        self._near = self.start

    def _gradients(self, batch: Batch) -> Gradients:
        clients, places = by_owner(batch)
        order = torch.cat(places)
        return _Logits(
            clients,
            with_bias(batch.inputs)[order],
            batch.targets[order],
            [len(at) for at in places],
            self.outputs,
            self.l2,
        )

    def losses(self, theta: Tensor) -> Floats:
        x = self.matrix(theta)
        logits = self._every @ x
        each = torch.nn.functional.cross_entropy(logits, self._classes, reduction="none")
        means = torch.stack([part.mean() for part in torch.split(each, [len(part) for part in self.targets])])
        return np.asarray((means + self.l2 / 2 * x.square().sum()).numpy())

    def curvature(self, honest: NDArray[np.bool_]) -> Curvature:
        weights = self._per_sample(shares(honest))
        return Curvature(softmax_smoothness(self._every, weights) + self.l2, self.l2)

    def _per_sample(self, weights: Floats) -> Tensor:
        return torch.cat(
            [torch.full((len(p),), w / len(p), dtype=torch.float64) for p, w in zip(self.targets, weights, strict=True)]
        )

    def minimum(self, weights: Floats) -> float:
        """By truncated Newton steps, until the gradient proves that less than :data:`~bezoar.expected.tasks.GAP` is
        left (relative to the loss, where that is above one)."""
        w = self._per_sample(weights)
        used = w > 0
        x, y, w = self._every[used], self._classes[used], w[used]
        theta = self._near.view(self.dimension, self.outputs)
        value, gradient, p = self._point(x, y, w, theta)
        for _ in range(100):
            size = float(gradient.norm())
            if size**2 <= 2 * self.l2 * GAP * max(1.0, value):
                self._near = theta.flatten()
                return value
            step = self._direction(x, w, p, gradient, min(0.1, size**0.5) * size)
            slope, t = float((gradient * step).sum()), 1.0
            for _ in range(40):
                found = self._point(x, y, w, theta + t * step)
                # Rounding hides the decrease next to the minimum: a smaller gradient will do there.
                near = abs(found[0] - value) <= 1e-13 * max(1.0, value) and float(found[1].norm()) < size
                if found[0] <= value + 1e-4 * t * slope or near:
                    break
                t /= 2
            theta = theta + t * step
            value, gradient, p = found
        raise DivergedError("softmax regression: Newton's method found no minimum in 100 steps")

    def _point(self, x: Tensor, y: Tensor, w: Tensor, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        log_p = torch.log_softmax(x @ theta, 1)
        value = -float((w * log_p.gather(1, y[:, None])[:, 0]).sum()) + self.l2 / 2 * float(theta.square().sum())
        p = log_p.exp()
        residual = p.clone()
        residual[torch.arange(len(y)), y] -= 1
        return value, x.T @ (w[:, None] * residual) + self.l2 * theta, p

    def _direction(self, x: Tensor, w: Tensor, p: Tensor, gradient: Tensor, tolerance: float) -> Tensor:
        """A step that solves Hessian @ step = -gradient up to ``tolerance``."""
        step, rest = torch.zeros_like(gradient), -gradient
        ahead, squared = rest.clone(), float(rest.square().sum())
        for _ in range(1000):
            along = x @ ahead
            curved = x.T @ (w[:, None] * p * (along - (p * along).sum(1, keepdim=True))) + self.l2 * ahead
            t = squared / float((ahead * curved).sum())
            step, rest = step + t * ahead, rest - t * curved
            before, squared = squared, float(rest.square().sum())
            if squared**0.5 <= tolerance:
                break
            ahead = rest + squared / before * ahead
        return step


class _Logits(Gradients):
    def __init__(self, clients: Tensor, x: Tensor, y: Tensor, counts: list[int], outputs: int, l2: float) -> None:
        self.clients, self._counts, self._l2, self._c = clients, counts, l2, outputs
        self._x, self._y = x, torch.nn.functional.one_hot(y, outputs).double()
        self._shares = torch.cat([torch.full((m, 1), 1 / m, dtype=torch.float64) for m in counts])
        self._even = len(set(counts)) == 1
        self._parts = [part.T for part in torch.split(x, counts)]
        self._stack = torch.stack(self._parts) if self._even else None

    def at(self, theta: Tensor, round: int) -> Tensor:
        matrix = theta.view(-1, self._c)
        residual = torch.softmax(self._x @ matrix, 1).sub_(self._y).mul_(self._shares)
        if self._stack is not None:
            found = torch.bmm(self._stack, residual.view(len(self._counts), -1, self._c))
        else:
            pieces = torch.split(residual, self._counts)
            found = torch.stack([part @ piece for part, piece in zip(self._parts, pieces, strict=True)])
        return found.view(len(self._counts), -1).add_(theta, alpha=self._l2)
