"""Our rules against ByzFL's: the same numbers where the same is meant, and every difference that is on purpose.

Only ByzFL's aggregators are loaded, as its package needs torchvision, seaborn and pandas for other things.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import (
    ARC,
    CAF,
    MDA,
    NNM,
    SMEA,
    Bucketing,
    CenteredClipping,
    Clip,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MoNNA,
    MultiKrum,
    Rule,
    TrimmedMean,
)
from bezoar.updates import DenseUpdates

VERSION = "0.0.11"


def load() -> Any | None:
    """ByzFL's aggregators without the rest of the package; None where it is not installed in this version."""
    found = importlib.util.find_spec("byzfl") if "byzfl" not in sys.modules else sys.modules["byzfl"].__spec__
    try:
        if importlib.metadata.version("byzfl") != VERSION:
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    if "byzfl" not in sys.modules:
        assert found is not None
        package = types.ModuleType("byzfl")
        package.__path__ = list(found.submodule_search_locations or ())
        package.__spec__ = found
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


PEER: Any = load()
pytestmark = pytest.mark.skipif(
    PEER is None, reason=f"ByzFL {VERSION} is not installed: pip install --no-deps byzfl=={VERSION}"
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """One thread for rows this short; and nothing of theirs that divides by zero stops a comparison."""
    before, state, seeds = torch.get_num_threads(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
    torch.set_num_threads(before)
    np.random.set_state(state)  # noqa: NPY002
    torch.set_rng_state(seeds)


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows around a point off zero, a fifth of them farther away."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5
    values[: n // 5] *= 4
    return values[torch.randperm(n, generator=generator)]


SIZES = [(1, 0, 3), (3, 1, 1), (5, 2, 4), (10, 3, 7), (11, 5, 2), (20, 4, 50), (25, 12, 30)]
sizes = pytest.mark.parametrize(("n", "f", "d"), SIZES)


def compare(ours: Callable[[Any], Any], theirs: Callable[[Any], Any], n: int, d: int, tolerance: float = 1e-9) -> None:
    """The same answer on tensors (theirs in single precision) and arrays, one matrix or a list."""
    for seed in range(3):
        values = rows(n, d, seed)
        single = values.float()
        expected = np.asarray(theirs(values.numpy().copy()))
        for given in (values, values.numpy(), list(values.numpy())):
            np.testing.assert_allclose(np.asarray(ours(given)), expected, rtol=tolerance, atol=tolerance)
        # Theirs always gives one tensor, ours a list for a list.
        theirs_single = np.asarray(theirs(list(single.clone())))
        assert np.array_equal(theirs_single, np.asarray(theirs(single.clone())))
        loose = max(tolerance, 1e-4)
        np.testing.assert_allclose(np.asarray(ours(single)), theirs_single, rtol=loose, atol=loose)
        np.testing.assert_allclose(theirs_single, expected, rtol=loose, atol=loose)


# The same


@sizes
def test_coordinate_rules(n: int, f: int, d: int) -> None:
    compare(Mean(), PEER.Average(), n, d)
    compare(Median(), PEER.Median(), n, d)
    compare(TrimmedMean(f=f), PEER.TrMean(f), n, d)
    compare(MeaMed(f=f), PEER.Meamed(f), n, d)


@pytest.mark.parametrize(("n", "f", "d"), [size for size in SIZES if size[0] > 1])
def test_krum_and_multi_krum_are_our_variant_byzfl(n: int, f: int, d: int) -> None:
    compare(Krum(f=f, variant="byzfl"), PEER.Krum(f), n, d)
    compare(MultiKrum(f=f, variant="byzfl"), PEER.MultiKrum(f), n, d)


def test_krum_with_one_row_is_that_row() -> None:
    values = rows(1, 3)
    # No neighbours: theirs is the mean of nothing, NaN, whose argmin is 0 all the same.
    np.testing.assert_array_equal(PEER.Krum(0)(values.numpy()), values[0].numpy())
    np.testing.assert_array_equal(Krum(f=0, variant="byzfl")(values).numpy(), values[0].numpy())


def test_blanchards_krum_is_another_rule() -> None:
    """One neighbour less often decides otherwise; theirs has no such variant."""
    other = 0
    for seed in range(50):
        values = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other += not np.array_equal(Krum(f=3)(values).numpy(), PEER.Krum(3)(values.numpy()))
    assert 0 < other < 50


@pytest.mark.parametrize(("n", "f", "d"), [(3, 1, 1), (5, 2, 4), (8, 3, 7), (10, 3, 20), (12, 2, 5)])
def test_mda(n: int, f: int, d: int) -> None:
    compare(MDA(f=f), PEER.MDA(f), n, d)


@sizes
def test_monna_and_nnm(n: int, f: int, d: int) -> None:
    for trusted in {0, n // 2, n - 1}:
        compare(MoNNA(f=f, trusted=trusted), PEER.MoNNA(f, trusted), n, d)
    compare(lambda given: np.stack([np.asarray(row) for row in NNM(f=f)(given)]), PEER.NNM(f), n, d)


@sizes
def test_clipping_and_arc(n: int, f: int, d: int) -> None:
    def stacked(mixing: Any) -> Callable[[Any], Any]:
        return lambda given: np.stack([np.asarray(row) for row in mixing(given)])

    # Theirs writes into what it is given, so it gets copies here.
    for radius in (0.1, 2.0, 1e6):
        compare(stacked(Clip(radius)), lambda given, c=radius: PEER.Clipping(c)(fresh(given)), n, d)
    compare(stacked(ARC(f=f)), lambda given: PEER.ARC(f)(fresh(given)), n, d)


def fresh(given: Any) -> Any:
    if isinstance(given, list):
        return [fresh(row) for row in given]
    return given.clone() if isinstance(given, Tensor) else given.copy()


@sizes
@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("tau", [0.5, 3.0, 100.0])
def test_centered_clipping(n: int, f: int, d: int, steps: int, tau: float) -> None:
    compare(
        CenteredClipping(radius=tau, iterations=steps),
        lambda given: PEER.CenteredClipping(None, steps, tau)(given),
        n,
        d,
    )
    # Round after round: theirs keeps the centre in the object, ours hands it out.
    peer, ours = PEER.CenteredClipping(None, steps, tau), CenteredClipping(radius=tau, iterations=steps)
    state: dict[str, Tensor] = {}
    for t in range(4):
        values = rows(n, d, seed=t)
        answer = ours.aggregate(values, state)
        state = dict(answer.state)
        np.testing.assert_allclose(answer.vector.numpy(), peer(values.numpy()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "f", "d"), [(3, 1, 2), (5, 2, 4), (10, 3, 7), (20, 4, 50)])
def test_geometric_median_is_their_limit(n: int, f: int, d: int) -> None:
    """Many of their steps with hardly any smoothing approach ours, unless the median is a row: ours stays exact."""
    for seed in range(5):
        values = rows(n, d, seed)
        ours = GeometricMedian()(values).numpy()
        theirs = PEER.GeometricMedian(nu=1e-12, T=2000)(values.numpy())
        cost, their_cost = (float(np.linalg.norm(values.numpy() - z, axis=1).sum()) for z in (ours, theirs))
        assert cost <= their_cost * (1 + 1e-12)
        np.testing.assert_allclose(their_cost, cost, rtol=1e-4)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-3 * np.linalg.norm(values.numpy(), axis=1).max())


@pytest.mark.parametrize(("n", "s"), [(6, 1), (6, 2), (7, 2), (10, 3), (11, 4), (5, 5), (4, 9)])
def test_bucketing_makes_the_same_kind_of_buckets(n: int, s: int) -> None:
    """Rows of the identity show who was mixed with whom."""
    for seed in range(5):
        np.random.seed(seed)  # noqa: NPY002
        theirs = PEER.Bucketing(s)(np.eye(n))
        ours = Bucketing(s=s, seed=seed)(np.eye(n))
        for matrix in (theirs, ours):
            assert matrix.shape == (-(-n // s), n)
            members = (matrix > 0).sum(1).tolist()
            assert members == [s] * (n // s) + ([n % s] if n % s else [])
            np.testing.assert_allclose(matrix.sum(1), 1.0, rtol=1e-12)
            np.testing.assert_array_equal((matrix > 0).sum(0), 1)
            np.testing.assert_allclose(matrix[matrix > 0], np.repeat(1 / np.array(members), members), rtol=1e-12)


def test_bucketing_puts_every_pair_together_equally_often() -> None:
    n, s, draws = 5, 2, 1500
    np.random.seed(0)  # noqa: NPY002
    generator = torch.Generator().manual_seed(0)
    together = np.zeros((2, n, n))
    eye = np.eye(n)
    for _ in range(draws):
        for which, matrix in enumerate((PEER.Bucketing(s)(eye), Bucketing(s=s)(eye, generator=generator))):
            together[which] += (matrix.T @ matrix > 0) / draws
    # Two full buckets hold 2 of the 10 pairs.
    off = ~np.eye(n, dtype=bool)
    assert np.abs(together[:, off] - 0.2).max() < 5 * (0.2 * 0.8 / draws) ** 0.5


# CAF and SMEA: theirs takes one power step from a random start


def covariance(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = weights / weights.sum()
    centred = values - share @ values
    return centred, (share[:, None] * centred).T @ centred


def top(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    sizes, directions = np.linalg.eigh(matrix)
    return float(sizes[-1]), directions[:, -1]


def caf_directions(values: np.ndarray, f: int) -> list[np.ndarray]:
    """The eigenvectors of the exact algorithm, step by step, in the d x d covariance.

    Empty where a row without weight is farther along one than all others: theirs then divides by the farthest of all
    rows, ours by the farthest of those left.
    """
    weights, found = np.ones(len(values)), []
    while weights.sum() > len(values) - 2 * f:
        centred, matrix = covariance(values, weights)
        found.append(top(matrix)[1])
        tau = (centred @ found[-1]) ** 2
        if weights[tau.argmax()] <= 0:
            return []
        weights = weights * (1 - tau / tau.max())
    return found


def starting_from(monkeypatch: pytest.MonkeyPatch, directions: list[np.ndarray]) -> None:
    """Their random starts are these vectors, one after the other."""
    starts = iter(directions)
    monkeypatch.setattr(np.random, "randn", lambda d: next(starts))


@pytest.mark.parametrize(("n", "f", "d"), [(5, 1, 3), (12, 1, 1), (10, 2, 7), (20, 2, 30)])
def test_caf_is_theirs_with_exact_eigenvectors(n: int, f: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    for seed in range(40):
        values = rows(n, d, seed).numpy()
        directions = caf_directions(values, f)
        if directions:
            starting_from(monkeypatch, directions)
            np.testing.assert_allclose(CAF(f=f)(values), PEER.CAF(f)(values), rtol=1e-6, atol=1e-9)
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("f", [1, 2, 4])
def test_smea_agrees_where_one_power_step_is_exact(f: int) -> None:
    """In one dimension every start is the eigenvector."""
    for seed in range(5):
        values = rows(9, 1, seed).numpy()
        np.testing.assert_allclose(SMEA(f=f)(values), PEER.SMEA(f)(values), rtol=1e-9)


def test_one_far_row_keeps_their_caf_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped, it is still the farthest of all, by which theirs divides: the others then lose next to no weight."""
    values = np.random.default_rng(0).normal(size=(9, 5))
    values[0] = 1e6

    class Enough(Exception):
        pass

    starts = np.random.default_rng(1)
    steps = itertools.count()

    def start(d: int) -> np.ndarray:
        if next(steps) == 2000:
            raise Enough
        return starts.normal(size=d)

    monkeypatch.setattr(np.random, "randn", start)
    with pytest.raises(Enough):
        PEER.CAF(1)(values)
    # Ours takes a row in every step.
    answer = CAF(f=1).aggregate(values)
    assert 0 in answer.excluded
    assert float((answer.vector - torch.from_numpy(values[1:].mean(0))).norm()) < 1


def least_eigenvalue(values: np.ndarray, answer: np.ndarray, f: int) -> tuple[float, float]:
    """The top eigenvalue of the subset whose mean is ``answer``, and the least of all subsets."""
    found, least = np.inf, np.inf
    for subset in itertools.combinations(range(len(values)), len(values) - f):
        chosen = values[list(subset)]
        size = top(covariance(chosen, np.ones(len(chosen)))[1])[0]
        least = min(least, size)
        if np.allclose(chosen.mean(0), answer, rtol=1e-9):
            found = size
    return found, least


def test_smea_is_theirs_with_exact_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    n, f = 8, 2
    for seed in range(4):
        values = rows(n, 5, seed).numpy()
        every = itertools.combinations(range(n), n - f)
        directions = [top(covariance(values[list(subset)], np.ones(n - f))[1])[1] for subset in every]
        starting_from(monkeypatch, directions)
        np.testing.assert_allclose(SMEA(f=f)(values), PEER.SMEA(f)(values), rtol=1e-9)


def test_smea_is_never_worse_than_theirs_and_always_the_least() -> None:
    n, f, missed = 8, 2, 0
    np.random.seed(1)  # noqa: NPY002
    for seed in range(6):
        values = rows(n, 20, seed).numpy()
        theirs, least = least_eigenvalue(values, PEER.SMEA(f)(values), f)
        ours, _ = least_eigenvalue(values, SMEA(f=f)(values), f)
        assert ours == least <= theirs < np.inf
        missed += theirs > least * (1 + 1e-9)
    assert missed > 0


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_theirs_differs_from_call_to_call_and_ours_does_not(kind: str) -> None:
    values: Any = rows(10, 20).float()
    given = values if kind == "tensor" else values.numpy()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    for peer, ours in ((PEER.CAF(2), CAF(f=2)), (PEER.SMEA(2), SMEA(f=2))):
        assert len({np.asarray(peer(given)).tobytes() for _ in range(8)}) > 1
        assert len({np.asarray(ours(given)).tobytes() for _ in range(8)}) == 1


# What theirs does with hostile rows


def spoilt(value: float, n: int = 9) -> tuple[Tensor, Tensor]:
    values = rows(n, 5).float()
    others = torch.arange(n) != 4
    honest = values[others].clone()
    values[4, 1] = value
    return values, honest


@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Median", Median()),
        ("GeometricMedian", GeometricMedian()),
        ("CenteredClipping", CenteredClipping()),
        ("Meamed", MeaMed(f=2)),
        ("Krum", Krum(f=2, variant="byzfl")),
        ("CAF", CAF(f=2)),
    ],
)
def test_one_row_with_nan_spoils_theirs(theirs: str, ours: Rule, kind: str) -> None:
    values, honest = spoilt(float("nan"))
    peer = getattr(PEER, theirs)
    found = (peer(2) if ours.tolerated else peer())(values.clone() if kind == "tensor" else values.numpy().copy())
    if theirs == "CAF":
        assert found is None
    else:
        # Krum even names the row with NaN the best of all.
        assert np.isnan(np.asarray(found)).any()
    answer = ours.aggregate(values)
    assert answer.excluded[4] == "not finite"
    np.testing.assert_allclose(answer.vector.numpy(), ours.without(1)(honest).numpy(), rtol=1e-5, atol=1e-6)


def test_one_infinite_row_is_their_krum_of_more_than_25() -> None:
    for n, fails in ((25, False), (26, True), (40, True)):
        values, honest = spoilt(float("inf"), n)
        assert bool(np.isinf(PEER.Krum(3)(values.clone()).numpy()).any()) == fails
        ours = Krum(f=3, variant="byzfl")
        np.testing.assert_array_equal(ours(values).numpy(), ours.without(1)(honest).numpy())
    values, _ = spoilt(float("inf"))
    assert np.isnan(PEER.CenteredClipping()(values.clone()).numpy()).any()
    assert PEER.CAF(2)(values.clone()) is None
    assert torch.isfinite(CenteredClipping()(values)).all()
    assert torch.isfinite(CAF(f=2)(values)).all()


def test_caf_without_an_answer() -> None:
    values = rows(5, 3)
    assert PEER.CAF(0)(values) is None
    assert PEER.CAF(0)(values.numpy()) is None
    np.testing.assert_allclose(CAF(f=0)(values).numpy(), values.mean(0).numpy(), rtol=1e-12)
    equal = values[:1].repeat(5, 1)
    assert PEER.CAF(1)(equal) is None
    assert PEER.CAF(1)(equal.numpy()) is None
    np.testing.assert_allclose(CAF(f=1)(equal).numpy(), equal[0].numpy(), rtol=1e-12)
    with pytest.raises(TypeError, match="NoneType"):
        PEER.SMEA(1)(equal)
    np.testing.assert_allclose(SMEA(f=1)(equal).numpy(), equal[0].numpy(), rtol=1e-12)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_all_rows_huge_or_tiny(size: float) -> None:
    """Squares of single numbers overflow or vanish: all scores are equal, and the first row wins, here an attacker."""
    values = rows(9, 5).float()
    values[:2] = -60.0
    ours = Krum(f=2, variant="byzfl")
    wanted = ours(values)
    np.testing.assert_array_equal(PEER.Krum(2)(values).numpy(), wanted.numpy())
    np.testing.assert_array_equal(PEER.Krum(2)(values * size).numpy(), (values * size)[0].numpy())
    np.testing.assert_array_equal(ours(values * size).numpy(), (wanted * size).numpy())


@pytest.mark.parametrize(("n", "fails"), [(20, False), (26, True), (40, True)])
def test_nearly_equal_rows(n: int, fails: bool) -> None:
    """Raw weights of norm 1e3 with a spread of 1e-4: above 25 rows their distances are rounding errors."""
    d, f, wrong = 1000, n // 5, 0
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(1, d, generator=generator, dtype=torch.float64)
        values = 1e3 * base / base.norm() + 1e-4 * torch.randn(n, d, generator=generator, dtype=torch.float64)
        single = values.float()
        wide = single.double()
        exact = (wide[:, None] - wide[None]).square().sum(2).sort(1).values[:, 1 : n - f].sum(1)
        best = single[int(exact.argmin())]
        wrong += not torch.equal(PEER.Krum(f)(single), best)
        assert torch.equal(Krum(f=f, variant="byzfl")(single), best)
    assert wrong == (5 if fails else 0)


# What theirs does with the caller's numbers


def test_theirs_changes_the_callers_numbers() -> None:
    start = torch.tensor([[30.0, 40.0], [0.0, 1.0], [1.0, 1.0]])
    for theirs, ours in ((PEER.Clipping(2.0), Clip(2.0)), (PEER.ARC(1), ARC(f=1))):
        for kind in ("tensor", "array"):
            values: Any = start.clone() if kind == "tensor" else start.numpy().copy()
            expected = np.asarray(ours(values)).copy()
            assert np.array_equal(np.asarray(values), start.numpy())
            theirs(values)
            # The rows that were handed over are now the clipped ones.
            np.testing.assert_allclose(np.asarray(values), expected, rtol=1e-6)
            assert not np.array_equal(np.asarray(values), start.numpy())


def test_whole_numbers_and_types() -> None:
    counts = np.array([[3, 4], [0, 1]])
    np.testing.assert_array_equal(PEER.Clipping(2.0)(counts.copy()), [[1, 1], [0, 1]])
    np.testing.assert_allclose(Clip(2.0)(counts), [[1.2, 1.6], [0.0, 1.0]], rtol=1e-6)
    values = rows(5, 3)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert PEER.Average()(values.to(dtype)).dtype == torch.float32
        assert Mean()(values.to(dtype)).dtype == dtype
    with pytest.raises(ValueError, match="non-negative integer"):
        PEER.Krum(np.int64(1))
    assert Krum(f=np.int64(1)) == Krum(f=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="non-negative float"):
        PEER.Clipping(2)
    assert Clip(2) == Clip(2.0)
    for given in (torch.unbind(values), [{"w": row} for row in values]):
        with pytest.raises(TypeError, match="list"):
            PEER.Average()(given)
        Mean()(given)


def test_a_centre_can_be_given_to_ours_only() -> None:
    with pytest.raises(TypeError, match="m must be of type"):
        PEER.CenteredClipping(m=np.zeros(3))
    values = rows(5, 3)
    answer = CenteredClipping(radius=1e-3, iterations=1).aggregate(values, {"centre": values[0]})
    assert float((answer.vector - values[0]).norm()) <= 1e-3 * (1 + 1e-9)


def test_theirs_remembers_between_calls_and_ours_only_what_it_is_given() -> None:
    values = rows(7, 4).numpy()
    peer, ours = PEER.CenteredClipping(tau=0.5), CenteredClipping(radius=0.5, iterations=1)
    assert not np.allclose(peer(values), peer(values))
    assert np.array_equal(ours(values), ours(values))


def test_their_bucketing_draws_from_the_global_generator() -> None:
    values = np.eye(6)
    np.random.seed(0)  # noqa: NPY002
    first = PEER.Bucketing(2)(values)
    assert not np.array_equal(first, PEER.Bucketing(2)(values))
    before = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    assert np.array_equal(Bucketing(s=2)(values), Bucketing(s=2)(values))
    assert np.random.get_state(legacy=False)["state"]["pos"] == before  # noqa: NPY002


# The geometric median's defaults


def test_their_smoothing_is_absolute_so_small_updates_get_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    values[0] = 30.0
    small = (values * 1e-3).numpy()
    np.testing.assert_allclose(PEER.GeometricMedian()(small), small.mean(0), rtol=1e-12)
    ours = GeometricMedian()(small)
    np.testing.assert_allclose(ours, 1e-3 * GeometricMedian()(values.numpy()), rtol=1e-6)
    assert np.linalg.norm(ours - small[1:].mean(0)) < 0.2 * np.linalg.norm(small.mean(0) - small[1:].mean(0))


def test_their_three_steps_from_zero_depend_on_where_zero_is() -> None:
    values = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]).double().numpy()
    theirs, ours = PEER.GeometricMedian(), GeometricMedian()
    np.testing.assert_allclose(theirs(values), [2.086193, 1.632542], rtol=1e-5)
    np.testing.assert_allclose(ours(values), [2.020411, 1.945995], rtol=1e-6)
    assert np.abs(theirs(values + 100) - 100 - theirs(values)).max() > 0.5
    np.testing.assert_allclose(ours(values + 100) - 100, ours(values), rtol=1e-6)


# Memory


def test_nnm_holds_no_third_matrix() -> None:
    """Theirs copies the n - f neighbours of every row, n (n - f) d numbers; ours answers without a mixed row."""
    values = rows(12, 40)
    theirs = PEER.TrMean(2)(PEER.NNM(2)(values.numpy()))

    class Once(DenseUpdates):
        def materialise(self) -> Tensor:
            raise AssertionError("the whole matrix was asked for")

    answer = (NNM(f=2) >> TrimmedMean(f=2)).aggregate(Once(values))
    np.testing.assert_allclose(answer.vector.numpy(), theirs, rtol=1e-9)
