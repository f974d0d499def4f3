"""What rules that compare clients share: cosines, the last layer, projections of rows and memories keyed by client."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bezoar import seeding
from bezoar.aggregation._gram import rounding
from bezoar.aggregation.base import COLUMN_BYTES, check_count
from bezoar.errors import ConfigError, UnsupportedError
from bezoar.updates.base import Layout, Segment, Updates
from bezoar.updates.mixed import Mixed

Features = Literal["projection", "last-layer", "full"]

#: Columns whose places in the projection are drawn together, so that no draw depends on how the columns are cut.
_CHUNK = 4096


def cosines(gram: Tensor) -> Tensor:
    """Cosine similarities [n, n] of rows with these inner products; a zero row has cosine 0 with all but itself."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    similar = (gram * inverse[:, None] * inverse).clamp(-1.0, 1.0)
    return ((similar + similar.T) / 2).fill_diagonal_(1.0)


def cosine_distances(rows: Updates) -> Tensor:
    """One minus the cosine similarities [n, n], with all digits also where rows nearly have the same direction.

    Half the squared distances of the rows scaled to one length: (|x - y|^2 - (|x| - |y|)^2) / (2 |x| |y|), and where
    rounding of the norms would show in that, measured anew. A zero row is at distance 1 from all but itself.
    """
    norms, squares, tie = rows.squared_norms().sqrt(), rows.squared_distances(), rounding(rows.dtype)
    zero = norms <= 0
    inverse = torch.where(zero, torch.zeros_like(norms), 1 / norms)
    longer = norms[:, None] - norms
    apart = (squares - longer.square()).clamp(min=0)
    distances = apart * inverse[:, None] * inverse / 2
    unsure = apart < 100 * tie * (longer.abs() * (norms[:, None] + norms) + tie * norms[:, None] * norms)
    unsure &= squares > 0
    if unsure.any():
        exact = Mixed(rows, inverse).squared_distances() / 2
        # Not finite for rows so short that the factor is no float32.
        distances = torch.where(unsure & torch.isfinite(exact), exact, distances)
    return distances.masked_fill(zero[:, None] | zero, 1.0).clamp(max=2.0).fill_diagonal_(0.0)


def row_cosines(features: Tensor) -> Tensor:
    """Cosine similarities [n, n] of the rows of ``features`` [n, k] float64, whatever their sizes."""
    size = features.abs().amax(dim=1, keepdim=True)
    unit = torch.where(size > 0, features / size, torch.zeros_like(features))
    return cosines(unit @ unit.T)


def median(values: Tensor) -> Tensor:
    """Median of ``values`` [n]: the midpoint of the middle two for even n (torch's is the lower one)."""
    ordered, n = values.sort().values, len(values)
    return ordered[n // 2] if n % 2 else ordered[n // 2 - 1] / 2 + ordered[n // 2] / 2


def last_matrix(layout: Layout, who: str) -> tuple[Segment, Segment | None]:
    """The last weight matrix of the model and the bias that follows it.

    Raises:
        UnsupportedError: the layout is unknown or holds no matrix.
    """
    for i in reversed(range(len(layout))):
        weight = layout[i]
        if len(weight.shape) == 2 and weight.stop > weight.start:
            after = layout[i + 1] if i + 1 < len(layout) else None
            return weight, after if after is not None and after.shape == weight.shape[:1] else None
    raise UnsupportedError(
        f"{who} looks at the last layer, but these updates have no weight matrix in their layout: hand over name -> "
        "tensor mappings or updates with a layout, of a model that ends in a linear layer"
    )


def sketch(rows: Updates, size: int, seed: int, purpose: str) -> Tensor:
    """Random projections of the rows to ``size`` dimensions: float64 [n, size].

    A count sketch: every column is added to one random place with a random sign. Inner products keep their
    expectation, with a standard error of about ``|x| |y| / sqrt(size)``; equal rows keep equal projections. With at
    most ``size`` columns the rows are returned as they are. It depends on (seed, purpose, d) only.
    """
    n, d = rows.shape
    out = torch.zeros(n, min(size, d), dtype=torch.float64, device=rows.device)
    # Twice in float64, with and without signs.
    for block in rows.share(COLUMN_BYTES // 4):
        values = block.values.double()
        if d <= size:
            out[:, block.start : block.stop] = values
            continue
        first, last = block.start // _CHUNK, (block.stop - 1) // _CHUNK
        codes = torch.cat([_codes(size, seed, purpose, d, chunk) for chunk in range(first, last + 1)])
        codes = codes[block.start - first * _CHUNK : block.stop - first * _CHUNK].to(rows.device)
        out.index_add_(1, codes // 2, values * (1 - 2 * (codes % 2)))
    return rows.spread.total(out)


def _codes(size: int, seed: int, purpose: str, d: int, chunk: int) -> Tensor:
    return torch.randint(2 * size, (_CHUNK,), generator=seeding.generator(seed, purpose, d, chunk))


def features(rows: Updates, kind: Features, size: int, seed: int, who: str) -> Tensor:
    """What a memory keeps of every row: float64 [n, k]."""
    if kind == "projection":
        return sketch(rows, size, seed, who)
    if kind == "full":
        return sketch(rows, rows.shape[1], seed, who)
    weight, bias = last_matrix(rows.layout, who)
    stop = weight.stop if bias is None else bias.stop
    return rows.columns(torch.arange(weight.start, stop, device=rows.device)).double()


def check_features(who: str, kind: str, size: int, memory: int) -> None:
    """Raise unless the parameters of a memory make sense."""
    if kind not in ("projection", "last-layer", "full"):
        raise ConfigError(f"{who}: features must be 'projection', 'last-layer' or 'full', got {kind!r}")
    check_count(who, "size", size, least=1)
    check_count(who, "memory", memory, least=1)


def check_memory(who: str, clients: int, width: int, memory: int) -> None:
    """Raise if float64 [clients, width] exceeds ``memory`` bytes."""
    needed = clients * width * 8
    if needed > memory:
        raise UnsupportedError(
            f"{who}: the history of {clients} clients x {width} numbers takes {needed:.1e} bytes, more than "
            f"memory={memory:.1e}; use features='projection' with a smaller size, or allow more memory"
        )


def merge(known: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All client ids in ascending order, the places of the ``known`` ones and those of the ``present`` ones."""
    everyone = torch.unique(torch.cat([known, present]))
    return everyone, torch.searchsorted(everyone, known), torch.searchsorted(everyone, present)


def widen(old: Tensor | None, clients: int, places: Tensor, width: int, fill: float = 0.0) -> Tensor:
    """A memory [clients, width] float64 that holds the rows ``old`` at ``places``; the others are ``fill``."""
    memory = torch.full((clients, width), fill, dtype=torch.float64)
    if old is not None and len(old):
        if old.shape != (len(places), width):
            raise ConfigError(
                f"the state holds {list(old.shape)} numbers, expected {[len(places), width]}: other model?"
            )
        memory[places] = old.cpu()
    return memory
