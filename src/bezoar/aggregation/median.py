"""The coordinate-wise median."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bezoar.aggregation.base import Constant, Ordered
from bezoar.errors import ConfigError
from bezoar.kernels.columns import median_of_sorted


@dataclass(frozen=True)
class Median(Ordered):
    r"""The median of every coordinate; the midpoint of the middle two for an even number of rows.

    .. math:: [\operatorname{med}(x_1, \dots, x_n)]_j = \operatorname{med}([x_1]_j, \dots, [x_n]_j)

    It takes no f: what it promises depends on the number q of rows that are bad. ``variant="lower"`` takes the lower of
    the middle two for an even number of rows, as ``torch.median`` does, and with it the authors' code of SparseFed.

    Tolerates: q <= (n-1)/2 bad rows.
    Cost: a sort of every column, O(d n log n).
    Constant: (n-1)/(n+1-2q) for odd n, (n-2)/(n+2-2q) for even n (exact); none known of the lower one for even n.
    Peers: ByzFL, Blades and FLPoison have it; for even n torch.median would be the lower of the middle two.
    Reference: Yin, Chen, Kannan, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018.

    >>> import torch
    >>> Median()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    variant: Literal["midpoint", "lower"] = "midpoint"

    added: ClassVar[tuple[str, ...]] = ("variant",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("midpoint", "lower"):
            raise ConfigError(f"Median: variant must be 'midpoint' or 'lower', got {self.variant!r}")

    def withstands(self, n: int) -> int:
        # Of an even number of rows one fewer than half can not reach the lower of the middle two.
        return (n - 1) // 2

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.variant == "lower" and n % 2 == 0:
            return ()
        middle, formula = ((n - 1) / 2, "(n-1)/(n+1-2q)") if n % 2 else ((n - 2) / 2, "(n-2)/(n+2-2q)")
        return (Constant(middle / (n - q - middle) if 2 * q < n else math.inf, formula, "exact"),)

    def finish(self, ordered: Any) -> Any:
        return median_of_sorted(ordered) if self.variant == "midpoint" else ordered[:, (ordered.shape[1] - 1) // 2]
