from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import (
    ARC,
    NNM,
    Bulyan,
    CenteredClipping,
    Clip,
    Context,
    FoolsGold,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Rule,
    TrimmedMean,
)
from bezoar.attacks import AGRTailored, Knowledge
from bezoar.attacks.agr_tailored import best, last_true, selects
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates
from tests.attacks.context import HOSTILE, bare, hostile

Q = 3


def honest(d: int = 12, h: int = 10) -> Tensor:
    return torch.from_numpy(np.random.default_rng(4).normal(0.4, 1, (h, d)))


def stacked(rows: Tensor, vector: Tensor, q: int = Q) -> tuple[Tensor, list[int]]:
    """Rows as the server gets them, attackers 1, 3, 5 ... between honest clients 0, 2, 4 ..., and their places."""
    ids = [2 * i for i in range(len(rows))] + [2 * i + 1 for i in range(q)]
    order = np.argsort(ids, kind="stable")
    return torch.cat([rows, vector.repeat(q, 1)])[order], [
        int(np.flatnonzero(order == len(rows) + i)[0]) for i in range(q)
    ]


def p(rows: Tensor, kind: str) -> Tensor:
    mean = rows.mean(0)
    return {"unit": mean / mean.norm(), "sign": mean.sign(), "std": rows.std(0)}[kind]


def selected(rows: Tensor, bad: list[int], f: int, many: bool) -> bool:
    """Krum and Multi-Krum spelt out."""
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    scores = [sum(sorted(np.delete(line, i))[: len(rows) - f - 2]) for i, line in enumerate(distances)]
    chosen = np.argsort(scores, kind="stable")[: len(rows) - f if many else 1]
    return set(bad) <= set(chosen.tolist()) if many else int(chosen[0]) in bad


@pytest.mark.parametrize("kind", ["unit", "sign", "std"])
@pytest.mark.parametrize("rule", [Krum(f=Q), MultiKrum(f=Q)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-20, 1e20])
def test_the_largest_gamma_with_which_all_attackers_are_selected(kind: Any, rule: Any, size: float) -> None:
    rows = honest() * size
    view, context = bare(rows, Q)
    sent = AGRTailored(kind).send(view, rule, context)
    gamma, many = sent.report["gamma"], isinstance(rule, MultiKrum)
    vector = sent.rows.sent()[0]
    assert torch.allclose(vector, rows.mean(0) - gamma * p(rows, kind), rtol=1e-9, atol=1e-9 * size)
    assert gamma > 0
    assert selected(*stacked(rows, vector), Q, many)
    answer = rule.aggregate(sent.rows)
    assert torch.equal(answer.vector, vector) if not many else bool(answer.selected[sent.rows.malicious].all())
    for factor in (1.003, 1.1, 2.0, 10.0):
        further = rows.mean(0) - factor * gamma * p(rows, kind)
        assert not selected(*stacked(rows, further), Q, many)


@pytest.mark.parametrize("m", [1, 3, 5])
def test_a_rule_that_selects_fewer_than_there_are_attackers_is_attacked_too(m: int) -> None:
    rows, q = honest(h=13), 5
    view, context = bare(rows, q)
    rule, mean = MultiKrum(f=q, m=m), rows.mean(0)
    sent = AGRTailored().send(view, rule, context)
    answer = rule.aggregate(sent.rows)
    assert answer.selected is not None
    assert int(answer.selected[sent.rows.malicious].sum()) == m == int(answer.selected.sum())
    moved = float((answer.vector - mean).norm())
    krum = Krum(f=q).aggregate(AGRTailored().send(view, Krum(f=q), context).rows)
    assert moved >= 0.9 * float((krum.vector - mean).norm()) > 0.5
    for factor in (1.003, 1.1, 2.0, 10.0):
        further = stacked(rows, mean - factor * sent.report["gamma"] * p(rows, "unit"), q)
        chosen = rule.aggregate(further[0]).selected
        assert chosen is not None
        assert int(chosen[further[1]].sum()) < m


