"""Every table names the regime of its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bezoar.regime import regime
from bezoar.reports import comparison_table, load, tables, words
from bezoar.reports.page import render
from bezoar.reports.records import as_comparison
from bezoar.reports.rows import grid
from tests.reports.fakes import two_by_two, write_run


def settings(clients: str, adaptive: bool = False) -> str:
    adapts = str(adaptive).lower()
    return (
        f'name = "fake"\n[clients]\nkind = "{clients}"\n[defence]\nadaptive_clip = {adapts}\n'
        '[[defence.pipeline]]\nkind = "clip"\nradius = 5.0\n[[defence.pipeline]]\nkind = "mean"\n'
    )


def write(folder: Path, clients: dict[str, str]) -> None:
    """Give every cell the settings that the label of its defence or attack says."""
    for cell in json.loads((folder / "comparison.json").read_text())["cells"]:
        kind = next(text for label, text in clients.items() if label in cell["labels"].values())
        (folder / cell["dir"] / "experiment.toml").write_text(kind)


@pytest.mark.parametrize(
    ("clients", "adaptive", "name"),
    [
        ("gradient", False, "uncompressed"),
        ("local", False, "FedAvg"),
        ("local", True, "FedAvg + adaptive clipping"),
        ("mine", False, "mine"),
    ],
)
def test_one_run_names_its_regime_in_every_table(clients: str, adaptive: bool, name: str, tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", settings(clients, adaptive)))
    found = tables(run)
    assert len(found) >= 4
    for table in found:
        assert table.notes[-1] == f"Regime: {name}.", table.name
        assert f"Regime: {name}." in table.text()
        assert f"% Regime: {name}." in table.latex()
    assert f"Regime: {name}." in render(run)
    (sentence,) = (s for s in words.summary(grid(as_comparison(run))) if s.startswith("Regime"))
    assert sentence == f"Regime: {name}."


def test_two_regimes_are_told_apart_by_the_axis_that_decides(tmp_path: Path) -> None:
    folder = two_by_two(tmp_path)
    write(folder, {"none": settings("gradient"), "SparseFed": settings("local")})
    (note,) = (n for n in comparison_table(load(folder)).notes if n.startswith("Regime"))
    assert note == "Regime: uncompressed (defence none); FedAvg (defence SparseFed)."
    write(folder, {"PGD": settings("local", adaptive=True), "adaptive": settings("local")})
    (note,) = (n for n in comparison_table(load(folder)).notes if n.startswith("Regime"))
    assert note == "Regime: FedAvg + adaptive clipping (attack PGD); FedAvg (attack adaptive)."


def test_where_no_axis_decides_the_settings_are_numbered(tmp_path: Path) -> None:
    folder = two_by_two(tmp_path)
    for i, cell in enumerate(json.loads((folder / "comparison.json").read_text())["cells"]):
        kind = "gradient" if i // 3 in (0, 3) else "local"
        (folder / cell["dir"] / "experiment.toml").write_text(settings(kind))
    (note,) = (n for n in comparison_table(load(folder)).notes if n.startswith("Regime"))
    assert note == "Regime: uncompressed (settings 1, 4); FedAvg (settings 2, 3)."


def test_records_that_do_not_say_name_none(tmp_path: Path) -> None:
    assert not any("Regime" in note for table in tables(load(write_run(tmp_path / "run"))) for note in table.notes)
    assert regime({}) == regime({"clients": {"kind": "local"}}) == regime({"clients": 3, "defence": {}}) == ""
    assert regime({"clients": {"kind": "local"}, "defence": {"adaptive_clip": True, "pipeline": []}}) == "FedAvg"
