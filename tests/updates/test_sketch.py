from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bezoar.aggregation import Clip, Krum, Mean, Median
from bezoar.errors import ConfigError, UnsupportedError
from bezoar.kernels.count_sketch import CountSketch
from bezoar.servers import FetchSGD
from bezoar.updates import DenseUpdates, Needs, SketchUpdates
from tests.updates.oracle import check_against

D, SKETCH = 3000, CountSketch(3000, 5, 1000, seed=2)


def vectors(n: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sketched(rows: torch.Tensor, **options: Any) -> SketchUpdates:
    return SketchUpdates(torch.stack([SKETCH.insert(row) for row in rows]), SKETCH, **options)


def test_weighted_sums_are_sketches_of_weighted_sums() -> None:
    rows = vectors(6)
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(sketched(rows).combine(weights).reshape(5, 1000), SKETCH.insert(weights @ rows))


def test_norms_are_medians_over_rows_and_near_those_of_the_vectors() -> None:
    rows = vectors(8) * torch.arange(1, 9)[:, None]
    updates = sketched(rows)
    each = updates.tables.reshape(8, 5, 1000).square().sum(2)
    torch.testing.assert_close(updates.squared_norms(), each.median(1).values)
    torch.testing.assert_close(sketched(rows, norm="max").squared_norms(), each.max(1).values)
    # A row deviates by 6% at most, in the mean square.
    assert (updates.squared_norms() / rows.square().sum(1) - 1).abs().max() < 3 * (4 / 1000) ** 0.5


def test_clip_and_mean_of_sketches_is_nearly_the_sketch_of_clip_and_mean() -> None:
    rows = vectors(6)
    rows[0] *= 1e4
    rule = Clip(5.0) >> Mean()
    found, expected = rule(sketched(rows)).reshape(5, 1000), SKETCH.insert(rule(rows))
    assert (found - expected).norm() < 0.05 * expected.norm()
    step = FetchSGD(k=10, columns=1000, seed=2).step_sketched(found, D, 0.1, {})
    assert len(step.values) == 10


def test_a_forged_table_escapes_the_median_but_not_the_maximum() -> None:
    updates = sketched(vectors(4))
    updates.tables.reshape(4, 5, 1000)[1, :2] *= 1e6
    clip = Clip(5.0) >> Mean()
    assert clip(updates).norm() > 1e4
    guarded = SketchUpdates(updates.tables, SKETCH, norm="max")
    assert clip(guarded).norm() < 5.0 * 5**0.5


@pytest.mark.parametrize("norm", ["median", "max"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_cell_is_a_row_that_is_not_finite(norm: Any, bad: float) -> None:
    updates = sketched(vectors(4), norm=norm)
    updates.tables[2, 17] = bad
    answer = (Clip(5.0) >> Mean()).aggregate(updates)
    assert list(answer.excluded) == [2]
    assert torch.isfinite(answer.vector).all()


def test_other_questions_are_refused() -> None:
    updates = sketched(vectors(5))
    assert updates.offers == Needs.NORMS
    for rule in (Krum(f=1), Median(), Clip(1.0) >> Median()):
        with pytest.raises(UnsupportedError, match="SketchUpdates can not answer"):
            rule(updates)
    for ask in (
        updates.gram,
        updates.squared_distances,
        lambda: updates.dot(torch.zeros(5000)),
        lambda: updates.columns(torch.tensor([1])),
        lambda: list(updates.blocks()),
    ):
        with pytest.raises(UnsupportedError, match="sketches needs"):
            ask()


def test_with_cells_every_answer_is_that_of_the_matrix_of_cells() -> None:
    updates = sketched(vectors(5), clients=torch.tensor([3, 1, 4, 9, 5]), cells=True)
    check_against(updates, updates.tables, 1e-12)
    dense = DenseUpdates(updates.tables)
    for rule in (Krum(f=1), Median(), Clip(1.0) >> Krum(f=1)):
        torch.testing.assert_close(rule(updates), rule(dense))


def test_rows_are_selected_with_what_was_asked_for() -> None:
    updates = sketched(vectors(5), clients=torch.tensor([3, 1, 4, 9, 5]), norm="max", cells=True)
    chosen = updates.select(torch.tensor([4, 0]))
    assert chosen.clients.tolist() == [5, 3]
    assert chosen.offers == updates.offers
    assert torch.equal(chosen.squared_norms(), updates.squared_norms()[[4, 0]])


def test_wrong_shapes_and_options_are_told() -> None:
    for tables in (torch.zeros(2, 5, 999), torch.zeros(2, 3, 1000), torch.zeros(5, 1000), torch.zeros(0, 5, 1000)):
        with pytest.raises(ConfigError, match=r"\[n, 5, 1000\]"):
            SketchUpdates(tables, SKETCH)
    with pytest.raises(ConfigError, match="floating point"):
        SketchUpdates(torch.zeros(2, 5, 1000, dtype=torch.int64), SKETCH)
    with pytest.raises(ConfigError, match="'median' or 'max'"):
        SketchUpdates(torch.zeros(2, 5, 1000), SKETCH, norm="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one id a row"):
        SketchUpdates(torch.zeros(2, 5, 1000), SKETCH, torch.arange(3))
