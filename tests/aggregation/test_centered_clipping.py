from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Clip, Context, Mean
from bezoar.aggregation.centered_clipping import CenteredClipping
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(values: np.ndarray, radius: float, iterations: int, centre: np.ndarray) -> np.ndarray:
    for _ in range(iterations):
        step = np.zeros_like(centre)
        for row in values:
            length = np.linalg.norm(row - centre)
            step += (row - centre) * (min(1.0, radius / length) if length > 0 else 1.0)
        centre = centre + step / len(values)
    return centre


def close(answer: torch.Tensor, expected: np.ndarray, scale: float = 1.0, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(answer.double().numpy() / scale, expected, rtol=tolerance, atol=tolerance)


def test_golden_vectors() -> None:
    for values in (GOLDEN, GOLDEN.double()):
        close(CenteredClipping(radius=1.0, iterations=1)(values), np.array([0.692592, 0.409750]), tolerance=2e-6)
        close(CenteredClipping(radius=1.0, iterations=3)(values), np.array([1.764042, 1.259134]), tolerance=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_it_agrees_with_the_plain_oracle(n: int, scale: float) -> None:
    values, centre = rows(n, seed=n), rows(1, seed=99)[0]
    for radius in (0.3, 1.7, 50.0, float("inf")):
        for iterations in (1, 2, 5):
            rule = CenteredClipping(radius=radius * scale, iterations=iterations)
            close(rule(values * scale), oracle(values.numpy(), radius, iterations, np.zeros(5)), scale)
            answer = rule.aggregate(values * scale, context=Context(last_aggregate=centre * scale))
            close(answer.vector, oracle(values.numpy(), radius, iterations, centre.numpy()), scale, 1e-7)


def test_where_the_centre_comes_from() -> None:
    values, rule = rows(), CenteredClipping(radius=0.5)
    first = rule.aggregate(values)
    assert torch.equal(first.state["centre"], first.vector)
    second = rule.aggregate(values, state=first.state, context=Context(last_aggregate=rows(1, seed=5)[0]))
    close(second.vector, oracle(values.numpy(), 0.5, 3, first.vector.numpy()))
    third = rule.aggregate(values, context=Context(last_aggregate=first.vector))
    assert torch.equal(third.vector, second.vector)
    for wrong in (torch.zeros(4), torch.full((5,), float("nan"))):
        with pytest.raises(ConfigError, match="previous answer must be a finite vector"):
            rule.aggregate(values, state={"centre": wrong})


def test_memory_leads_to_the_honest_rows_whatever_the_start() -> None:
    values, state = rows() + 10, {}
    values[:2] = -1e3
    for _ in range(40):
        answer = CenteredClipping(radius=3.0).aggregate(values, state=state)
        state = answer.state
    assert (answer.vector - values[2:].mean(0)).norm() <= 3 * 2 / 7 * 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nearly_equal_rows_keep_their_digits(dtype: torch.dtype) -> None:
    size = 1e-4 if dtype == torch.float64 else 1e-1
    values = (1e3 + size * rows(11, 20, seed=4)).to(dtype)
    centre = (1e3 + size * rows(1, 20, seed=5)[0]).to(dtype)
    table, start = values.double().numpy() - 1e3, centre.double().numpy() - 1e3
    answer = CenteredClipping(radius=2 * size).aggregate(values, state={"centre": centre}).vector
    expected = oracle(table, 2 * size, 3, start)
    np.testing.assert_allclose(answer.double().numpy() - 1e3, expected, atol=size * (1e-6 if size < 1e-2 else 1e-2))


def test_one_iteration_never_pays_for_a_gram() -> None:
    class NoGram(DenseUpdates):
        def _gram(self) -> torch.Tensor:
            raise AssertionError("asked for the Gram matrix")

        def _squared_distances(self) -> torch.Tensor:
            raise AssertionError("asked for distances")

    rule = CenteredClipping(radius=1.0, iterations=1)
    close(rule(NoGram(rows())), (Clip(1.0) >> Mean())(rows()).numpy())
    close(
        rule.aggregate(NoGram(rows()), state={"centre": rows(1, seed=7)[0]}).vector,
        oracle(rows().numpy(), 1.0, 1, rows(1, seed=7)[0].numpy()),
    )


@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_order_and_place_of_the_rows(seed: int) -> None:
    values, rule = rows(seed=seed), CenteredClipping(radius=1.5)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    close(rule(values[order]), rule(values).numpy())
    centre = rows(1, seed=seed + 1)[0]
    here = rule.aggregate(values, state={"centre": centre}).vector
    there = rule.aggregate(values + 3, state={"centre": centre + 3}).vector
    close(there - 3, here.numpy())


def test_a_large_radius_is_the_mean() -> None:
    close(CenteredClipping(radius=float("inf"), iterations=1)(rows()), Mean()(rows()).numpy())
    answer = CenteredClipping(radius=1e3).aggregate(rows())
    close(answer.vector, answer.weights.numpy() @ rows().numpy())
    assert float(answer.weights.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identical_rows_and_dtypes(dtype: torch.dtype) -> None:
    same = rows(1, dtype=torch.float32).to(dtype).expand(9, 5)
    answer = CenteredClipping()(same)
    assert answer.dtype == dtype
    close(answer, same[0].double().numpy(), tolerance=2e-2 if dtype.itemsize == 2 else 1e-6)
    again = CenteredClipping().aggregate(same, state={"centre": same[0]})
    close(again.vector, same[0].double().numpy(), tolerance=2e-2 if dtype.itemsize == 2 else 1e-6)
    values = rows().to(dtype)
    before, centre = values.clone(), values[0].clone()
    answer = CenteredClipping(radius=1.0).aggregate(values, state={"centre": centre}).vector
    wide = oracle(values.double().numpy(), 1.0, 3, centre.double().numpy())
    close(answer, wide, tolerance=3e-2 if dtype.itemsize == 2 else 1e-5)
    assert torch.equal(values, before)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("evil", ["nan", "inf", "-inf", "1e30", "1e38", "-1e6", "copy", "mirror"])
def test_two_of_nine_move_it_no_farther_than_the_radius_allows(evil: str, iterations: int) -> None:
    values = rows(dtype=torch.float32)
    honest = values[[0, 1, 3, 4, 6, 7, 8]].clone()
    values[[2, 5]] = honest[0] if evil == "copy" else -honest[0] if evil == "mirror" else float(evil)
    answer = CenteredClipping(radius=2.0, iterations=iterations).aggregate(values)
    assert torch.isfinite(answer.vector).all()
    assert (answer.vector - honest.mean(0)).norm() <= 2.0 * 2 / 7 * iterations + 1.0
    if evil in ("nan", "inf", "-inf"):
        assert set(answer.excluded) == {2, 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": 0.0}, "radius must be a positive number"),
        ({"radius": float("nan")}, "radius must be a positive number"),
        ({"iterations": 0}, "iterations must be a whole number"),
        ({"iterations": 1.5}, "iterations must be a whole number"),
    ],
)
def test_wrong_parameters_say_what_would_fit(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CenteredClipping(**arguments)  # type: ignore[arg-type]
