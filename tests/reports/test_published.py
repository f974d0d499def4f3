"""A paper's numbers beside those of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bezoar.reports import Estimate, RecordsError, judged, load, published_table, render
from bezoar.reports.records import Comparison
from tests.reports.fakes import two_by_two

CLAIM: dict[str, Any] = {
    "of": "Table 1",
    "says": "it holds",
    "published": [
        {"at": {"defence": "none", "attack": "PGD"}, "attack": 100.0, "oif": "DNC"},
        {"at": {"defence": "SparseFed", "attack": "PGD"}, "attack": 4.6},
    ],
    "checks": [
        {"metric": "attack", "at": {"defence": "SparseFed", "attack": "PGD"}, "below": 6.5},
        {"metric": "test", "at": {"defence": "SparseFed", "attack": "PGD"}, "above": 80},
    ],
}


def write(path: Path, *claims: Any, **head: Any) -> Path:
    return two_by_two(path, paper=list(claims), **head)


def test_without_a_paper_there_is_nothing(tmp_path: Path) -> None:
    found = load(two_by_two(tmp_path))
    assert published_table(found) is None
    assert judged(found) == ()


def test_verdicts_are_about_means_and_count_seeds(tmp_path: Path) -> None:
    # Attack accuracy is 5, 6 and 7% in the three seeds: the mean is below 6.5, one seed is not.
    (one,) = judged(load(write(tmp_path, CLAIM)))
    assert one.verdict.word == "agrees"
    assert (one.agreeing, one.seeds) == (2, 3)
    assert one.words == "agrees (all checks hold in 2 of 3 seeds by themselves)"


def test_the_table_has_every_row_and_metric(tmp_path: Path) -> None:
    table = published_table(load(write(tmp_path, CLAIM, scale="small")))
    assert table is not None
    assert table.title == "Beside the paper, scale small"
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    assert len(rows) == 4 * 3
    found = {(row["defence"], row["attack"], row["metric"]): row for row in rows}
    attack = found["SparseFed", "PGD", "attack accuracy (%)"]
    assert isinstance(attack["ours"], Estimate)
    assert (attack["published"], attack["ours"].mean, attack["worst"]) == ("4.6", pytest.approx(6), pytest.approx(7))
    test = found["SparseFed", "PGD", "test accuracy (%)"]
    assert (test["published"], test["worst"]) == ("\u2013", pytest.approx(81))
    assert found["none", "PGD", "OIF"]["published"] == "DNC"
    assert "Table 1: agrees" in table.notes[1]
    assert "is below 6.5: yes." in table.notes[1]


def test_the_page_shows_it(tmp_path: Path) -> None:
    page = render(load(write(tmp_path, CLAIM)))
    assert "<h2>Beside the paper</h2>" in page
    assert "Table 1: agrees" in page


def test_claims_of_rows_that_are_not_there_are_not_run(tmp_path: Path) -> None:
    other = {**CLAIM, "checks": [{"metric": "attack", "at": {"defence": "Krum"}, "above": 50}]}
    (one,) = judged(load(write(tmp_path, other)))
    assert one.words == "not run"


def test_a_seed_that_diverged_is_not_left_out_of_the_mean(tmp_path: Path) -> None:
    write(tmp_path, CLAIM)
    index = json.loads((tmp_path / "comparison.json").read_text())
    at = {"defence": "SparseFed", "attack": "PGD", "seed": 1}
    (folder,) = (tmp_path / cell["dir"] for cell in index["cells"] if cell["labels"] == at)
    summary = json.loads((folder / "summary.json").read_text())
    gone = {"test_accuracy": None, "test_accuracy_clean": None, "attack_accuracy": None, "outsized_impact": None}
    (folder / "summary.json").write_text(json.dumps({**summary, **gone, "converged": False}))
    (one,) = judged(load(tmp_path))
    assert one.verdict.holds == (False, False)
    assert (one.verdict.word, one.agreeing) == ("differs", 1)


@pytest.mark.parametrize("paper", [3, [3], [{"of": "x"}], [{**CLAIM, "checks": [{"metric": "x"}]}]])
def test_damaged_claims_name_the_file(tmp_path: Path, paper: Any) -> None:
    two_by_two(tmp_path, paper=paper)
    with pytest.raises(RecordsError, match=r"comparison\.json"):
        load(tmp_path)


def test_old_records_have_neither_scale_nor_claims(tmp_path: Path) -> None:
    found = load(two_by_two(tmp_path))
    assert isinstance(found, Comparison)
    assert (found.scale, found.claims) == ("", ())
