from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import Median, TrimmedMean
from bezoar.errors import BezoarError, ConfigError, UnsupportedError
from bezoar.updates import DenseUpdates, Mixed, Needs, Shifted, Stacked
from bezoar.updates.convert import as_updates
from bezoar.updates.streamed import StreamedUpdates
from tests.updates.oracle import check_against, close

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def matrix(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 40), (9, 33000)])
def test_dense_agrees_with_brute_force(n: int, d: int, dtype: torch.dtype) -> None:
    rows = matrix(n, d, dtype)
    check_against(DenseUpdates(rows, clients=torch.arange(n) * 3), rows, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_mixed_agrees_with_brute_force(dtype: torch.dtype) -> None:
    rows, mixing = matrix(6, 500, dtype), matrix(4, 6, seed=1)
    check_against(Mixed(DenseUpdates(rows), mixing), mixing @ rows.double(), TOLERANCE[dtype] * 4)
    scales = mixing[0].abs()
    check_against(Mixed(DenseUpdates(rows), scales), scales[:, None] * rows.double(), TOLERANCE[dtype])
    twice = Mixed(Mixed(DenseUpdates(rows), scales), mixing)
    check_against(twice, mixing @ (scales[:, None] * rows.double()), TOLERANCE[dtype] * 4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 40), (9, 3300)])
def test_shifted_agrees_with_brute_force(n: int, d: int, dtype: torch.dtype) -> None:
    rows, vector = matrix(n, d, dtype), matrix(1, d, dtype, seed=1)[0]
    # A row that the vector nearly cancels: norms from the product alone would have no digits.
    rows[0] = -vector + 1e-4 * rows[0]
    moved = rows.double() + vector.double()
    shifted = Shifted(DenseUpdates(rows, clients=torch.arange(n) * 3), vector)
    torch.testing.assert_close(shifted.squared_norms(), moved.square().sum(1), rtol=TOLERANCE[dtype] * 200, atol=0)
    check_against(Shifted(DenseUpdates(rows), 0 * vector), rows, TOLERANCE[dtype])
    check_against(
        Shifted(DenseUpdates(rows[1:] if n > 1 else rows), vector), moved[1:] if n > 1 else moved, TOLERANCE[dtype] * 20
    )


def test_shifted_refuses_a_vector_of_another_length_and_keeps_flaws() -> None:
    rows = matrix(3, 4)
    with pytest.raises(ConfigError, match=r"vector must be \[4\], got \[5\]"):
        Shifted(DenseUpdates(rows), torch.zeros(5))
    rows[1, 2] = torch.nan
    shifted = Shifted(DenseUpdates(rows), torch.ones(4))
    assert shifted.finite().tolist() == [True, False, True]
    assert TrimmedMean(f=1).aggregate(shifted).excluded == {1: "not finite"}
    assert torch.equal(shifted.select(torch.tensor([2, 0])).materialise(), (rows + 1)[[2, 0]])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_stacked_agrees_with_brute_force(dtype: torch.dtype) -> None:
    honest, basis, coefficients = matrix(5, 300, dtype), matrix(2, 300, dtype, 1), matrix(3, 2, seed=2)
    ids = torch.tensor([4, 0, 9, 7, 2]), torch.tensor([1, 8, 3])
    stacked = Stacked.by_client(DenseUpdates(honest, ids[0]), coefficients, basis, ids[1])
    whole = torch.cat([honest.double(), coefficients @ basis.double()])[torch.argsort(torch.cat(ids))]
    assert stacked.clients.tolist() == sorted(torch.cat(ids).tolist())
    assert stacked.malicious.tolist() == [c in (1, 8, 3) for c in stacked.clients.tolist()]
    check_against(stacked, whole, TOLERANCE[dtype] * 4)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_stacked_agrees_with_brute_force_over_several_chunks(dtype: torch.dtype) -> None:
    honest, basis, coefficients = matrix(4, 40_000, dtype), matrix(3, 40_000, dtype, 1), matrix(3, 3, seed=2)
    coefficients[1] = torch.tensor([0.0, 1.0, 0.0])
    # A malicious row that nearly is an honest one, so that its distances are measured again.
    basis[1] = honest[2] + 1e-4 * basis[1]
    stacked = Stacked(DenseUpdates(honest), coefficients, basis)
    check_against(stacked, torch.cat([honest.double(), coefficients @ basis.double()]), TOLERANCE[dtype] * 4)
    whole = Stacked(DenseUpdates(honest), torch.eye(3), basis)
    assert torch.equal(whole.sent(), basis)


