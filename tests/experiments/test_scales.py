"""What a scale changes, what it may not, and that it leaves hashes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomlkit
from typer.testing import CliRunner

from bezoar.cli import app
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments.grid import Grid
from bezoar.experiments.scales import at_scale

ONE: dict[str, Any] = {
    "name": "one",
    "rounds": 100,
    "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 10}},
    "model": {"name": "linear"},
    "learning_rate": {"kind": "constant", "lr": 0.1},
    "sampling": {"kind": "uniform", "cohort": 5},
    "defence": "none",
}
BASE = {key: value for key, value in ONE.items() if key != "defence"}
GRID: dict[str, Any] = {
    "seed": [0, 1, 2],
    "adversary.share": [0.1, 0.2],
    "attack": [{"label": "none", "kind": "none"}, {"label": "PGD", "kind": "pgd", "aux": 20, "epochs": 2}],
    "defence": [
        "none",
        {"label": "k = 0.5%", "preset": "sparsefed", "k": "0.5%", "radius": 5.0},
        {"label": "clip", "preset": "clip", "radius": 5.0},
    ],
}


def grid(**changes: Any) -> dict[str, Any]:
    out, _, _ = at_scale({**BASE, "grid": GRID, "scale": {"s": changes}}, {"scale": "s"})
    found: dict[str, Any] = out["grid"]
    return found


def test_keys_are_set_sections_replaced_and_the_name_gets_an_ending() -> None:
    changes = {"rounds": 2, "data.partition.clients": 4, "model": {"name": "mlp", "hidden": [4]}}
    out, settings, name = at_scale({**ONE, "scale": {"s": changes}}, {"scale": "s", "seed": 3})
    assert out["rounds"] == 2
    assert out["data"] == {"dataset": "digits", "partition": {"kind": "iid", "clients": 4}}
    assert out["model"] == {"name": "mlp", "hidden": [4]}
    assert out["name"] == "one-s"
    assert (settings, name) == ({"seed": 3}, "s")
    assert ONE["data"]["partition"]["clients"] == 10
    own, _, _ = at_scale({**ONE, "scale": {"s": {"name": "mine"}}}, {"scale": "s"})
    assert own["name"] == "mine"


@pytest.mark.parametrize(("settings", "name"), [({}, "full"), ({"scale": "full"}, "full")])
def test_as_written_is_full_scale_with_the_same_hash(settings: dict[str, Any], name: str) -> None:
    out, rest, found = at_scale({**ONE, "scale": {"s": {"rounds": 2}}}, settings)
    assert (rest, found) == ({}, name)
    assert Experiment.from_table(out).hash() == Experiment.from_table(ONE).hash()


def test_a_table_without_scales_has_no_name() -> None:
    assert at_scale(ONE) == (ONE, {}, "")


def test_axes_and_their_values() -> None:
    assert grid(**{"grid.seed": [7]})["seed"] == [7]
    assert grid(**{"grid.adversary.share": [0.3]})["adversary.share"] == [0.3]
    assert [v["label"] for v in grid(**{"grid.attack.only": ["PGD"]})["attack"]] == ["PGD"]
    assert grid(**{"grid.adversary.share.only": [0.2]})["adversary.share"] == [0.2]
    every = grid(**{"grid.defence.*.radius": 1.0})["defence"]
    assert [v["radius"] for v in every[1:]] == [1.0, 1.0]
    assert every[0] == "none"
    one = grid(**{"grid.defence.k = 0.5%.k": "2%"})["defence"]
    assert one[1] == {"label": "k = 0.5%", "preset": "sparsefed", "k": "2%", "radius": 5.0}
    assert one[2] == GRID["defence"][2]
    assert grid(**{"grid.attack.PGD.poison.held": 3})["attack"][1]["poison"] == {"held": 3}
    # In order: a later change sees what an earlier one left.
    both = grid(**{"grid.attack.*.aux": 5, "grid.attack.PGD.aux": 6})["attack"]
    assert both[1]["aux"] == 6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"grid.seeds": [0]}, "grid.seeds: no such axis; did you mean 'seed'"),
        ({"grid.attack.only": ["PDG"]}, "grid.attack: no value 'PDG'; did you mean 'PGD'"),
        ({"grid.attack.only": "PGD"}, "grid.attack.only must be a list of labels, got 'PGD'"),
        ({"grid.attack.*.auks": 5}, r"grid.attack.\*.auks: none of its tables has the key"),
        ({"grid.defence.clipp.radius": 5}, "names no value and a key of it"),
        ({"grid.defence.none.radius": 5}, "'none' is no table"),
        ({"grid.defence.clip": 5}, "names no value and a key of it"),
        ({"grid": {"seed": [0]}}, "'grid' can not be replaced as a whole"),
        ({"paper": {}}, "'paper' can not be replaced"),
        ({"rounds.x": 1}, "can not set 'rounds.x'"),
    ],
)
def test_what_is_not_there_can_not_be_changed(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        grid(**changes)


@pytest.mark.parametrize(
    ("table", "scale", "match"),
    [
        ({**ONE}, "small", "no scale 'small': it has none"),
        ({**ONE, "scale": {"small": {}}}, "smal", "no scale 'smal'; did you mean 'small'"),
        ({**ONE, "scale": {"small": {}}}, 3, "no scale 3; known: full, small"),
        ({**ONE, "scale": "small"}, "small", "scale is a table of tables"),
        ({**ONE, "scale": {"small": 3}}, "small", "scale is a table of tables"),
        ({**ONE, "scale": {"full": {}}}, "full", "give .scale.full. another name"),
        ({**ONE, "scale": {"small": {"grid.seed": [0]}}}, "small", "there is no .grid. to change"),
    ],
)
def test_unknown_scales_and_wrong_tables(table: dict[str, Any], scale: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        at_scale(table, {"scale": scale}, "f.toml")


def test_a_grid_takes_the_scale_among_its_settings() -> None:
    table = {**BASE, "grid": {**GRID, "attack": GRID["attack"][:1]}, "scale": {"s": {"grid.seed": [5], "rounds": 3}}}
    small = Grid.from_table(table, settings={"scale": "s", "model.name": "mlp"})
    assert (small.scale, small.name) == ("s", "one-s")
    assert {cell.experiment.seed for cell in small.cells} == {5}
    assert {cell.experiment.rounds for cell in small.cells} == {3}
    assert {cell.experiment.model.name for cell in small.cells} == {"mlp"}
    assert Grid.from_table(table).scale == "full"
    bare = {key: value for key, value in table.items() if key != "scale"}
    assert [c.folder for c in Grid.from_table(table).cells] == [c.folder for c in Grid.from_table(bare).cells]
    assert Grid.from_table(bare).scale == ""


def test_files_and_the_command_line_know_scales(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text(tomlkit.dumps({**ONE, "scale": {"small": {"rounds": 2}}}), encoding="utf-8")
    assert Experiment.load(file).rounds == 100
    assert Experiment.load(file, {"scale": "small"}).rounds == 2
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["run", str(file), "--set", "scale=small", "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    assert Experiment.load(out / "experiment.toml").rounds == 2
    failed = CliRunner().invoke(app, ["run", str(file), "--set", "scale=large", "--out", str(out), "--quiet"])
    assert isinstance(failed.exception, ConfigError)
    assert "no scale 'large'; known: full, small" in str(failed.exception)
