from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bezoar.cli import app
from bezoar.errors import BezoarError, ConfigError, DivergedError
from bezoar.experiments.config import override, read_toml
from bezoar.personalized import experiment as experiment_module
from bezoar.personalized.experiment import Equivalence, run, table_rows
from bezoar.recipes import find

SMALL = {
    "data.dataset": "digits",
    "data.users": 5,
    "data.samples": 250,
    "training.epochs": 120,
    "target.epochs": 60,
    "every": 60,
}


def small(**changes: Any) -> Equivalence:
    table = override(read_toml(find("equivalence-mnist")), {**SMALL, **changes})
    return Equivalence.from_table(table)


def by_cell(summary: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["regularizer"], row["attack"]): row for row in summary["results"]}


def test_digits_all_three_win_under_l2_squared_and_fail_under_l2(tmp_path: Path) -> None:
    result = run(small(), tmp_path / "out", command="a command")
    cells = by_cell(result.summary)
    assert len(cells) == 8
    for attack in ("gradient", "model", "data"):
        assert cells["l2-squared", attack]["test_accuracy"] < 0.02
        assert cells["l2", attack]["test_accuracy"] > 0.9
        assert cells["l2-squared", attack]["distance_to_gradient_attack"] < 3
        # Personal models learn from own data and suffer far less than the common one.
        assert cells["l2-squared", attack]["users_accuracy"] > 0.75
    for tie in ("l2-squared", "l2"):
        assert cells[tie, "none"]["test_accuracy"] > 0.9
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.evaluations
    assert len(lines) == 8 * 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == result.summary
    assert summary["command"] == "a command"
    assert summary["target"]["test_accuracy"] < 0.02
    again = Equivalence.load(tmp_path / "out" / "experiment.toml")
    assert again == small()
    assert again.hash() == summary["hash"]
    with pytest.raises(ConfigError, match="already holds a run"):
        run(small(), tmp_path / "out")
    assert len(table_rows(summary)) == 8
    with pytest.raises(BezoarError, match="no summary"):
        table_rows({})


def test_same_seed_same_records() -> None:
    quick = {"training.epochs": 6, "target.epochs": 3, "every": 4}
    first, second = run(small(**quick)), run(small(**quick))
    assert first.evaluations == second.evaluations
    assert [row["epoch"] for row in first.evaluations[:3]] == [0, 4, 6]
    other = run(small(**quick, seed=1))
    assert other.evaluations != first.evaluations


