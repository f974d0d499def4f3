from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import Context, Krum, Mean, Median, Mixing, Rule, TrimmedMean
from bezoar.aggregation.arc import ARC
from bezoar.aggregation.bucketing import Bucketing
from bezoar.aggregation.nnm import NNM
from bezoar.certify import kappa
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.updates import DenseUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
SIZES = [(1, 0), (2, 0), (3, 1), (5, 2), (8, 3), (9, 1), (20, 6), (40, 19)]

mixings = pytest.mark.parametrize("mixing", [NNM(f=2), ARC(f=2), Bucketing(s=2), Bucketing(s=4, seed=5)], ids=repr)


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(n: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(n)
    spread = rows(n, 6, n)
    return {
        "random": spread,
        "tied": torch.randint(-1, 2, (n, 2), generator=draws).double(),
        # Whole numbers: distances to copies are then equal to the last bit.
        "copies": (spread * 100).round()[torch.randint(max(1, n // 3), (n,), generator=draws)],
        "near": (1e3 + 1e-4 * rows(n, 6, n)),
        "near in single": (1e3 + 1e-2 * rows(n, 6, n)).float(),
        "tiny": spread.float() * 1e-30,
        "huge": spread * 1e30,
        "huge in single": spread.float() * 1e30,
    }


def matrix(mixing: Mixing, values: torch.Tensor) -> np.ndarray:
    return mixing.matrix(DenseUpdates(values), Context(), None).numpy()


def nnm_oracle(values: np.ndarray, f: int) -> np.ndarray:
    n = len(values)
    scale = np.abs(values).max() or 1.0
    weights = np.zeros((n, n))
    for i in range(n):
        gaps = [(-1.0 if i == j else float((((values[i] - values[j]) / scale) ** 2).sum()), j) for j in range(n)]
        for _, j in sorted(gaps)[: n - f]:
            weights[i, j] = 1 / (n - f)
    return weights


def arc_oracle(values: np.ndarray, f: int) -> np.ndarray:
    n = len(values)
    norms = [float(np.sqrt((row**2).sum())) for row in values]
    radius = sorted(norms, reverse=True)[int(2 * f * (n - f) / n + 1e-9)]
    return np.array([1.0 if norm <= radius else radius / norm for norm in norms])


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_matrices_agree_with_plain_oracles(n: int, f: int) -> None:
    for kind, values in inputs(n).items():
        plain = values.double().numpy()
        np.testing.assert_allclose(matrix(NNM(f=f), values), nnm_oracle(plain, f), rtol=1e-15, err_msg=kind)
        np.testing.assert_allclose(matrix(ARC(f=f), values), arc_oracle(plain, f), rtol=1e-6, err_msg=kind)


def test_golden_vectors() -> None:
    mixed = NNM(f=1)(GOLDEN)
    np.testing.assert_allclose(mixed[:4].numpy(), np.full((4, 2), 2.0), rtol=1e-6)
    np.testing.assert_allclose(mixed[4].numpy(), [26.75, -23.5], rtol=1e-6)
    clipped = ARC(f=1)(GOLDEN)
    assert torch.equal(clipped[:4], GOLDEN[:4])
    np.testing.assert_allclose(clipped[4].numpy(), [3.0, -3.0], rtol=1e-6)


def test_the_row_itself_comes_before_its_copies_and_ties_go_to_the_lowest_row() -> None:
    copies = torch.zeros(5, 3)
    weights = matrix(NNM(f=2), copies) > 0
    assert [np.flatnonzero(row).tolist() for row in weights] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 3], [0, 1, 4]]
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    weights = matrix(NNM(f=1), line) > 0
    assert np.flatnonzero(weights[1]).tolist() == [0, 1, 2]
    assert np.flatnonzero(matrix(NNM(f=1), torch.tensor([[1.0], [0.0], [-1.0]]))[1]).tolist() == [0, 1]


def test_nothing_to_tolerate() -> None:
    values = rows()
    np.testing.assert_allclose(NNM(f=0)(values).numpy(), values.mean(0).expand(9, 5).numpy(), rtol=1e-12, atol=1e-14)
    assert torch.equal(ARC(f=0)(values), values)
    assert torch.equal(ARC(f=0)(values[:1]), values[:1])
    assert torch.equal(NNM(f=0)(values[:1]), values[:1])
    assert torch.equal(Bucketing()(values[:1]), values[:1])
    zeros = torch.zeros(5, 3)
    assert torch.equal(ARC(f=2)(zeros), zeros)
    mostly = torch.cat([zeros, torch.ones(1, 3)])
    assert torch.equal(ARC(f=1)(mostly), torch.zeros(6, 3))


@given(st.integers(0, 2**31), st.integers(3, 12))
def test_mixing_by_neighbours_commutes_with_permutation_translation_and_scale(seed: int, n: int) -> None:
    values, mixing = rows(n, seed=seed), NNM(f=(n - 1) // 2)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mixed = mixing(values)
    np.testing.assert_allclose(mixing(values[order]).numpy(), mixed[order].numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(mixing(values * 3 + 7).numpy(), (mixed * 3 + 7).numpy(), rtol=1e-9, atol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_adaptive_clipping_commutes_with_permutation_and_scale_and_never_lengthens(seed: int, n: int) -> None:
    values, mixing = rows(n, seed=seed), ARC(f=(n - 1) // 2)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    clipped = mixing(values)
    np.testing.assert_allclose(mixing(values[order]).numpy(), clipped[order].numpy(), rtol=1e-12)
    np.testing.assert_allclose(mixing(values * 3).numpy(), (clipped * 3).numpy(), rtol=1e-12)
    assert (clipped.norm(dim=1) <= values.norm(dim=1) * (1 + 1e-12)).all()
    shorter = int((clipped.norm(dim=1) < values.norm(dim=1) * (1 - 1e-12)).sum())
    assert shorter <= mixing.clipped(n, mixing.f)


def test_the_adaptive_radius_never_exceeds_an_honest_norm() -> None:
    for n in range(1, 60):
        for f in range((n - 1) // 2 + 1):
            assert f <= ARC(f=f).clipped(n, f) < n - f


def test_buckets_are_means_of_a_permutation() -> None:
    values = rows(11, 3)
    for s in (1, 2, 3, 11, 20):
        weights = matrix(Bucketing(s=s), values)
        assert weights.shape == (-(-11 // s), 11)
        assert len(Bucketing(s=s)(values)) == Bucketing(s=s).rows_out(11) == len(weights)
        assert ((weights > 0).sum(0) == 1).all()
        sizes = (weights > 0).sum(1)
        assert sizes[:-1].tolist() == [s] * (len(weights) - 1)
        assert sizes.sum() == 11
        np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-15)
        np.testing.assert_allclose(Bucketing(s=s)(values).numpy(), weights @ values.numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose((Bucketing(s=2) >> Mean())(values[:10]).numpy(), values[:10].mean(0).numpy(), rtol=1e-12)
    assert not np.array_equal(matrix(Bucketing(s=1), values), np.eye(11))


def test_buckets_are_drawn_from_seed_and_round_or_from_the_callers_generator() -> None:
    values = DenseUpdates(rows(20))

    def draw(seed: int, number: int = 0, generator: torch.Generator | None = None) -> list[list[float]]:
        return Bucketing(s=2, seed=seed).matrix(values, Context(round=number), generator).tolist()

    assert draw(0) == draw(0)
    assert len({repr(draw(0)), repr(draw(1)), repr(draw(0, 1))}) == 3
    mine = [draw(seed, generator=torch.Generator().manual_seed(4)) for seed in (0, 1)]
    assert mine[0] == mine[1] != draw(0)


def test_every_pair_of_clients_shares_a_bucket_equally_often() -> None:
    values, n, rounds = DenseUpdates(rows(6)), 6, 3000
    together = np.zeros((n, n))
    for number in range(rounds):
        weights = Bucketing(s=2).matrix(values, Context(round=number), None).numpy() > 0
        together += weights.T.astype(float) @ weights
    np.testing.assert_allclose(together[~np.eye(n, dtype=bool)] / rounds, 1 / 5, atol=0.04)


@pytest.mark.parametrize("s", [0, -1, 2.0, True, "2"])
def test_bucket_sizes_are_counts(s: Any) -> None:
    with pytest.raises(ConfigError, match=r"Bucketing: s must be"):
        Bucketing(s=s)


def test_the_rule_behind_buckets_is_checked_with_their_number() -> None:
    (Bucketing(s=2) >> TrimmedMean(f=2))(rows(9))
    with pytest.raises(ConfigError, match=r"TrimmedMean: f=2 is out of range for n=4 rows"):
        (Bucketing(s=2) >> TrimmedMean(f=2))(rows(8))
    with pytest.raises(ConfigError, match=r"NNM: f=5 is out of range for n=9 rows"):
        (NNM(f=5) >> Median())(rows(9))
    with pytest.raises(ConfigError, match=r"ARC: f=5 is out of range for n=9 rows"):
        ARC(f=5)(rows(9))


def test_pipelines_equal_their_parts_and_report_weights_of_the_callers_rows() -> None:
    values = rows()
    np.testing.assert_allclose(
        (NNM(f=2) >> TrimmedMean(f=2))(values).numpy(), TrimmedMean(f=2)(NNM(f=2)(values)).numpy(), rtol=1e-12
    )
    np.testing.assert_allclose(
        (Bucketing(s=2) >> Median())(values).numpy(), Median()(Bucketing(s=2)(values)).numpy(), rtol=1e-12
    )
    answer = (ARC(f=2) >> NNM(f=2) >> Krum(f=2)).aggregate(values)
    np.testing.assert_allclose((answer.weights @ values).numpy(), answer.vector.numpy(), rtol=1e-12)
    assert (ARC(f=2) >> Mean()).aggregate(values).scales.shape == (9,)
    answer = (NNM(f=2) >> Krum(f=2)).aggregate(values)
    assert float(answer.weights.sum()) == pytest.approx(1.0)
    assert int((answer.weights > 0).sum()) == 7


def test_adaptive_clipping_asks_for_norms_only() -> None:
    class NoGram(DenseUpdates):
        def _gram(self) -> torch.Tensor:
            raise AssertionError("a norm rule asked for the Gram matrix")

        _squared_distances = _gram

    values = rows()
    expected = ARC(f=2)(values).mean(0)
    np.testing.assert_allclose((ARC(f=2) >> Mean())(NoGram(values)).numpy(), expected.numpy(), rtol=1e-12)


ROBUST: list[Rule] = [
    NNM(f=2) >> TrimmedMean(f=2),
    NNM(f=2) >> Median(),
    ARC(f=2) >> TrimmedMean(f=2),
    ARC(f=2) >> NNM(f=2) >> TrimmedMean(f=2),
    NNM(f=2) >> Krum(f=2, variant="byzfl"),
    Bucketing(s=2) >> TrimmedMean(f=2),
]


def hostile(kind: str, values: torch.Tensor) -> torch.Tensor:
    honest = values[2:]
    bad: Any = {
        "1e30": 1e30,
        "1e38": 1e38,
        "far apart": torch.tensor([[1e38], [-1e38]]).expand(2, values.shape[1]),
        "zero": 0.0,
        "copies": honest[3],
        "mirrored": -honest[:2],
        "shifted": honest.mean(0) + 3 * honest.std(0),
        "NaN": float("nan"),
        "inf": float("inf"),
        "one NaN, one huge": torch.tensor([[float("nan")], [1e30]]).expand(2, values.shape[1]),
    }[kind]
    values = values.clone()
    values[:2] = bad
    return values


KINDS = ("1e30", "1e38", "far apart", "zero", "copies", "mirrored", "shifted", "NaN", "inf", "one NaN, one huge")


@pytest.mark.parametrize("rule", ROBUST, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_two_hostile_rows_of_ten_keep_the_answer_within_the_constant(rule: Rule, kind: str) -> None:
    for seed in range(3):
        values = hostile(kind, 5 + rows(10, 4, seed, torch.float32))
        before = values.clone()
        answer = rule(values).double()
        assert torch.equal(values.nan_to_num(), before.nan_to_num())
        honest = values[2:].double()
        spread = float((honest - honest.mean(0)).square().sum(1).mean())
        assert float((answer - honest.mean(0)).square().sum()) <= kappa(rule, 10) * spread
    assert rule(hostile("copies", torch.ones(10, 4))).tolist() == [1.0] * 4


@mixings
def test_a_mixing_alone_can_not_exclude_rows(mixing: Mixing) -> None:
    with pytest.raises(HostileRowsError, match="1 of 10 updates are not finite"):
        mixing(hostile("one NaN, one huge", rows(10)))


@mixings
def test_input_is_never_changed_and_dtype_and_kind_are_kept(mixing: Mixing) -> None:
    for dtype, tolerance in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2), (torch.float32, 1e-6), (torch.float64, 0)):
        values = rows().to(dtype)
        before = values.clone()
        mixed = mixing(values)
        assert mixed.dtype == dtype
        assert torch.equal(values, before)
        wide = mixing(values.double())
        assert (mixed.double() - wide).abs().max() <= tolerance * 4
    assert isinstance(mixing(rows().numpy()), np.ndarray)


@mixings
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e3, 3e38])
def test_identical_rows_stay_what_they_are(mixing: Mixing, size: float) -> None:
    values = torch.full((9, 4), size)
    np.testing.assert_allclose(mixing(values).numpy(), values[: mixing.rows_out(9)].numpy(), rtol=1e-6)
    np.testing.assert_allclose((mixing >> Median())(values).numpy(), values[0].numpy(), rtol=1e-6)
