from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from bezoar.reports.expected.board import Board, ranked, regret, spreads
from bezoar.reports.expected.scores import checked, expectation, read_scores, reduced, write_scores
from bezoar.reports.records import RecordsError

from .fakes import cell


def one(lines: list[dict[str, object]]):  # type: ignore[no-untyped-def]
    (score,) = reduced(lines, {"skew": "1"}, 3, "R1", "here")
    return score


def test_expectations_are_weighted_by_the_probabilities_of_the_sets() -> None:
    score = one([cell("a", "x", 0, 1.0), cell("a", "x", 1, 2.0), cell("a", "x", 2, 6.0, broke=True, bound=None)])
    assert score.expected == pytest.approx(0.5 + 0.6 + 1.2)
    assert (score.worst, score.sets, score.seed, score.measure) == (6.0, 3, 3, "excess")
    assert score.broken == pytest.approx(0.2)
    assert score.holding == pytest.approx((0.5 + 0.6) / 0.8)
    assert score.bound == pytest.approx(4 * (1.1 / 0.8 + 0.01))
    assert score.ratio == pytest.approx(score.holding / score.bound)
    assert (score.tight, score.mass) == (0.5, pytest.approx(1.0))


def test_probabilities_of_a_part_of_the_support_are_conditional_on_it() -> None:
    score = one([cell("a", "x", 0, 1.0), cell("a", "x", 1, 2.0)])
    assert score.expected == pytest.approx((0.5 + 0.6) / 0.8)
    assert score.mass == pytest.approx(0.8)


def test_draws_count_alike_and_are_not_mixed_with_probabilities() -> None:
    draws = [cell("a", "x", i, float(i), log_prob=None, draw=i) for i in range(4)]
    assert one(draws).expected == 1.5
    assert math.isnan(one(draws).mass)
    with pytest.raises(RecordsError, match="can not be mixed"):
        one([cell("a", "x", 0, 1.0), cell("a", "x", 1, 1.0, log_prob=None)])


def test_what_diverged_is_infinite_and_never_dropped() -> None:
    score = one([cell("a", "x", 0, 1.0), cell("a", "x", 2, math.inf)])
    assert (score.expected, score.worst) == (math.inf, math.inf)
    assert score.diverged == pytest.approx(0.2 / 0.7)
    assert expectation([math.inf, 1.0], [0.0, 1.0]) == 1.0


def test_without_a_minimum_the_loss_itself_is_compared() -> None:
    score = one([{**cell("a", "x", 0, 1.0), "excess": None, "loss": 2.5, "bound": None}])
    assert (score.measure, score.expected, score.bound, score.ratio) == ("loss", 2.5, None, None)
    with pytest.raises(RecordsError, match="did not diverge"):
        one([{**cell("a", "x", 0, 1.0), "excess": None, "loss": None}])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no cells"),
        ([{"kind": "cell", "rule": "a"}], "without rule, attack and set"),
        ([cell("a", "x", 0, 1.0)] * 2, "there twice"),
        ([cell("a", "x", 0, 1.0), cell("a", "x", 1, 1.0), cell("b", "x", 0, 1.0)], "1 of 2 honest sets"),
        ([cell("a", "x", 0, 1.0, log_prob=math.nan)], "not a number"),
    ],
)
def test_damaged_runs_are_refused(lines: list[dict[str, object]], words: str) -> None:
    with pytest.raises(RecordsError, match=words):
        reduced(lines, {}, 0, "R1", "here")


def test_a_file_of_scores_reads_back(tmp_path: Path) -> None:
    found = [
        one([cell("a, b", "x", 0, 1.0)]),
        one([cell("c", "x", 0, math.inf, kappa=None, bound=None, log_prob=None)]),
    ]
    write_scores(tmp_path / "s.csv", found)
    assert (tmp_path / "s.csv").read_text().splitlines()[0].startswith("axis:skew,seed,sets,reading")
    for before, after in zip(found, read_scores(tmp_path / "s.csv"), strict=True):
        for field in dataclasses.fields(before):
            a, b = getattr(before, field.name), getattr(after, field.name)
            assert b == (pytest.approx(a, rel=1e-5, nan_ok=True) if isinstance(a, float) else a), field.name


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("seed,rule\n", "no column"), (None, "fields"), ("bad", "could not convert")]
)
def test_damaged_files_of_scores_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "s.csv"
    write_scores(file, [one([cell("a", "x", 0, 1.0)])])
    if text is None:
        file.write_text(file.read_text() + "1,2\n")
    elif text == "bad":
        file.write_text(file.read_text().replace(",1,1,0,", ",one,1,0,"))
    else:
        file.write_text(text)
    with pytest.raises(RecordsError, match=words):
        read_scores(file)


def test_two_readings_are_never_in_one_table() -> None:
    first = one([cell("a", "x", 0, 1.0)])
    with pytest.raises(RecordsError, match="readings R1 and R2"):
        Board.of("here", [first, dataclasses.replace(first, reading="R2", seed=4)])
    with pytest.raises(RecordsError, match="measures excess and loss"):
        checked([first, dataclasses.replace(first, measure="loss", seed=4)], "here")
    with pytest.raises(RecordsError, match="twice"):
        checked([first, first], "here")


def test_over_attacks_comes_before_over_seeds_and_leaves_none_out() -> None:
    scores = []
    for seed, (x, y) in enumerate([(1.0, 4.0), (5.0, 2.0)]):
        lines = [cell("a", "x", 0, x), cell("a", "y", 0, y), cell("a", "none", 0, 100.0)]
        scores += reduced(lines, {}, seed, "R1", "here")
    (regime,) = Board.of("here", scores).regimes
    assert regime.over("worst") == {"a": {0: 4.0, 1: 5.0}}
    assert regime.over("mean") == {"a": {0: 2.5, 1: 3.5}}
    assert regime.under("none") == {"a": {0: 100.0, 1: 100.0}}


def test_ranks_and_regrets() -> None:
    figures = {"good": {0: 1.0, 1: 1.0}, "lost": {0: 0.1, 1: math.inf}, "bad": {0: 4.0, 1: 2.0}, "partial": {0: 0.0}}
    found = spreads(figures, (0, 1))
    assert ranked(found) == ["good", "bad", "lost"]
    assert regret(found) == {"good": 1.0, "lost": math.inf, "bad": 3.0}
