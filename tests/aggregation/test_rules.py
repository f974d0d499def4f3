from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import RULES, Clip, Krum, Mean, Median, Rule, TrimmedMean, pipeline, pipeline_tables
from bezoar.aggregation.noise import GaussianNoise
from bezoar.errors import ConfigError, HostileRowsError, UnsupportedError
from bezoar.updates import DenseUpdates, Needs
from bezoar.updates.streamed import StreamedUpdates

#: Golden vectors: five clients, the last one far away.
GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])

ROBUST: list[Rule] = [
    Median(),
    TrimmedMean(f=2),
    Krum(f=2),
    Krum(f=2, variant="byzfl"),
    Krum(f=2, variant="sparsefed"),
    Clip(1.0) >> TrimmedMean(f=2),
    Clip(3.0) >> Clip(1.0) >> Krum(f=2),
]
rules = pytest.mark.parametrize("rule", ROBUST, ids=repr)


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Mean(), [21.6, -18.4]),
        (Median(), [2.0, 2.0]),
        (TrimmedMean(f=1), [7 / 3, 5 / 3]),
        (Krum(f=1), [2.0, 2.0]),
        (Krum(f=1, variant="byzfl"), [2.0, 2.0]),
    ],
    ids=repr,
)
def test_golden_vectors(rule: Rule, expected: list[float]) -> None:
    np.testing.assert_allclose(rule(GOLDEN).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(rule(GOLDEN.double()).numpy(), expected, rtol=1e-12)


def test_golden_krum_scores() -> None:
    assert Krum(f=1).aggregate(GOLDEN).scores.tolist() == pytest.approx([3, 3, 7, 2, 39813])
    assert Krum(f=1, variant="byzfl").aggregate(GOLDEN).scores.tolist() == pytest.approx([8, 8, 12, 4, 59831])


def test_golden_clip() -> None:
    clipped = Clip(2.0)(GOLDEN)
    np.testing.assert_allclose(clipped[0].numpy(), [0.894427, 1.788854], rtol=1e-5)
    np.testing.assert_allclose(clipped[4].numpy(), [1.414214, -1.414214], rtol=1e-5)
    assert (Clip(float("inf")) >> Mean())(GOLDEN).tolist() == Mean()(GOLDEN).tolist()
    zero = torch.zeros(2, 3)
    assert Clip(1.0)(zero).tolist() == zero.tolist()


def krum_oracle(values: np.ndarray, f: int) -> np.ndarray:
    n = len(values)
    scores = []
    for i in range(n):
        gaps = sorted(float(((values[i] - values[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(gaps[: n - f - 2]))
    return values[int(np.argmin(scores))]


def trimmed_oracle(values: np.ndarray, f: int) -> np.ndarray:
    columns = [sorted(column)[f : len(column) - f] for column in values.T.tolist()]
    return np.array([sum(column) / len(column) for column in columns])


@given(st.integers(5, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_rules_agree_with_plain_oracles(n: int, d: int, seed: int) -> None:
    values = rows(n, d, seed)
    for f in range((n - 3) // 2 + 1):
        np.testing.assert_array_equal(Krum(f=f)(values).numpy(), krum_oracle(values.numpy(), f))
    for f in range((n - 1) // 2 + 1):
        np.testing.assert_allclose(
            TrimmedMean(f=f)(values).numpy(), trimmed_oracle(values.numpy(), f), rtol=1e-12, atol=1e-14
        )
    np.testing.assert_allclose(Median()(values).numpy(), np.median(values.numpy(), axis=0), rtol=1e-14)


@rules
@given(seed=st.integers(0, 2**31))
def test_permutation_of_clients_changes_nothing(rule: Rule, seed: int) -> None:
    values = rows(seed=seed)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(rule(values[order]).numpy(), rule(values).numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", [Mean(), Median(), TrimmedMean(f=2), Krum(f=2)], ids=repr)
@given(seed=st.integers(0, 2**31))
def test_translation_moves_the_answer(rule: Rule, seed: int) -> None:
    values, shift = rows(seed=seed), rows(1, seed=seed + 1)
    np.testing.assert_allclose(rule(values + shift).numpy(), (rule(values) + shift[0]).numpy(), rtol=1e-9, atol=1e-12)


def test_trimming_nothing_is_the_mean() -> None:
    np.testing.assert_allclose(TrimmedMean(f=0)(rows()).numpy(), Mean()(rows()).numpy(), rtol=1e-13)


@rules
@pytest.mark.parametrize("evil", [1e30, -1e30, 1e6, 0.0])
def test_two_of_nine_can_not_break_a_robust_rule(rule: Rule, evil: float) -> None:
    values = rows(dtype=torch.float32)
    values[[2, 5]] = evil
    honest = values[[0, 1, 3, 4, 6, 7, 8]]
    answer = rule(values)
    assert torch.isfinite(answer).all()
    assert (answer - honest.mean(0)).norm() <= 3 * (honest - honest.mean(0)).norm(dim=1).max() + 3


@rules
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_hostile_rows_are_excluded_and_counted(rule: Rule, value: float) -> None:
    values = rows()
    values[4, 1] = value
    answer = rule.aggregate(values)
    assert answer.excluded == {4: "not finite"}
    others = values[[0, 1, 2, 3, 5, 6, 7, 8]]
    np.testing.assert_allclose(answer.vector.numpy(), rule.without(1)(others).numpy(), rtol=1e-12)
    for diagnostic in (answer.weights, answer.scores):
        assert diagnostic is None or len(diagnostic) == 9
    assert answer.weights is None or float(answer.weights[4]) == 0.0
    assert answer.scores is None or torch.isnan(answer.scores[4])


@rules
def test_more_hostile_rows_than_f_are_an_error_that_names_them(rule: Rule) -> None:
    values = rows()
    values[[1, 3, 4, 6, 8]] = float("nan")
    with pytest.raises(HostileRowsError, match=r"5 of 9 updates are not finite") as caught:
        rule(values)
    assert caught.value.rows == (1, 3, 4, 6, 8)


def test_mean_excludes_and_reports_any_number() -> None:
    values = rows(4)
    values[:3] = float("inf")
    answer = Mean().aggregate(values)
    assert list(answer.excluded) == [0, 1, 2]
    assert answer.vector.tolist() == values[3].tolist()
    with pytest.raises(HostileRowsError, match="4 of 4"):
        Mean()(torch.full((4, 2), float("nan")))


@rules
def test_input_is_never_changed_and_kind_and_dtype_are_kept(rule: Rule) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = rows().to(dtype)
        before = values.clone()
        answer = rule(values)
        assert answer.dtype == dtype
        assert torch.equal(values, before)
        wide = rule(values.double())
        tolerance = {torch.float16: 3e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
        assert (answer.double() - wide).norm() <= tolerance * (1 + wide.norm())
    array = rows().numpy()
    assert isinstance(rule(array), np.ndarray)
    state = rule([{"w": row.view(5, 1)} for row in rows()])
    np.testing.assert_allclose(state["w"].flatten().numpy(), rule(array), rtol=1e-12)


def test_the_largest_numbers_do_not_overflow_on_the_way() -> None:
    values = torch.full((5, 1), 3e38)
    for rule in (Mean(), Median(), TrimmedMean(f=0), TrimmedMean(f=1), Krum(f=1)):
        assert rule(values).item() == pytest.approx(3e38)
    tiny = torch.zeros(5, 2, dtype=torch.float64)
    tiny[1, 0] = 1e-310
    assert torch.isfinite(Krum(f=1)(tiny)).all()


def test_half_precision_accumulates_in_single() -> None:
    values = torch.full((4096, 1), 1.0, dtype=torch.float16)
    assert Mean()(values).item() == pytest.approx(1.0)
    assert TrimmedMean(f=1)(values).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rule", "n", "message"),
    [
        (TrimmedMean(f=3), 6, r"TrimmedMean: f=3 is out of range for n=6 rows; f must be between 0 and 2"),
        (Krum(f=2), 6, r"Krum: f=2 is out of range for n=6 rows; f must be between 0 and 1"),
        (Krum(f=0), 2, r"Krum can not work with n=2 rows"),
        (Clip(1.0) >> Krum(f=2), 6, r"Krum: f=2 is out of range"),
    ],
)
def test_f_out_of_range_says_what_would_fit(rule: Rule, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(rows(n))


@pytest.mark.parametrize("bad", [-1, 1.5, True, "2"])
def test_f_must_be_a_count(bad: object) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        TrimmedMean(f=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), "5"])
def test_radius_must_be_positive(bad: object) -> None:
    with pytest.raises(ConfigError, match="radius"):
        Clip(bad)  # type: ignore[arg-type]


def test_pipelines_end_in_a_rule() -> None:
    with pytest.raises(ConfigError, match="Mean"):
        (Clip(5.0) >> Clip(1.0))(rows())
    with pytest.raises(ConfigError, match="Mean"):
        (Clip(5.0) >> Clip(1.0)).aggregate(rows())
    with pytest.raises(ConfigError, match="Mean"):
        Clip(5.0).aggregate(rows())
    with pytest.raises(ConfigError, match="already ends"):
        (Clip(5.0) >> Mean()) >> Mean()
    with pytest.raises(ConfigError, match="ends in a rule"):
        pipeline([{"kind": "clip", "radius": 1.0}])
    with pytest.raises(ConfigError, match="must come last"):
        pipeline(["mean", "mean"])


def test_pipeline_diagnostics_are_in_the_callers_numbering() -> None:
    values = rows()
    values[0] = float("nan")
    answer = (Clip(0.5) >> Krum(f=2)).aggregate(values)
    assert answer.scales.shape == (9,)
    assert float(answer.scales[0]) == 0.0
    assert (answer.scales[1:] <= 1).all()
    chosen = int(answer.weights.argmax())
    np.testing.assert_allclose(answer.vector.numpy(), (answer.weights[chosen] * values[chosen]).numpy(), rtol=1e-12)
    np.testing.assert_allclose(float(answer.vector.norm()), 0.5, rtol=1e-12)


def test_norm_rules_never_pay_for_a_gram() -> None:
    class NoGram(DenseUpdates):
        def _gram(self) -> torch.Tensor:
            raise AssertionError("a norm rule asked for the Gram matrix")

    values = rows()
    expected = (values * (0.5 / values.norm(dim=1, keepdim=True)).clamp(max=1)).mean(0)
    np.testing.assert_allclose((Clip(0.5) >> Mean())(NoGram(values)).numpy(), expected.numpy(), rtol=1e-12)


def test_needs_that_can_not_be_met_fail_before_anything_is_computed() -> None:
    def explode(i: int) -> torch.Tensor:
        raise AssertionError("computed")

    streamed = StreamedUpdates(explode, torch.zeros(3), torch.arange(9))
    assert (Clip(1.0) >> Krum(f=1)).needs == Needs.NORMS | Needs.GRAM
    with pytest.raises(UnsupportedError, match="needs gram"):
        (Clip(1.0) >> Krum(f=1))(streamed)
    with pytest.raises(UnsupportedError, match="needs blocks"):
        Median()(streamed)


def test_tables_round_trip() -> None:
    for rule in ROBUST:
        assert pipeline(pipeline_tables(rule)) == rule


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("krumm", "unknown rule 'krumm'; did you mean 'krum'"),
        ({"kind": "krum"}, "needs the parameter 'f'"),
        ({"kind": "krum", "g": 1}, "no parameter 'g'; did you mean 'f'|known: f, variant"),
        ({"kind": "krum", "f": "2"}, "f: Input should be a valid integer"),
        ({"kind": "clip", "radius": -1}, "radius must be a positive number"),
        ({"radius": 1.0}, "a key kind"),
    ],
)
def test_wrong_tables_are_refused_with_the_nearest_name(table: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RULES.build(table)


def test_kappa_of_the_trimmed_mean_is_attained_not_exceeded() -> None:
    # One coordinate, n = 9, f = 3: kappa = f / (n - 2 f) = 1; two-point sets attain it.
    n, f = 9, 3
    worst = 0.0
    for values in itertools.product([0.0, 1.0], repeat=n - f):
        honest = np.array(values)
        for evil in (-100.0, 100.0):
            data = torch.tensor([*values, *[evil] * f]).reshape(-1, 1).double()
            gap = float(TrimmedMean(f=f)(data)) - honest.mean()
            if honest.var() > 0:
                worst = max(worst, gap**2 / honest.var())
    assert worst == pytest.approx(f / (n - 2 * f))


def test_gaussian_noise_is_seeded() -> None:
    vector = torch.zeros(10000)
    noisy = GaussianNoise(0.5)(vector, torch.Generator().manual_seed(3))
    again = GaussianNoise(0.5)(vector, torch.Generator().manual_seed(3))
    assert torch.equal(noisy, again)
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(vector, torch.zeros(10000))
    with pytest.raises(ConfigError, match="std"):
        GaussianNoise(-1.0)