def test_a_finite_basis_is_not_copied_and_not_changed() -> None:
    honest, basis = DenseUpdates(matrix(4, 100)), matrix(2, 100, seed=1)
    before = basis.clone()
    stacked = Stacked(honest, torch.eye(2), basis)
    stacked.squared_distances()
    other = stacked.with_coefficients(torch.tensor([[2.0, 0.0], [1.0, -1.0]]))
    kept = stacked.select(torch.tensor([0, 1, 4, 5]))
    assert isinstance(kept, Stacked)
    for some in (stacked, other, kept):
        assert some.basis.data_ptr() == basis.data_ptr() == some._clean.data_ptr()
    stacked.sent().zero_()
    assert torch.equal(basis, before)


def test_other_coefficients_give_other_answers_and_must_have_the_same_shape() -> None:
    rows, basis = matrix(6, 50), matrix(2, 50, seed=1)
    basis[1, 3] = torch.inf
    stacked = Stacked(DenseUpdates(rows), torch.eye(2), basis)
    for question in ("squared_norms", "gram", "squared_distances"):
        getattr(stacked, question)()
    mixes = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    check_against(stacked.with_coefficients(mixes), torch.cat([rows, mixes[:, :1].double() @ basis[:1]]), 1e-12)
    assert stacked.finite().tolist() == [True] * 7 + [False]
    with pytest.raises(ConfigError, match=r"coefficients must be \[2, 2\]"):
        stacked.with_coefficients(torch.ones(1, 2))


def test_copies_have_distance_exactly_zero() -> None:
    honest = DenseUpdates(matrix(4, 1000, torch.float32))
    stacked = Stacked(honest, torch.tensor([[1.0, 0.3], [1.0, 0.3]]), matrix(2, 1000, torch.float32, 1) * 1e3)
    assert float(stacked.squared_distances()[4, 5]) == 0.0
    assert float(stacked.squared_distances()[0, 5]) > 0.0


def test_search_over_coefficients_reads_the_data_once() -> None:
    class Counting(DenseUpdates):
        dots = 0

        def dot(self, vector: torch.Tensor) -> torch.Tensor:
            Counting.dots += 1
            return super().dot(vector)

    rows, basis = matrix(6, 50), matrix(2, 50, seed=1)
    stacked = Stacked(Counting(rows), torch.eye(2), basis)
    stacked.gram()
    assert Counting.dots == 2
    other = stacked.with_coefficients(torch.tensor([[3.0, -1.0], [0.5, 0.0]]))
    whole = torch.cat([rows, torch.tensor([[3.0, -1.0], [0.5, 0.0]], dtype=torch.float64) @ basis])
    close(other.gram(), whole @ whole.T, 1e-12)
    assert Counting.dots == 2


def test_streamed_rows_answer_norm_rules_and_refuse_others() -> None:
    rows = matrix(5, 40)
    streamed = StreamedUpdates(lambda i: rows[i], rows[0], torch.arange(5))
    close(streamed.squared_norms(), rows.square().sum(1), 1e-12)
    close(streamed.combine(torch.arange(5.0)), torch.arange(5.0).double() @ rows, 1e-12)
    close(streamed.select(torch.tensor([3, 1])).combine(torch.tensor([1.0, 2.0])), rows[3] + 2 * rows[1], 1e-12)
    with pytest.raises(UnsupportedError, match="Krum needs gram"):
        streamed.require(Needs.GRAM, "Krum")


