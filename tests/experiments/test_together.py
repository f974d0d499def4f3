"""Certificates side by side, and the page's figures, which are those of the committed records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments.certificates.together import read_certificate, together
from bezoar.recipes import find

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "certified-ensembles"
NAMES = {"FLCert-D": "flcert-d", "ensemble": "ensemble", "CRFL": "crfl"}
PAGE = (ROOT / "docs" / "ensembles.md").read_text(encoding="utf-8")


def record(name: str) -> dict[str, object]:
    return read_certificate(RESULTS / NAMES[name])


def test_the_page_quotes_the_records() -> None:
    table, _ = together({name: RESULTS / folder for name, folder in NAMES.items()})
    assert len(table.rows) == 4
    for row in table.shown():
        assert "| " + " | ".join(row) + " |" in PAGE, row
    for folder, title in (("one-model-unattacked", "no attack"), ("one-model", "attacked")):
        summary = json.loads((RESULTS / folder / "summary.json").read_text())
        assert f"{title} {summary['test_accuracy']:.1%}" in PAGE
    crfl = record("CRFL")["facts"]
    assert isinstance(crfl, dict)
    for value in (crfl["copies_accuracy"], crfl["certified_at_that_distance"], crfl["single_model_accuracy_mean"]):
        assert f"{value:.1%}" in PAGE
    for value in (crfl["distance_median"], crfl["distance_under_attack"]):
        assert f"{value:.3f}" in PAGE
    single = record("FLCert-D")["facts"]
    assert isinstance(single, dict)
    assert f"{single['single_model_accuracy_mean']:.1%}" in PAGE


def test_records_say_how_they_were_made_and_broke_no_promise() -> None:
    for name, folder in NAMES.items():
        found = record(name)
        assert str(found["command"]).startswith("bezoar certify certified-")
        assert found["commit"]
        assert not str(found["commit"]).endswith("dirty")
        assert found["attack"]["certified_labels_changed"] == 0  # type: ignore[index]
        recipe = "certified-crfl" if name == "CRFL" else "certified-ensembles"
        assert (
            found["hash"]
            == Experiment.load(find(recipe)).hash()
            == Experiment.load(RESULTS / folder / "experiment.toml").hash()
        )


def test_one_table_and_one_figure(tmp_path: Path) -> None:
    table, plot = together({"a": RESULTS / "flcert-d", "b": RESULTS / "ensemble"}, malicious=(0, 1000))
    assert [row[0] for row in table.rows] == ["a", "b", "b, groups known"]
    assert [row[-1] for row in table.rows] == [0.0, 0.0, 0.0]
    assert all(file.stat().st_size > 5000 for file in plot.write(tmp_path))


def test_what_is_no_certificate_of_votes(tmp_path: Path) -> None:
    with pytest.raises(BezoarError, match="can not be read"):
        read_certificate(tmp_path)
    (tmp_path / "certificate.json").write_text("{")
    with pytest.raises(BezoarError, match="can not be read"):
        read_certificate(tmp_path)
    (tmp_path / "certificate.json").write_text('{"method": "radius"}')
    with pytest.raises(ConfigError, match="no certified accuracy"):
        read_certificate(tmp_path)
