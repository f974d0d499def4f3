"""The figures in docs/certificates.md are those of the committed certificates, which certify what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bezoar.experiments import Experiment
from bezoar.experiments.certificates._words import amount
from bezoar.recipes import recipes

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "certificate-tight"
NAMES = ("attacked", "long")


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name / "certificate.json").read_text(encoding="utf-8"))
    return found


def page() -> str:
    return (ROOT / "docs" / "certificates.md").read_text(encoding="utf-8")


def size(log10: float) -> str:
    return amount(log10 * math.log(10))


def attack_rows(found: dict[str, Any]) -> list[str]:
    """Markdown rows: how near each kind of attack came to the radii, and the most labels it changed."""
    first, second = (cell["search"]["kinds"] for cell in found["cells"])
    rows = []
    for name, one in first.items():
        two = second[name]
        shares = one["largest_share_of_l1_radius"], one["largest_share_of_l2_radius"], two["largest_share_of_l2_radius"]
        labels = one["most_predictions_flipped"], two["most_predictions_flipped"]
        shown = " | ".join([*(f"{100 * share:.1f}" for share in shares), *map(str, labels)])
        rows.append(f"| {name} | {shown} |")
    return rows


def sweep_rows(found: dict[str, Any]) -> list[str]:
    """Markdown rows: every k's radii, distances and certified predictions."""
    rows = []
    for cell in found["cells"]:
        end, sure = cell["end"], cell["predictions"]
        shown = [
            f"{cell['k']}",
            size(end["log10_recurrence_l1"]),
            size(end["log10_recurrence_l1_if_loss_rate_is_as_measured"]),
            size(end["log10_reach_l1"]),
            f"{end['distance_l1']:.3g}",
            size(end["log10_bound_l2"]),
            f"{end['distance_l2']:.3g}",
            f"{100 * sure['certified_l1']:.1f}",
            f"{100 * sure['certified_l2']:.1f}",
            f"{100 * sure['accuracy']:.1f}",
        ]
        rows.append(f"| {' | '.join(shown)} |")
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_records_say_how_they_were_made(name: str) -> None:
    found = record(name)
    assert found["command"].startswith("bezoar certify certificate-tight ")
    assert found["commit"]
    assert not found["commit"].endswith("dirty")
    assert found["hardware"]["cpu"]
    assert found["versions"]["torch"]
    experiment = Experiment.load(FOLDER / name / "experiment.toml")
    assert experiment.hash() == found["hash"]
    if name == "attacked":
        assert experiment.hash() == Experiment.load(recipes()["certificate-tight"]).hash()


def test_no_round_is_beyond_its_radius() -> None:
    found = record("attacked")
    lines = (FOLDER / "attacked" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == found["rounds"] * len(found["cells"])
    for line in map(json.loads, lines):
        assert line["distance_l1"] <= 10 ** line["log10_bound_l1"]
        assert line["distance_l2"] <= 10 ** line["log10_bound_l2"]


def test_no_attack_got_out_and_predictions_are_certified() -> None:
    for cell in record("attacked")["cells"]:
        assert cell["search"]["attacks"] == 100
        assert cell["search"]["beyond_radius"] == 0
        assert cell["search"]["certified_but_flipped"] == 0
        assert cell["predictions"]["certified"] > 0.4
        assert not cell["vacuous"]


def test_the_page_quotes_the_records() -> None:
    text = page()
    attacked = record("attacked")
    for row in (*attack_rows(attacked), *sweep_rows(record("long")), *sweep_rows(attacked)):
        assert row in text, row
    for cell in record("long")["cells"][2:]:
        assert 10 ** cell["end"]["log10_recurrence_l1_if_loss_rate_is_as_measured"] > cell["moved_l1"]
        assert f"{cell['moved_l1']:.2f}" == "0.15"
    for cell in attacked["cells"]:
        sure, nearest = cell["predictions"], cell["search"]["nearest"]
        assert f"{100 * sure['certified']:.1f}%" in text
        assert f"{100 * nearest['l2']['share']:.1f}%" in text
        assert f"{round(cell['search']['flipped_by_any'] * sure['test_points'])} of {sure['test_points']}" in text
