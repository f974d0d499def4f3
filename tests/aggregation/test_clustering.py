from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import _features
from bezoar.aggregation.base import Context, Rule
from bezoar.aggregation.clipped_clustering import ClippedClustering
from bezoar.aggregation.flame import FLAME
from bezoar.aggregation.signguard import SignGuard
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.updates.dense import DenseUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])

RULES: list[Rule] = [
    FLAME(noise=0.0),
    SignGuard(),
    SignGuard(clustering="dbscan"),
    ClippedClustering(),
    ClippedClustering(linkage="single"),
]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)


def rows(n: int = 9, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine_distances(values: np.ndarray) -> np.ndarray:
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    distances: np.ndarray = 1 - unit @ unit.T
    return distances


def clipped(values: np.ndarray, bound: float) -> np.ndarray:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    scaled: np.ndarray = values * np.minimum(1, bound / norms)
    return scaled


def first_majority(distances: np.ndarray) -> list[int]:
    """The first connected set of more than half of the points as the radius grows."""
    n = len(distances)
    if n <= 2:
        return list(range(n))
    for radius in np.unique(distances[np.triu_indices(n, 1)]):
        for start in range(n):
            reached, waiting = {start}, [start]
            while waiting:
                i = waiting.pop()
                near = [j for j in range(n) if j not in reached and distances[i, j] <= radius]
                reached.update(near)
                waiting.extend(near)
            if len(reached) >= n // 2 + 1:
                return sorted(reached)
    raise AssertionError("the largest radius connects all")


def average_linkage(distances: np.ndarray) -> list[int]:
    """The larger of two clusters, the one with the lowest point among equals."""
    n = len(distances)
    if n <= 2:
        return list(range(n))
    clusters = [[i] for i in range(n)]
    while len(clusters) > 2:
        pairs = [
            (np.mean([distances[i, j] for i in a for j in b]), x, y)
            for x, a in enumerate(clusters)
            for y, b in enumerate(clusters)
            if x < y
        ]
        _, x, y = min(pairs)
        clusters[x] += clusters.pop(y)
    return sorted(max(clusters, key=lambda c: (len(c), -min(c))))


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 20]),
    d=st.integers(2, 9),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1.0, 1e30, 1e-30]),
)
def test_flame_is_the_first_connected_majority(n: int, d: int, seed: int, size: float) -> None:
    values = rows(n, d, seed) * (1 + rows(n, 1, seed + 1).abs())
    data = values.numpy()
    members = first_majority(cosine_distances(data))
    bound = float(np.median(np.linalg.norm(data, axis=1)))
    answer = FLAME(noise=0.0).aggregate(values * size)
    assert answer.selected.nonzero().flatten().tolist() == members
    assert 2 * len(members) > n
    np.testing.assert_allclose(answer.vector.numpy() / size, clipped(data, bound)[members].mean(0), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(n=st.sampled_from([1, 2, 3, 4, 5, 8, 11]), d=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_clipped_clustering_is_the_larger_of_two_clusters(n: int, d: int, seed: int) -> None:
    values = rows(n, d, seed)
    data = values.numpy()
    members = average_linkage(cosine_distances(data))
    bound = float(np.median(np.linalg.norm(data, axis=1)))
    expected = clipped(data, bound)[members].mean(0)
    for size in (1.0, 1e30, 1e-30):
        answer = ClippedClustering().aggregate(values * size)
        assert answer.selected.nonzero().flatten().tolist() == members
        np.testing.assert_allclose(answer.vector.numpy() / size, expected, rtol=1e-9)


def test_golden() -> None:
    bound = 8**0.5
    expected = clipped(GOLDEN.double().numpy(), bound)
    for rule in (SignGuard(), ClippedClustering()):
        answer = rule.aggregate(GOLDEN)
        assert list(answer.excluded) == [4]
        np.testing.assert_allclose(answer.vector.numpy(), expected[:4].mean(0), rtol=1e-6)
    answer = FLAME(noise=0.0).aggregate(GOLDEN)
    assert answer.selected.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(answer.vector.numpy(), expected[:4].mean(0), rtol=1e-6)


def test_flame_noise_has_the_stated_size_and_is_seeded() -> None:
    values = rows(7, 20000).float() + 3
    quiet = FLAME(noise=0.0)(values)
    typical = float(values.norm(dim=1).median())
    noisy = FLAME(noise=0.01)(values) - quiet
    assert float(noisy.std()) == pytest.approx(0.01 * typical, rel=0.05)
    assert abs(float(noisy.mean())) < 5 * 0.01 * typical / 20000**0.5
    one = FLAME().aggregate(values, context=Context(round=1))
    assert torch.equal(one.vector, FLAME().aggregate(values, context=Context(round=1)).vector)
    assert not torch.equal(one.vector, FLAME().aggregate(values, context=Context(round=2)).vector)
    assert not torch.equal(FLAME()(values), FLAME(seed=1)(values))


def test_signguard_filters_norms_then_signs() -> None:
    values = rows(12, 4000) + 0.3
    values[3] *= 5
    values[4] *= 0.01
    values[5] = -values[5]
    for rule in (SignGuard(), SignGuard(clustering="dbscan")):
        answer = rule.aggregate(values)
        assert answer.excluded[3] == answer.excluded[4] == "unusual norm"
        assert answer.excluded[5] == "unusual signs"
        data = values.numpy()
        kept = answer.selected.numpy()
        norms = np.linalg.norm(data, axis=1)
        expected = clipped(data, float(np.median(norms)))[kept].mean(0)
        np.testing.assert_allclose(answer.vector.numpy(), expected, rtol=1e-10)
    assert int(SignGuard(clustering="dbscan").aggregate(values).selected.sum()) == 9


def test_signguard_counts_signs_on_its_share_only() -> None:
    # The sample of a tenth is the same for the same seed and round, and sees no other column.
    values = rows(9, 5000)
    sampled = SignGuard(share=0.1)._signs
    statistics, counted = sampled(DenseUpdates(values), torch.Generator().manual_seed(3))
    index = torch.randperm(5000, generator=torch.Generator().manual_seed(3))[:500]
    assert counted == 500
    part = values[:, index]
    expected = torch.stack([(part > 0).sum(1), (part == 0).sum(1), (part < 0).sum(1)], dim=1) / 500
    np.testing.assert_allclose(statistics.numpy(), expected.numpy(), rtol=1e-6)


def test_nobody_left_is_never_the_answer() -> None:
    # The largest cluster of signs holds unusual norms only.
    values = rows(9, 2000) * 0.01 + 1
    values[:4] *= torch.tensor([100.0, 200.0, 300.0, 400.0])[:, None]
    values[4:] *= torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0])[:, None]
    values[5:, :1000] *= -1
    answer = SignGuard(high=1.0, low=1.0).aggregate(values)
    assert answer.selected.any()
    assert torch.isfinite(answer.vector).all()
    # No two rows are alike: DBSCAN names no cluster, the filter of norms decides.
    shares = torch.linspace(0, 1, 5)
    alone = torch.stack([torch.where(torch.arange(1000) < share * 1000, 1.0, -1.0) for share in shares])
    kept = SignGuard(clustering="dbscan", share=1.0).aggregate(alone)
    assert kept.selected.all()
    # A majority of zeros: the usual norm is zero.
    mostly = torch.zeros(5, 3)
    mostly[4] = 1
    for rule in RULES:
        assert rule(mostly).tolist() == [0.0, 0.0, 0.0]


