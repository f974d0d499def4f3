r"""Predictions that can not change while a linear model stays within a certified radius.

The clean model scores class a of a sample x (with its bias entry 1) as :math:`\langle\theta_a, x\rangle` and predicts
y. If :math:`\theta` moves by :math:`\delta`, the margin of y over b moves by
:math:`\langle\delta_y - \delta_b, x\rangle`, which is at most (Hölder; the two rows share no coordinate)

.. math:: (|\delta_y|_1 + |\delta_b|_1) |x|_\infty \le |\delta|_1 |x|_\infty, \qquad
          \|\delta_y - \delta_b\|_2 \|x\|_2 \le \sqrt2\, \|\delta\|_2 \|x\|_2 .

While that is less than the margin of every other class, the prediction stays.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bezoar.certify.radius import linear
from bezoar.errors import ConfigError


def margins(logits: Tensor) -> Tensor:
    """By how much the largest of every row of ``logits`` [N, C] exceeds the second largest: float64 [N]."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ConfigError(f"logits must be [N, C] with C >= 2, got {list(logits.shape)}")
    top = logits.double().topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def endurance(logits: Tensor, features: Tensor, norm: Literal["l1", "l2"]) -> Tensor:
    """The distance [N] that a linear model can move before a prediction may change.

    ``logits`` [N, C] are the clean model's; ``features`` [N, m] the samples with their bias entry, if it has one.

    >>> endurance(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.5, 1.0]]), "l1")
    tensor([2.], dtype=torch.float64)
    """
    if len(features) != len(logits):
        raise ConfigError(f"{len(logits)} rows of logits but {len(features)} of features")
    x = features.double()
    if norm == "l1":
        reach = x.abs().amax(1)
    elif norm == "l2":
        reach = math.sqrt(2) * torch.linalg.vector_norm(x, dim=1)
    else:
        raise ConfigError(f"norm must be 'l1' or 'l2', got {norm!r}")
    return margins(logits) / reach


def certified(logits: Tensor, features: Tensor, log_radius: float, norm: Literal["l1", "l2"]) -> Tensor:
    """Which predictions (bool [N]) can not change within the radius, given as its natural logarithm.

    NaN in the logits certifies nothing.
    """
    return endurance(logits, features, norm) > linear(log_radius)
