"""LASA: sparsified rows, filtered layer by layer by length and by the balance of their signs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation._features import median
from bezoar.aggregation.base import COLUMN_BYTES, Aggregate, Context, Rule, State
from bezoar.aggregation.clip import clip_factors
from bezoar.errors import ConfigError
from bezoar.kernels.gram import widened
from bezoar.updates.base import Needs, Updates

#: Scores that agree to this share are equal.
SLACK = 1e-9


@dataclass(frozen=True)
class LASA(Rule):
    r"""Clip and sparsify every row, then average in every layer the rows of usual length and usual sign balance.

    .. math:: [F(x)]_\ell = \frac{1}{|K_\ell|} \sum_{i \in K_\ell} \tilde x_i^\ell,\quad
        K_\ell = \{i : z(\|\tilde x_i^\ell\|) \le \lambda_n,\ z(\rho_i^\ell) \le \lambda_s\},\quad
        \rho_i^\ell = \frac12 \Big( 1 + \frac{\sum_j \operatorname{sign} [\tilde x_i^\ell]_j}
        {\sum_j |\operatorname{sign} [\tilde x_i^\ell]_j|} \Big),\quad
        z(a_i) = \frac{|a_i - \operatorname{med} a|}{\operatorname{sd} a}

    where the rows :math:`\tilde x_i` are clipped to the median norm and hold, in every layer, the share
    1 - ``sparsity`` of largest entries (ties: the first; at least one), zeros elsewhere. rho is the positive
    direction purity, 1/2 for a layer of zeros. Where no row passes both filters, those that come closest do. Equal
    rows give that row, sparsified. A layer is one parameter tensor of the layout. ``scores`` is the share of layers
    in which a row was kept.

    Order of clipping and sparsification, the division by the standard deviation, averaging the sparsified rows, and
    the defaults: unverified reading of the paper, from memory.

    Tolerates: f < n/2 (heuristic).
    Cost: twice a selection in every row and layer, O(n d), some rows at a time: 16 MiB or one row.
    Constant: none known; the answer is never longer than the median norm times the root of the number of layers.
    Peers: FLPoison has it; ByzFL and Blades lack it.
    Reference: Xu, Zhang, Hu: Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model
        Aggregation, WACV 2025.

    >>> x = [[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]
    >>> LASA(sparsity=0.0, norm_limit=3.0).aggregate([{"weight": torch.tensor(row)} for row in x]).scores
    tensor([1., 1., 1., 1., 0.], dtype=torch.float64)
    """

    sparsity: float = 0.3
    norm_limit: float = 1.0
    sign_limit: float = 1.0
    needs: ClassVar[Needs] = Needs.NORMS | Needs.BLOCKS | Needs.LAYOUT

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sparsity, int | float) or not 0 <= self.sparsity < 1:
            raise ConfigError(f"LASA: sparsity must be in [0, 1), got {self.sparsity!r}")
        for name in ("norm_limit", "sign_limit"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or math.isnan(value) or value <= 0:
                raise ConfigError(f"LASA: {name} must be a positive number, got {value!r}")

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        n, d = rows.shape
        layers = [segment for segment in rows.layout if segment.stop > segment.start]
        lengths = rows.squared_norms().sqrt()
        clip = clip_factors(lengths, median(lengths))
        norms = torch.zeros(n, len(layers), dtype=torch.float64, device=rows.device)
        purity = torch.zeros_like(norms)
        for some, values in _some_rows(rows):
            for at, layer in enumerate(layers):
                part = keep_largest(values[:, layer.start : layer.stop], self.sparsity)
                norms[some, at] = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) * clip[some]
                positive, negative = (part > 0).sum(1).double(), (part < 0).sum(1).double()
                purity[some, at] = 0.5 + 0.5 * (positive - negative) / (positive + negative).clamp(min=1)
        far = torch.maximum(_deviation(norms) / self.norm_limit, _deviation(purity) / self.sign_limit)
        # Two rows are exactly one deviation from their midpoint: rounding must not decide between them.
        kept = far <= 1 + SLACK
        closest = far <= far.amin(0) * (1 + SLACK)
        kept = torch.where(kept.any(0), kept, closest)
        weights = kept * clip[:, None] / kept.sum(0, dtype=torch.float64)
        vector = torch.zeros(d, dtype=torch.float64, device=rows.device)
        for some, values in _some_rows(rows):
            for at, layer in enumerate(layers):
                part = keep_largest(values[:, layer.start : layer.stop], self.sparsity)
                vector[layer.start : layer.stop] += weights[some, at].to(part.dtype) @ part
        return Aggregate(vector.to(rows.dtype), scores=kept.double().mean(1))


def _some_rows(rows: Updates) -> Iterator[tuple[slice, Tensor]]:
    """All rows, whole, as many at a time as fit a block."""
    n, d = rows.shape
    step = max(1, COLUMN_BYTES // (4 * max(1, d * rows.dtype.itemsize)))
    for start in range(0, n, step):
        index = torch.arange(start, min(start + step, n), device=rows.device)
        yield slice(start, start + len(index)), widened(rows.select(index).materialise())


def keep_largest(values: Tensor, sparsity: float) -> Tensor:
    """Every row of ``values`` [m, p] with zeros in place of all but its largest (1 - sparsity) p entries."""
    p = values.shape[1]
    k = max(1, math.floor((1 - sparsity) * p + 0.5))
    if k == p:
        return values
    size = values.abs()
    least = _kth_smallest(size, p - k)
    kept = size >= least
    # Only rows with ties at the threshold hold more than k entries.
    for row in (kept.sum(1) > k).nonzero().flatten().tolist():
        tied = (size[row] == least[row]).nonzero().flatten()
        kept[row, tied[k - int((size[row] > least[row]).sum()) :]] = False
    return values.masked_fill(~kept, 0)


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """The entry of every row of ``values`` [m, p] with k smaller ones before it: [m, 1]."""
    if values.device.type != "cpu":
        return values.kthvalue(k + 1, dim=1, keepdim=True).values
    # NumPy's selection is several times faster than torch's.
    return torch.from_numpy(np.stack([np.partition(row, k)[k : k + 1] for row in values.numpy()]))


def _deviation(values: Tensor) -> Tensor:
    """Distances of the entries of every column of ``values`` [n, L] from its median, in standard deviations."""
    middle = torch.stack([median(column) for column in values.T])
    # Dividing first keeps squares in range; a spread of rounding errors is none.
    size = values.abs().amax(0)
    gaps = ((values - middle) / size).nan_to_num(nan=0.0)
    spread = (values / size).nan_to_num(nan=0.0).std(0, correction=0)
    return torch.where(spread > SLACK, gaps.abs() / spread, torch.zeros_like(gaps))
