from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bezoar.aggregation import NNM, Krum, Mean, Median, TrimmedMean
from bezoar.attacks import NonFinite
from bezoar.errors import ConfigError
from tests.attacks.context import bare, hostile


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values(dtype: torch.dtype) -> None:
    view, context = bare(hostile("plain", dtype=dtype), 2)
    for value, holds in (
        ("nan", torch.isnan),
        ("inf", torch.isposinf),
        ("-inf", torch.isneginf),
        ("overflow", lambda x: torch.isfinite(x) & torch.isinf(x * 2)),
    ):
        attack = NonFinite(value)  # type: ignore[arg-type]
        assert holds(attack.rows(view, Mean(), context).sent()).all()
        one = NonFinite(value, "one").rows(view, Mean(), context).sent()  # type: ignore[arg-type]
        assert holds(one).sum(1).tolist() == [1, 1]
        assert (one == 0).sum(1).tolist() == [22, 22]


def test_the_one_coordinate_is_drawn_for_every_attacker_and_round() -> None:
    def spots(round: int) -> list[int]:
        view, context = bare(hostile("plain"), 12, round=round)
        return NonFinite(where="one").rows(view, Mean(), context).sent().isnan().int().argmax(1).tolist()

    assert len(set(spots(1))) > 4
    assert spots(1) == spots(1)
    assert spots(1) != spots(2)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_attackers_are_left_out_by_name(value: Any) -> None:
    view, context = bare(hostile("plain"), 2)
    rows = NonFinite(value).rows(view, Mean(), context)
    answer = Mean().aggregate(rows)
    assert sorted(rows.clients[list(answer.excluded)].tolist()) == [1, 3]
    assert torch.allclose(answer.vector, view.values.mean(0))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("rule", [Krum(f=2), TrimmedMean(f=2), NNM(f=2) >> Median()], ids=lambda rule: rule.name)
def test_only_honest_rows_remain_for_every_rule(value: Any, rule: Any) -> None:
    view, context = bare(hostile("plain"), 2)
    answer = rule.aggregate(NonFinite(value).rows(view, Mean(), context))
    alone = rule.without(2).aggregate(view)
    assert torch.equal(answer.vector, alone.vector)


@pytest.mark.parametrize("options", [{"value": "big"}, {"value": math.nan}, {"where": "two"}])
def test_nonsense_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="non-finite"):
        NonFinite(**options)