def test_other_models_ways_and_regularisers() -> None:
    quick = {"training.epochs": 3, "target.epochs": 3, "every": 3}
    deep = small(
        **quick,
        **{
            "model": {"name": "mlp", "hidden": [8]},
            "attacks": ["gradient", "model"],
            "regularizers": [{"kind": "smooth-l2"}],
        },
    )
    assert {row["regularizer"] for row in run(deep).evaluations} == {"smooth-l2"}
    exact = small(**{**quick, "poison.way": {"kind": "softmax-exact"}, "training.epochs": 120})
    cells = by_cell(run(exact).summary)
    assert cells["l2-squared", "data"]["poison_samples"] > 0
    assert cells["l2-squared", "data"]["test_accuracy"] < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.dataset": "mnits"}, "did you mean 'mnist'"),
        ({"data.user": 3}, "unknown key 'data.user'; did you mean 'users'"),
        ({"epochs": 3}, "unknown key 'epochs'"),
        ({"attacks": ["model"]}, "add 'gradient'"),
        ({"attacks": ["none", "none"]}, "given twice"),
        ({"attacks": ["bribery"]}, "attacks"),
        ({"attacks": []}, "at least one"),
        ({"regularizers": [{"kind": "l3"}]}, "unknown regulariser 'l3'; known: l2, l2-squared"),
        ({"regularizers": [{"kind": "l2", "strength": -1.0}]}, "strength must be finite and positive"),
        ({"model.name": "mlp"}, "leave 'data' out"),
        ({"training.floor": 1.0}, "floor=1.0 is above lr=0.02"),
        ({"name": "a/b"}, "folder name"),
        ({"poison.way": {"kind": "gues"}}, "unknown way from gradients to data"),
        ({"training.epochs": "many"}, "training.epochs"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_too_few_samples() -> None:
    with pytest.raises(ConfigError, match="5 users with 2000 samples need 10000"):
        run(small(**{"data.samples": 2000}))


@pytest.mark.parametrize("shift", [10, 30])
def test_a_target_with_the_right_labels_is_refused(shift: int) -> None:
    with pytest.raises(ConfigError, match=f"target.shift: labels of digits shifted by {shift} are the right ones"):
        run(small(**{"target.shift": shift}))


def test_a_taken_folder_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = small(**{"training.epochs": 2, "target.epochs": 1, "every": 2, "attacks": ["none"]})
    run(quick, tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def trained(*_: Any) -> None:
        raise AssertionError("the target was trained")

    monkeypatch.setattr(experiment_module, "_prepare", trained)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(quick, tmp_path)
    # Without a summary, but of another kind: that one can be resumed, and is not ours to overwrite.
    other = tmp_path / "other"
    other.mkdir()
    (other / "experiment.toml").write_text('name = "an ordinary one"\n')
    with pytest.raises(ConfigError, match="already holds a run"):
        run(quick, other)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == kept


def test_an_unfinished_run_is_started_again(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    quick = {"training.epochs": 4, "target.epochs": 1, "every": 2, "attacks": ["none", "gradient"]}
    wild = small(**quick, **{"training.lr": 1e30, "training.optimizer": "sgd"})
    with pytest.raises(DivergedError, match="no longer finite"):
        run(wild, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "metrics.jsonl").read_text()
    assert not recwarn.list
    with pytest.warns(UserWarning, match="unfinished run; it is started again"):
        again = run(small(**quick), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == again.evaluations == run(small(**quick)).evaluations
    assert Equivalence.load(tmp_path / "experiment.toml") == small(**quick)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(small(**quick), tmp_path)


def test_command_line(tmp_path: Path) -> None:
    settings = {**SMALL, "training.epochs": 3, "target.epochs": 2, "every": 3}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    def bezoar(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--allocator", "default"])

    out = str(tmp_path / "out")
    done = bezoar("run", "equivalence-mnist", "--out", out, "--seed", "4", *options)
    assert done.exit_code == 0, done.output
    assert "l2-squared   gradient" in done.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["seed"] == 4
    told = bezoar("run", "equivalence-mnist", "--out", str(tmp_path / "json"), "--json", *options)
    assert json.loads(told.stdout)["kind"] == "personalized"
    refused = bezoar("run", "equivalence-mnist", "--out", out, "--resume", *options)
    assert isinstance(refused.exception, ConfigError)
    assert "can not be resumed" in str(refused.exception)
    grid = bezoar("compare", "equivalence-mnist")
    assert isinstance(grid.exception, ConfigError)
    assert "bezoar run" in str(grid.exception)


@pytest.mark.data
def test_mnist_all_three_win_under_l2_squared_and_fail_under_l2(data_dir: Path) -> None:
    if not (data_dir / "mnist").exists():
        pytest.skip(f"no mnist in {data_dir}")
    # A tenth of the data: honest users pull with sums of a tenth of the size, so there is no need for all epochs.
    attacks = ["gradient", "model", "data"]
    table = read_toml(find("equivalence-mnist"))
    experiment = Equivalence.from_table(
        override(
            table, {"data.samples": 1000, "training.epochs": 100, "target.epochs": 30, "every": 100, "attacks": attacks}
        )
    )
    cells = by_cell(run(experiment, data_dir=data_dir).summary)
    for attack in attacks:
        assert cells["l2-squared", attack]["test_accuracy"] < 0.02
        assert cells["l2", attack]["test_accuracy"] > 0.9
