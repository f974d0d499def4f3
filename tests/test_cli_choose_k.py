"""``bezoar choose-k`` as a user meets it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tomlkit
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from bezoar.certify import loss_curve
from bezoar.cli import app
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.experiments.aggregates import aggregates, trained
from bezoar.experiments.setup import prepare
from tests.experiments.tiny import TABLE, tiny


def choose(*arguments: object) -> str:
    """What the command prints; its errors are raised."""
    threads = str(torch.get_num_threads())
    result = CliRunner().invoke(app, ["choose-k", *map(str, arguments), "--threads", threads])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "e.toml"
    path.write_text(tomlkit.dumps(TABLE))
    return path


def test_k_table_plot_and_json_agree(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = json.loads(choose(config, "--omega", 0.2, "--round", 2, "--gradients", 3, "--out", out, "--json"))
    assert printed == json.loads((out / "choose-k.json").read_text())
    setup = prepare(tiny().without_attack(), None, torch.device("cpu"))
    curve = loss_curve(aggregates(setup, trained(setup, 2), 3))
    assert printed["k"] == curve.smallest(0.2)
    assert printed["loss"] == curve.losses[printed["k"]] <= 0.2 < curve.losses[printed["k"] - 1]
    assert printed["k_used"] == round(0.05 * curve.d)
    assert printed["curve"][-1] == {"k": curve.d, "loss": 0.0}
    assert {"k": printed["k"], "loss": printed["loss"]} in printed["curve"]
    assert sorted(file.name for file in out.iterdir()) == [
        f"choose-k.{end}" for end in ("csv", "json", "pdf", "png", "tex")
    ]
    assert (out / "choose-k.png").read_bytes().startswith(b"\x89PNG")
    lines = (out / "choose-k.csv").read_text().splitlines()
    assert lines[0] == "k,share,loss,note"
    assert any("k of the experiment" in line for line in lines)
    text = choose(config, "--omega", 0.2, "--round", 2, "--gradients", 3, "--out", out)
    assert f"k = {printed['k']:,} of {curve.d:,}" in text
    assert "model after 2 rounds" in " ".join(text.split())


def test_a_run_is_looked_at_where_it_ended(config: Path, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    ended = json.loads(choose(tmp_path / "run", "--json"))
    assert (tmp_path / "run" / "choose-k" / "choose-k.pdf").exists()
    weights = tmp_path / "run" / "weights.safetensors"
    assert ended == json.loads(choose(config, "--weights", weights, "--out", tmp_path / "o", "--json"))
    start = json.loads(choose(tmp_path / "run", "--round", 0, "--json"))
    assert start["weights"] is None
    assert start["curve"] != ended["curve"]
    steps = json.loads(choose(tmp_path / "run", "--steps", 10, "--json"))
    assert steps["k"] >= ended["k"]
    assert steps["k"] in {-(-i * ended["parameters"] // 10) for i in range(1, 11)}
    absolute = json.loads(choose(tmp_path / "run", "--absolute", "--omega", 2.5, "--json"))
    assert absolute["relative"] is False
    assert absolute["loss"] <= 2.5


def test_what_can_not_be_done_is_said(config: Path, tmp_path: Path) -> None:
    def says(message: str, *arguments: object) -> None:
        with pytest.raises(ConfigError, match=message):
            choose(*arguments)

    says("--round trains a model and --weights reads one", config, "--round", 1, "--weights", "w")
    says("--round 13: the experiment has 12 rounds", config, "--round", 13)
    says("grid of experiments", "attack-matrix")
    says("personalised run", "equivalence-mnist")
    says("no experiment.toml here", tmp_path)
    says("omega must be a share between 0 and 1", config, "--omega", 1.5, "--out", tmp_path / "o")
    says("steps must be a whole number", config, "--steps", 10**9, "--out", tmp_path / "o")
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    says("'0.weight' is no tensor of the model", config, "--weights", tmp_path / "w.safetensors")
    run_folder = tmp_path / "unfinished"
    run_folder.mkdir()
    os.link(config, run_folder / "experiment.toml")
    says("the run is not finished", run_folder)


def test_the_page_quotes_the_measured_losses() -> None:
    root = Path(__file__).resolve().parents[1]
    page = " ".join((root / "docs" / "algorithms.md").read_text(encoding="utf-8").split())
    found = json.loads((root / "benchmarks" / "results" / "choose-k-resnet9.json").read_text())
    losses = {row["k"]: row["loss"] for row in found["curve"]}
    assert found["omega"] == 0.1
    experiment = Experiment.load(root / "benchmarks" / "results" / "choose-k-resnet9.toml")
    assert experiment.hash() == found["hash"]
    assert f"k = 1,000 of {found['parameters']:,} loses {losses[1000]:.1%}" in page
    assert f"k = 50,000 loses {losses[50000]:.1%}" in page
    assert f"omega = 0.1 takes k = {found['k']:,}, {found['k'] / found['parameters']:.0%} of the model" in page
