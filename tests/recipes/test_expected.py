"""Recipes of expected robustness: every cell is valid, all their rules and attacks run, and the page knows them."""

from __future__ import annotations

from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bezoar.expected import Expected, run
from bezoar.experiments.config import override, read_toml
from bezoar.experiments.grid import Grid
from bezoar.recipes import find, recipes
from bezoar.reports import write_report
from bezoar.reports.expected import NONE, load_records
from tests.scripts import load

EXPECTED = tuple(name for name in recipes() if name.startswith("expected-"))
VERDICTS = tuple(name for name in EXPECTED if name.startswith("expected-verdict"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return load("docs/make_expected.py")


def grid(name: str, scale: str) -> Grid:
    return Grid.from_table(read_toml(find(name)), name, settings={"scale": scale}, read=Expected.from_table)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_cell_is_valid_and_the_small_scale_is_smaller(name: str) -> None:
    full, small = grid(name, "full"), grid(name, "small")
    assert read_toml(find(name))["name"] == full.name == name
    assert len(small.cells) < len(full.cells)
    assert "skew" in full.axes or "task" not in full.axes or name.endswith("hospitals")


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_have_ten_seeds_and_the_rules_and_attacks_of_the_page(name: str, page: ModuleType) -> None:
    table = read_toml(find(name))
    assert len(table["grid"]["seed"]) >= 10
    labels = [rule["label"] for rule in table["rule"]]
    assert set(labels) == {*page.NEW, *page.BASELINES}
    assert table["attack"] == read_toml(find("expected-verdict"))["attack"]
    under = {h.under for stated in page.HYPOTHESES.values() for h in stated} - {"mean", "worst"}
    assert under <= {attack["label"] for attack in table["attack"]}


def test_the_page_speaks_of_every_recipe_and_of_axes_that_are_there(page: ModuleType) -> None:
    for name, stated in page.HYPOTHESES.items():
        known = [cell.labels for cell in grid(name, "full").cells]
        for hypothesis in stated:
            for axis, values in hypothesis.where.items():
                found = {str(labels.get(axis)) for labels in known}
                assert set(values) & found, f"{hypothesis.says}: no {axis} is any of {values}, only {found}"
    assert set(page.RECIPES) <= set(EXPECTED)


def shortened(experiment: Expected, rules: list[Any], attacks: list[Any], draws: int) -> Expected:
    """One round for a few drawn honest sets."""
    table = override(experiment.table(), {"rounds": 1, "sets.most": 1, "sets.draws": draws})
    return Expected.from_table({**table, "rule": rules, "attack": attacks}, "shortened")


@pytest.mark.data
@pytest.mark.parametrize("name", EXPECTED)
def test_every_rule_and_every_attack_runs(name: str, data_dir: Path, tmp_path: Path) -> None:
    experiment = grid(name, "small").cells[0].experiment
    assert isinstance(experiment, Expected)
    dataset, network = experiment.task.dataset, experiment.task.kind == "model"
    if dataset not in ("synthetic", "digits") and not (data_dir / dataset).exists():
        pytest.skip(f"no {dataset} in {data_dir}")
    rules, attacks = experiment.table()["rule"], experiment.table()["attack"]
    cheap = next(attack for attack in attacks if attack["label"] in ("sign flip", "label flip", "all called ill"))
    for i, (some, against) in enumerate([(rules[:3] if network else rules, [cheap]), (rules[:1], attacks)]):
        short = shortened(experiment, some, against, 1 if network else 2)
        result = run(short, tmp_path / str(i), data_dir=data_dir)
        assert all(cell["skipped"] == 0 for cell in result.cells)
    scores = load_records(tmp_path / "1").scores
    assert {score.attack for score in scores} == {attack["label"] for attack in attacks}
    assert all(score.expected < float("inf") for score in scores if score.attack == NONE)


def test_a_run_of_made_data_is_reported(tmp_path: Path) -> None:
    experiment = next(cell.experiment for cell in grid("expected-verdict", "small").cells if made(cell.experiment))
    assert isinstance(experiment, Expected)
    table = experiment.table()
    run(shortened(experiment, table["rule"][:4], table["attack"][:3], 2), tmp_path / "run")
    text = write_report(tmp_path / "run").read_text()
    assert all(escape(entry["label"]) in text for entry in (*table["rule"][:4], *table["attack"][:3]))


def made(experiment: object) -> bool:
    return isinstance(experiment, Expected) and experiment.task.dataset == "synthetic"
