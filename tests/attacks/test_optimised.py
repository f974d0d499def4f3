from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bezoar.aggregation import (
    NNM,
    Bulyan,
    CenteredClipping,
    Clip,
    Context,
    FoolsGold,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MultiKrum,
    Rule,
    TrimmedMean,
)
from bezoar.aggregation.base import Aggregate
from bezoar.attacks import ATTACKS, OptimisedALIE, OptimisedIPM
from bezoar.attacks.base import Knowledge, standalone
from bezoar.attacks.optimised import strongest_scales
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates, Updates
from bezoar.updates.base import Needs

RULES: list[Rule] = [
    Mean(),
    Krum(f=3),
    MultiKrum(f=3),
    GeometricMedian(),
    CenteredClipping(radius=2.0),
    NNM(f=3) >> Krum(f=3),
    Median(),
    TrimmedMean(f=3),
    MeaMed(f=3),
    Clip(5.0) >> NNM(f=3) >> TrimmedMean(f=3),
    Bulyan(f=2),
]


def cohort(seed: int = 0, d: int = 30, dtype: torch.dtype = torch.float64) -> DenseUpdates:
    draws = torch.Generator().manual_seed(seed)
    rows = 0.3 + torch.randn(11, d, generator=draws, dtype=torch.float64) * torch.linspace(0.1, 1.0, d)
    return DenseUpdates(rows.to(dtype))


def vector(attack: Any, honest: Tensor, scale: float) -> Tensor:
    mean = honest.mean(0)
    if isinstance(attack, OptimisedIPM):
        return -scale * mean
    return mean + scale * honest.std(0, correction=1)


def deviation(rule: Rule, honest: Tensor, sent: Tensor, q: int = 3) -> float:
    """Asked the slow way."""
    return float((rule(torch.cat([honest, sent.expand(q, -1)])) - honest.mean(0)).norm())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("attack", [OptimisedALIE(largest=30.0), OptimisedIPM(largest=30.0)], ids=["alie", "ipm"])
def test_never_weaker_than_any_scale_of_a_fine_grid(attack: Any, rule: Rule) -> None:
    for seed in range(2):
        view = cohort(seed)
        sent = attack.send(view, rule, standalone(view, 14, 3))
        sizes = [30 * 1.04**-i for i in range(190)]
        grid = max(deviation(rule, view.values, vector(attack, view.values, s * x)) for x in sizes for s in (1, -1))
        reached = deviation(rule, view.values, sent.rows.basis[0])
        assert reached >= 0.97 * grid
        assert sent.report["deviation"] == pytest.approx(reached, rel=1e-6)
        expected = vector(attack, view.values, sent.report["scale"])
        assert torch.allclose(sent.rows.basis[0], expected, rtol=1e-9, atol=1e-12)
        assert abs(sent.report["scale"]) <= 30.0


@dataclass(frozen=True)
class Counting(Rule):
    """Counts how often the rule within it sees whole rows of ``d`` columns, and how often anything at all."""

    rule: Rule = dataclasses.field(default_factory=Mean)
    d: int = 0
    seen: list[int] = dataclasses.field(default_factory=list)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.rule.needs

    @property
    def by_client(self) -> bool:  # type: ignore[override]
        return self.rule.by_client

    def aggregate(self, updates: Any, state: Any = None, context: Any = None, generator: Any = None) -> Aggregate:
        self.seen.append(updates.shape[1])
        return self.rule.aggregate(updates, state, context, generator)

    def _run(self, rows: Updates, state: Any, context: Context, generator: Any) -> Aggregate:
        raise AssertionError("aggregate is what is called")

    @property
    def whole(self) -> int:
        return sum(d == self.d for d in self.seen)


