"""The count sketch: a small linear summary of a long vector from which its large entries can be read off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.quiet import take
from bezoar.kernels.threads import in_threads
from bezoar.kernels.topk import top_k
from bezoar.seeding import numpy_generator

Array = NDArray[Any]

#: Coordinates that move together: at most so many, and at most this share of a row's columns.
WIDEST, SHARE = 4096, 1 / 64

#: Shorter blocks are not worth a call each: their cells are addressed one by one.
SHORT = 128

#: Coordinates whose rows are worked on at once, so that everything stays in the cache.
CHUNK = 16384


class _Plan(NamedTuple):
    """The random choices: ``starts`` [r, B] (int64), ``signs`` [r, B] and ``pattern`` [m] (int8, +1 or -1)."""

    starts: Array
    signs: Array
    pattern: Array


@dataclass(frozen=True)
class CountSketch:
    r"""A linear map from vectors [d] to tables [r, c] of which every row is an independent summary.

    .. math:: T_{\rho, h_\rho(i)} \mathrel{+}= s_\rho(i)\, v_i, \qquad
              \hat v_i = \operatorname{median}_\rho\, s_\rho(i)\, T_{\rho, h_\rho(i)}

    The vector is cut into blocks b of m neighbours, m = 4096 or c / 64 if that is less (at least 1). A row draws one
    start :math:`o_{\rho b}`, uniform in 0..c-1, and one sign :math:`\sigma_{\rho b}` a block; a pattern :math:`\tau`
    of m signs is drawn once. Coordinate i, the p-th of block b, goes to bucket
    :math:`h_\rho(i) = (o_{\rho b} + p) \bmod c` with sign :math:`s_\rho(i) = \sigma_{\rho b} \tau_p`. All draws are
    independent (as far as Philox numbers are; they are few enough to be drawn instead of hashed, so that no product
    of a hash function can overflow). Hence, exactly:

    * **Buckets.** Each is uniform. Two coordinates of one block never collide, as m <= c; two of different blocks do
      with probability 1/c, as the difference of their starts is uniform. So pairwise collisions have probability
      at most 1/c. They come in runs: if i collides with j, so does i + 1 with j + 1, if both are in the same blocks.
    * **Signs.** Signs of coordinates that can collide belong to different blocks, so those of one bucket are mutually
      independent, and independent of the buckets.
    * **Estimates.** A row's estimate :math:`s_\rho(i) T_{\rho, h_\rho(i)}` has therefore mean :math:`v_i` and variance
      :math:`\frac1c \sum_{j \notin b(i)} v_j^2 \le \|v\|^2 / c`, as with a fully random hash: its error is
      :math:`\sum_j \pm v_j [h(j) = h(i)]`, whose mixed terms vanish. By Chebyshev it exceeds
      :math:`\sqrt{8 / c}\, \|v\|` with probability at most 1/8, and the median of r rows with at most
      :math:`\Pr[\mathrm{Bin}(r, 1/8) \ge r/2]`, 1.6% for r = 5 and falling exponentially in r.
    * **Norms.** :math:`\sum_q T_{\rho q}^2` has mean :math:`\|v\|^2` and variance at most :math:`4 \|v\|^4 / c`, twice
      that of 4-wise independent signs. Let X be the sum of the products of colliding coordinates of two blocks A, B.
      The signs of blocks leave the sum of :math:`2 E X^2` over ordered pairs. Shifted against each other by s (each
      with probability 1/c), :math:`E_\tau X^2 = \sum_p A_p^2 B_{p+s}^2` unless s = 0, since a product
      :math:`\tau_p \tau_{p+s} \tau_q \tau_{q+s}` of p != q always has a factor that occurs once; and
      :math:`X^2 = \langle A, B \rangle^2` for s = 0. Together at most :math:`2 \|A\|^2 \|B\|^2 / c`. (Needs 2m <= c or
      m = 1. Without the pattern, vectors with long runs of equal entries would do m times worse.)

    Whoever knows the seed can choose vectors that collide: the guarantees hold for vectors chosen without it.

    Equal arguments make equal sketches, on every device and of tables that can be added: S is linear, up to the
    rounding of sums. Types are float32 and float64.

    Args:
        d: length of the vectors.
        rows: r, independent summaries.
        columns: c, cells of one.
        seed: of the random choices.

    Charikar, Chen, Farach-Colton: Finding frequent items in data streams, ICALP 2002; Rothchild et al.: FetchSGD,
    ICML 2020.

    >>> sketch = CountSketch(d=6, rows=3, columns=8, seed=1)
    >>> table = sketch.insert(torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.0]))
    >>> table.shape, sketch.heavy_hitters(table, k=1)
    (torch.Size([3, 8]), (tensor([2]), tensor([5.])))
    """

    d: int
    rows: int
    columns: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("d", self.d), ("rows", self.rows), ("columns", self.columns)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"count sketch: {name} must be a whole number >= 1, got {value!r}")

    @property
    def width(self) -> int:
        """m, the number of neighbouring coordinates that keep together."""
        return max(1, min(WIDEST, int(self.columns * SHARE)))

    @property
    def cells(self) -> int:
        """r c, the numbers that a table holds."""
        return self.rows * self.columns

    @property
    def _plan(self) -> _Plan:
        return _draw(self.d, self.rows, self.columns, self.width, self.seed)

    def insert(self, vector: Tensor) -> Tensor:
        """The table [r, c] of ``vector`` [d]."""
        self._check("vector", vector, (self.d,))
        if vector.device.type == "cpu" and self.width >= SHORT:
            return self._insert_blocks(vector)
        table = torch.zeros(self.rows, self.columns, dtype=vector.dtype, device=vector.device)
        for start in range(0, self.d, CHUNK * 64):
            index = torch.arange(start, min(start + CHUNK * 64, self.d), device=vector.device)
            self._add(table, index, vector[start : start + CHUNK * 64])
        return table

    def insert_at(self, index: Tensor, values: Tensor) -> Tensor:
        """The table [r, c] of the vector that is ``values`` [k] at ``index`` [k] (int64, ascending) and zero elsewhere.

        It has the bits of ``insert``'s.
        """
        self._check("values", values, (len(index),))
        table = torch.zeros(self.rows, self.columns, dtype=values.dtype, device=values.device)
        self._add(table, index, values)
        return table

    def places(self, index: Tensor) -> Tensor:
        """The columns at which the coordinates ``index`` [k] are kept in every row: int64 [r, k]."""
        starts = self._plan.starts
        if index.device.type == "cpu":
            return torch.from_numpy(self._places(starts, index.numpy()))
        found: Tensor = self._places(torch.from_numpy(starts).to(index.device), index)
        return found

    def signs(self, index: Tensor) -> Tensor:
        """The signs of the coordinates ``index`` [k] in every row: int8 [r, k]."""
        plan = self._plan
        blocks, pattern = (torch.from_numpy(part).to(index.device) for part in (plan.signs, plan.pattern))
        return blocks[:, index // self.width] * pattern[index % self.width]

    def estimate(self, table: Tensor) -> Tensor:
        """The estimate [d] of the vector behind ``table`` [r, c]; for even r, the mean of the middle two."""
        self._check("table", table, (self.rows, self.columns))
        if table.device.type == "cpu" and self.width >= SHORT:
            return self._estimate_blocks(table)
        parts = []
        for start in range(0, self.d, CHUNK * 64):
            index = torch.arange(start, min(start + CHUNK * 64, self.d), device=table.device)
            seen = table.gather(1, self.places(index)) * self.signs(index)
            parts.append(middle(list(seen), torch.minimum, torch.maximum, torch.empty_like(seen[0])))
        return torch.cat(parts)

    def heavy_hitters(self, table: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k coordinates of largest estimate (ascending, ties by lowest index) and their estimates.

        Raises:
            DivergedError: the table is not finite.
        """
        estimate = self.estimate(table)
        index = top_k(estimate, k)
        return index, take(estimate, index)

    def _places(self, starts: Any, index: Any) -> Any:
        return (starts[:, index // self.width] + index % self.width) % self.columns

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(value.shape) != shape or value.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"count sketch: {name} must be float32 or float64 {list(shape)}, got {value.dtype} {list(value.shape)}"
            )

    def _add(self, table: Tensor, index: Tensor, values: Tensor) -> None:
        """Add ``values`` [k] at the coordinates ``index`` [k] in their order."""
        signed = values * self.signs(index)
        for row, at, what in zip(table, self.places(index), signed, strict=True):
            if table.device.type == "cpu":
                row.index_add_(0, at, what)
            else:
                # Sorts, where index_add_ would add in any order.
                row.index_put_((at,), what, accumulate=True)

    def _insert_blocks(self, vector: Tensor) -> Tensor:
        """Whole blocks by slices; each row adds them from the left, so that threads change no bit."""
        plan, width, columns = self._plan, self.width, self.columns
        values = _patterned(vector.detach().contiguous().numpy(), plan.pattern)
        table = np.zeros((self.rows, columns), dtype=values.dtype)

        @np.errstate(over="ignore", invalid="ignore")
        def work(first: int, last: int) -> None:
            for row in range(first, last):
                cells, starts, positive = table[row], plan.starts[row].tolist(), (plan.signs[row] > 0).tolist()
                for block, (start, plus) in enumerate(zip(starts, positive, strict=True)):
                    what = values[block * width : (block + 1) * width]
                    add, left = np.add if plus else np.subtract, columns - start
                    where = cells[start : start + len(what)]
                    add(where, what[:left], out=where)
                    if left < len(what):
                        where = cells[: len(what) - left]
                        add(where, what[left:], out=where)

        in_threads(lambda: work, self.rows, 1)
        return torch.from_numpy(table)

    def _estimate_blocks(self, table: Tensor) -> Tensor:
        plan, width, rows = self._plan, self.width, self.rows
        known = table.detach().numpy()
        # Blocks that wrap around are read beyond the end.
        cells = np.concatenate([known, known[:, :width]], axis=1)
        answer = np.empty(self.d, dtype=cells.dtype)
        starts, signs, pattern = plan.starts.T.tolist(), plan.signs.T.tolist(), plan.pattern.astype(cells.dtype)
        step = max(1, CHUNK // width) * width

        def worker() -> Callable[[int, int], None]:
            wires, spare = np.empty((rows, step), dtype=cells.dtype), np.empty(step, dtype=cells.dtype)

            @np.errstate(over="ignore", invalid="ignore")
            def work(first: int, last: int) -> None:
                for at in range(first, last, width):
                    size, block = min(width, last - at), at // width
                    for row in range(rows):
                        start = starts[block][row]
                        where = wires[row, at - first : at - first + size]
                        np.multiply(cells[row, start : start + size], signs[block][row], out=where)
                size = last - first
                found = middle([wire[:size] for wire in wires], np.minimum, np.maximum, spare[:size])
                _patterned(found, pattern, answer[first:last])

            return work

        in_threads(worker, self.d, step)
        return torch.from_numpy(answer)


@lru_cache(maxsize=8)
def _draw(d: int, rows: int, columns: int, width: int, seed: int) -> _Plan:
    blocks = -(-d // width)
    draws = numpy_generator(seed, "count sketch")
    pattern = draws.integers(0, 2, width, dtype=np.int8) * 2 - 1
    starts = draws.integers(0, columns, (rows, blocks), dtype=np.int64)
    signs = draws.integers(0, 2, (rows, blocks), dtype=np.int8) * 2 - 1
    return _Plan(starts, signs, pattern)


def _patterned(values: Array, pattern: Array, out: Array | None = None) -> Array:
    """``values`` [d] times ``pattern`` [m], repeated."""
    out = np.empty_like(values) if out is None else out
    pattern, whole = pattern.astype(values.dtype, copy=False), len(values) // len(pattern) * len(pattern)
    np.multiply(values[:whole].reshape(-1, len(pattern)), pattern, out=out[:whole].reshape(-1, len(pattern)))
    np.multiply(values[whole:], pattern[: len(values) - whole], out=out[whole:])
    return out


def middle(wires: list[Any], low: Callable[..., Any], high: Callable[..., Any], spare: Any) -> Any:
    """The median of ``wires``, equally shaped arrays or tensors, entry by entry; they are overwritten.

    ``low`` and ``high`` are the minimum and maximum with a parameter ``out``; ``spare`` is one more array. For an even
    number the mean of the middle two. NaN stays NaN. A network of minima and maxima does it: the least and the largest
    of r // 2 + 2 values can not be in the middle of r and are dropped, another value joins, and so on.

    >>> middle([torch.tensor([x]) for x in (3.0, 9.0, 1.0, 4.0)], torch.minimum, torch.maximum, torch.empty(1))
    tensor([3.5000])
    """
    wires = list(wires)
    live, steps = _network(len(wires))
    for kind, i, j in steps:
        if kind != "sort":
            (low if kind == "low" else high)(wires[i], wires[j], out=wires[i])
            continue
        low(wires[i], wires[j], out=spare)
        high(wires[i], wires[j], out=wires[j])
        wires[i], spare = spare, wires[i]
    if len(live) == 1:
        return wires[live[0]]
    first, second = (wires[i] for i in live)
    # Halves first: the sum of two large numbers may be too large.
    first *= 0.5
    second *= 0.5
    first += second
    return first


@lru_cache(maxsize=16)
def _network(rows: int) -> tuple[list[int], list[tuple[str, int, int]]]:
    """Which wires hold the middle one or two at the end, and what to do to them before."""
    live, steps = list(range(min(rows, rows // 2 + 2))), []
    for joining in [*range(len(live), rows), None]:
        if len(live) > 2:
            steps += list(_without_extremes(live))
        if joining is not None:
            live.append(joining)
    return live, steps


def _without_extremes(live: list[int]) -> Iterator[tuple[str, int, int]]:
    """Drop the least and the largest of ``live``: ("sort", i, j) puts the lesser on i, "low" and "high" overwrite i."""
    wires = list(live)
    for i, j in zip(wires[::2], wires[1::2], strict=False):
        yield "sort", i, j
    odd = wires[-1:] if len(wires) % 2 else []
    least, *others, last = wires[: len(wires) - len(odd)][::2] + odd
    for other in others:
        yield "sort", least, other
    yield "high", last, least
    largest, *others, last = wires[1::2] + odd
    for other in others:
        yield "sort", other, largest
    yield "low", last, largest
    live.remove(least)
    live.remove(largest)
