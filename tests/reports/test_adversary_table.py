"""The table of what the defence noticed."""

from __future__ import annotations

from pathlib import Path

from bezoar.reports import adversary_table, load, tables
from bezoar.reports.page import render
from tests.reports.fakes import write_comparison


def test_nothing_is_shown_where_nothing_is_known(tmp_path: Path) -> None:
    records = load(write_comparison(tmp_path, ("defence", "seed"), [({"defence": "mean", "seed": "1"}, {})]))
    assert adversary_table(records) is None


def test_detection_and_error_are_shown_beside_the_floor(tmp_path: Path) -> None:
    cells = [
        ({"defence": "Krum", "seed": str(seed)}, {"detected": 1.0, "false_alarms": share, "variance": 2.0,
         "deviation": 4.0, "floor": 0.5})
        for seed, share in ((1, 0.25), (2, 0.35))
    ]  # fmt: skip
    cells += [({"defence": "median", "seed": str(seed)}, {"detected": None, "variance": 2.0}) for seed in (1, 2)]
    records = load(write_comparison(tmp_path, ("defence", "seed"), cells))
    table = adversary_table(records)
    assert table is not None
    assert [column.key for column in table.columns][2:] == [
        "detected",
        "false_alarms",
        "variance",
        "deviation",
        "floor",
    ]
    krum, median = table.shown()
    assert krum[2].startswith("100.0")
    assert krum[3].startswith("30.0 ±")
    assert krum[5:] == ["4.00 ± 0.00", "0.500 ± 0.000"]
    assert median[2:4] == ["–", "–"]
    assert any("q/(n - 2q)" in note for note in table.notes)
    assert any(found.name == "adversary" for found in tables(records))
    assert "attackers flagged" in render(records)
