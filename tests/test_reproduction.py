"""docs/reproduction.md is what recipes and records say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomlkit

from bezoar.experiments.config import read_toml
from bezoar.experiments.grid import Grid, compare
from bezoar.recipes import recipes
from tests.experiments.tiny import TABLE
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[1]

RECIPE: dict[str, Any] = {
    **{key: value for key, value in TABLE.items() if key not in ("seed", "attack", "defence")},
    "description": "A tiny table.",
    "grid": {
        "seed": [0, 1],
        "attack": [{"label": "none", "kind": "none"}, {"label": "PGD", "kind": "pgd", "aux": 10, "epochs": 1}],
        "defence": [{"label": "clipping", "preset": "clip", "radius": 1.0}, {"label": "all", "preset": "none"}],
    },
    "scale": {"small": {"rounds": 4, "grid.defence.only": ["clipping"]}},
    "paper": {
        "title": "A tiny title",
        "claims": [
            {
                "of": "Table 1",
                "says": "Training | works.",
                "regime": "uncompressed",
                "published": [
                    {"at": {"defence": "clipping", "attack": "none"}, "test": 84.07},
                    {"at": {"defence": "all", "attack": "PGD"}, "attack": "DNC"},
                ],
                "checks": [
                    {"metric": "test", "at": {"defence": "clipping", "attack": "none"}, "above": 1},
                    {"metric": "test", "at": {"defence": "clipping", "attack": "PGD"}, "above": 101},
                ],
                "why": {"small": "Nobody exceeds 101%.", "full": "Not shown."},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("docs/make_reproduction.py")


def test_the_page_is_what_recipes_and_records_say(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/make_reproduction.py"


def test_every_recipe_of_the_paper_is_on_the_page(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    for name, path in recipes().items():
        if name.startswith("sparsefed/"):
            assert f"`{name}`" in text
            for claim in read_toml(path)["paper"]["claims"]:
                assert f"| {claim['of']} | " in text
    assert "Table 9 is empty" in text


def test_a_page_from_records(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table-1.toml"
    file.write_text(tomlkit.dumps(RECIPE), encoding="utf-8")
    monkeypatch.setattr(script, "recipes", lambda: {"sparsefed/table-1": file, "other": file})
    empty = script.page(tmp_path / "results")
    assert "| Table 1 | Training \\| works. | not run yet | `sparsefed/table-1` |" in empty
    assert "| clipping | 84.07 |" in empty
    assert "Nobody exceeds" not in empty

    small = Grid.from_table(RECIPE, "table-1", settings={"scale": "small"})
    folder = tmp_path / "results" / "small" / "table-1"
    compare(small, folder, cells=tmp_path / "results" / "small" / "cells", command="bezoar compare x")
    text = script.page(tmp_path / "results")
    assert "| small: **partly** | `sparsefed/table-1` |" in text
    assert "- test accuracy (%) of [clipping, none] is above 1: holds" in text
    assert "- test accuracy (%) of [clipping, PGD] is above 101: does not hold" in text
    assert "Nobody exceeds 101%." in text
    assert "Not shown." not in text
    assert "Regime: uncompressed." in text
    assert "Scale small: 4 federations, seeds 0, 1," in text
    cells = json.loads((folder / "comparison.json").read_text())["cells"]
    found = [
        json.loads((folder / cell["dir"] / "summary.json").read_text())["test_accuracy"]
        for cell in cells
        if cell["labels"]["attack"] == "none"
    ]
    (line,) = (line for line in text.splitlines() if line.startswith("| none | clipping |") and "84.07" in line)
    assert f"| {100 * sum(found) / 2:.1f} ± " in line
    assert f"| {100 * min(found):.1f} |" in line
    # What was published and not run at this scale stays on the page.
    assert any(line.startswith("| PGD | all |") and "| DNC |" in line for line in text.splitlines())

    # Records of a recipe that has changed since are told from those of this one.
    assert "run it again" not in text
    changed = {**RECIPE, "scale": {"small": {**RECIPE["scale"]["small"], "rounds": 5}}}
    file.write_text(tomlkit.dumps(changed), encoding="utf-8")
    assert "**4 of the 4 are not what the recipe says now: run it again.**" in script.page(tmp_path / "results")