@pytest.mark.parametrize("attack", [OptimisedALIE(sample=500), OptimisedIPM(sample=500)], ids=["alie", "ipm"])
@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (Krum(f=3), 0),
        (GeometricMedian(), 0),
        (Clip(5.0) >> NNM(f=3) >> TrimmedMean(f=3), 2),
        (Median(), 2),
        (FoolsGold(), 16),
    ],
    ids=str,
)
def test_few_whole_aggregations(attack: Any, rule: Rule, most: int) -> None:
    view = cohort(d=5000)
    counting = Counting(rule, 5000)
    attack.send(view, counting, standalone(view, 14, 3))
    assert counting.whole <= most
    assert len(counting.seen) >= (10 if most == 16 else 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attack", [OptimisedALIE(sample=600), OptimisedIPM(sample=600)], ids=["alie", "ipm"])
def test_on_a_sample_it_is_nearly_as_strong_and_the_same_every_time(attack: Any, dtype: torch.dtype) -> None:
    view = cohort(d=6000, dtype=dtype)
    rule = Clip(60.0) >> NNM(f=3) >> TrimmedMean(f=3)
    at = standalone(view, 14, 3, seed=2)
    sent = attack.send(view, rule, at)
    again = attack.send(view, rule, at)
    assert torch.equal(sent.rows.basis, again.rows.basis)
    assert sent.report == again.report
    sizes = [100 * 1.1**-i for i in range(90)]
    grid = max(deviation(rule, view.values, vector(attack, view.values, s * x)) for x in sizes for s in (1, -1))
    assert sent.report["deviation"] >= 0.93 * grid


def test_the_mean_is_attacked_with_the_largest_scale() -> None:
    view = cohort()
    sent = OptimisedALIE(largest=7.0).send(view, Mean(), standalone(view, 14, 3))
    assert abs(sent.report["scale"]) == 7.0
    spread = view.values.std(0, correction=1)
    assert sent.report["deviation"] == pytest.approx(3 / 14 * 7 * float(spread.norm()), rel=1e-9)


def test_the_edge_beyond_which_a_rule_throws_rows_out_is_found() -> None:
    for edge in (0.05, 0.77, 3.3, 88.0):

        def value(x: float, edge: float = edge) -> float:
            return x if x <= edge else 0.0

        best, _ = strongest_scales(value, 100.0, math.sqrt(2), 6)
        assert 0.98 * edge <= best[0] <= edge


@pytest.mark.parametrize(
    ("value", "expected"),
    [(lambda x: 0.0, 0.02), (lambda x: -abs(x), 0.0), (lambda x: -x, -10.0)],
)
def test_edges_of_the_search(value: Callable[[float], float], expected: float) -> None:
    assert strongest_scales(value, 10.0, 2.0, 4)[0][0] == pytest.approx(expected)


def test_a_range_below_the_smallest_scale() -> None:
    assert strongest_scales(lambda x: x, 0.001, 2.0, 4)[0] == (0.001, 0.001)


def test_hostile_honest_rows() -> None:
    values = cohort().values.clone()
    values[2, 5] = torch.inf
    values[7] *= 1e20
    view = DenseUpdates(values)
    for attack in (OptimisedALIE(), OptimisedIPM()):
        for rule in (Krum(f=4), Median(), FoolsGold(), Clip(3.0) >> TrimmedMean(f=4)):
            sent = attack.send(view, rule, standalone(view, 14, 3))
            assert torch.isfinite(sent.rows.basis).all()
            assert math.isfinite(sent.report["deviation"])


def test_equal_rows_one_row_and_no_finite_row() -> None:
    for values in (torch.ones(6, 4), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))):
        for attack in (OptimisedALIE(), OptimisedIPM()):
            view = DenseUpdates(values)
            sent = attack.send(view, Mean(), standalone(view, len(values) + 2, 2))
            assert torch.isfinite(sent.rows.materialise()).all()
    hopeless = DenseUpdates(torch.full((3, 4), torch.nan))
    for attack in (OptimisedALIE(), OptimisedIPM()):
        assert attack.send(hopeless, Mean(), standalone(hopeless, 4, 1)).report["deviation"] == 0.0


def test_needs_to_know_the_defence() -> None:
    assert OptimisedALIE.least is OptimisedIPM.least is Knowledge.DEFENCE


@pytest.mark.parametrize("kind", ["opt-alie", "opt-ipm"])
def test_nonsense_is_refused_and_tables_round_trip(kind: str) -> None:
    attack = ATTACKS.build({"kind": kind, "largest": 12.0})
    assert ATTACKS.build(ATTACKS.table(attack)) == attack
    for wrong in ({"largest": 0.0}, {"largest": -1.0}, {"sample": 0}):
        with pytest.raises(ConfigError):
            ATTACKS.build({"kind": kind, **wrong})
    with pytest.raises(ConfigError):
        OptimisedALIE(largest=math.inf)


@pytest.mark.parametrize("attack", [OptimisedALIE(refresh=3), OptimisedIPM(refresh=3)], ids=["alie", "ipm"])
def test_a_scale_is_kept_for_some_rounds_and_then_sought_anew(attack: OptimisedALIE | OptimisedIPM) -> None:
    rule, state, scales = TrimmedMean(f=3), {}, []
    for t in range(1, 6):
        view = cohort(seed=t)
        at = dataclasses.replace(standalone(view, 14, 3), round=t, state=state)
        sent = attack.send(view, rule, at)
        scales.append(sent.report["scale"])
        fresh = dataclasses.replace(attack, refresh=1).send(view, rule, dataclasses.replace(at, state={}))
        if t in (1, 4):
            assert sent.report == fresh.report
        torch.testing.assert_close(sent.rows.sent()[0], vector(attack, view.values, scales[-1]))
        state = dict(sent.state)
    assert scales[0] == scales[1] == scales[2] != scales[3] == scales[4]
    assert "refresh" not in ATTACKS.table(OptimisedALIE())
    assert ATTACKS.build(ATTACKS.table(attack)) == attack
    with pytest.raises(ConfigError, match="refresh must be a whole number >= 1"):
        type(attack)(refresh=0)
