"""Certified predictions of softmax regression on the test set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bezoar.certify.lipschitz import with_bias
from bezoar.certify.prediction import certified
from bezoar.experiments.setup import Setup


@dataclass(frozen=True, eq=False)
class Predictions:
    """Test points whose predicted class can not change, bool [N] each, and what is true of all.

    Attributes:
        l1: within the l1 radius that holds whatever top-k leaves behind.
        l2: within the l2 radius; none where there is no such radius.
        right: whether the clean model's prediction is true.
        flipped: whether the measured attack changed it.
    """

    l1: Tensor
    l2: Tensor
    right: Tensor
    flipped: Tensor

    @property
    def any(self) -> Tensor:
        """Certified one way or the other."""
        return self.l1 | self.l2


def test_features(setup: Setup) -> Tensor:
    """All test samples with their bias entry, float64 [N, m + 1]."""
    dataset = setup.federation.dataset
    return with_bias(dataset.batch(dataset.test, slice(None)).to(setup.device))


def scores(weights: Tensor, x: Tensor) -> Tensor:
    """Logits [N, C] float64 of softmax regression with the flat ``weights`` (matrix, then bias) at x [N, m + 1]."""
    m = x.shape[1] - 1
    classes = len(weights) // (m + 1)
    matrix = weights[: classes * m].double().view(classes, m)
    return x[:, :m] @ matrix.T + weights[classes * m :].double()


def predictions(clean: Setup, poisoned: Tensor, log_l1: float, log_l2: float | None) -> Predictions:
    """What the final radii (natural logarithms) say of the test points, and whether the attack kept to it.

    ``poisoned`` [d] is the attacked model.
    """
    x = test_features(clean)
    logits = scores(clean.weights, x)
    l1 = certified(logits, x, log_l1, "l1")
    l2 = certified(logits, x, log_l2, "l2") if log_l2 is not None else l1 & False
    predicted = logits.argmax(1)
    right = predicted == clean.federation.dataset.test.targets.to(x.device)
    return Predictions(l1, l2, right, scores(poisoned, x).argmax(1) != predicted)
