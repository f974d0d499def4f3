from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import ConfigError, DivergedError
from bezoar.kernels import count_sketch
from bezoar.kernels.count_sketch import SHORT, WIDEST, CountSketch, middle
from bezoar.kernels.topk import top_k

#: Blocks of 156, added by slices on a CPU; and blocks of 7, addressed cell by cell.
LONG, SMALL = CountSketch(30_000, 5, 10_000, seed=1), CountSketch(3_000, 5, 500, seed=1)


def normal(d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hashed(d: int, rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Buckets and signs [r, d] of the textbook's sketch, every one of them drawn by itself."""
    draws = torch.Generator().manual_seed(seed)
    buckets = torch.randint(columns, (rows, d), generator=draws)
    return buckets, torch.randint(0, 2, (rows, d), generator=draws).double() * 2 - 1


def table_of(vector: torch.Tensor, buckets: torch.Tensor, signs: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.zeros(len(buckets), columns, dtype=torch.float64).scatter_add_(1, buckets, signs * vector.double())


def read_off(table: torch.Tensor, buckets: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.median((table.gather(1, buckets) * signs).numpy(), axis=0))


@pytest.mark.parametrize(
    "sketch", [LONG, SMALL, CountSketch(10, 2, 1), CountSketch(1, 1, 5), CountSketch(9999, 4, 8192)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_and_estimates_are_those_of_their_definition(sketch: CountSketch, dtype: torch.dtype) -> None:
    vector, everything = normal(sketch.d, dtype=dtype), torch.arange(sketch.d)
    places, signs = sketch.places(everything), sketch.signs(everything)
    assert places.min() >= 0
    assert places.max() < sketch.columns
    assert set(signs.flatten().tolist()) <= {-1, 1}
    table = sketch.insert(vector)
    assert table.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-11}
    expected = table_of(vector, places, signs.double(), sketch.columns)
    torch.testing.assert_close(table.double(), expected, **tolerance)
    estimate = sketch.estimate(table)
    assert estimate.dtype == dtype
    torch.testing.assert_close(estimate.double(), read_off(table.double(), places, signs.double()), **tolerance)


def test_both_ways_to_compute_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    vector, index = normal(LONG.d, dtype=torch.float32), torch.arange(LONG.d)
    table = LONG.insert(vector)
    estimate = LONG.estimate(table)
    assert torch.equal(LONG.insert_at(index, vector), table)
    monkeypatch.setattr(count_sketch, "SHORT", WIDEST + 1)
    assert torch.equal(LONG.insert(vector), table)
    assert torch.equal(LONG.estimate(table), estimate)


def test_blocks_wrap_around_wherever_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, width = LONG.columns, LONG.width
    ends = [columns - 1, columns - 2, columns - width - 1, columns - width, columns - width + 1, 0]
    starts = np.array([ends, ends[::-1]])
    plan = count_sketch._Plan(starts, np.ones((2, 6), np.int8), np.ones(width, np.int8))
    monkeypatch.setattr(count_sketch, "_draw", lambda *_: plan)
    sketch, vector = CountSketch(6 * width, 2, columns), normal(6 * width)
    table = sketch.insert(vector)
    places = sketch.places(torch.arange(6 * width))
    expected = table_of(vector, places, torch.ones(2, 6 * width).double(), columns)
    torch.testing.assert_close(table, expected, rtol=1e-12, atol=1e-12)
    seen = table.gather(1, places).mean(0)
    torch.testing.assert_close(sketch.estimate(table), seen, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    vector, before = normal(LONG.d, dtype=torch.float32), torch.get_num_threads()
    expected = LONG.insert(vector)
    try:
        torch.set_num_threads(threads)
        table = LONG.insert(vector)
        estimate = LONG.estimate(table)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(table, expected)
    assert torch.equal(estimate, LONG.estimate(expected))


@pytest.mark.parametrize("sketch", [LONG, SMALL])
def test_a_few_entries_are_added_as_the_whole_vector_is(sketch: CountSketch) -> None:
    index = torch.arange(0, sketch.d, 17)
    vector = torch.zeros(sketch.d, dtype=torch.float32)
    vector[index] = normal(len(index), dtype=torch.float32)
    assert torch.equal(sketch.insert_at(index, vector[index]), sketch.insert(vector))


@pytest.mark.parametrize("sketch", [LONG, SMALL])
def test_the_sketch_of_a_mean_is_the_mean_of_sketches(sketch: CountSketch) -> None:
    rows = normal(7 * sketch.d).reshape(7, -1)
    weights = normal(7, seed=1)
    apart = torch.einsum("n,nrc->rc", weights, torch.stack([sketch.insert(row) for row in rows]))
    torch.testing.assert_close(sketch.insert(weights @ rows), apart, rtol=1e-11, atol=1e-11)


@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**40), st.data())
@settings(max_examples=40, deadline=None)
def test_a_vector_of_one_entry_comes_back(d: int, rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, d - 1))
    vector = torch.zeros(d, dtype=torch.float64)
    vector[at] = -2.5
    sketch = CountSketch(d, rows, columns, seed)
    table = sketch.insert(vector)
    assert sketch.estimate(table)[at] == -2.5
    assert table.abs().sum() == 2.5 * rows
    assert torch.equal(CountSketch(d, rows, columns, seed).insert(vector), table)


def test_other_seeds_are_other_sketches() -> None:
    vector = normal(LONG.d)
    tables = [CountSketch(LONG.d, 1, LONG.columns, seed).insert(vector) for seed in range(3)]
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("rows", range(1, 12))
def test_the_network_finds_the_middle(rows: int) -> None:
    values = (normal(rows * 2000).reshape(rows, -1) * 3).round()
    expected = torch.from_numpy(np.median(values.numpy(), axis=0))
    assert torch.equal(middle(list(values.clone()), torch.minimum, torch.maximum, torch.empty(2000).double()), expected)


def test_every_order_of_zeros_and_ones_is_sorted_out() -> None:
    # A network that is right for these is right for all numbers.
    for rows in range(1, 10):
        values = torch.tensor([[(i >> row) & 1 for i in range(2**rows)] for row in range(rows)], dtype=torch.float32)
        expected = torch.from_numpy(np.median(values.numpy(), axis=0))
        found = middle(list(values.clone()), torch.minimum, torch.maximum, torch.empty(2**rows))
        assert torch.equal(found, expected)


def test_the_mean_of_the_middle_two_does_not_overflow_and_nan_stays() -> None:
    large = [torch.tensor([3e38]) for _ in range(4)]
    assert middle(large, torch.minimum, torch.maximum, torch.empty(1)).item() == pytest.approx(3e38)
    for rows in range(1, 8):
        for at in range(rows):
            values = torch.zeros(rows, 1)
            values[at] = torch.nan
            assert middle(list(values), torch.minimum, torch.maximum, torch.empty(1)).isnan().all()


def pairs(columns: int, d: int, seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Buckets and signs [seeds, d] of one row under many seeds."""
    sketches = [CountSketch(d, 1, columns, seed) for seed in range(seeds)]
    everything = torch.arange(d)
    return (
        torch.cat([sketch.places(everything) for sketch in sketches]),
        torch.cat([sketch.signs(everything) for sketch in sketches]).double(),
    )


def test_how_often_two_coordinates_collide_and_how_their_signs_agree() -> None:
    # Blocks of 4: coordinates 1, 2 are in one, 1, 5 and 1, 6 in two, with equal and with other places in them.
    columns, seeds = 256, 8_000
    places, signs = pairs(columns, 8, seeds)
    assert CountSketch(8, 1, columns).width == 4
    assert not (places[:, 1] == places[:, 2]).any()
    for other in (5, 6):
        hits = float((places[:, 1] == places[:, other]).double().mean())
        # Five standard deviations of a share of 1/256.
        assert abs(hits - 1 / columns) < 5 * (1 / columns / seeds) ** 0.5
    for i in range(8):
        counts = torch.bincount(places[:, i], minlength=columns).double()
        expected = seeds / columns
        # Chi-squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 5 * 22.6
        assert abs(float(signs[:, i].mean())) < 5 / seeds**0.5
        for j in range(i):
            assert abs(float((signs[:, i] * signs[:, j]).mean())) < 5 / seeds**0.5


def test_estimates_are_unbiased_with_the_variance_that_is_stated() -> None:
    d, columns, seeds = 256, 128, 4000
    vector = normal(d) * (1 + 9 * (torch.arange(d) % 16 == 0))
    sketches = [CountSketch(d, 1, columns, seed) for seed in range(seeds)]
    width = sketches[0].width
    assert width == 2
    errors = torch.stack([sketch.estimate(sketch.insert(vector)) for sketch in sketches]) - vector
    of_blocks = vector.square().reshape(-1, width).sum(1).repeat_interleave(width)
    variance = (vector.square().sum() - of_blocks) / columns
    assert (errors.mean(0).abs() < 5 * (variance / seeds).sqrt()).all()
    measured = errors.square().mean(0)
    assert (variance <= vector.square().sum() / columns).all()
    # Heavy tails: a collision with a large coordinate is rare and counts much.
    assert ((measured / variance - 1).abs() < 0.35).all()
    assert abs(float((measured / variance).mean()) - 1) < 0.03


@pytest.mark.parametrize("kind", ["normal", "constant", "runs"])
def test_norms_are_estimated_with_the_variance_that_is_stated(kind: str) -> None:
    d, columns, seeds = 2048, 1024, 800
    vector = normal(d)
    if kind == "constant":
        vector = torch.ones(d, dtype=torch.float64)
    elif kind == "runs":
        vector = torch.zeros(d, dtype=torch.float64)
        vector[100:160] = 1.0
        vector[900:1000] = -2.0
    assert CountSketch(d, 1, columns).width == 16
    size = vector.square().sum()
    squares = torch.stack([CountSketch(d, 1, columns, seed).insert(vector).square().sum() for seed in range(seeds)])
    relative = squares / size - 1
    assert abs(float(relative.mean())) < 5 * (4 / columns / seeds) ** 0.5
    # Aligned blocks are rare and add much to the variance of what is constant: some slack.
    assert float(relative.square().mean()) < 1.4 * 4 / columns


def test_estimates_exceed_their_bound_as_rarely_as_stated() -> None:
    d, columns = 40_000, 10_000
    vector = normal(d).pow(3)
    bound = (8 / columns) ** 0.5 * vector.norm()
    wrong = [
        ((s.estimate(s.insert(vector)) - vector).abs() > bound).double().mean()
        for s in (CountSketch(d, 5, columns, seed) for seed in range(5))
    ]
    assert float(torch.stack(wrong).mean()) < 0.0161


def test_runs_of_heavy_neighbours_are_found_as_well_as_by_full_hashing() -> None:
    # Collisions come in runs here. What is found on average must not suffer: of heavy runs, and of single ones.
    d, columns, k = 40_000, 8_192, 400
    assert CountSketch(d, 5, columns).width == SHORT
    vector = 0.02 * normal(d)
    draws = torch.Generator().manual_seed(1)
    for start in torch.randint(d - 200, (2,), generator=draws).tolist():
        vector[start : start + 190] += 3 + normal(190, seed=start)
    vector[torch.randint(d, (20,), generator=draws)] = 5.0
    best = vector[top_k(vector, k)].square().sum()
    ours, theirs = [], []
    for seed in range(40):
        sketch = CountSketch(d, 5, columns, seed)
        ours.append(vector[sketch.heavy_hitters(sketch.insert(vector), k)[0]].square().sum() / best)
        buckets, signs = hashed(d, 5, columns, seed)
        seen = read_off(table_of(vector, buckets, signs, columns), buckets, signs)
        theirs.append(vector[top_k(seen, k)].square().sum() / best)
    ours_mean, theirs_mean = float(torch.stack(ours).mean()), float(torch.stack(theirs).mean())
    assert theirs_mean > 0.9
    assert ours_mean > theirs_mean - 0.01


@pytest.mark.parametrize("sketch", [LONG, SMALL])
def test_heavy_hitters_are_the_largest_estimates(sketch: CountSketch) -> None:
    table = sketch.insert(normal(sketch.d, dtype=torch.float32))
    index, values = sketch.heavy_hitters(table, 25)
    estimate = sketch.estimate(table)
    assert torch.equal(index, torch.sort(estimate.abs(), descending=True, stable=True).indices[:25].sort().values)
    assert torch.equal(values, estimate[index])


@pytest.mark.parametrize("sketch", [LONG, SMALL])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(sketch: CountSketch, bad: float) -> None:
    vector = normal(sketch.d)
    vector[7] = bad
    with pytest.raises(DivergedError):
        sketch.heavy_hitters(sketch.insert(vector), 5)
    too_large = torch.full((sketch.d,), 3e38)
    with pytest.raises(DivergedError):
        sketch.heavy_hitters(sketch.insert(too_large), 5)


@pytest.mark.parametrize("sketch", [LONG, SMALL])
def test_inputs_stay_as_they_are(sketch: CountSketch) -> None:
    vector = normal(2 * sketch.d)[::2]
    before = vector.clone()
    table = sketch.insert(vector)
    assert torch.equal(vector, before)
    assert torch.equal(sketch.insert(before), table)
    kept = table.clone()
    sketch.estimate(table)
    sketch.heavy_hitters(table, 3)
    assert torch.equal(table, kept)
    wide = torch.cat([table, table], 1)[:, : sketch.columns]
    assert torch.equal(sketch.estimate(wide), sketch.estimate(table))


def test_sketches_that_make_no_sense() -> None:
    for bad in ({"d": 0}, {"rows": 0}, {"columns": -1}, {"rows": True}, {"columns": 2.5}):
        values: dict[str, Any] = {"d": 10, "rows": 3, "columns": 5, **bad}
        with pytest.raises(ConfigError, match="whole number >= 1"):
            CountSketch(**values)
    sketch = CountSketch(10, 3, 5)
    for vector in (torch.zeros(9), torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64), torch.zeros(10).half()):
        with pytest.raises(ConfigError, match=r"vector must be float32 or float64 \[10\]"):
            sketch.insert(vector)
    with pytest.raises(ConfigError, match=r"table must be float32 or float64 \[3, 5\]"):
        sketch.estimate(torch.zeros(5, 3))
