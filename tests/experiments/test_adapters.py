"""Federations that train a part of a model: what moves, what is recorded, what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.experiments.config import override
from bezoar.experiments.grid import Grid, compare
from bezoar.experiments.records import load_tensors, read_summary
from bezoar.experiments.run import Interrupted
from bezoar.experiments.setup import prepare
from bezoar.models import merged
from tests.experiments.tiny import TABLE, tiny

#: The mlp of the tiny experiment: 64 -> 16 -> 10.
LORA = {"targets": ["1", "3"], "rank": 2, "alpha": 4.0}
ADAPTERS = 2 * (64 + 16) + 2 * (16 + 10)


def base(tmp_path: Path, rounds: int = 20) -> str:
    run(tiny(rounds=rounds, attack="none", defence="none"), tmp_path / "base")
    return str(tmp_path / "base" / "weights.safetensors")


def test_configurations_from_before_keep_their_hashes() -> None:
    assert tiny().hash() == "e690cd2a34a42c1e"
    assert tiny().table()["model"] == {"name": "mlp", "hidden": [16]}
    assert tiny(model__lora=LORA).table()["model"]["lora"] == {**LORA, "targets": ["1", "3"]}
    assert len({tiny(model__lora={**LORA, "rank": rank}).hash() for rank in (1, 2)} | {tiny().hash()}) == 3


@pytest.mark.parametrize(
    ("part", "d", "frozen"),
    [({"model.lora": LORA}, ADAPTERS, 1210), ({"model.trainable": ["3"]}, 170, 1040)],
    ids=["lora", "last layer"],
)
def test_only_the_trained_part_moves_is_sent_and_is_kept(
    part: dict[str, Any], d: int, frozen: int, tmp_path: Path
) -> None:
    weights = base(tmp_path)
    experiment = Experiment.from_table(override(TABLE, {**part, "model.weights": weights, "defence": "none"}))
    before = prepare(experiment, None, torch.device("cpu"))
    result = run(experiment, tmp_path / "run")
    summary = result.summary
    assert summary["parameters"] == d
    assert summary["model"]["frozen"] == frozen
    assert summary["model"]["trainable"] == d
    assert list(summary["model"]["weights"]) == [weights]
    assert all(record["bytes_up"] == 4 * d * 20 for record in result.rounds)
    assert sum(value.numel() for value in result.weights.values()) == d
    stored, metadata = load_tensors(tmp_path / "run" / "weights.safetensors")
    assert stored.keys() == result.weights.keys()
    assert metadata["frozen_sha256"] == summary["model"]["frozen_sha256"]
    # It comes back as the model that it was, in an experiment that starts from it.
    files = [weights, str(tmp_path / "run" / "weights.safetensors")]
    table = override(TABLE, {**part, "model.weights": files, "rounds": 1, "learning_rate.lr": 1e-30})
    again = run(Experiment.from_table(table))
    assert again.evaluations[-1]["test_loss"] == result.evaluations[-1]["test_loss"]
    after = prepare(Experiment.from_table(table), None, torch.device("cpu"))
    for name, value in before.model.state_dict().items():
        moved = not torch.equal(value, after.model.state_dict()[name])
        assert moved == (name in result.weights)


def test_adapters_learn_and_their_merged_model_is_as_good(tmp_path: Path) -> None:
    weights = base(tmp_path, rounds=8)
    table = override(
        TABLE,
        {"attack": "none", "defence": "none", "rounds": 60, "model.lora": LORA, "model.weights": weights}
        | {"learning_rate.lr": 0.02},
    )
    result = run(Experiment.from_table(table), tmp_path / "run")
    start = run(Experiment.from_table(override(table, {"rounds": 1, "learning_rate.lr": 1e-30})))
    assert result.test_accuracy > start.test_accuracy + 0.1
    files = [weights, str(tmp_path / "run" / "weights.safetensors")]
    setup = prepare(Experiment.from_table(override(table, {"model.weights": files})), None, torch.device("cpu"))
    from safetensors.torch import save_file

    save_file(merged(setup.model), tmp_path / "merged.safetensors")
    plain = {key: value for key, value in table.items() if key != "model"}
    plain |= {"model": {"name": "mlp", "hidden": [16], "weights": str(tmp_path / "merged.safetensors")}}
    same = run(Experiment.from_table(override(plain, {"rounds": 1, "learning_rate.lr": 1e-30})))
    assert same.evaluations[-1]["test_loss"] == pytest.approx(result.evaluations[-1]["test_loss"], rel=1e-5)


@pytest.mark.parametrize("defence", ["sparsefed", "krum", "trimmed-mean", "fetchsgd"])
def test_rules_act_on_adapters_and_a_resumed_run_is_the_same(defence: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"krum": {"f": 4}, "trimmed-mean": {"f": 4}}.get(defence, {"k": 20})
    experiment = Experiment.from_table(override(TABLE, {"model.lora": LORA, "defence": {"preset": defence, **options}}))
    whole = run(experiment)
    assert whole.summary["rounds_skipped"] == 0

    def stop(record: Any) -> None:
        if record["round"] == 7:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(experiment, tmp_path, progress=stop)
    stored, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    assert stored["weights"].shape == (ADAPTERS,)
    resumed = run(experiment, tmp_path, resume=True)
    assert all(torch.equal(whole.weights[name], value) for name, value in resumed.weights.items())
    assert whole.rounds == resumed.rounds


def test_another_base_is_noticed_when_a_run_goes_on_or_is_taken_for_finished(tmp_path: Path) -> None:
    weights = base(tmp_path)
    table = override(TABLE, {"model.lora": LORA, "model.weights": weights})
    experiment = Experiment.from_table(table)

    def stop(record: Any) -> None:
        if record["round"] == 7:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(experiment, tmp_path / "run", progress=stop)
    grid = Grid.from_table({**{k: v for k, v in table.items() if k != "seed"}, "grid": {"seed": [3]}})
    compare(grid, tmp_path / "grid")
    original = Path(weights).read_bytes()
    run(tiny(seed=4, rounds=2, attack="none", defence="none"), tmp_path / "other")
    Path(weights).write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="frozen part of the model is not the one any more"):
        run(experiment, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="is not the file any more that this run read"):
        compare(grid, tmp_path / "grid")
    Path(weights).write_bytes(original)
    run(experiment, tmp_path / "run", resume=True)
    assert all(outcome.skipped for outcome in compare(grid, tmp_path / "grid"))
    Path(weights).unlink()
    finished = run(experiment, tmp_path / "run", resume=True)
    assert finished.summary == read_summary(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.lora": {"rank": 2}}, "the key 'model.lora.targets' is missing"),
        ({"model.lora": {"targets": [], "rank": 2}}, "model.lora.targets"),
        ({"model.lora": {"targets": ["7"]}}, "model: lora.targets: '7' is no linear layer"),
        ({"model.lora": {"targets": ["1"], "rang": 2}}, "unknown key 'model.lora.rang'; did you mean 'rank'"),
        ({"model.trainable": []}, "model.trainable"),
        ({"model.trainable": ["4.*"]}, r"model: trainable: '4.\*' is no parameter of the model"),
        ({"model.weights": "no.safetensors"}, "model: no.safetensors: can not be read as safetensors"),
        ({"model.shape": [3]}, "model: shape: follows from the data set"),
        ({"data.groups": {"column": "writer", "part": 0, "parts": 2}}, "data.groups: column 'writer' is unknown"),
        ({"data.groups": {"column": "writer", "part": 2, "parts": 2}}, r"data.groups: part must be in 0\.\.1, got 2"),
    ],
)
def test_wrong_parts_say_what_is_right(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(Experiment.from_table(override(TABLE, settings)))
