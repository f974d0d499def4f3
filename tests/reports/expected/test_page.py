from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from bezoar.reports import write_report
from bezoar.reports.expected import Board, is_expected, keep, load_records, loss_map, losses_table, tightness_maps
from bezoar.reports.expected.heat import label
from bezoar.reports.records import RecordsError

from .fakes import cell, write_grid, write_run

RULES = ("mean", "SIP(geometric median)", "trimmed mean, f by quantile", "guarded SIP")
AXES = {"task": ["ridge", "softmax"], "prior": ["groups", "Ising"], "skew": ["0.1", "iid"]}


def loss(labels: Mapping[str, str], seed: int, rule: str, attack: str, index: int) -> float:
    if rule == "mean" and attack == "sign flip" and index:
        return math.inf if seed == 1 else 300.0
    return (0.01 + 0.3 * RULES.index(rule)) * (1 + 0.1 * seed + index) * (0.1 if labels["skew"] == "iid" else 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(
        tmp_path_factory.mktemp("page") / "grid", AXES, RULES, ["none", "sign flip", "ALIE"], loss, range(3)
    )


def test_a_report_has_tables_pictures_and_the_small_form(folder: Path, tmp_path: Path) -> None:
    page = write_report(folder, tmp_path / "report")
    text = page.read_text()
    out = page.parent
    assert {path.name for path in (out / "tables").iterdir()} == {
        f"{name}.{kind}" for name in ("losses", "pairs", "tightness") for kind in ("csv", "tex")
    }
    assert {path.stem for path in (out / "figures").iterdir()} == {
        *(f"expected_{view}" for view in ("mean", "worst")),
        *(f"tightness_{what}" for what in ("bound", "measured", "ratio", "tight")),
    }
    for words in ("reading R1", "sign flip", "worst over attacks", "P(broken)", "bezoar compare fake", "∞", "ALIE"):
        assert words in text, words


def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first, second = (write_report(folder, tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_every_attack_has_its_column_beside_mean_and_worst(folder: Path) -> None:
    records = load_records(folder)
    table = losses_table(Board.of(records.name, records.scores))
    keys = [column.key for column in table.columns]
    assert keys[:4] == ["task", "prior", "skew", "rule"]
    assert {"mean", "worst", "attack_none", "attack_sign flip", "attack_ALIE", "broken"} <= set(keys)
    shown = dict(zip(keys, table.shown()[0], strict=True))
    assert (shown["rule"], shown["worst"], shown["diverged"]) == ("mean", "∞", "1")


def test_heat_maps_have_a_panel_for_each_task(folder: Path) -> None:
    records = load_records(folder)
    board = Board.of(records.name, records.scores)
    for plot in (loss_map(board, "worst"), *tightness_maps(board)):
        assert [panel.title for panel in plot.panels] == ["ridge", "softmax"]
        assert all("<svg" in svg and "guarded SIP" in svg for svg in plot.svgs())


def test_no_tightness_where_no_rule_has_a_constant(tmp_path: Path) -> None:
    lines = [cell(rule, "x", 0, 1.0, kappa=None, bound=None) for rule in RULES]
    folder = write_run(tmp_path / "run", lines)
    assert tightness_maps(Board.of("run", load_records(folder).scores)) == ()
    assert "Bounds" not in write_report(folder).read_text()


def test_labels_of_numbers_are_short() -> None:
    values = [0.0, 1e-9, 3e-3, 0.99, 1.0, 12.5, 99.9, 123.4, 9999.0, 1e30, -0.5]
    assert max(len(label(value)) for value in values) <= 6
    assert label(0.0) == "0"


def test_missing_runs_are_named(folder: Path, tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", {"skew": ["1", "iid"]}, RULES, ["x"], loss, [0])
    (grid / "cells/1/summary.json").unlink()
    text = write_report(grid).read_text()
    assert "Missing and unfinished runs" in text
    assert "iid (1)" in text


@pytest.mark.parametrize("damage", ["config", "kind", "line", "index", "empty"])
def test_damaged_folders_are_refused_with_their_place(tmp_path: Path, damage: str) -> None:
    grid = write_grid(tmp_path / "grid", {"skew": ["1"]}, RULES, ["x"], loss, [0, 1])
    run = grid / "cells/1"
    index = json.loads((grid / "comparison.json").read_text())
    if damage == "config":
        (run / "experiment.toml").write_text("= 3")
    elif damage == "kind":
        (run / "experiment.toml").write_text('kind = "personalized"')
    elif damage == "line":
        (run / "metrics.jsonl").write_text('{"kind": "cell", ')
    elif damage == "index":
        index["cells"][1]["labels"] = {}
        (grid / "comparison.json").write_text(json.dumps(index))
    else:
        for place in ("0", "1"):
            (grid / "cells" / place / "summary.json").unlink()
    with pytest.raises(RecordsError, match=r"cells/1|comparison\.json|no run has finished"):
        write_report(grid)


def test_the_small_form_is_kept_whole(folder: Path, tmp_path: Path) -> None:
    records = load_records(folder)
    keep(records, tmp_path)
    assert is_expected(tmp_path)
    again = load_records(tmp_path)
    assert (again.name, again.runs, again.commits, again.seeds) == (records.name, 24, ("abc",), (0, 1, 2))
    assert len(again.scores) == len(records.scores)
    first, second = write_report(folder, tmp_path / "first"), write_report(tmp_path)
    for name in ("losses.csv", "pairs.csv"):
        pairs = [(page.parent / "tables" / name).read_text().splitlines()[0] for page in (first, second)]
        assert pairs[0] == pairs[1]
    assert 'class="summary">4 rules in 8 regimes, 3 seeds; 24 runs.' in second.read_text()
