from __future__ import annotations

import csv
import io
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats

from bezoar.reports import (
    Estimate,
    comparison_table,
    load,
    over_attacks_table,
    per_class_table,
    runs_table,
    tables,
    timing_table,
)
from bezoar.reports.estimates import student_t
from bezoar.reports.tables import matrix_table
from tests.reports.fakes import two_by_two, write_comparison, write_run


def entries(table, key):
    index = [column.key for column in table.columns].index(key)
    return [row[index] for row in table.rows]


def test_student_t_agrees_with_scipy() -> None:
    for df in (1, 2, 3, 4, 5, 9, 10, 29, 100, 1001):
        for confidence in (0.5, 0.95, 0.99):
            assert student_t(df, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, df), rel=1e-11)


def test_student_t_from_the_printed_tables() -> None:
    assert [round(student_t(df), 3) for df in (1, 2, 4, 10)] == [12.706, 4.303, 2.776, 2.228]


def test_estimate_agrees_with_scipys_interval() -> None:
    values = [0.812, 0.797, 0.805, 0.834]
    estimate = Estimate.of(values)
    assert estimate is not None
    low, high = stats.t.interval(0.95, 3, loc=statistics.mean(values), scale=stats.sem(values))
    assert estimate.half is not None
    assert (estimate.mean - estimate.half, estimate.mean + estimate.half) == pytest.approx((low, high), rel=1e-12)
    assert (estimate.low, estimate.high, estimate.n) == (0.797, 0.834, 4)


def test_estimate_of_little() -> None:
    assert Estimate.of([]) is None
    assert Estimate.of([None, None]) is None
    assert Estimate.of([0.5]) == Estimate(0.5, None, 0.5, 0.5, 1)
    assert Estimate.of([None, 0.5]) == Estimate(0.5, None, 0.5, 0.5, 1)
    with_nan = Estimate.of([0.5, math.nan])
    assert with_nan is not None
    assert math.isnan(with_nan.mean)
    far = Estimate.of([1.0, math.inf])
    assert far is not None
    assert far.mean == math.inf


def test_comparison_table_golden(tmp_path: Path) -> None:
    table = comparison_table(load(two_by_two(tmp_path)))
    assert entries(table, "row") == [1, 2, 3, 4]
    assert entries(table, "defence") == ["none", "none", "SparseFed", "SparseFed"]
    # seeds add 1, 2, 3 points: mean + 2 points, s = 1 point, half width 4.302653 / sqrt(3) = 2.484138 points
    attack = entries(table, "attack_accuracy")
    assert [e.mean for e in attack] == pytest.approx([0.97, 0.98, 0.06, 0.22])
    assert [e.half for e in attack] == pytest.approx([0.02484138] * 4, rel=1e-6)
    assert entries(table, "seeds") == ["n=3"] * 4
    assert entries(table, "converged") == ["3/3"] * 4
    shown = table.shown()[2]
    assert shown == [
        "3", "SparseFed", "PGD", "82.0 ± 2.5", "82.0 ± 2.5", "6.0 ± 2.5", "0.500 ± 0.000", "40.0 ± 0.0",
        "2.00 ± 0.00", "1.10 ± 0.00", "n=3", "3/3",
    ]  # fmt: skip


def test_the_table_shows_the_end_and_never_the_best(tmp_path: Path) -> None:
    run = write_run(tmp_path, test_accuracy=0.3, test_accuracy_clean=0.3)
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"test_accuracy": 0.18', '"test_accuracy": 0.99'))
    assert entries(comparison_table(load(run)), "test_accuracy")[0].mean == 0.3


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    table = comparison_table(load(two_by_two(tmp_path, seeds=[5])))
    assert table.shown()[0][3] == "95.0"
    assert entries(table, "seeds") == ["n=1"] * 4
    assert any("n=1" in note for note in table.notes)


def test_over_attacks_golden(tmp_path: Path) -> None:
    table = over_attacks_table(load(two_by_two(tmp_path)))
    assert table is not None
    assert entries(table, "defence") == ["none", "SparseFed"]
    mean = entries(table, "attack_accuracy_mean")
    assert [e.mean for e in mean] == pytest.approx([0.975, 0.14])
    assert [e.half for e in mean] == pytest.approx([0.02484138] * 2, rel=1e-6)
    assert [e.mean for e in entries(table, "attack_accuracy_worst")] == pytest.approx([0.98, 0.22])
    assert entries(table, "attack_accuracy_worst_attack") == ["adaptive", "adaptive"]


