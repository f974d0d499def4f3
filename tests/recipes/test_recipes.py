"""Every recipe, cut down to seconds: all its cells are valid, and its attacked cells run two rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bezoar.data import DATASETS
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.experiments.config import override, read_toml
from bezoar.experiments.grid import Grid
from bezoar.personalized.experiment import Equivalence
from bezoar.personalized.experiment import run as run_equivalence
from bezoar.recipes import find, recipes

SMALL = {
    "quickstart": {"rounds": 3},
    "fashion-mnist-cross-device": {"rounds": 2, "model.width": 4, "model.hidden": 16},
    "cifar10-cross-device": {"rounds": 1, "model.width": 4},
    "cifar10-cross-silo": {"rounds": 1, "model.width": 4},
    "rules-vs-attacks": {"rounds": 2, "model.hidden": [4]},
    "hospital-mistakes": {"rounds": 2},
    "adaptive-vs-sparsefed": {"rounds": 2},
    "attack-matrix": {"rounds": 2, "model.hidden": [4]},
    "sybil-virtual-data": {"rounds": 2, "model.hidden": [4]},
}

#: Recipes that are no federation in rounds.
PERSONALIZED = {
    "equivalence-mnist": {"data.samples": 100, "training.epochs": 4, "target.epochs": 2, "every": 4},
}

#: Recipes of one run, which are there to be certified.
SINGLE = {
    "certified-ensembles": {"rounds": 2},
    "certified-crfl": {"rounds": 2},
    "certificate-tight": {"rounds": 2},
}

#: A base and the federations that read its weights: tests/test_pretraining.py runs them.
BASED = {"lora-base", "lora-backdoor"}


def small(name: str) -> Grid:
    table = override(read_toml(find(name)), {**SMALL[name], "evaluation.every": 1000})
    return Grid.from_table(table, name, seed=0)


def test_every_recipe_has_a_small_version_and_a_description() -> None:
    federations = {name for name in recipes() if "/" not in name and not name.startswith("expected-")}
    assert set(SMALL) | set(PERSONALIZED) | set(SINGLE) | BASED == federations
    assert all(read_toml(path)["description"] for path in recipes().values())


@pytest.mark.data
@pytest.mark.parametrize("name", PERSONALIZED)
def test_small_personalised_version_runs_on_real_data(name: str, data_dir: Path) -> None:
    experiment = Equivalence.from_table(override(read_toml(find(name)), PERSONALIZED[name]), name)
    if not (data_dir / experiment.data.dataset).exists():
        pytest.skip(f"no {experiment.data.dataset} in {data_dir}")
    results = run_equivalence(experiment, data_dir=data_dir).summary["results"]
    assert len(results) == len(experiment.regularizers) * len(experiment.attacks)


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in SMALL if name != "quickstart"])
def test_small_version_runs_on_real_data(name: str, data_dir: Path) -> None:
    attacked = [cell for cell in small(name).cells if cell.experiment.attack is not None]
    if (
        DATASETS[attacked[0].experiment.data.dataset].files
        and not (data_dir / attacked[0].experiment.data.dataset).exists()
    ):
        pytest.skip(f"no {attacked[0].experiment.data.dataset} in {data_dir}")
    for cell in attacked[-1:]:
        result = run(cell.experiment, data_dir=data_dir)
        assert result.summary["rounds_skipped"] == 0
        assert cell.experiment.attack is not None
        assert (result.attack_accuracy is not None) == cell.experiment.attack.targeted


@pytest.mark.data
def test_every_rule_and_every_attack_of_the_matrix_runs(data_dir: Path) -> None:
    if not (data_dir / "fashion-mnist").exists():
        pytest.skip(f"no fashion-mnist in {data_dir}")
    grid = small("rules-vs-attacks")
    attacks = list(dict.fromkeys(cell.labels["attack"] for cell in grid.cells))
    defences = list(dict.fromkeys(cell.labels["defence"] for cell in grid.cells))
    assert (len(attacks), len(defences)) == (5, 19)
    for i, defence in enumerate(defences):
        wanted = {"attack": attacks[i % len(attacks)], "defence": defence, "seed": 0}
        (cell,) = (cell for cell in grid.cells if cell.labels == wanted)
        summary = run(cell.experiment, data_dir=data_dir).summary
        assert summary["rounds_skipped"] == 0, wanted
        assert summary["test_accuracy"] is not None, wanted


@pytest.mark.parametrize("name", SINGLE)
def test_small_version_of_one_run(name: str) -> None:
    experiment = Experiment.from_table(override(read_toml(find(name)), SINGLE[name]), name)
    summary = run(experiment).summary
    assert summary["rounds_skipped"] == 0
    assert summary["malicious"] > 0


def test_quickstart_small() -> None:
    for cell in small("quickstart").cells:
        result = run(cell.experiment)
        assert result.summary["rounds"] == 3


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        find("quickstat")
    with pytest.raises(ConfigError, match="did you mean 'sparsefed/table-3a'"):
        find("sparsefed/table3a")
    with pytest.raises(ConfigError, match="no such file"):
        find("elsewhere/table-2")


def test_recipes_of_a_folder_come_in_the_order_of_their_numbers() -> None:
    names = [name for name in recipes() if name.startswith("sparsefed/table")]
    assert names.index("sparsefed/table-2") < names.index("sparsefed/table-4") < names.index("sparsefed/table-11")
    assert list(recipes())[-1].startswith("sparsefed/")


def test_a_shared_recipe_is_found_by_each_of_its_names() -> None:
    assert find("sparsefed/table-10") == find("sparsefed/table-3b")
    assert "sparsefed/table-10" not in recipes()
