"""The table of docs/personalized.md is that of the committed records, which are those of the recipe."""

from __future__ import annotations

import json
from pathlib import Path

from bezoar.personalized.experiment import Equivalence
from bezoar.recipes import find

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "equivalence-mnist"


def test_the_page_quotes_the_records() -> None:
    text = (ROOT / "docs" / "personalized.md").read_text(encoding="utf-8")
    summary = json.loads((FOLDER / "summary.json").read_text(encoding="utf-8"))
    cells = {(row["regularizer"], row["attack"]): row for row in summary["results"]}
    for attack in ("none", "gradient", "model", "data"):
        shown = [
            text
            for tie in ("l2-squared", "l2")
            for text in (
                f"{100 * cells[tie, attack]['test_accuracy']:.2f}",
                f"{cells[tie, attack]['distance_to_target']:.1f}",
            )
        ]
        assert f"| {attack} | {' | '.join(shown)} |" in text
    for attack in ("gradient", "model", "data"):
        assert cells["l2-squared", attack]["test_accuracy"] < 0.02
        assert cells["l2-squared", attack]["users_accuracy"] >= 0.907
        assert cells["l2", attack]["test_accuracy"] > 0.9
    lines = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    at_200 = {(r["regularizer"], r["attack"]): r for r in lines if r["epoch"] == 200}
    assert f"{100 * at_200['l2-squared', 'gradient']['test_accuracy']:.2f} % and" in text
    assert f"{100 * at_200['l2', 'gradient']['test_accuracy']:.2f} %; their plots" in text
    target = summary["target"]
    assert f"{100 * target['test_accuracy']:.2f} % on the true" in text
    assert f"{100 * target['train_accuracy_shifted']:.2f} % on the shifted" in text


def test_the_records_are_those_of_the_recipe() -> None:
    summary = json.loads((FOLDER / "summary.json").read_text(encoding="utf-8"))
    recipe = Equivalence.load(find("equivalence-mnist"))
    assert Equivalence.load(FOLDER / "experiment.toml") == recipe
    assert summary["hash"] == recipe.hash()
    assert summary["command"].startswith("bezoar run equivalence-mnist ")
    assert not summary["commit"].endswith("dirty")