def test_over_attacks_leaves_the_unattacked_cell_out(tmp_path: Path) -> None:
    calm = {"attack_accuracy": None, "attackers_per_round_mean": 0, "test_accuracy_clean": 0.9}
    cells = [
        ({"defence": "Krum", "attack": "none", "seed": 1}, calm),
        ({"defence": "Krum", "attack": "PGD", "seed": 1}, {"attack_accuracy": 0.4, "test_accuracy_clean": 0.8}),
        ({"defence": "Krum", "attack": "flip", "seed": 1}, {"attack_accuracy": 0.2, "test_accuracy_clean": 0.6}),
    ]
    table = over_attacks_table(load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells)))
    assert table is not None
    assert [column.key for column in table.columns][:2] == ["defence", "test_accuracy_unattacked"]
    assert table.shown()[0] == ["Krum", "90.0", "70.0", "60.0", "flip", "30.0", "40.0", "PGD"]


def test_matrix_golden(tmp_path: Path) -> None:
    calm = {"attack_accuracy": None, "attackers_per_round_mean": 0}
    accuracy = {
        ("Krum", "none"): (0.5, 0.6), ("Krum", "flip"): (0.7, 0.8), ("Krum", "ALIE"): (0.9, 0.65),
        ("mean", "none"): (0.9, 0.9), ("mean", "flip"): (0.3, 0.5), ("mean", "ALIE"): (0.6, 0.1),
    }  # fmt: skip
    cells = [
        (
            {"defence": defence, "attack": attack, "seed": seed},
            {"test_accuracy_clean": value, **(calm if attack == "none" else {"attack_accuracy": None})},
        )
        for (defence, attack), values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    records = load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells))
    table = matrix_table(records)
    assert table is not None
    assert [column.title for column in table.columns] == [
        "defence",
        "none",
        "flip",
        "ALIE",
        "worst",
        "under",
        "worst run",
    ]
    assert [e.mean for e in entries(table, "under_ALIE")] == pytest.approx([0.775, 0.35])
    # By hand: the least mean over the attacks, not counting the cell without one, and the least single run.
    assert [e.mean for e in entries(table, "worst")] == pytest.approx([0.75, 0.35])
    assert entries(table, "worst_attack") == ["flip", "ALIE"]
    assert entries(table, "worst_run") == [0.65, 0.1]
    assert matrix_table(records, targeted=True) is None
    assert "matrix" in [found.name for found in tables(records)]


def test_matrix_of_targeted_attacks(tmp_path: Path) -> None:
    table = matrix_table(load(two_by_two(tmp_path)), targeted=True)
    assert table is not None
    assert [e.mean for e in entries(table, "worst")] == pytest.approx([0.98, 0.22])
    assert entries(table, "worst_run") == pytest.approx([0.99, 0.23])
    assert entries(table, "worst_attack") == ["adaptive", "adaptive"]


def test_a_diverged_run_is_the_worst_case(tmp_path: Path) -> None:
    cells = [
        (
            {"defence": "x", "attack": attack, "seed": seed},
            {"test_accuracy_clean": math.nan if (attack, seed) == ("a", 2) else 0.1},
        )
        for attack in ("a", "b")
        for seed in (1, 2)
    ]
    table = matrix_table(load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells)))
    assert table is not None
    assert table.shown() == [["x", "NaN", "10.0 ± 0.0", "NaN", "a", "NaN"]]
    assert "NaN: training diverged." in table.notes


def test_a_matrix_may_have_holes(tmp_path: Path) -> None:
    cells = [({"defence": d, "attack": a, "seed": 1}, {"test_accuracy_clean": 0.5}) for d, a in ("xa", "xb", "ya")]
    table = matrix_table(load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells)))
    assert table is not None
    assert table.shown()[1] == ["y", "50.0", "–", "50.0", "a", "50.0"]


def test_means_over_attacks_use_only_seeds_with_every_attack(tmp_path: Path) -> None:
    cells = [
        ({"defence": "Krum", "attack": "a", "seed": 1}, {"attack_accuracy": 0.4}),
        ({"defence": "Krum", "attack": "a", "seed": 2}, {"attack_accuracy": 0.8}),
        ({"defence": "Krum", "attack": "b", "seed": 1}, {"attack_accuracy": 0.2}),
        ({"defence": "Krum", "attack": "b", "seed": 2}, None),
    ]
    table = over_attacks_table(load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells)))
    assert table is not None
    (mean,) = entries(table, "attack_accuracy_mean")
    assert (mean.mean, mean.n) == (pytest.approx(0.3), 1)


def test_no_table_over_one_attack(tmp_path: Path) -> None:
    cells = [({"defence": d, "attack": "a", "seed": 1}, {}) for d in ("x", "y")]
    assert over_attacks_table(load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells))) is None


