from __future__ import annotations

from pathlib import Path

from bezoar.reports import load
from bezoar.reports.records import as_comparison
from bezoar.reports.rows import grid
from bezoar.reports.words import summary
from tests.reports.fakes import two_by_two, write_comparison, write_run


def words(path: Path) -> str:
    return " ".join(summary(grid(as_comparison(load(path)))))


def test_the_worst_case_is_named(tmp_path: Path) -> None:
    text = words(two_by_two(tmp_path))
    assert "12 runs (2 defences × 2 attacks), all finished: 3 finished seeds per setting." in text
    assert "Without a defence (“none”) the attack, at its strongest (adaptive), won 98.0 ± 2.5 %" in text
    assert "(worst seed 99.0 %)" in text
    assert "The lowest attack accuracy was that of “SparseFed”, 22.0 ± 2.5 % in its worst case (adaptive)" in text
    assert "the intervals do not overlap" in text


def test_overlapping_intervals_separate_nothing(tmp_path: Path) -> None:
    cells = [
        ({"defence": defence, "seed": seed}, {"attack_accuracy": share + 0.1 * seed})
        for defence, share in (("a", 0.1), ("b", 0.12))
        for seed in (1, 2)
    ]
    text = words(write_comparison(tmp_path, ["defence", "seed"], cells))
    assert "its interval overlaps with that of “b”" in text
    assert "these data do not separate them" in text


def test_one_seed_claims_nothing_about_intervals(tmp_path: Path) -> None:
    text = words(two_by_two(tmp_path, seeds=[1]))
    assert "overlap" not in text
    assert "With one seed there are no intervals: differences between settings may be chance." in text


def test_only_settings_that_all_finished_are_ranked(tmp_path: Path) -> None:
    cells = [
        ({"defence": "a", "attack": "weak", "seed": 1}, {"attack_accuracy": 0.1}),
        ({"defence": "a", "attack": "strong", "seed": 1}, {"attack_accuracy": 0.9}),
        ({"defence": "b", "attack": "weak", "seed": 1}, {"attack_accuracy": 0.3}),
        ({"defence": "b", "attack": "strong", "seed": 1}, None),
    ]
    text = words(write_comparison(tmp_path, ["defence", "attack", "seed"], cells))
    assert "The lowest attack accuracy among what finished for all (weak) was that of “a”, 10.0 %" in text
    assert "1 run missing or unfinished" in text


def test_nothing_in_common_is_not_ranked(tmp_path: Path) -> None:
    cells = [
        ({"defence": "a", "attack": "weak", "seed": 1}, {}),
        ({"defence": "b", "attack": "strong", "seed": 1}, {}),
    ]
    assert "is not ranked" in words(write_comparison(tmp_path, ["defence", "attack", "seed"], cells))


def test_an_untargeted_attack_is_judged_by_test_accuracy(tmp_path: Path) -> None:
    calm = {"attack_accuracy": None, "attackers_per_round_mean": 0, "test_accuracy_clean": 0.9}
    hit = {"attack_accuracy": None, "test_accuracy_clean": 0.1}
    cells = [
        ({"defence": "none", "attack": "none", "seed": 1}, calm),
        ({"defence": "none", "attack": "ALIE", "seed": 1}, hit),
    ]
    text = words(write_comparison(tmp_path, ["defence", "attack", "seed"], cells))
    assert "the attack (ALIE) left a test accuracy of 10.0 %, against 90.0 % unattacked." in text


def test_diverged_runs_are_said(tmp_path: Path) -> None:
    nan = float("nan")
    cells = [
        ({"defence": "a", "seed": 1}, {"attack_accuracy": nan, "converged": False}),
        ({"defence": "b", "seed": 1}, {"attack_accuracy": 0.5}),
    ]
    text = words(write_comparison(tmp_path, ["defence", "seed"], cells))
    assert "The lowest attack accuracy was that of “b”, 50.0 %" in text
    assert "1 of 2 finished runs did not converge" in text


def test_a_single_run(tmp_path: Path) -> None:
    text = words(write_run(tmp_path))
    assert text.startswith("One run of 10 rounds, seed 1: test accuracy 80.0 % (82.0 % without the aux points)")
    assert "the attack won 10.0 % of its aux points" in text


def test_nothing_finished(tmp_path: Path) -> None:
    assert "has finished: there are no results yet" in words(write_run(tmp_path, finished=False))
