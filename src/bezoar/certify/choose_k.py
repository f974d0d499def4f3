r"""How many coordinates SparseFed must keep: the smallest k with which top-k loses at most a share omega.

For vectors :math:`g_1, \dots, g_m` of d numbers,

.. math::
    \text{loss}(k) = \frac1m \sum_j \Big( 1 - \frac{\|\operatorname{top}_k g_j\|_1}{\|g_j\|_1} \Big)

falls from 1 at k = 0 to 0 at k = d, so the smallest k with loss(k) <= omega is found in the sums of the sorted
absolute values: exactly, and for every omega at once. This is what omega means in the paper's Definition 5, a share of
the l1 norm; its Algorithm 11 as printed compares the l1 distance itself with omega (``relative=False``) and tries
k = d/r, 2d/r, ... (``steps``; printed as "k = d/d").

The certificate needs the loss of the vector that enters top-k, which is no single client's gradient: it is the error
memory, and in the first round the mean of the clipped updates. Measured on honest clients it says nothing of a run that
attackers steer.

Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal: SparseFed, AISTATS 2022, Algorithm 11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bezoar.errors import ConfigError
from bezoar.kernels.threads import Worker, in_threads

Floats: TypeAlias = npt.NDArray[np.float64]

#: Values whose sums are formed at a time: they fit a core's cache.
_BLOCK = 1 << 15

#: Losses count as omega up to this share of it: rounding of sums does not decide where both are equal.
_TIE = 1e-12


@dataclass(frozen=True, eq=False)
class LossCurve:
    """What top-k loses, for every k.

    Attributes:
        losses: the loss of keeping k = 0, ..., d coordinates [d + 1], never rising.
        vectors: how many vectors were given.
        zeros: how many of them are zero. They lose nothing whatever k is, and a relative loss leaves them out.
        relative: whether losses are shares of a vector's l1 norm, or l1 norms.
    """

    losses: Floats
    vectors: int
    zeros: int
    relative: bool

    @property
    def d(self) -> int:
        """Length of the vectors."""
        return len(self.losses) - 1

    def smallest(self, omega: float, steps: int | None = None) -> int:
        """The smallest k >= 1 with a loss of at most ``omega``, to the twelfth digit.

        With ``steps`` = r only k = ceil(i d / r) for i = 1, ..., r are tried, as Algorithm 11 lists them.

        Raises:
            ConfigError: omega is negative, or above 1 as a share; ``steps`` is not between 1 and d.
        """
        check_omega(omega, self.relative)
        k = max(1, int(np.searchsorted(-self.losses, -omega * (1 + _TIE))))
        if steps is None:
            return k
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= self.d:
            raise ConfigError(f"steps must be a whole number between 1 and d={self.d}, got {steps!r}")
        i = -(-k * steps // self.d)
        # ceil(i d / r) >= k for this i, and perhaps for the one before.
        return next(tried for j in (i - 1, i) if j >= 1 and (tried := -(-j * self.d // steps)) >= k)


def check_omega(omega: float, relative: bool = True) -> None:
    """Raise ``ConfigError`` unless ``omega`` is a share or, if not ``relative``, an l1 norm."""
    if not 0 <= omega <= (1 if relative else np.finfo(np.float64).max):
        what = "a share between 0 and 1" if relative else "a number >= 0"
        raise ConfigError(f"omega must be {what}, got {omega!r}")


def loss_curve(vectors: Iterable[Any], relative: bool = True) -> LossCurve:
    """The loss of top-k over ``vectors``, each [d]: tensors, arrays or sequences of floats.

    They are taken one after the other, few at a time (one for each thread of torch's): memory is O(d), not O(m d).
    Sums are float64 whatever the vectors hold. Costs a sort of each.

    Raises:
        ConfigError: no vector, an empty one, one of another length, or one that holds NaN or infinity.

    >>> loss_curve([[4.0, -3.0, 2.0, 1.0]]).losses.tolist()
    [1.0, 0.6, 0.3, 0.1, 0.0]
    """
    total: Floats | None = None
    count = zeros = 0
    for number, ordered in enumerate(_sorted(vectors)):
        if total is None:
            total = np.zeros(len(ordered) + 1)
        if len(ordered) + 1 != len(total):
            raise ConfigError(f"vector {number} has {len(ordered)} entries, those before it {len(total) - 1}")
        count += 1
        if ordered[-1] == 0:
            zeros += 1
        else:
            _add_sums(ordered, total, relative)
    if total is None:
        raise ConfigError("at least one vector is needed to choose k")
    if not np.isfinite(total[-1]):
        raise ConfigError("an l1 norm is more than float64 can hold")
    total /= max(1, count - zeros if relative else count)
    # The sums rise with the number of values that are left out.
    return LossCurve(total[::-1], count, zeros, relative)


def choose_k(vectors: Iterable[Any], omega: float = 0.1, *, relative: bool = True, steps: int | None = None) -> int:
    """The smallest k >= 1 with which top-k of ``vectors`` loses at most ``omega`` on average.

    Short for ``loss_curve(vectors, relative).smallest(omega, steps)``, with their errors.

    >>> choose_k([[4.0, -3.0, 2.0, 1.0]], omega=0.1)
    3
    >>> choose_k([[4.0, -3.0, 2.0, 1.0]], omega=0.1, steps=2)
    4
    """
    return loss_curve(vectors, relative).smallest(omega, steps)


def _sorted(vectors: Iterable[Any]) -> Iterator[npt.NDArray[Any]]:
    """The absolute values of each vector, ascending, in the order of the vectors; sorted in threads."""
    threads = max(1, torch.get_num_threads())
    waiting: deque[Future[npt.NDArray[Any]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for number, vector in enumerate(vectors):
            # The copy is made here: whoever makes the vectors may write the next one where this one was.
            waiting.append(pool.submit(_ordered, _sizes(vector, number), number))
            if len(waiting) >= threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sizes(vector: Any, number: int) -> npt.NDArray[Any]:
    """The absolute values of ``vector``, float32 or float64, in memory of their own."""
    if isinstance(vector, torch.Tensor):
        vector = vector.detach().cpu()
        vector = (vector if vector.dtype in (torch.float32, torch.float64) else vector.float()).numpy()
    values = np.asarray(vector)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "fiu":
        raise ConfigError(f"vector {number} must be a vector of numbers, got {values.dtype} {list(values.shape)}")
    sizes: npt.NDArray[Any] = np.abs(values if values.dtype in (np.float32, np.float64) else values.astype(np.float64))
    return sizes


def _ordered(sizes: npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
    # Numbers >= 0 are in the order of their bits, which sort faster; NaN comes last, after infinity.
    sizes.view(np.int32 if sizes.dtype == np.float32 else np.int64).sort()
    if not np.isfinite(sizes[-1]):
        raise ConfigError(f"vector {number} holds NaN or infinity")
    return sizes


def _add_sums(ordered: npt.NDArray[Any], total: Floats, relative: bool) -> None:
    """Add to ``total`` [d + 1] the sums of the 0, ..., d first of ``ordered`` [d], over their sum if ``relative``."""
    d = len(ordered)
    # Scaled by a power of two, so that no sum of float64 overflows or loses digits to subnormals.
    scale = 2.0 ** min(1000, -int(np.frexp(ordered[-1])[1])) if relative else 1.0
    starts = np.zeros(-(-d // _BLOCK) + 1)

    # An absolute sum may overflow; that is seen in the end. (What NumPy ignores is a setting of the thread.)
    quiet = partial(np.errstate, over="ignore")

    def sums(start: int, stop: int) -> Floats:
        part = ordered[start:stop].astype(np.float64)
        part *= scale
        return np.cumsum(part, out=part)

    def ends() -> Worker:
        def work(start: int, stop: int) -> None:
            with quiet():
                starts[start // _BLOCK + 1] = sums(start, stop)[-1]

        return work

    in_threads(ends, d, _BLOCK)
    with quiet():
        np.cumsum(starts, out=starts)
    whole = starts[-1] if relative else 1.0

    def shares() -> Worker:
        def work(start: int, stop: int) -> None:
            with quiet():
                found = sums(start, stop)
                found += starts[start // _BLOCK]
                found /= whole
                total[start + 1 : stop + 1] += found

        return work

    in_threads(shares, d, _BLOCK)
