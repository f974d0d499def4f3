"""The loss of personalised federated learning: users' models, and one common model that they are tied to."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bezoar.attacks.gradient_to_data import Points
from bezoar.errors import ConfigError
from bezoar.personalized.losses import UserLoss
from bezoar.personalized.regularizers import Regularizer


@dataclass(frozen=True, eq=False)
class Problem:
    r"""N users with data and models theta_n, and the common model rho.

    .. math:: \mathrm{Loss}(\rho, \theta) = \sum_n \Big[ \nu \|\theta_n\|^2 + \sum_{(x, y) \in D_n} \ell(\theta_n; x, y)
        + R(\rho, \theta_n) \Big]

    ``reduction="mean"`` divides a user's sum of losses by the number of its samples; the equivalence is about sums,
    where a user with more data weighs more.

    Reference: Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and Byzantine Gradient
        Attacks, ICML 2022.
    """

    loss: UserLoss
    data: tuple[Points, ...]
    regularizer: Regularizer
    ridge: float = 0.0
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not self.data or any(len(points) == 0 for points in self.data):
            raise ConfigError("a personalised problem needs users, and each of them at least one sample")
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise ConfigError(f"ridge must be finite and not negative, got {self.ridge}")
        if self.reduction not in ("sum", "mean"):
            raise ConfigError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")

    @property
    def users(self) -> int:
        """N."""
        return len(self.data)

    def with_user(self, data: Points) -> Problem:
        """The same problem with one more user."""
        return dataclasses.replace(self, data=(*self.data, data))

    def local(self, n: int, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient [D] of user n's own loss, regulariser aside."""
        value, gradient = self.loss.value_and_gradient(theta, self.data[n])
        share = self.share(n)
        return share * value + self.ridge * (theta @ theta), share * gradient + 2 * self.ridge * theta

    def share(self, n: int) -> float:
        """What user n's sum of losses is multiplied with."""
        return 1 / len(self.data[n]) if self.reduction == "mean" else 1.0

    def objective(self, rho: Tensor, thetas: Tensor) -> float:
        """Loss(rho, theta) for models ``thetas`` [N, D]."""
        own = sum(float(self.local(n, thetas[n])[0]) for n in range(self.users))
        return own + float(self.regularizer.value(rho, thetas).sum())

    def gradients(self, rho: Tensor, thetas: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to rho [D] and to the users' models [N, D]."""
        ties = self.regularizer.gradient(rho, thetas)
        own = torch.stack([self.local(n, thetas[n])[1] for n in range(self.users)])
        return ties.sum(0), own - ties
