"""A base: trained on its own part of the data, recorded, and read by a federation that shares nothing with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bezoar.data import load
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments import run as run_experiment
from bezoar.experiments.config import override, read_toml
from bezoar.experiments.setup import prepare
from bezoar.models import make_model
from bezoar.pretraining import Pretraining, mean_loss, run
from bezoar.recipes import find
from tests.data.test_text import roles

TABLE: dict[str, Any] = {
    "kind": "pretraining",
    "seed": 1,
    "steps": 60,
    "every": 30,
    "batch_size": 32,
    "data": {"dataset": "digits"},
    "model": {"name": "mlp", "hidden": [16]},
    "learning_rate": {"kind": "triangular", "peak": 0.02},
}


def plays(folder: Path) -> Path:
    """Two plays of three roles each, of 18 speeches."""
    said = {f"{letter}{i}": [letter * 30 + " and so on"] * 18 for i in range(3) for letter in ("ab")}
    return roles(folder, said)


def test_it_learns_is_recorded_and_the_same_twice(tmp_path: Path) -> None:
    experiment = Pretraining.from_table(TABLE)
    first = run(experiment, tmp_path / "a", command="words")
    assert first.summary["test_accuracy"] > 0.8
    assert [record["step"] for record in first.evaluations] == [30, 60]
    again = run(experiment)
    assert all(torch.equal(first.weights[name], value) for name, value in again.weights.items())
    assert again.evaluations == first.evaluations
    other = run(Pretraining.from_table({**TABLE, "seed": 2}))
    assert not torch.equal(other.weights["1.weight"], first.weights["1.weight"])
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary == first.summary
    data = (tmp_path / "a" / "weights.safetensors").read_bytes()
    assert summary["weights_sha256"] == hashlib.sha256(data).hexdigest()
    assert Pretraining.from_table(read_toml(tmp_path / "a" / "experiment.toml")).hash() == summary["hash"]
    with pytest.raises(ConfigError, match="already holds a run"):
        run(experiment, tmp_path / "a")


def test_a_federation_starts_from_it(tmp_path: Path) -> None:
    base = run(Pretraining.from_table(TABLE), tmp_path / "base")
    table = {
        "rounds": 1,
        "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 5}},
        "model": {**TABLE["model"], "weights": str(tmp_path / "base" / "weights.safetensors")},
        "learning_rate": {"kind": "constant", "lr": 1e-30},
        "sampling": {"kind": "uniform", "cohort": 5},
        "defence": {"preset": "none"},
    }
    result = run_experiment(Experiment.from_table(table))
    assert result.test_accuracy == base.summary["test_accuracy"]
    digest = base.summary["weights_sha256"]
    assert result.summary["model"] == {"weights": {table["model"]["weights"]: digest}, "trainable": 1210}


def test_every_position_is_a_target_where_the_model_can_tell() -> None:
    model = make_model("transformer", (6,), 7, 0, width=8, heads=2, context=4)
    x, y = torch.randint(7, (3, 6)), torch.tensor([1, 2, 3])
    by_hand = [
        cross_entropy(model.every(x)[i, t], following)  # type: ignore[operator]
        for i in range(3)
        for t, following in enumerate([*x[i, 3:], y[i]])
    ]
    torch.testing.assert_close(mean_loss(model, x, y), torch.stack(by_hand).mean())
    lstm = make_model("lstm", (6,), 7, 0, embedding=3, hidden=4)
    torch.testing.assert_close(mean_loss(lstm, x, y), cross_entropy(lstm(x), y))


def test_groups_share_neither_training_nor_test_samples(tmp_path: Path) -> None:
    whole = load("shakespeare", plays(tmp_path), verify=False)
    parts = [whole.of_groups("play", part, 2) for part in (0, 1)]
    assert sum(len(part.train) for part in parts) == len(whole.train)
    assert sum(len(part.test) for part in parts) == len(whole.test) > 2
    assert whole.natural_test["play"].tolist() == [role % 2 for role in whole.natural_test["role"].tolist()]
    for number, part in enumerate(parts):
        assert set(part.natural["play"].tolist()) == set(part.natural_test["play"].tolist()) == {number}
        rows = np.flatnonzero(whole.natural["play"] == number)
        assert torch.equal(part.batch(part.train, slice(None)), whole.batch(whole.train, rows))
        assert torch.equal(part.train.targets, whole.train.targets[torch.from_numpy(rows)])
        # Windows of the same text: nothing was copied.
        assert part.train.inputs.tokens is whole.train.inputs.tokens  # type: ignore[union-attr]
        letter = "ab"[number]
        assert letter in "".join(part.classes[t] for t in part.batch(part.test, slice(0, 1)).flatten().tolist())
    with pytest.raises(ConfigError, match="column 'plays' is unknown in train and test samples of shakespeare"):
        whole.of_groups("plays", 0, 2)
    with pytest.raises(ConfigError, match="part 2 of 3 of shakespeare's plays has no samples"):
        whole.of_groups("play", 2, 3)
    with pytest.raises(ConfigError, match="column 'play' is unknown in train and test samples of digits: it has none"):
        load("digits").of_groups("play", 0, 2)


@pytest.mark.data
def test_the_recipes_share_no_role_and_their_smallest_version_runs(data_dir: Path, tmp_path: Path) -> None:
    if not (data_dir / "shakespeare").exists():
        pytest.skip(f"no shakespeare in {data_dir}")
    small = {"steps": 2, "batch_size": 4, "model.width": 8, "model.heads": 2, "model.layers": 1}
    base = Pretraining.from_table(override(read_toml(find("lora-base")), small))
    run(base, tmp_path / "base", data_dir=data_dir)
    table = {key: value for key, value in read_toml(find("lora-backdoor")).items() if key != "scale"}
    settings = next(value for value in table.pop("grid")["settings"] if "model.lora" in value)
    keys = {key: value for key, value in settings.items() if key != "label"}
    keys |= {key: value for key, value in small.items() if key.startswith("model")}
    keys |= {"rounds": 1, "defence": "none", "model.weights": str(tmp_path / "base" / "weights.safetensors")}
    experiment = Experiment.from_table(override(table, keys))
    assert experiment.data.groups is not None
    assert base.data.groups is not None
    assert experiment.data.groups.column == base.data.groups.column
    assert experiment.data.groups.part != base.data.groups.part
    setup = prepare(experiment, data_dir, torch.device("cpu"))
    whole = load("shakespeare", data_dir)
    mine = set(setup.federation.dataset.natural["role"].tolist()) | set(
        setup.federation.dataset.natural_test["role"].tolist()
    )
    theirs = whole.of_groups("play", 0, 2)
    assert not mine & (set(theirs.natural["role"].tolist()) | set(theirs.natural_test["role"].tolist()))
    assert run_experiment(experiment, data_dir=data_dir).summary["rounds"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"step": 3}, "unknown key 'step'; did you mean 'steps'"),
        ({"model.name": "lstm"}, "model.name: 'lstm' can not read digits, whose samples are numbers"),
        ({"model.weights": "w"}, "w: can not be read as safetensors"),
        ({"data.groups": {"column": "play", "part": 0, "parts": 2}}, "column 'play' is unknown"),
        ({"learning_rate.peak": 1e30}, "no longer finite in step 30"),
    ],
)
def test_what_can_not_be_trained_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        run(Pretraining.from_table(override(TABLE, settings)))


def test_the_command_line_runs_it_and_says_where_it_has_no_place(tmp_path: Path) -> None:
    import tomlkit
    from typer.testing import CliRunner

    from bezoar.cli import app

    file = tmp_path / "base.toml"
    file.write_text(tomlkit.dumps({**TABLE, "steps": 4, "every": 2}))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "step 4 of 4: test " in done.output
    digest = hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()
    assert digest in done.output.replace("\n", "")
    for arguments, words in (
        (["run", str(file), "--out", str(out), "--resume"], "can not be resumed"),
        (["run", str(file), "--out", str(out)], "already holds a run"),
        (["compare", str(file)], "this is one pretraining run, no grid"),
        (["certify", str(file)], "pretraining has no clients"),
        (["choose-k", str(file)], "pretraining has no server"),
    ):
        with pytest.raises(ConfigError, match=words):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
