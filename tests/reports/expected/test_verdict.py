from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from bezoar.reports.expected import (
    Board,
    Hypothesis,
    Regime,
    contest,
    is_expected,
    judge,
    leaders,
    load_records,
    regrets,
)

from .fakes import write_grid

RULES = ("new", "old", "older")


def loss(labels: Mapping[str, str], seed: int, rule: str, attack: str, index: int) -> float:
    """ "new" is best at skew 1; at skew .1 it is level with "old"; "older" diverges under y in half of the seeds."""
    noise = 0.01 * ((7 * seed + 3 * index) % 5)
    if rule == "older":
        return math.inf if attack == "y" and seed % 2 else 0.1
    if labels["skew"] == "1":
        return (1.0 if rule == "new" else 2.0 + 0.1 * seed) + noise
    return 1.0 + noise + (0.1 * (-1) ** seed * (1 + seed) if rule == "new" else 0.0)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    folder = write_grid(tmp_path / "grid", {"task": ["ridge"], "skew": ["0.1", "1"]}, RULES, ["none", "x", "y"], loss)
    assert is_expected(folder)
    records = load_records(folder)
    return Board.of(records.name, records.scores)


def test_the_axes_are_those_that_differ(board: Board) -> None:
    assert board.axes == ("skew",)
    assert [regime.title for regime in board.regimes] == ["ridge, 0.1", "ridge, 1"]


def test_a_new_rule_wins_only_against_every_baseline(board: Board) -> None:
    level, wins = (contest("new", ["old"], regime.over("worst")) for regime in board.regimes)
    assert level is not None
    assert wins is not None
    assert (level.result, level.losing_to, level.beating) == ("level", (), ())
    assert (wins.result, wins.beating) == ("wins", ("old",))
    loses = contest("old", ["new"], board.regimes[1].over("worst"))
    assert loses is not None
    assert (loses.result, loses.losing_to) == ("loses", ("new",))
    both = contest("new", ["old", "older"], board.regimes[1].over("worst"))
    assert both is not None
    assert both.result == "level", "half of the seeds of 'older' are far better, half diverged"
    assert contest("new", ["absent"], board.regimes[0].over("worst")) is None


def test_leaders_are_those_that_can_not_be_told_apart(board: Board) -> None:
    level, wins = (leaders(regime, regime.over("worst")) for regime in board.regimes)
    assert level is not None
    assert wins is not None
    assert {level.first, *level.level} >= {"new", "old"}
    assert wins.first == "new"
    assert "old" not in wins.level
    assert wins.spreads["older"].diverged == 4


def test_regret_is_a_multiple_of_the_best_and_infinite_where_seeds_diverged(board: Board) -> None:
    found = regrets(board.regimes, lambda regime: regime.over("worst"))
    assert list(found)[-1] == "older"
    assert found["older"].mean == math.inf
    assert found["old"].at == "ridge, 1"
    assert found["old"].most == pytest.approx(2.35 / 1.0, rel=0.05)
    assert found["new"].mean < found["old"].mean
    assert regrets([], lambda regime: {}) == {}


@pytest.mark.parametrize(
    ("pairs", "where", "by", "word"),
    [
        ([("new", "old")], {"skew": ["1"]}, 1.0, "confirmed"),
        ([("new", "old")], {"skew": ["1"]}, 1.5, "confirmed"),
        ([("new", "old")], {"skew": ["1"]}, 100.0, "refuted"),
        ([("old", "new")], {"skew": ["1"]}, 1.0, "refuted"),
        ([("new", "old")], {"skew": ["0.1"]}, 1.0, "not told apart"),
        ([("new", "old")], {}, 1.0, "confirmed in part"),
        ([("new", "old"), ("old", "new")], {"skew": ["1"]}, 1.0, "refuted"),
        ([("new", "old"), ("new", "absent")], {}, 1.0, "not run"),
        ([("new", "absent")], {}, 1.0, "not run"),
    ],
)
def test_hypotheses(
    board: Board, pairs: list[tuple[str, str]], where: dict[str, list[str]], by: float, word: str
) -> None:
    finding = judge(Hypothesis("here", "says", tuple(pairs), "x", where, by), board)
    assert finding.word == word, finding.counts


def test_a_hypothesis_that_holds_here_and_fails_there_is_mixed(board: Board) -> None:
    turned = tuple(
        dataclasses.replace(score, rule={"new": "old", "old": "new"}.get(score.rule, score.rule), labels={"skew": "2"})
        for score in board.regimes[1].scores
    )
    both = Board("both", (board.regimes[1], Regime({"skew": "2"}, turned)))
    finding = judge(Hypothesis("here", "says", (("new", "old"),), "x"), both)
    assert (finding.word, finding.counts) == ("mixed", "holds in 1 of 2, the reverse in 1")
