from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import _features
from bezoar.aggregation._features import sketch
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.aggregation.clipped_clustering import ClippedClustering
from bezoar.aggregation.fldetector import FLDetector, hessian_product, two_means
from bezoar.aggregation.foolsgold import FoolsGold
from bezoar.errors import ConfigError
from bezoar.updates.base import Layout, Segment
from bezoar.updates.dense import DenseUpdates

LAYOUT: Layout = (Segment("w", 0, 12, (3, 4)), Segment("v", 12, 22, (2, 5)), Segment("b", 22, 24, (2,)))


def rows(n: int = 9, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(values: torch.Tensor, clients: list[int], layout: Layout = ()) -> DenseUpdates:
    return DenseUpdates(values, torch.tensor(clients), layout)


# The projection


def test_sketch_depends_on_seed_and_width_only(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows(5, 20000)
    whole = sketch(DenseUpdates(values), 64, 3, "test")
    assert whole.shape == (5, 64)
    monkeypatch.setattr(_features, "COLUMN_BYTES", 5 * 8 * 777)
    np.testing.assert_allclose(sketch(DenseUpdates(values), 64, 3, "test").numpy(), whole.numpy(), rtol=1e-10)
    monkeypatch.undo()
    assert torch.equal(sketch(DenseUpdates(values[[2]]), 64, 3, "test")[0], whole[2])
    assert not torch.equal(sketch(DenseUpdates(values), 64, 4, "test"), whole)
    # Few columns stay as they are.
    assert torch.equal(sketch(DenseUpdates(values[:, :64]), 64, 3, "test"), values[:, :64])


def test_sketch_is_linear_and_keeps_inner_products() -> None:
    values = rows(6, 9000)
    values[3] = 2 * values[1] - values[2]
    values[4] = values[0] + 0.3 * values[4]
    small = sketch(DenseUpdates(values), 1024, 0, "test")
    np.testing.assert_allclose(small[3].numpy(), (2 * small[1] - small[2]).numpy(), rtol=1e-9, atol=1e-9)
    sizes = values.norm(dim=1)
    error = (small @ small.T - values @ values.T) / sizes[:, None] / sizes
    assert float(error.abs().max()) < 5 / 1024**0.5
    mean = sum(
        (sketch(DenseUpdates(values), 16, seed, "test") @ sketch(DenseUpdates(values), 16, seed, "test").T)
        for seed in range(100)
    )
    error = (mean / 100 - values @ values.T) / sizes[:, None] / sizes
    assert float(error.abs().max()) < 5 / (16 * 100) ** 0.5


# FoolsGold


@pytest.mark.parametrize("features", ["projection", "last-layer", "full"])
def test_foolsgold_sums_the_history_of_every_client(features: str) -> None:
    rule = FoolsGold(features=features)  # type: ignore[arg-type]
    state: State = {}
    total: dict[int, torch.Tensor] = {}
    cohorts = [[4, 0, 7, 2], [0, 1, 2, 3], [7, 4, 3, 9], [9, 0, 1, 2, 4, 7]]
    for t, cohort in enumerate(cohorts):
        values = rows(len(cohort), 24, t)
        for i, client in enumerate(cohort):
            total[client] = total.get(client, torch.zeros(24, dtype=torch.float64)) + values[i]
        answer = rule.aggregate(dense(values, cohort, LAYOUT), state)
        state = answer.state
        history = torch.stack([total[client] for client in cohort])
        alone = rule.aggregate(dense(history, cohort, LAYOUT))
        np.testing.assert_allclose(answer.weights.numpy(), alone.weights.numpy(), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(answer.vector.numpy(), (alone.weights @ values).numpy(), rtol=1e-8, atol=1e-10)
        assert state["clients"].tolist() == sorted(total)
    width = 12 if features == "last-layer" else 24
    assert state["history"].shape == (len(total), width)
    expected = torch.stack([total[client] for client in sorted(total)])
    kept = expected[:, 12:24] if features == "last-layer" else expected
    np.testing.assert_allclose(state["history"].numpy(), kept.numpy(), rtol=1e-12)


def test_foolsgold_sees_sybils_that_hide_in_every_single_round() -> None:
    # Two sybils add and later subtract a large decoy: similar only in the sum.
    rule, state = FoolsGold(), {}
    goal, decoy = rows(1, 4000, 1)[0], rows(4, 4000, 2)
    for t in range(4):
        values = rows(8, 4000, 10 + t)
        values[6] = goal + 5 * (-1) ** t * decoy[t // 2]
        values[7] = goal - 5 * (-1) ** t * decoy[t // 2 + 2]
        answer = rule.aggregate(values, state)
        state = answer.state
        if t == 0:
            assert (answer.weights[6:] > 0).all()
    assert answer.weights[6:].tolist() == [0.0, 0.0]
    assert (answer.weights[:6] > 0).all()


def test_foolsgold_never_changes_the_state_it_was_given() -> None:
    first = FoolsGold().aggregate(rows())
    before = {name: value.clone() for name, value in first.state.items()}
    FoolsGold().aggregate(rows(seed=1), first.state)
    for name, value in first.state.items():
        assert torch.equal(value, before[name])
    with pytest.raises(ConfigError, match="other model"):
        FoolsGold().aggregate(rows(9, 7), first.state)


# Clipped clustering


def test_clipped_clustering_clips_to_the_median_of_the_last_norms() -> None:
    past: list[float] = []
    rule, state = ClippedClustering(history=20), {}
    for t in range(6):
        values = (rows(9, 30, t) + 1) * (t + 1)
        answer: Aggregate = rule.aggregate(values, state)
        state = answer.state
        past = (past + values.norm(dim=1).tolist())[-20:]
        bound = float(np.median(past))
        assert state["norms"].tolist() == pytest.approx(past)
        kept = answer.selected
        shorter = values * (bound / values.norm(dim=1, keepdim=True)).clamp(max=1)
        np.testing.assert_allclose(answer.vector.numpy(), shorter[kept].mean(0).numpy(), rtol=1e-10)
    forgetful = ClippedClustering(history=0).aggregate(values, state)
    assert len(forgetful.state["norms"]) == 0
    # All norms of a round count, also where it has more rows than the history holds.
    many = ClippedClustering(history=3).aggregate(values)
    np.testing.assert_allclose(
        many.vector.numpy(), ClippedClustering(history=0).aggregate(values).vector.numpy(), rtol=1e-13
    )
    assert len(many.state["norms"]) == 3


# FLDetector


def bfgs(steps: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """The textbook recursion on the matrix itself."""
    s, y = steps[-1], changes[-1]
    matrix = np.eye(steps.shape[1]) * (y @ s) / (s @ s)
    for s, y in zip(steps, changes, strict=True):
        matrix = matrix - np.outer(matrix @ s, matrix @ s) / (s @ matrix @ s) + np.outer(y, y) / (y @ s)
    return matrix


@settings(max_examples=25, deadline=None)
@given(
    p=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    by=st.sampled_from([1.0, 1e-8, 1e30]),
    to=st.sampled_from([1.0, 1e-30, 1e8]),
)
def test_hessian_products_are_those_of_the_recursion(p: int, seed: int, by: float, to: float) -> None:
    steps, vectors, root = rows(p, 7, seed), rows(3, 7, seed + 1), rows(7, 7, seed + 2)
    changes = steps @ (root @ root.T + torch.eye(7))
    expected = vectors.numpy() @ bfgs(steps.numpy(), changes.numpy()).T
    found = hessian_product(steps * by, changes * to, vectors * by) / to
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@given(m=st.integers(2, 12), seed=st.integers(0, 2**31))
def test_two_means_are_the_best_split(m: int, seed: int) -> None:
    values = rows(1, m, seed)
    one, two, last = two_means(values)
    ordered = np.sort(values[0].numpy())
    splits = [ordered[:i].var() * i + ordered[i:].var() * (m - i) for i in range(1, m)]
    assert float(one) == pytest.approx(ordered.var() * m, rel=1e-9)
    assert float(two) == pytest.approx(max(min(splits), 1e-12), rel=1e-6, abs=1e-9)
    assert float(last) == ordered[int(np.argmin(splits))]


def play(rule: Rule, rounds: int, bad: list[int], n: int = 10, d: int = 40) -> tuple[Aggregate, list[Aggregate]]:
    """Gradient descent on quadratics; bad clients send noise of the honest length."""
    root = rows(d, d, 99)
    hessian = torch.eye(d) + 0.5 * root @ root.T / d
    centres = rows(n, d, 98)
    model, state, answers = 3 + rows(1, d, 97)[0], {}, []
    for t in range(rounds):
        values = (model - centres) @ hessian + 0.01 * rows(n, d, 200 + t)
        for i in bad:
            noise = rows(1, d, 1000 * i + t)[0]
            values[i] = noise / noise.norm() * values[i].norm()
        answers.append(rule.aggregate(values, state, Context(round=t, model=model)))
        state = answers[-1].state
        model = model - 0.1 * answers[-1].vector
    return answers[-1], answers


@pytest.mark.parametrize("features", ["full", "projection"])
def test_fldetector_finds_clients_that_contradict_their_past(features: str) -> None:
    last, answers = play(FLDetector(window=4, features=features), 9, [2, 5, 8])  # type: ignore[arg-type]
    assert sorted(last.excluded) == [2, 5, 8]
    assert float(last.scores[[2, 5, 8]].min()) > 2 * float(last.scores[[0, 1, 3, 4, 6, 7, 9]].max())
    # The first prediction needs a step and a change; the first verdict a window of predictions.
    assert [bool(answer.excluded) for answer in answers] == [False] * 5 + [True] * 4


def test_fldetector_in_a_projection_of_a_larger_model() -> None:
    last, _ = play(FLDetector(window=3, size=128), 8, [2, 5, 8], d=400)
    assert sorted(last.excluded) == [2, 5, 8]
    assert last.state["updates"].shape == (10, 128)


def test_fldetector_scores_are_the_distances_of_the_formula() -> None:
    d, n = 6, 5
    models, values = rows(4, d, 5), [rows(n, d, 50 + t) for t in range(4)]
    models[1] = models[0] - values[0].mean(0)
    models[2] = models[1] - 0.5 * values[1].mean(0)
    hessian = torch.eye(d, dtype=torch.float64) * 2
    values = [(models[t] - rows(n, d, 7)) @ hessian + 0.1 * rows(n, d, 60 + t) for t in range(4)]
    rule, state = FLDetector(window=2), {}
    for t in range(4):
        answer = rule.aggregate(values[t], state, Context(round=t, model=models[t]))
        assert not answer.excluded or t == 3
        state = answer.state
    distances = []
    for t in (2, 3):
        pairs = list(range(1, t))
        steps = np.stack([(models[r] - models[r - 1]).numpy() for r in pairs])
        changes = np.stack([(values[r].mean(0) - values[r - 1].mean(0)).numpy() for r in pairs])
        assert ((steps * changes).sum(1) > 0).all()
        predicted = values[t - 1].numpy() + (models[t] - models[t - 1]).numpy() @ bfgs(steps, changes)
        gaps = np.linalg.norm(predicted - values[t].numpy(), axis=1)
        distances.append(gaps / gaps.mean())
    np.testing.assert_allclose(answer.scores.numpy(), np.mean(distances, axis=0), rtol=1e-6)


def test_fldetector_keeps_honest_clients_and_identical_ones() -> None:
    _, answers = play(FLDetector(window=3), 8, [])
    assert sum(len(answer.excluded) for answer in answers) <= 1
    rule, state = FLDetector(window=2), {}
    for t in range(6):
        row = rows(1, 5, t)
        answer = rule.aggregate(row.expand(4, -1), state, Context(round=t, model=rows(1, 5, 70 + t)[0]))
        state = answer.state
        np.testing.assert_allclose(answer.vector.numpy(), row[0].numpy(), rtol=1e-13)
    still, state = torch.ones(3, dtype=torch.float64), {}
    for t in range(6):
        answer = rule.aggregate(torch.zeros(1, 3, dtype=torch.float64), state, Context(round=t, model=still))
        state = answer.state
        assert answer.vector.tolist() == [0.0] * 3


def test_fldetector_with_changing_cohorts_and_hostile_rows() -> None:
    rule, state = FLDetector(window=2), {}
    model = torch.ones(8, dtype=torch.float64)
    for t in range(10):
        cohort = torch.randperm(12, generator=torch.Generator().manual_seed(t))[:7].tolist()
        values = (model + 0.1 * rows(12, 8, 4))[cohort].float()
        values[0] = torch.nan
        values[1] = 1e38
        answer = rule.aggregate(dense(values, cohort), state, Context(round=t, model=model))
        state = answer.state
        assert torch.isfinite(answer.vector).all()
        assert answer.selected.any()
        assert 0 in answer.excluded
        model = model * 0.8
    assert set(state["clients"].tolist()) <= set(range(12))


def test_fldetector_scale_dtype_and_state() -> None:
    for size in (1e30, 1e-30):
        rule, state, plain = FLDetector(window=2), {}, {}
        model = torch.ones(8, dtype=torch.float64)
        for t in range(7):
            values = model + 0.1 * rows(6, 8, t) * 0.8**t
            values[5] = rows(1, 8, 300 + t)[0]
            context = Context(round=t, model=model)
            one = rule.aggregate(values, plain, context)
            two = rule.aggregate(values * size, state, Context(round=t, model=model * size))
            plain, state = one.state, two.state
            assert one.excluded == two.excluded
            np.testing.assert_allclose((two.vector / size).numpy(), one.vector.numpy(), rtol=1e-9)
            model = model * 0.8
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert rule.aggregate(values.to(dtype), {}, context).vector.dtype == dtype


def test_fldetector_errors_say_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"Context\.model"):
        FLDetector()(rows())
    with pytest.raises(ConfigError, match="window"):
        FLDetector(window=0)
    with pytest.raises(ValueError, match="memory"):
        FLDetector(features="full", memory=1000).aggregate(rows(9, 100), context=Context(model=torch.zeros(100)))