@rules
def test_identical_rows_give_that_row(rule: Rule) -> None:
    row = rows(1, 40)
    for n in (1, 2, 3, 8):
        for size in (1.0, 1e30, 1e-30):
            same = (row * size).expand(n, -1)
            np.testing.assert_allclose(rule(same).numpy(), same[0].numpy(), rtol=1e-13)
    assert rule(torch.zeros(5, 3)).tolist() == [0.0] * 3


@rules
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_does_not_matter(rule: Rule, seed: int) -> None:
    # Clear clusters: equally large ones are told apart by their rows' order.
    values = 0.02 * rows(9, 300, seed) + rows(1, 300, seed + 1) + 0.5
    values[[1, 6]] *= -1
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(rule(values[order]).numpy(), rule(values).numpy(), rtol=1e-9, atol=1e-12)


@rules
@pytest.mark.parametrize(
    "evil", [1e30, -1e30, 1e38, -1e38, 1e-30, 1e-45, 0.0, "mirror", "copy", float("nan"), float("inf")]
)
def test_hostile_rows_leave_the_answer_near_the_honest_ones(rule: Rule, evil: float | str) -> None:
    values = rows(11, 400).float() + 1
    bad = [2, 5, 8]
    honest = [i for i in range(11) if i not in bad]
    if isinstance(evil, str):
        values[bad] = -values[honest].mean(0) if evil == "mirror" else values[0].clone()
    else:
        values[bad] = evil
    before = values.clone()
    answer = rule.aggregate(values)
    assert torch.equal(values.nan_to_num(), before.nan_to_num())
    mean = values[honest].mean(0)
    assert torch.isfinite(answer.vector).all()
    # Copies may make the cluster of an honest row the largest, which leaves that row.
    limit = float((values[0] - mean).norm()) if evil == "copy" else 0.7 * float(mean.norm())
    assert float((answer.vector - mean).norm()) <= limit
    if evil in ("mirror", -1e30, -1e38):
        assert set(bad) <= set(answer.excluded)


