"""Every reading of a rule in the SparseFed paper and its code, with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bezoar.aggregation import RULES, Bulyan, Krum, Median, TrimmedMean
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_lower_median() -> None:
    even = column(4, 1, 3, 2)
    assert Median()(even).tolist() == [2.5]
    assert Median(variant="lower")(even).tolist() == [2.0]
    assert Median(variant="lower")(even[:3]).tolist() == Median()(even[:3]).tolist() == [3.0]
    draws = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 8):
        values = torch.randn(n, 50, generator=draws)
        assert torch.equal(Median(variant="lower")(values), values.median(dim=0).values)


def test_the_lower_median_withstands_one_bad_row_less_than_half() -> None:
    values = column(1e9, 1e9, 1e9, 0, 1, 2, 3, 4)
    assert Median(variant="lower").withstands(8) == 3
    assert 0 <= float(Median(variant="lower")(values)) <= 4
    assert Median(variant="lower").constants(8, 0, 1) == ()
    assert Median(variant="lower").constants(7, 0, 1) == Median().constants(7, 0, 1)


def test_krum_of_the_code_by_hand() -> None:
    # Six numbers, the two nearest others count (n - 4), whatever f is.
    values = column(0, 1, 3, 7, 8, 9.5)
    # Sums: 0: 1+3; 1: 1+2; 3: 2+3; 7: 1+2.5; 8: 1+1.5; 9.5: 1.5+2.5.
    for f in (0, 1):
        answer = Krum(f=f, variant="code-2021-05").aggregate(values)
        assert answer.scores is not None
        assert answer.scores.tolist() == pytest.approx([4, 3, 5, 3.5, 2.5, 4])
        assert answer.vector.tolist() == [8.0]
    # At f = 1 that is Algorithm 8 as it is printed, at f = 2 Blanchard's count, unsquared.
    many = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Krum(f=1, variant="code-2021-05")(many), Krum(f=1, variant="sparsefed")(many))
    squared = Krum(f=2).aggregate(values.repeat(2, 1)[:9]).scores
    assert squared is not None
    gaps = (values.repeat(2, 1)[:9] - values.repeat(2, 1)[:9].T).abs().sort(dim=1).values
    assert torch.allclose(squared, gaps[:, 1:6].square().sum(1))
    code = Krum(f=2, variant="code-2021-05").aggregate(values.repeat(2, 1)[:9]).scores
    assert code is not None
    assert torch.allclose(code, gaps[:, 1:6].sum(1))


@pytest.mark.parametrize("n", [5, 6, 9, 14])
def test_krum_of_the_code_withstands_what_it_says(n: int) -> None:
    rule = Krum(f=0, variant="code-2021-05")
    draws = torch.Generator().manual_seed(n)
    bad = rule.withstands(n)
    assert bad == (n - 3) // 2
    for spread in (0.0, 1.0, 1e3):
        values = torch.randn(n, 3, generator=draws, dtype=torch.float64)
        values[:bad] = 1e4 + spread * values[:bad]
        assert rule(values).norm() < 20


BROKEN = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 9.0], [7.0, 7.0]], dtype=torch.float64)


def test_trimmed_mean_of_the_code_is_one_number_for_all_coordinates() -> None:
    # Clients 1 and 2 are left: (2 + 4 + 3 + 9) / 4 = 4.5 in both coordinates; sorting rows changes nothing.
    assert TrimmedMean(f=1, variant="code-2021-05")(BROKEN).tolist() == [4.5, 4.5]
    assert TrimmedMean(f=1)(BROKEN).tolist() == [2.5, 6.0]
    as_written = np.sort(BROKEN.numpy())[1:-1].mean()
    assert as_written == 4.5
    # Who stands at the ends is dropped, who stands in the middle decides.
    last, middle = BROKEN.clone(), BROKEN.clone()
    last[3], middle[1] = 1e9, 1e9
    rule = TrimmedMean(f=1, variant="code-2021-05")
    assert rule(last).tolist() == [4.5, 4.5]
    assert float(rule(middle)[0]) > 1e8


def test_broken_rules_promise_nothing() -> None:
    for rule in (
        TrimmedMean(f=1, variant="code-2021-05"),
        Bulyan(f=1, variant="code-2021-05"),
        Bulyan(f=1, variant="code-2021-06"),
    ):
        (constant,) = rule.constants(9, 1, 0)
        assert constant.value == math.inf
        assert rule.withstands(9) == 0
        # Equal rows have no variance, and yet they are moved: no finite constant can hold.
        equal = torch.tensor([[0.0, 4.0]]).repeat(9, 1)
        assert rule(equal).tolist() == [2.0, 2.0]
        assert "broken, for reproduction only" in " ".join((type(rule).__doc__ or "").split())


def test_broken_rules_refuse_what_gives_nan_in_that_code() -> None:
    for make in (TrimmedMean, Bulyan):
        with pytest.raises(ConfigError, match=r"for f=0 \(that code gives NaN\)"):
            make(f=0, variant="code-2021-05")
    with pytest.raises(ConfigError, match="knows no weights"):
        TrimmedMean(f=1, weighted=True, variant="code-2021-05")
    with pytest.raises(ConfigError, match="'yin' or 'code-2021-05', got 'x'"):
        TrimmedMean(f=1, variant="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'midpoint' or 'lower', got 'x'"):
        Median(variant="x")  # type: ignore[arg-type]


def test_a_row_that_is_not_finite_still_leaves_an_answer() -> None:
    values = BROKEN.clone()
    values[0, 0] = math.nan
    answer = TrimmedMean(f=1, variant="code-2021-05").aggregate(values)
    assert answer.excluded == {0: "not finite"}
    # Of the three that remain the middle one: (3 + 9) / 2.
    assert answer.vector.tolist() == [6.0, 6.0]


def test_bulyan_as_it_is_printed_by_hand() -> None:
    # f = 1, n = 7: five picks, of which the smallest and the largest are trimmed.
    values = column(0, 1, 2, 4, 8, 16, 100)
    # Sums over the r - 4 nearest. r = 7: 0: 1+2+4=7; 1: 1+1+3=5; 2: 1+2+2=5; 4: 2+3+4=9; ... -> 1 (row 1).
    # r = 6, two nearest: 0: 2+4; 2: 2+2; 4: 2+4; -> 2. r = 5, one: 0: 4; 4: 4; 8: 4; -> 0.
    # r = 4: none counts -> 4, then 8.
    answer = Bulyan(f=1, variant="sparsefed").aggregate(values)
    assert answer.selected is not None
    assert values[answer.selected].flatten().tolist() == [0, 1, 2, 4, 8]
    assert float(answer.vector) == pytest.approx((1 + 2 + 4) / 3)
    # The order of the picks is 1, 2, 0, 4, 8: the broken ones drop the first and the last pick.
    assert float(Bulyan(f=1, variant="code-2021-06")(values)) == pytest.approx((2 + 0 + 4) / 3)
    # At f = 1 both count r - 4 others.
    assert float(Bulyan(f=1, variant="code-2021-05")(values)) == pytest.approx((2 + 0 + 4) / 3)


def test_tables_leave_new_defaults_out() -> None:
    assert RULES.table(Median()) == {"kind": "median"}
    assert RULES.table(TrimmedMean(f=1)) == {"kind": "trimmed-mean", "f": 1, "weighted": False}
    for rule in (Median(variant="lower"), TrimmedMean(f=1, variant="code-2021-05"), Krum(f=1, variant="code-2021-05")):
        assert RULES.build(RULES.table(rule)) == rule


def test_one_number_of_lazy_rows_is_that_of_dense_ones() -> None:
    values = torch.randn(9, 300, generator=torch.Generator().manual_seed(3))
    rule = TrimmedMean(f=2, variant="code-2021-05")
    expected = float(values[2:7].double().mean())
    assert float(rule(DenseUpdates(values))[0]) == pytest.approx(expected, abs=1e-7)
