"""The strongest of a family, against a search written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from bezoar.aggregation import NNM, Context, Mean, Median, Rule, TrimmedMean
from bezoar.attacks import ATTACKS, SignFlip, WorstOf
from bezoar.attacks.base import Knowledge, standalone
from bezoar.attacks.worst_of import SCALES
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates

RULES: list[Rule] = [Mean(), Median(), TrimmedMean(f=2), NNM(f=2) >> TrimmedMean(f=2)]


def honest(seed: int = 0) -> Tensor:
    return 0.5 + torch.randn(7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(rule: Rule, rows: Tensor, sent: Tensor) -> float:
    return float((rule(torch.cat([rows, sent])) - rows.mean(0)).norm())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_simple_attack_of_the_family_drags_farther(rule: Rule) -> None:
    rows = honest()
    sent = WorstOf()(rows, n=9, q=2, defence=rule)
    reached = moved(rule, rows, sent)
    mean, away = rows.mean(0), rows - rows.mean(0)
    radius = away.square().sum(1).mean().sqrt()
    axis = torch.linalg.svd(away).Vh[0]
    directions = [mean, away.square().mean(0).sqrt(), axis, away[away.square().sum(1).argmax()]]
    others = [mean + sign * s * radius * d / d.norm() for d in directions for s in SCALES for sign in (1, -1)]
    others += [*rows, *(2 * mean - rows), torch.zeros(6, dtype=torch.float64)]
    tried = [moved(rule, rows, other.expand(2, -1)) for other in others]
    tried += [moved(rule, rows, rows[:2] + sign * radius * d / d.norm()) for d in directions[:2] for sign in (1, -1)]
    assert reached >= max(tried) * (1 - 1e-5)
    # What it found is of the family: one of these, or along the random direction.
    if reached > max(tried) * (1 + 1e-9):
        gap = (sent - mean).norm(dim=1) / radius
        assert min(abs(float(gap[0]) - s) for s in SCALES) < 1e-6
    assert reached == pytest.approx(WorstOf().send(*situation(rows, rule)).report["deviation"])


def situation(rows: Tensor, rule: Rule, **changes: Any) -> Any:
    view = DenseUpdates(rows)
    return view, rule, dataclasses.replace(standalone(view, 9, 2), **changes)


def test_at_least_as_strong_as_flipping_the_sign() -> None:
    rows = honest(3)
    plain = SignFlip()(rows, n=9, q=2)
    assert moved(Median(), rows, WorstOf()(rows, n=9, q=2, defence=Median())) >= moved(Median(), rows, plain) * 0.99


def test_a_choice_is_kept_for_some_rounds_and_made_of_the_rounds_own_rows() -> None:
    state: Any = {}
    choices, rule = [], TrimmedMean(f=2)
    for t in range(1, 6):
        rows = honest(t)
        sent = WorstOf(refresh=2).send(*situation(rows, rule, round=t, state=state))
        choices.append(int(sent.state["choice"]))
        assert ("deviation" in sent.report) == (t % 2 == 1)
        state = dict(sent.state)
    assert choices[0] == choices[1]
    assert choices[2] == choices[3]
    one, two = (WorstOf().send(*situation(honest(), rule)).rows.sent() for _ in range(2))
    assert torch.equal(one, two)


def test_it_asks_with_the_rules_memory_and_leaves_it_alone() -> None:
    rows = honest()
    memory = {"centre": torch.ones(6, dtype=torch.float64)}
    WorstOf().send(*situation(rows, Mean(), rule_state=memory, server_context=Context(round=4)))
    assert torch.equal(memory["centre"], torch.ones(6, dtype=torch.float64))


def test_equal_rows_and_a_single_one_are_no_trouble() -> None:
    for rows in (torch.ones(5, 3), torch.ones(1, 3), torch.zeros(5, 3)):
        sent = WorstOf()(rows, n=len(rows) + 1, q=1, defence=Mean())
        assert torch.isfinite(sent).all()


def test_names_and_bad_parameters() -> None:
    assert WorstOf.least is Knowledge.DEFENCE
    assert ATTACKS.build(ATTACKS.table(WorstOf(refresh=4))) == WorstOf(refresh=4)
    with pytest.raises(ConfigError, match="refresh must be a whole number >= 1"):
        WorstOf(refresh=0)