@rules
def test_more_than_half_not_finite_is_an_error_and_dtype_is_kept(rule: Rule) -> None:
    values = rows(9, 50) + 1
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        answer = rule(values.to(dtype))
        assert answer.dtype == dtype
        assert torch.isfinite(answer).all()
    values[:5] = torch.nan
    with pytest.raises(HostileRowsError):
        rule(values)


@rules
def test_many_rows(rule: Rule) -> None:
    values = rows(40, 60) + 1
    values[::5] *= -20
    answer = rule.aggregate(values)
    assert {0, 5, 10, 15, 20, 25, 30, 35} <= set(answer.excluded)


def test_parameters_are_checked() -> None:
    for build in (
        lambda: FLAME(noise=-1.0),
        lambda: FLAME(noise=float("nan")),
        lambda: SignGuard(low=2.0),
        lambda: SignGuard(high=0.5),
        lambda: SignGuard(share=0.0),
        lambda: SignGuard(clustering="kmeans"),  # type: ignore[arg-type]
        lambda: ClippedClustering(linkage="ward"),  # type: ignore[arg-type]
        lambda: ClippedClustering(history=-1),
    ):
        with pytest.raises(ConfigError):
            build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tight_clusters_far_from_zero_keep_their_digits(dtype: torch.dtype) -> None:
    for seed in range(20):
        # Norm 1e3, spread 1e-4 a coordinate: 1 - cosine is about 1e-12, far below the rounding of a float32 product.
        values = 1e3 / 50**0.5 + 1e-4 * rows(9, 50, seed)
        values[8, :25] += 0.05
        given_rows = values.to(dtype)
        assert not FLAME(noise=0.0).aggregate(given_rows).selected[8]
        assert list(ClippedClustering().aggregate(given_rows).excluded) == [8]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 2**31), spread=st.sampled_from([1.0, 1e-2, 1e-4]))
def test_cosine_distances_have_digits_whatever_the_norms(n: int, seed: int, spread: float) -> None:
    values = (rows(1, 40, seed) + spread * rows(n, 40, seed + 1)) * (1 + 3 * rows(n, 1, seed + 2).abs())
    values[0] = values[1] * 4
    for dtype, size in ((torch.float32, 1e3), (torch.float32, 1e-30), (torch.float64, 1e30), (torch.float64, 1e-30)):
        table = (values * size).to(dtype)
        unit = table.double().numpy() / np.linalg.norm(table.double().numpy(), axis=1, keepdims=True)
        expected = ((unit[:, None] - unit) ** 2).sum(2) / 2
        found = _features.cosine_distances(DenseUpdates(table)).numpy()
        # Rounding of the rows themselves is 1e-7 of them.
        np.testing.assert_allclose(found, expected, rtol=2e-2 if dtype == torch.float32 else 1e-6, atol=1e-13)


def test_a_zero_row_is_at_right_angles_to_all() -> None:
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-2.0, 0.0], [1e-44, 2e-44], [1e-44, 2e-44]])
    found = _features.cosine_distances(DenseUpdates(table))
    assert found[0].tolist() == [0, 1, 1, 1, 1, 1]
    assert found[1].tolist()[:4] == [1, 0, 1, 2]
    assert found[4, 5] == 0
    assert torch.isfinite(found).all()
