"""FetchSGD's server: momentum and error feedback inside a count sketch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.count_sketch import CountSketch
from bezoar.kernels.quiet import added, clear_, scaled
from bezoar.servers.base import Server, State, Step, check_choices, check_momentum, share_or_count
from bezoar.servers.traffic import Traffic, dense, sparse

#: A table of 8 GB in float32; the server keeps two.
MOST_CELLS = 2**31


@dataclass(frozen=True)
class FetchSGD(Server):
    r"""SparseFed on sketches: the server sees, and remembers, only r x c numbers instead of d.

    .. math::
        Z = S(u), \quad S_u \leftarrow \rho S_u + Z, \quad S_e \leftarrow S_e + \lambda(t) S_u, \quad
        \Delta = \operatorname{top}_k U(S_e), \quad S_e, S_u \leftarrow 0 \text{ on the cells of } \Delta, \quad
        \theta \leftarrow \theta - \Delta

    S is a count sketch of r rows and c columns, U reads it back. ``u`` is the aggregate of clipped updates: put
    ``Clip`` and ``Mean`` before this server. Clients would send S(u_i); as S is linear, the sketch of the mean is the
    mean of the sketches, and the aggregate is sketched once. The learning rate is inside, as Algorithm 10 is printed;
    clients that take local steps have it in their updates, and then the rate here is ``server_lr_factor``. Where
    nothing collides (c much larger than d), this is ``SparseFed`` with the same ``lr_placement`` and ``masking``.
    State: ``momentum`` S_u and ``error`` S_e [r, c].

    Args:
        k: coordinates that move in a round, a count or a share of the model such as ``"1%"``.
        rows: r; an estimate is the median over rows.
        columns: c, a count or a share of the model. The authors' scripts run ``rows=1, columns="10%"``.
        momentum: rho.
        error_masking: what happens to the error where the model moved: its cells are set to zero (default), or the
            sketch of the step is subtracted (``"subtract"``, as Algorithm 10 is printed), which leaves what collided.
        masking: what happens to the momentum there: set to zero (default) or left alone (``"none"``, as printed).
        lr_placement: where the learning rate enters: on what enters the error (``"inside"``, default), on what enters
            momentum (``"inside-momentum"``) or on the step (``"outside"``).
        seed: of the sketch's random choices, which all clients share.

    Rothchild et al.: FetchSGD, ICML 2020; Panda et al.: SparseFed, AISTATS 2022, Algorithm 10.

    >>> import torch
    >>> server = FetchSGD(k=1, rows=3, columns=64)
    >>> server.step(torch.tensor([1.0, -2.0, 0.5]), lr=0.1, state={}).dense(3)
    tensor([ 0.0000, -0.2000,  0.0000])
    """

    k: int | str
    rows: int = 5
    columns: int | str = "10%"
    momentum: float = 0.9
    error_masking: Literal["zero", "subtract"] = "zero"
    masking: Literal["zero", "none"] = "zero"
    lr_placement: Literal["inside", "inside-momentum", "outside"] = "inside"
    seed: int = 0

    def __post_init__(self) -> None:
        check_momentum("FetchSGD", self.momentum)
        check_choices(self)
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 1:
            raise ConfigError(f"FetchSGD: rows must be a whole number >= 1, got {self.rows!r}")
        self.count(2**62)
        share_or_count("FetchSGD", "columns", self.columns, 2**62)

    def count(self, d: int) -> int:
        """How many of d coordinates ``k`` means."""
        return share_or_count("FetchSGD", "k", self.k, d)

    def sketch(self, d: int) -> CountSketch:
        """The sketch of updates of a model of d parameters."""
        return CountSketch(d, self.rows, share_or_count("FetchSGD", "columns", self.columns, d), self.seed)

    def cells(self, d: int) -> int:
        """r c, the numbers that a client sends instead of d."""
        return self.sketch(d).cells

    def traffic(self, d: int) -> Traffic:
        return Traffic(up=dense(self.cells(d)), down=sparse(self.count(d), d))

    def check(self, d: int) -> None:
        if self.count(d) > d:
            raise ConfigError(f"FetchSGD: k={self.k} is more than the model's {d} parameters")
        if self.cells(d) > MOST_CELLS:
            raise ConfigError(
                f"FetchSGD: rows={self.rows} x columns={self.columns} is a table of {self.cells(d)} cells for {d} "
                f"parameters: at most {MOST_CELLS}"
            )

    def step(self, aggregate: Tensor, lr: float, state: State) -> Step:
        d = len(aggregate)
        self.check(d)
        return self.step_sketched(self.sketch(d).insert(aggregate), d, lr, state)

    def step_sketched(self, table: Tensor, d: int, lr: float, state: State) -> Step:
        """One round from the aggregate's sketch, ``table`` [r, c], as ``sketch(d)`` makes it."""
        self.check(d)
        sketch = self.sketch(d)
        entering = lr * table if self.lr_placement == "inside-momentum" else table
        last, remembered = state.get("momentum"), state.get("error")
        momentum = entering.clone() if last is None else added(entering, last, self.momentum)
        scale = lr if self.lr_placement == "inside" else 1.0
        error = scale * momentum if remembered is None else added(remembered, momentum, scale)
        index, moved = sketch.heavy_hitters(error, self.count(d))
        places = sketch.places(index[moved != 0])
        if self.error_masking == "zero":
            _clear(error, places)
        else:
            error -= sketch.insert_at(index, moved)
        if self.masking == "zero":
            _clear(momentum, places)
        step = scaled(moved, lr) if self.lr_placement == "outside" else moved
        return Step(step, index, {"momentum": momentum, "error": error})


def _clear(table: Tensor, places: Tensor) -> None:
    """Set the cells at the columns ``places`` [r, m] of ``table`` [r, c] to zero."""
    for row, columns in zip(table, places, strict=True):
        clear_(row, columns)