@given(st.integers(2, 8), st.integers(1, 30), st.integers(0, 2**31))
def test_distances_of_nearly_equal_rows_keep_their_digits(n: int, d: int, seed: int) -> None:
    common = matrix(1, d, seed=seed) * 1e3
    rows = common + 1e-4 * matrix(n, d, seed=seed + 1)
    exact = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    close(DenseUpdates(rows).squared_distances(), exact, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_huge_and_tiny_rows_are_legal_numbers(size: float, dtype: torch.dtype) -> None:
    rows = matrix(7, 100, dtype)
    rows[3] *= size
    updates = DenseUpdates(rows)
    wide = rows.double()
    assert updates.finite().all()
    exact = (wide[:, None] - wide[None]).square().sum(2)
    found = updates.squared_distances()
    assert ((found - exact).abs() <= 1e-5 * exact).all()
    assert ((updates.gram() - wide @ wide.T).abs() <= 1e-5 * wide.norm(dim=1)[:, None] * wide.norm(dim=1)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finite_names_the_bad_row(value: float) -> None:
    rows = matrix(4, 10)
    rows[2, 5] = value
    assert DenseUpdates(rows).finite().tolist() == [True, True, False, True]


def test_kinds_come_back_as_they_went_in() -> None:
    rows = matrix(3, 4, torch.float32)
    for kind in (rows, rows.numpy(), [r.numpy() for r in rows], list(rows)):
        updates, restore = as_updates(kind)
        back = restore(updates.combine(torch.tensor([1.0, 0.0, 0.0])))
        assert isinstance(back, np.ndarray if not torch.is_tensor(kind[0]) else torch.Tensor)
        np.testing.assert_allclose(np.asarray(back), rows[0].numpy())


def test_arrays_that_torch_can_not_share_are_copied() -> None:
    plain = matrix(3, 4, torch.float32).numpy()
    foreign, locked = plain.astype(">f4"), plain.copy()
    locked.setflags(write=False)
    for array in (foreign, locked):
        np.testing.assert_array_equal(Median()(array), Median()(plain))
        np.testing.assert_array_equal(Median()(list(array)), Median()(plain))


def test_mappings_come_back_with_names_and_shapes() -> None:
    states = [{"w": matrix(2, 3, seed=i), "b": np.ones(2) * i} for i in range(3)]
    updates, restore = as_updates(states)
    assert [segment.name for segment in updates.layout] == ["w", "b"]
    back = restore(updates.combine(torch.tensor([0.0, 1.0, 0.0])))
    assert list(back) == ["w", "b"]
    assert back["w"].shape == (2, 3)
    assert isinstance(back["b"], np.ndarray)
    np.testing.assert_allclose(back["b"], [1.0, 1.0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "empty"),
        (torch.ones(3), "matrix"),
        ([torch.ones(2, dtype=torch.complex64)], "none of them"),
        (torch.ones(2, 2, dtype=torch.complex64), "real numbers"),
        (["a", "b"], "none of them"),
        (torch.zeros(3, 0), "n, d >= 1"),
        ([torch.zeros(0)] * 3, "no parameters"),
        ([{}, {}, {}], "no parameters"),
        ([{"a": torch.zeros(0)}] * 3, "no parameters"),
        ("text", "must be"),
        (7, "must be"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(bad: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_updates(bad)


GOOD = [{"w": torch.full((2,), float(i)), "b": torch.ones(1)} for i in range(6)]


@pytest.mark.parametrize(
    "evil",
    [
        {"w": torch.zeros(3), "b": torch.ones(1)},
        {"w": torch.zeros(2)},
        {"w": torch.zeros(2), "b": torch.ones(1), "extra": torch.ones(1)},
        {"w": "text", "b": torch.ones(1)},
        {},
        None,
        torch.zeros(3),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", [0, 3])
def test_a_malformed_mapping_is_a_hostile_row_wherever_it_stands(evil: object, place: int) -> None:
    rows: list[object] = [*GOOD]
    rows.insert(place, evil)
    answer = Median().aggregate(rows)
    assert answer.excluded == {place: "other names or shapes than the majority"}
    assert Median()(rows)["w"].tolist() == [2.5, 2.5]


@pytest.mark.parametrize("evil", [torch.zeros(3), torch.zeros(2, 1), "text", None, {"a": 1.0}], ids=str)
def test_a_malformed_vector_is_a_hostile_row(evil: object) -> None:
    rows: list[object] = [evil, *(torch.full((2,), float(i)) for i in range(6))]
    answer = TrimmedMean(f=2).aggregate(rows)
    assert answer.excluded == {0: "not a vector of length 2"}
    assert answer.vector.tolist() == [2.5, 2.5]


def test_one_client_does_not_decide_the_type() -> None:
    rows = [{"w": torch.zeros(2, dtype=torch.int64)}, *({"w": torch.full((2,), 0.5)} for _ in range(6))]
    answer = Median()(rows)["w"]
    assert answer.dtype == torch.float32
    assert answer.tolist() == [0.5, 0.5]


def test_integer_entries_keep_their_digits() -> None:
    rows = [{"w": torch.ones(1), "n": torch.tensor(2**24 + 1)} for _ in range(3)]
    answer = Median()(rows)
    assert int(answer["n"]) == 2**24 + 1
    assert answer["w"].dtype == torch.float32


def test_a_vector_with_nan_spoils_only_the_rows_that_use_it() -> None:
    basis = matrix(3, 10, seed=1)
    basis[1, 4] = torch.nan
    stacked = Stacked(DenseUpdates(matrix(6, 10)), torch.eye(3), basis)
    assert stacked.finite().tolist() == [True] * 7 + [False, True]
    assert TrimmedMean(f=1).aggregate(stacked).excluded == {7: "not finite"}
    kept = stacked.select(torch.tensor([0, 6, 8]))
    check_against(kept, torch.cat([matrix(6, 10)[:1], basis[[0, 2]]]), 1e-12)
    gram = stacked.gram()
    assert torch.isnan(gram[7]).all()
    assert torch.isfinite(gram[[0, 6, 8]][:, [0, 6, 8]]).all()
    one = torch.zeros(9, dtype=torch.float64)
    one[7] = 1.0
    assert torch.isnan(stacked.combine(one)).all()


def test_constructors_check_shapes() -> None:
    honest = DenseUpdates(matrix(3, 4))
    with pytest.raises(BezoarError, match="one id a row"):
        DenseUpdates(matrix(3, 4), clients=torch.arange(2))
    with pytest.raises(BezoarError, match="matrix must be"):
        Mixed(honest, matrix(2, 5))
    with pytest.raises(BezoarError, match="basis must be"):
        Stacked(honest, torch.ones(1, 1), matrix(1, 5))


def test_what_is_sent_keeps_infinities_of_copied_rows_only() -> None:
    basis = torch.tensor([[1.0, 2.0], [torch.inf, 0.0]])
    stacked = Stacked(DenseUpdates(torch.ones(3, 2)), torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), basis)
    sent = stacked.sent()
    assert sent[:2].tolist() == [[2.0, 4.0], [torch.inf, 0.0]]
    assert torch.isnan(sent[2]).all()


def test_stacked_rows_that_are_left_without_malicious_ones_or_a_basis() -> None:
    honest = DenseUpdates(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    stacked = Stacked(honest, torch.tensor([[0.0], [2.0]]), torch.ones(1, 5))
    for rows in ([0, 1, 2, 3], [2, 0], [3, 4], [4], [5, 1]):
        chosen = stacked.select(torch.tensor(rows))
        whole = stacked.materialise()[rows]
        assert torch.equal(chosen.materialise(), whole)
        expected = (whole[:, None] - whole[None]).double().square().sum(2)
        assert torch.allclose(chosen.squared_distances(), expected, atol=1e-6)
        assert torch.allclose(chosen.combine(torch.ones(len(rows))), whole.sum(0), atol=1e-6)
    assert stacked.select(torch.arange(4)) is honest
