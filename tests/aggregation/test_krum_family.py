from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import Krum, Mean, Rule
from bezoar.aggregation.bulyan import Bulyan
from bezoar.aggregation.multi_krum import MultiKrum
from bezoar.errors import ConfigError

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])

RULES: list[Rule] = [
    MultiKrum(f=2),
    MultiKrum(f=2, m=3),
    MultiKrum(f=2, variant="byzfl"),
    MultiKrum(f=2, variant="sparsefed"),
    Bulyan(f=2),
    Bulyan(f=2, variant="sparsefed"),
]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)


def rows(n: int = 11, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def score(values: np.ndarray, i: int, left: list[int], others: int, power: int = 2) -> float:
    gaps = sorted(float(((values[i] - values[j]) ** 2).sum()) ** (power / 2) for j in left if j != i)
    return sum(gaps[:others])


def multi_krum_oracle(values: np.ndarray, f: int, m: int, variant: str) -> np.ndarray:
    n = len(values)
    others = {"blanchard": n - f - 2, "byzfl": n - f - 1, "sparsefed": n - f - 3, "code-2021-05": n - 4}[variant]
    power = 2 if variant in ("blanchard", "byzfl") else 1
    scores = [score(values, i, list(range(n)), others, power) for i in range(n)]
    return values[sorted(range(n), key=lambda i: (scores[i], i))[:m]].mean(0)


def bulyan_oracle(values: np.ndarray, f: int, variant: str) -> tuple[set[int], np.ndarray]:
    n = len(values)
    left, picked = list(range(n)), []
    for _ in range(n - 2 * f):
        fewer = {"el-mhamdi": f + 2, "code-2021-05": 4}.get(variant, f + 3)
        others, power = max(int(variant == "el-mhamdi"), len(left) - fewer), 2 if variant == "el-mhamdi" else 1
        best = min(left, key=lambda i: (score(values, i, left, others, power), i))
        picked.append(best)
        left.remove(best)
    chosen, keep = values[picked], n - 4 * f
    if variant in ("code-2021-05", "code-2021-06"):
        # As that code has it: each row sorted along its coordinates, rows dropped by place, one mean of everything.
        return set(picked), np.full(values.shape[1], np.sort(chosen, axis=-1)[f:-f].mean())
    answer = []
    for column in chosen.T:
        if variant == "sparsefed":
            kept = sorted(column)[f : len(column) - f]
        else:
            middle = np.median(column)
            kept = sorted(column, key=lambda value: (abs(value - middle), value))[:keep]
        answer.append(sum(kept) / len(kept))
    return set(picked), np.array(answer)


def close(answer: torch.Tensor, expected: np.ndarray, scale: float = 1.0, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(answer.double().numpy() / scale, expected / scale, rtol=rtol, atol=rtol)


def test_golden_vector() -> None:
    for variant in ("blanchard", "byzfl"):
        answer = MultiKrum(f=1, m=4, variant=variant).aggregate(GOLDEN)  # type: ignore[arg-type]
        assert answer.vector.tolist() == [2.0, 2.0]
        assert answer.selected.tolist() == [True] * 4 + [False]
    assert MultiKrum(f=1).aggregate(GOLDEN).scores.tolist() == pytest.approx([3, 3, 7, 2, 39813])


@pytest.mark.parametrize("n", [5, 8, 21, 40])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_multi_krum_agrees_with_the_plain_oracle(n: int, scale: float) -> None:
    values = rows(n, 4, seed=n) * scale
    for f, variant in itertools.product({0, 1, (n - 3) // 2}, ("blanchard", "byzfl", "sparsefed", "code-2021-05")):
        if variant == "code-2021-05" and f > n - 5:
            continue
        for m in {1, (n - f + 1) // 2, n - f}:
            rule = MultiKrum(f=f, m=m, variant=variant)  # type: ignore[arg-type]
            close(rule(values), multi_krum_oracle(values.numpy(), f, m, variant), scale)


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (8, 1), (11, 2), (12, 0), (23, 5), (40, 9), (40, 3)])
@pytest.mark.parametrize("variant", ["el-mhamdi", "sparsefed", "code-2021-05", "code-2021-06"])
def test_bulyan_agrees_with_the_plain_oracle(n: int, f: int, variant: str) -> None:
    if f == 0 and variant.startswith("code"):
        pytest.skip("refused")
    for seed, scale in itertools.product(range(3), (1e-30, 1.0, 1e30)):
        values = rows(n, 3, seed=seed) * scale
        answer = Bulyan(f=f, variant=variant).aggregate(values)  # type: ignore[arg-type]
        picked, expected = bulyan_oracle(values.numpy(), f, variant)
        assert set(answer.selected.nonzero().flatten().tolist()) == picked
        close(answer.vector, expected, scale)


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=7, max_size=13), st.integers(0, 2))
def test_ties_and_copies_agree_with_the_oracles(values: list[list[int]], f: int) -> None:
    table = torch.tensor(values, dtype=torch.float64)
    f = min(f, (len(values) - 3) // 4)
    picked, expected = bulyan_oracle(table.numpy(), f, "el-mhamdi")
    answer = Bulyan(f=f).aggregate(table)
    assert set(answer.selected.nonzero().flatten().tolist()) == picked
    close(answer.vector, expected)
    close(MultiKrum(f=f)(table), multi_krum_oracle(table.numpy(), f, len(values) - f, "blanchard"))


def test_nearly_equal_rows_keep_their_digits() -> None:
    values = 1e3 + 1e-4 * rows(15, 30, seed=4)
    close(MultiKrum(f=3)(values) - 1e3, multi_krum_oracle(values.numpy(), 3, 12, "blanchard") - 1e3, 1e-4, 1e-6)
    picked, expected = bulyan_oracle(values.numpy(), 3, "el-mhamdi")
    answer = Bulyan(f=3).aggregate(values)
    assert set(answer.selected.nonzero().flatten().tolist()) == picked
    close(answer.vector - 1e3, expected - 1e3, 1e-4, 1e-6)


@given(st.integers(6, 14), st.integers(0, 2**31))
def test_one_row_of_multi_krum_is_krum(n: int, seed: int) -> None:
    values = rows(n, seed=seed)
    for variant in ("blanchard", "byzfl", "sparsefed", "code-2021-05"):
        assert torch.equal(MultiKrum(f=1, m=1, variant=variant)(values), Krum(f=1, variant=variant)(values))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [*RULES[:4], Bulyan(f=3), Bulyan(f=4, variant="sparsefed")], ids=repr)
@given(seed=st.integers(0, 2**31))
def test_order_place_and_size_of_the_rows(rule: Rule, seed: int) -> None:
    # With f <= 2 (as it is printed in the paper of SparseFed: f <= 3) Bulyan's last picks always tie.
    values = rows(19, seed=seed)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    expected = rule(values).numpy()
    close(rule(values[order]), expected)
    close(rule(values + 3.0) - 3.0, expected)
    # Equally near values below and above the median change places under a change of sign.
    factor = 7.0 if isinstance(rule, Bulyan) else -7.0
    close(rule(values * factor) / factor, expected)


@pytest.mark.parametrize("rule", [MultiKrum(f=0), Bulyan(f=0), Bulyan(f=0, variant="sparsefed")], ids=repr)
def test_f_zero_is_the_mean(rule: Rule) -> None:
    close(rule(rows()), Mean()(rows()).numpy())


@rules
def test_identical_rows_and_dtypes(rule: Rule) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        same = rows(1, dtype=torch.float32).to(dtype).expand(11, 5)
        answer = rule(same)
        assert answer.dtype == dtype
        close(answer, same[0].double().numpy(), rtol=1e-2 if dtype.itemsize == 2 else 1e-6)
        values = rows().to(dtype)
        before = values.clone()
        assert torch.isfinite(rule(values)).all()
        assert torch.equal(values, before)


@rules
@pytest.mark.parametrize("evil", ["nan", "inf", "1e30", "1e38", "copy", "mirror"])
def test_two_of_eleven_can_not_break_it(rule: Rule, evil: str) -> None:
    values = rows(dtype=torch.float32) + 1
    honest = values[[0, 1, 3, 4, 6, 7, 8, 9, 10]].clone()
    values[[2, 5]] = {"copy": honest[0], "mirror": -honest[0]}.get(
        evil, torch.tensor(0.0) if evil in "copymirror" else torch.tensor(float(evil))
    )
    answer = rule.aggregate(values)
    assert torch.isfinite(answer.vector).all()
    assert (answer.vector - honest.mean(0)).norm() <= 2 * (honest - honest.mean(0)).norm(dim=1).max()
    if evil in ("nan", "inf"):
        assert set(answer.excluded) == {2, 5}
        assert torch.equal(answer.vector, rule.without(2)(honest))
    if evil == "1e30":
        assert not answer.selected[[2, 5]].any()


def test_the_unverified_constant_is_not_exceeded_on_two_point_sets() -> None:
    n, f = 7, 2
    rule = MultiKrum(f=f, variant="byzfl")
    (kappa,) = rule.constants(n, f, f)
    assert kappa.value == pytest.approx(8 / 3)
    assert kappa.source == "unverified"
    worst = 0.0
    for values in itertools.product([0.0, 1.0], repeat=n - f):
        honest = np.array(values)
        for evil in itertools.product([-1.0, 0.0, 1.0, 2.0], repeat=f):
            gap = float(rule(torch.tensor([*values, *evil]).reshape(-1, 1).double())) - honest.mean()
            worst = max(worst, gap**2 / honest.var()) if honest.var() else worst
    assert 0.5 < worst <= kappa.value
    assert MultiKrum(f=f).constants(n, f, f) == ()
    assert MultiKrum(f=f, m=2, variant="byzfl").constants(n, f, f) == ()


@pytest.mark.parametrize("n", [4, 5, 7, 10, 11, 12, 21])
def test_sparsefeds_variant_withstands_fewer_copies_than_it_accepts(n: int) -> None:
    bad = (n - 3) // 2
    for build in (Krum, MultiKrum):
        assert build(f=n - 4, variant="sparsefed").withstands(n) == bad  # type: ignore[operator]
        values = rows(n)
        values[:bad] = 1e3
        assert build(f=bad, variant="sparsefed")(values).norm() < 20  # type: ignore[operator]
    assert MultiKrum(f=0, m=n, variant="sparsefed").withstands(n) == 0
    # What the largest f is worth: copies that are company enough for each other win.
    if n >= 5:
        values = rows(n)
        values[: n // 2] = 1e3
        assert Krum(f=n - 4, variant="sparsefed")(values).norm() > 1e3
    assert Krum(f=0).withstands(n) == (n - 3) // 2
    assert Krum(f=0, variant="byzfl").withstands(n) == (n - 1) // 2


@pytest.mark.parametrize(
    ("build", "n", "message"),
    [
        (lambda: MultiKrum(f=1, m=0), 5, "m must be a whole number >= 1"),
        (lambda: MultiKrum(f=1, m=5), 5, "m must be between 1 and 4"),
        (lambda: MultiKrum(f=2), 6, "f must be between 0 and 1"),
        (lambda: Krum(f=0, variant="code-2021-05"), 4, "can not work with n=4"),
        (lambda: Krum(f=1, variant="code-2021-05"), 5, "f must be between 0 and 0"),
        (lambda: Bulyan(f=0, variant="code-2021-05"), 7, "divides by nothing for f=0"),
        (lambda: MultiKrum(f=1, variant="x"), 6, "variant must be"),
        (lambda: Bulyan(f=1, variant="x"), 7, "variant must be"),
        (lambda: Bulyan(f=2), 10, "f must be between 0 and 1"),
        (lambda: Bulyan(f=0), 2, "can not work with n=2"),
    ],
)
def test_wrong_parameters_say_what_would_fit(build: object, n: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()(rows(n))  # type: ignore[operator]