def test_missing_and_unfinished_runs_enter_no_number(tmp_path: Path) -> None:
    cells = [
        ({"defence": "x", "seed": 1}, {"attack_accuracy": 0.4}),
        ({"defence": "x", "seed": 2}, {"attack_accuracy": 0.9, "finished": False}),
        ({"defence": "y", "seed": 1}, None),
        ({"defence": "y", "seed": 2}, None),
    ]
    records = load(write_comparison(tmp_path, ["defence", "seed"], cells))
    table = comparison_table(records)
    assert entries(table, "attack_accuracy") == [Estimate(0.4, None, 0.4, 0.4, 1), None]
    assert entries(table, "seeds") == ["n=1 of 2", "n=0 of 2"]
    assert "3 of 4 runs are missing or unfinished" in " ".join(table.notes)
    assert entries(runs_table(records), "state") == ["finished", "unfinished", "missing", "missing"]
    assert entries(runs_table(records), "rounds") == [10, 10, None, None]


def test_nan_is_shown_and_a_value_missing_for_one_seed_is_counted(tmp_path: Path) -> None:
    cells = [
        ({"defence": "x", "seed": 1}, {"test_accuracy": math.nan, "distance_l2": 3.0, "converged": False}),
        ({"defence": "x", "seed": 2}, {"test_accuracy": 0.5, "distance_l2": None, "distance_l1": math.inf}),
    ]
    table = comparison_table(load(write_comparison(tmp_path, ["defence", "seed"], cells)))
    row = dict(zip([c.key for c in table.columns], table.shown()[0], strict=True))
    assert row["test_accuracy"] == "NaN"
    assert row["distance_l2"] == "3.00 (n=1)"
    assert row["distance_l1"] == "∞"
    assert row["converged"] == "1/2"


def test_timing_and_classes(tmp_path: Path) -> None:
    records = load(write_run(tmp_path))
    table = timing_table(records)
    assert table is not None
    assert table.shown() == [["1", "fake", "0.800", "0.200", "0.050", "0.010", "0.040", "1.100", "11.0"]]
    classes = per_class_table(records)
    assert classes is not None
    assert classes.shown() == [["1", "fake", "90.0", "70.0", "80.0"]]


def test_csv_has_unrounded_numbers(tmp_path: Path) -> None:
    text = comparison_table(load(two_by_two(tmp_path))).csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[0]["attack_accuracy_mean"]) == pytest.approx(0.97, abs=1e-15)
    assert float(rows[0]["attack_accuracy_half_width_95"]) == pytest.approx(0.024841377, rel=1e-7)
    assert rows[0]["attack_accuracy_n"] == "3"


NASTY = 'A&B_50%{x}<b>"$1^2~#\\ [red]x[/red]'


def test_every_form_escapes(tmp_path: Path) -> None:
    cells = [({"defence": NASTY, "seed": 1}, {}), ({"defence": 'a, "b"\nc', "seed": 1}, {})]
    table = comparison_table(load(write_comparison(tmp_path, ["defence", "seed"], cells)))
    assert "A&amp;B_50%{x}&lt;b&gt;&quot;$1^2~#\\ [red]" in table.html()
    assert r"A\&B\_50\%\{x\}\textless{}b\textgreater{}" in table.latex()
    assert r"\$1\textasciicircum{}2\textasciitilde{}\#\textbackslash{} [red]" in table.latex()
    assert [row["defence"] for row in csv.DictReader(io.StringIO(table.csv()))] == [NASTY, 'a, "b"\nc']
    assert NASTY in table.text()


def test_latex_has_as_many_cells_as_columns(tmp_path: Path) -> None:
    for table in tables(load(two_by_two(tmp_path))):
        body = table.latex().split("\\midrule\n")[1].split("\\bottomrule")[0]
        counts = {line.replace("\\&", "").count("&") for line in body.splitlines()}
        assert counts == {len(table.columns) - 1}


def test_rich_shows_labels_as_they_are(tmp_path: Path) -> None:
    from rich.console import Console

    table = comparison_table(
        load(write_comparison(tmp_path, ["defence", "seed"], [({"defence": NASTY, "seed": 1}, {})]))
    )
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(table.rich())
    assert "[red]x[/red]" in console.export_text()


def test_text_is_aligned(tmp_path: Path) -> None:
    lines = comparison_table(load(two_by_two(tmp_path))).text().splitlines()
    assert lines[3].startswith("-  ---------")
    assert lines[4].split()[:3] == ["1", "none", "PGD"]


def test_free_axes_without_seed(tmp_path: Path) -> None:
    cells = [({"k": k, "alpha": a}, {}) for k in (10, 20) for a in (0.1, 1.0)]
    table = comparison_table(load(write_comparison(tmp_path, ["k", "alpha"], cells)))
    assert entries(table, "k") == ["10", "10", "20", "20"]
    assert entries(table, "seeds") == ["n=1"] * 4