RULES: list[Rule] = [
    TrimmedMean(f=Q), Median(), GeometricMedian(), Bulyan(f=2), NNM(f=Q) >> Krum(f=Q), NNM(f=Q) >> TrimmedMean(f=Q),
    Clip(3.0) >> Mean(),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", ["unit", "std"])
def test_no_gamma_of_a_fine_grid_moves_the_answer_further(rule: Rule, kind: Any) -> None:
    rows = honest()
    view, context = bare(rows, Q)
    sent = AGRTailored(kind).send(view, rule, context)
    mean = rows.mean(0)

    def deviation(gamma: float) -> float:
        return float((rule(stacked(rows, mean - gamma * p(rows, kind))[0]) - mean).norm())

    assert sent.report["deviation"] == pytest.approx(deviation(sent.report["gamma"]), rel=1e-6)
    assert sent.report["deviation"] == pytest.approx(float((rule.aggregate(sent.rows).vector - mean).norm()), rel=1e-9)
    grid = max(deviation(gamma) for gamma in np.geomspace(0.02, 200, 120) / float(p(rows, kind).norm()))
    # Rules that select make jumps, which no search of few steps follows to the end.
    jumps = isinstance(rule, Bulyan) or "Krum" in rule.name or "NNM" in rule.name
    assert sent.report["deviation"] >= (0.8 if jumps else 0.999) * grid


@pytest.mark.parametrize("rule", [TrimmedMean(f=Q), Median(), NNM(f=Q) >> TrimmedMean(f=Q)], ids=lambda rule: rule.name)
def test_a_sample_of_columns_does_nearly_as_well(rule: Rule) -> None:
    rows = honest(d=3000)
    view, context = bare(rows, Q)
    few, all_ = (AGRTailored("std", sample=sample).send(view, rule, context) for sample in (200, 3000))
    assert few.report["deviation"] >= 0.9 * all_.report["deviation"]
    answer = rule.aggregate(few.rows)
    assert few.report["deviation"] == pytest.approx(float((answer.vector - rows.mean(0)).norm()), rel=1e-9)


def test_rules_that_remember_clients_are_asked_on_whole_rows_and_less_often() -> None:
    view, context = bare(honest(), Q)
    rule = FoolsGold(features="full")
    state = dict(rule.aggregate(DenseUpdates(torch.cat([honest(), honest()[:Q]])[list(range(13))], order())).state)
    sent = AGRTailored().send(view, rule, dataclasses.replace(context, rule_state=state))
    assert sent.report["evaluations"] < 20
    answer = rule.aggregate(sent.rows, state)
    mean = honest().mean(0)
    assert sent.report["deviation"] == pytest.approx(float((answer.vector - mean).norm()), rel=1e-9)
    assert sent.report["deviation"] > float((rule.aggregate(stacked(honest(), mean)[0], state).vector - mean).norm())


def order() -> Tensor:
    return torch.tensor(sorted([2 * i for i in range(10)] + [1, 3, 5]))


def test_it_is_better_against_its_rule_than_against_another() -> None:
    rows = honest()
    view, context = bare(rows, Q)
    for rule, other in ((Krum(f=Q), TrimmedMean(f=Q)), (TrimmedMean(f=Q), Krum(f=Q))):
        moved = [
            float((rule.aggregate(AGRTailored().rows(view, known, context)).vector - rows.mean(0)).norm())
            for known in (rule, other)
        ]
        assert moved[0] > moved[1]


def test_what_counts_as_selecting() -> None:
    assert all(map(selects, (Krum(f=1), MultiKrum(f=1), Clip(1.0) >> Krum(f=1), ARC(f=1) >> MultiKrum(f=1))))
    assert not any(map(selects, (Mean(), Bulyan(f=1), NNM(f=1) >> Krum(f=1), Clip(1.0) >> Median())))


def test_after_clipping_the_clipped_attackers_are_selected() -> None:
    rows = honest()
    view, context = bare(rows, Q)
    rule = Clip(2.0) >> MultiKrum(f=Q)
    sent = AGRTailored().send(view, rule, context)
    answer = rule.aggregate(sent.rows)
    assert answer.selected is not None
    assert answer.selected[sent.rows.malicious].all()


def test_the_mean_has_no_maximum_and_gets_the_largest_way() -> None:
    rows = honest()
    view, context = bare(rows, Q)
    sent = AGRTailored().send(view, Mean(), context)
    radius = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    assert sent.report["gamma"] == pytest.approx(2**12 * radius)


def test_the_server_s_memory_and_knowledge_are_used_and_kept() -> None:
    rows = honest()
    view, context = bare(rows, Q)
    rule = CenteredClipping(radius=1.0)
    state = dict(rule.aggregate(DenseUpdates(rows + 30)).state)
    before = {key: value.clone() for key, value in state.items()}
    known = Context(client_weights=torch.ones(13, dtype=torch.float64))
    warm = dataclasses.replace(context, rule_state=state, server_context=known)
    sent = AGRTailored().send(view, rule, warm)
    answer = rule.aggregate(sent.rows, state, known)
    assert sent.report["deviation"] == pytest.approx(float((answer.vector - rows.mean(0)).norm()))
    assert all(torch.equal(before[key], state[key]) for key in before)
    assert sent.report["deviation"] != pytest.approx(AGRTailored().send(view, rule, context).report["deviation"])
    weighted = TrimmedMean(f=Q, weighted=True)
    assert AGRTailored().send(view, weighted, warm).report["deviation"] > 0


def test_rules_that_say_nothing_of_rows_can_not_be_tailored_to_by_selection() -> None:
    view, context = bare(honest(), Q)
    with pytest.raises(ConfigError, match="deviation"):
        AGRTailored(objective="selection").send(view, Median(), context)
    assert AGRTailored(objective="selection").send(view, Bulyan(f=2), context).report["gamma"] >= 0
    assert "deviation" in AGRTailored(objective="deviation").send(view, Krum(f=Q), context).report


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("rule", [Krum(f=2, variant="byzfl"), TrimmedMean(f=1), Median()], ids=str)
def test_legal_rows_give_finite_attacks(kind: str, rule: Rule) -> None:
    rows = hostile(kind)
    # One honest row has no majority with one attacker, whatever the rule.
    view, context = bare(rows if kind != "single" else rows.repeat(4, 1), 1)
    sent = AGRTailored().send(view, rule, context)
    assert torch.isfinite(sent.rows.sent()).all()


def test_a_rule_that_gives_up_counts_as_not_moved() -> None:
    view, context = bare(hostile("nan row"), 1)
    sent = AGRTailored().send(view, TrimmedMean(f=0), context)
    assert torch.isfinite(sent.rows.sent()).all()


def test_searches() -> None:
    assert last_true(lambda way: float(way < 3.3), 1e-6) == pytest.approx(3.3, rel=1e-5)
    assert last_true(lambda way: 0.0, 1e-6) == 0
    assert last_true(lambda way: 1.0, 1e-6) == 2**12
    assert best(lambda way: -((way - 5.7) ** 2) + 100, 1e-4) == pytest.approx(5.7, rel=1e-2)
    assert best(lambda way: -((way - 5.7) ** 2) + 100, 1e-4, 4.0) == pytest.approx(5.7, rel=1e-2)
    # What has grown as far as it will is reached with the least way that does it.
    assert best(lambda way: min(way, 4.4), 1e-4) == pytest.approx(4.4, rel=1e-3)
    assert best(lambda way: 1.0, 1e-4) == 0


def test_it_needs_to_know_the_rule() -> None:
    assert AGRTailored.least == Knowledge.DEFENCE


@pytest.mark.parametrize(
    "options", [{"direction": "up"}, {"objective": "all"}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"sample": 0}]
)
def test_nonsense_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="agr-tailored"):
        AGRTailored(**options)
