"""Recipes of SparseFed's tables and figures: valid at both scales, claims that fit their grids, two rounds that run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bezoar.attacks import ATTACKS
from bezoar.data import DATASETS, load
from bezoar.errors import ConfigError
from bezoar.experiments import run, setup
from bezoar.experiments.config import read_toml
from bezoar.experiments.grid import Cell, Grid
from bezoar.experiments.scales import FULL, label
from bezoar.recipes import find, recipes
from bezoar.recipes.paper import SEED, claims

NAMES = [name for name in recipes() if name.startswith("sparsefed/")]


@cache
def table(name: str) -> dict[str, Any]:
    return read_toml(find(name))


@cache
def at(name: str, scale: str) -> Grid:
    settings = {"scale": scale} if scale == FULL else {"scale": scale, "rounds": 2, "evaluation.every": 1000}
    return Grid.from_table(table(name), name, seed=0, settings=settings)


def test_every_table_and_figure_is_found_by_name() -> None:
    tables = ["2", "3a", "3b", "4", "5", "6", "7", "8", "10", "11", "12", "13", "14", "15", "16"]
    figures = ["2a", "2b", "2c", "2d", *map(str, range(3, 18))]
    for name in [f"table-{n}" for n in tables] + [f"figure-{n}" for n in figures]:
        assert find(f"sparsefed/{name}").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_claims_are_about_the_grid_as_it_is_written(name: str) -> None:
    axes = {axis: [str(label(value)) for value in values] for axis, values in table(name)["grid"].items()}
    stated = claims(table(name)["paper"], axes, name)
    kept = [axis for axis in axes if axis != SEED]
    rows = [dict(zip(kept, labels, strict=True)) for labels in itertools.product(*(axes[axis] for axis in kept))]
    for claim in stated:
        assert claim.checks, f"{claim.of}: nothing that could fail"
        # Every check reads exactly what it needs: with all values known it holds or does not.
        assert None not in claim.judge(rows, lambda *_: 1.0).holds, claim.of
        for published in claim.published:
            fits = [row for row in rows if all(row[axis] == name for axis, name in published.at.items())]
            assert len(fits) == 1, f"{claim.of}: {dict(published.at)} is {len(fits)} rows"


@pytest.mark.parametrize("name", NAMES)
def test_valid_at_full_scale(name: str) -> None:
    grid = at(name, FULL)
    assert grid.scale == FULL
    assert grid.cells[0].experiment.rounds >= 1000
    assert not grid.name.endswith("-small")


@pytest.mark.parametrize("name", NAMES)
def test_every_check_is_run_at_small_scale(name: str) -> None:
    grid = at(name, "small")
    assert grid.scale == "small"
    assert grid.name.endswith("-small")
    rows = [{axis: str(v) for axis, v in cell.labels.items() if axis != SEED} for cell in grid.cells]
    for claim in grid.claims:
        assert None not in claim.judge(rows, lambda *_: 1.0).holds, claim.of


def some(grid: Grid) -> list[Cell]:
    """The last attacked cell, and one with another defence if there is an attack at all."""
    attacked = [cell for cell in grid.cells if cell.experiment.attack is not None] or list(grid.cells)
    return list({cell.folder: cell for cell in (attacked[0], attacked[-1])}.values())


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Iterator[None]:
    """Data sets are read from disk once for all recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "load", cache(load))
        yield


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_two_rounds_at_small_scale(name: str, data_dir: Path) -> None:
    for cell in some(at(name, "small")):
        dataset = cell.experiment.data.dataset
        if DATASETS[dataset].files and not (data_dir / dataset).exists():
            pytest.skip(f"no {dataset} in {data_dir}")
        summary = run(cell.experiment, data_dir=data_dir).summary
        assert summary["rounds"] == 2
        assert summary["rounds_skipped"] == 0
        attack = cell.experiment.attack
        if attack is not None:
            assert (summary["attack_accuracy"] is not None) == attack.targeted, ATTACKS.name(attack)


def test_a_scale_that_there_is_not_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        Grid.from_table(table("sparsefed/table-4"), "table-4", settings={"scale": "smal"})
