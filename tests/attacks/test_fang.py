from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import Krum, Mean, Median, TrimmedMean
from bezoar.attacks import FangKrum, FangMedian, FangTrimmedMean
from bezoar.errors import ConfigError
from tests.attacks.context import HOSTILE, bare, hostile

Array = np.ndarray[Any, Any]


def krum(rows: Array, f: int) -> int:
    scores = []
    for i, row in enumerate(rows):
        away = sorted(((row - other) ** 2).sum() for j, other in enumerate(rows) if j != i)
        scores.append(sum(away[: len(rows) - f - 2]))
    return int(np.argmin(scores))


def oracle(honest: Array, q: int) -> tuple[float, Array]:
    """The paper's search, with attackers between the honest rows as the engine puts them."""
    n, d = len(honest) + q, honest.shape[1]
    signs = np.sign(honest.mean(0))
    scores = []
    for i, row in enumerate(honest):
        away = sorted(((row - other) ** 2).sum() for j, other in enumerate(honest) if j != i)
        scores.append(sum(away[: n - q - 2]))
    norms = np.sqrt((honest**2).sum(1))
    scale = np.sqrt(min(scores) / ((n - 2 * q - 1) * d)) + norms.max() / np.sqrt(d)
    while True:
        rows, bad = [], []
        for i in range(n):
            rows += [honest[i]] if i < len(honest) else []
            rows += [-scale * signs] if i < q else []
            bad += ([False] if i < len(honest) else []) + ([True] if i < q else [])
        if bad[krum(np.array(rows), q)]:
            return scale, -scale * signs
        scale /= 2


@pytest.mark.parametrize(("h", "q"), [(8, 2), (16, 4), (9, 1), (20, 9)])
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
def test_lambda_is_the_papers(h: int, q: int, size: float) -> None:
    honest = np.random.default_rng(h).normal(0.3, 1, (h, 15)) * size
    view, context = bare(torch.from_numpy(honest), q)
    sent = FangKrum().send(view, Mean(), context)
    scale, vector = oracle(honest, q)
    assert sent.report == {"lambda": pytest.approx(scale, rel=1e-9), "picked": 1.0}
    np.testing.assert_allclose(sent.rows.basis[0].numpy(), vector, rtol=1e-9)
    # What the real rule does with it.
    answer = Krum(f=q)(sent.rows.materialise())
    assert torch.equal(answer, sent.rows.basis[0])
    assert float(answer @ torch.from_numpy(honest.mean(0))) < 0


def test_krum_picks_nothing_above_the_first_lambda() -> None:
    for seed in range(20):
        honest = np.random.default_rng(seed).normal(0.3, 1, (9, 4))
        n, q, d = 12, 3, 4
        signs = np.sign(honest.mean(0))
        scores = [sum(sorted(((a - b) ** 2).sum() for b in honest)[1 : n - q - 1]) for a in honest]
        bound = np.sqrt(min(scores) / ((n - 2 * q - 1) * d)) + np.sqrt((honest**2).sum(1).max() / d)
        rows = np.concatenate([honest, np.repeat(-1.0001 * bound * signs[None], q, axis=0)])
        assert krum(rows, q) < len(honest)


def test_attackers_who_are_their_own_company_are_picked_at_once() -> None:
    view, context = bare(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), 8)
    sent = FangKrum(f=4).send(view, Mean(), context)
    assert sent.report["picked"] == 1.0
    assert torch.equal(Krum(f=4)(sent.rows.materialise()), sent.rows.basis[0])


def test_the_search_ends_where_krum_can_not_be_won() -> None:
    honest = torch.ones(9, 5) + torch.tensor([1e-4, 0, 0, 0, 0]) * torch.arange(9)[:, None]
    view, context = bare(honest, 1)
    sent = FangKrum(threshold=1e-3).send(view, Mean(), context)
    assert sent.report["picked"] == 0.0
    assert 0 < sent.report["lambda"] <= 1e-3
    closer = FangKrum().send(view, Mean(), context)
    assert closer.report["lambda"] < sent.report["lambda"]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("attack", [FangKrum(), FangTrimmedMean(), FangMedian()], ids=str)
def test_legal_rows_give_finite_attacks(kind: str, attack: Any) -> None:
    for q in (1, 3):
        view, context = bare(hostile(kind), q)
        assert torch.isfinite(attack.rows(view, Mean(), context).sent()).all()


@pytest.mark.parametrize("attack", [FangTrimmedMean(), FangMedian(), FangTrimmedMean(b=5.0)], ids=str)
def test_every_coordinate_lies_where_the_paper_says(attack: FangTrimmedMean) -> None:
    honest = np.random.default_rng(0).normal(0, 1, (9, 400)) + np.random.default_rng(1).normal(0, 3, 400)
    honest[:, 0] = np.arange(9) - 4
    view, context = bare(torch.from_numpy(honest), 4)
    sent = attack.rows(view, Mean(), context).sent().numpy()
    cases = set()
    for j, column in enumerate(honest.T):
        low, high = column.min(), column.max()
        mean = sum(column) / len(column)
        if mean > 0:
            # The global model would fall here (the server subtracts): attackers pull the update below all others.
            left, right = (low / attack.b, low) if low > 0 else (low * attack.b, low)
        elif mean < 0:
            left, right = (high, high * attack.b) if high > 0 else (high, high / attack.b)
        else:
            left = right = 0.0
        cases.add((np.sign(mean), low > 0, high > 0))
        values = sent[:, j]
        assert (values >= left - 1e-12).all()
        assert (values <= right + 1e-12).all()
        if mean != 0:
            assert len(set(values)) == 4
    # All four cases of the paper, and a mean of zero.
    assert len(cases) == 5
    # Uniform over the interval, not at its ends.
    ends = np.where(honest.mean(0) > 0, honest.min(0), honest.max(0))
    share = (sent / ends - 1)[:, 1:]
    assert 0.4 < np.abs(share / np.where(share > 0, attack.b - 1, 1 - 1 / attack.b)).mean() < 0.6


@pytest.mark.parametrize(("rule", "attack"), [(TrimmedMean(f=4), FangTrimmedMean()), (Median(), FangMedian())], ids=str)
def test_the_rule_is_pushed_against_the_mean_in_every_coordinate(rule: Any, attack: Any) -> None:
    honest = torch.randn(12, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view, context = bare(honest, 4)
    moved = rule(attack.rows(view, Mean(), context).materialise()) - rule(honest)
    assert (moved * honest.mean(0).sign() <= 0).all()
    assert (moved != 0).any()


def test_draws_depend_on_seed_round_and_client_alone() -> None:
    def sent(q: int, **known: Any) -> torch.Tensor:
        view, context = bare(hostile("plain"), q, **known)
        return FangTrimmedMean().rows(view, Mean(), context).sent()

    assert torch.equal(sent(2), sent(4)[:2])
    assert not torch.equal(sent(2), sent(2, seed=1))
    assert not torch.equal(sent(2), sent(2, round=9))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (FangKrum, {"f": 0}),
        (FangKrum, {"threshold": 0.0}),
        (FangKrum, {"threshold": 2.0}),
        (FangTrimmedMean, {"b": 1.0}),
        (FangMedian, {"b": float("nan")}),
    ],
)
def test_nonsense_is_refused(make: Any, options: Any) -> None:
    with pytest.raises(ConfigError, match=r"fang-(krum|trimmed-mean|median)"):
        make(**options)
