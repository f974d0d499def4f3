"""Norms, inner products and distances of rows, exact where it matters and safe from overflow.

Chunks of columns are multiplied in the rows' own precision and summed in float64. Rows far from one in size are first
scaled by powers of two (exact), so that 1e30 neither overflows float32 nor drowns its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bezoar.kernels.spread import WHOLE, Spread

#: Columns multiplied at a time: products of this many float32 terms keep about six digits.
CHUNK = 16384

#: Columns whose squares are added in the rows' own precision before float64 takes over.
NORM_CHUNK = 65536

#: Pairs closer than this share of their squared norms are measured again from their difference.
NEAR = 1e-4

#: Squared norms in this range are safe in float32; norms may differ by this factor without scales of their own.
SAFE, SPREAD = (1e-24, 1e24), 1e6


class Matrix(Protocol):
    """n rows of d numbers that can be read column range by column range."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""

    @property
    def device(self) -> torch.device:
        """Where the entries are."""

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        """Columns ``start`` to ``stop`` of all rows, or of ``rows`` [m]: [n or m, stop - start], not to be changed."""


#: (start, stop, rows) -> those columns of ``rows`` minus the first of them.
Differences = Callable[[int, int, Tensor], Tensor]


@dataclass(frozen=True)
class Tall:
    """A tensor [n, d] as the kernels read it."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        n, d = self.values.shape
        return n, d

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self.values.device

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        """Columns ``start`` to ``stop``, of ``rows`` only if given."""
        return self.values[:, start:stop] if rows is None else self.values[rows, start:stop]


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float64 for itself, float32 for float32 and half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return values.to(wide_type(values.dtype))


def ranges(d: int, width: int) -> list[tuple[int, int]]:
    """Cut d columns into ranges of at most ``width``."""
    return [(start, min(start + width, d)) for start in range(0, d, width)]


def squared_norms(matrix: Matrix) -> Tensor:
    """Squared l2 norms of the rows of ``matrix``: float64 [n]."""
    n, d = matrix.shape
    wide = wide_type(matrix.dtype)
    total = torch.zeros(n, dtype=torch.float64, device=matrix.device)
    for start, stop in ranges(d, NORM_CHUNK):
        total += torch.linalg.vector_norm(matrix.part(start, stop), dim=1, dtype=wide).double().square_()
    unsure = (~((total > SAFE[0]) & (total < SAFE[1]))).nonzero().flatten()
    if wide == torch.float32 and len(unsure):
        total[unsure] = 0.0
        for start, stop in ranges(d, max(1, NORM_CHUNK * 8 // len(unsure))):
            total[unsure] += matrix.part(start, stop, unsure).double().square_().sum(1)
    return total


def powers(sizes: Tensor) -> Tensor:
    """Powers of two that bring ``sizes`` to about one (one for zero or non-finite sizes)."""
    usable = torch.isfinite(sizes) & (sizes > 0)
    exponent = torch.frexp(torch.where(usable, sizes, torch.ones_like(sizes))).exponent
    return torch.ldexp(torch.ones_like(sizes), -exponent.clamp(min=-1000))


def _multiply(matrix: Matrix, scales: Tensor | None, centre: int | None, spread: Spread) -> Tensor:
    """Inner products of the rows (minus row ``centre`` if given), times scales_i * scales_j: float64 [n, n]."""
    n, d = matrix.shape
    wide = wide_type(matrix.dtype)
    total = torch.zeros(n, n, dtype=torch.float64, device=matrix.device)
    for start, stop in ranges(d, CHUNK):
        part = matrix.part(start, stop).to(wide)
        if scales is None:
            if centre is not None:
                part = part - part[centre]
        else:
            # Halving keeps the difference of two huge numbers of opposite sign finite.
            part = part * 0.5
            if centre is not None:
                part = part - part[centre]
            part = part.double().mul_(scales[:, None] * 2).to(wide)
        total += part @ part.T
    total = spread.total(total)
    return (total + total.T) * 0.5


def _safe(norms: Tensor) -> bool:
    """Whether products of rows with these squared norms are exact enough without scaling."""
    return bool(((norms == 0) | ((norms > SAFE[0]) & (norms < SAFE[1]))).all())


def gram(matrix: Matrix, norms: Tensor, spread: Spread = WHOLE) -> Tensor:
    """Inner products of all pairs of rows of ``matrix``, whose squared ``norms`` [n] are known: float64 [n, n].

    With ``spread`` the matrix holds this process's columns only; ``norms`` are those of whole rows.
    """
    if _safe(norms):
        return _multiply(matrix, None, None, spread)
    scales = powers(norms.sqrt())
    return _multiply(matrix, scales, None, spread) / scales[:, None] / scales[None, :]


def typical(norms: Tensor) -> int:
    """A row of median norm, from all (squared) ``norms`` [n]."""
    return int(torch.argsort(norms, stable=True)[len(norms) // 2])


def squared_distances(matrix: Matrix, norms: Tensor, spread: Spread = WHOLE) -> Tensor:
    """Squared distances of all pairs of rows of ``matrix``, whose squared ``norms`` are known: float64 [n, n].

    The rows are centred on a row of median norm (never on the mean, which one huge row ruins). Pairs that nearly
    coincide are measured again with one of them as the centre. Equal rows have distance 0 and equal distances to
    all others. With ``spread`` the matrix holds this process's columns only; ``norms`` are those of whole rows.
    """
    c = typical(norms)
    usual, largest = float(norms[c]), float(norms.max())
    if SAFE[0] < usual and largest < min(SAFE[1], usual * SPREAD**2):
        products = _multiply(matrix, None, c, spread)
    else:
        scales = powers(torch.maximum(norms, norms[c]).sqrt())
        products = _multiply(matrix, scales, c, spread) / scales[:, None] / scales[None, :]
    size = products.diagonal()
    distances = between(products)
    near = (distances < NEAR * (size[:, None] + size[None, :])).fill_diagonal_(False)
    near[c] = near[:, c] = False
    wide = wide_type(matrix.dtype)

    def differences(start: int, stop: int, members: Tensor) -> Tensor:
        part = matrix.part(start, stop, members).to(wide)
        return part - part[0]

    measure_again(differences, matrix.shape[1], distances, near, spread)
    return alike(distances)


def products_about(distances: Tensor, centre: int) -> Tensor:
    """Inner products [n, n] of the rows minus row ``centre``: K_ij = (D_ic + D_jc - D_ij) / 2."""
    size = distances[centre]
    return (size[:, None] + size[None, :] - distances) * 0.5


def between(products: Tensor) -> Tensor:
    """Squared distances of all pairs of rows with these inner products [n, n]."""
    size = products.diagonal()
    return (size[:, None] + size[None, :] - 2 * products).clamp_(min=0).fill_diagonal_(0)


def measure_again(differences: Differences, d: int, distances: Tensor, near: Tensor, spread: Spread = WHOLE) -> None:
    """Correct ``distances`` in place where ``near``: clusters of close rows are centred on one of their own."""
    while near.any():
        c = int(near.sum(1).argmax())
        members = torch.cat([near.new_tensor([c], dtype=torch.int64), near[c].nonzero().flatten()])
        products, largest = _cluster(differences, d, members, 1.0, spread)
        if largest > 0 and not SAFE[0] < largest**2 < SAFE[1]:
            scale = float(powers(torch.tensor(largest, dtype=torch.float64)))
            products = _cluster(differences, d, members, scale, spread)[0] / scale / scale
        size = products.diagonal()
        exact = between(products)
        grid = torch.meshgrid(members, members, indexing="ij")
        wrong = near[grid]
        distances[grid] = torch.where(wrong, exact, distances[grid])
        near[grid] = wrong & (exact < NEAR * (size[:, None] + size[None, :]))
        near[c] = near[:, c] = False


def _cluster(differences: Differences, d: int, members: Tensor, scale: float, spread: Spread) -> tuple[Tensor, float]:
    """Inner products of the rows ``members`` minus the first of them, times scale squared; the largest entry."""
    products = torch.zeros(len(members), len(members), dtype=torch.float64, device=members.device)
    largest = torch.zeros((), dtype=torch.float64, device=members.device)
    for start, stop in ranges(d, CHUNK):
        part = differences(start, stop, members)
        largest = torch.maximum(largest, part.abs().amax().double())
        if scale != 1.0:
            part = (part.double() * scale).to(part.dtype)
        products += part @ part.T
    products = spread.total(products)
    return (products + products.T) * 0.5, float(spread.largest(largest))


def alike(distances: Tensor) -> Tensor:
    """Give equal rows (distance 0) equal distances to all others, those of the first of them."""
    n = len(distances)
    first = (distances == 0).to(torch.int8).argmax(1)
    if not torch.equal(first, torch.arange(n, device=first.device)):
        distances = distances[first][:, first]
    return distances
