"""The table of what clients send and fetch."""

from __future__ import annotations

from pathlib import Path

from bezoar.reports import communication_table, load, tables
from bezoar.reports.page import render
from tests.reports.fakes import write_comparison


def told(up: float, down: float, rounds: int = 10, cohort: int = 100) -> dict[str, float]:
    return {
        "bytes_up": up * rounds * cohort,
        "bytes_down": down * rounds * cohort,
        "bytes_up_per_client": up,
        "bytes_down_per_client": down,
    }


def test_older_records_have_no_table_and_still_a_page(tmp_path: Path) -> None:
    records = load(write_comparison(tmp_path, ("defence", "seed"), [({"defence": "mean", "seed": "1"}, {})]))
    assert communication_table(records) is None
    assert "What clients send and fetch" not in render(records)


def test_bytes_are_shown_with_a_unit_and_beside_dense(tmp_path: Path) -> None:
    d = 1234
    cells = [
        ({"defence": "mean", "seed": "1"}, told(4 * d, 4 * d)),
        ({"defence": "SparseFed", "seed": "1"}, told(4 * d, d)),
        ({"defence": "older", "seed": "1"}, {}),
    ]
    records = load(write_comparison(tmp_path, ("defence", "seed"), cells))
    table = communication_table(records)
    assert table is not None
    assert [column.heading for column in table.columns] == [
        "#",
        "defence",
        "up, client and round (kB)",
        "of dense (%)",
        "down, client and round (kB)",
        "of dense (%)",
        "up, whole run (MB)",
        "down, whole run (MB)",
    ]
    assert table.shown() == [
        ["1", "mean", "4.94", "100.0", "4.94", "100.0", "4.94", "4.94"],
        ["2", "SparseFed", "4.94", "100.0", "1.23", "25.0", "4.94", "1.23"],
    ]
    head, mean, sparse = table.csv().splitlines()
    assert head.split(",")[2] == "bytes_up_per_client_mean"
    assert mean.split(",")[2] == "4936.0"
    assert sparse.split(",")[8] == "1234.0"
    assert "kB" in table.latex()
    assert "communication" in [found.name for found in tables(records)]
    assert "What clients send and fetch" in render(records)


def test_a_total_that_is_not_known_is_no_zero(tmp_path: Path) -> None:
    cells = [({"defence": "mean", "seed": "1"}, {**told(10.0, 5.0), "bytes_down": None, "bytes_down_per_client": None})]
    table = communication_table(load(write_comparison(tmp_path, ("defence", "seed"), cells)))
    assert table is not None
    assert table.shown()[0][2:] == ["10", "0.2", "–", "–", "10.0", "–"]
