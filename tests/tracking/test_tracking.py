"""Trackers are read back from their own files, by their own libraries."""

from __future__ import annotations

import dataclasses
import importlib
import json
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bezoar.cli import app
from bezoar.errors import ConfigError
from bezoar.experiments import run
from bezoar.experiments.config import override
from bezoar.experiments.records import METRICS, SUMMARY, WEIGHTS
from bezoar.tracking import TRACKERS, MLflow, Started, TensorBoard, WeightsAndBiases, chosen, together, values
from tests.experiments.tiny import TABLE, tiny

# The libraries leave files and connections to the garbage collector, and use what is deprecated in theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


class Stop(Exception):
    """As if the process had died."""


def until(last: int) -> Any:
    def watch(record: Mapping[str, Any]) -> None:
        if record["round"] == last and record["kind"] == "round":
            raise Stop

    return watch


def interrupted(out: Path, *trackers: Any) -> None:
    """A run that dies in round 9: records of 8 rounds, a checkpoint of round 6."""
    with pytest.raises(Stop):
        run(tiny(), out, progress=until(9), trackers=trackers)


def recorded(out: Path) -> dict[str, list[tuple[int, float]]]:
    """What trackers should hold: every finite number of the records, by name, with its round."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name in (METRICS, "timings.jsonl"):
        for line in (out / name).read_text().splitlines():
            record = json.loads(line)
            for key, value in values(record).items():
                found.setdefault(key, []).append((record["round"], value))
    return found


def agrees(held: Mapping[str, list[tuple[int, float]]], out: Path, tolerance: float = 0.0) -> None:
    """Every value once, in order, at its round; seconds of rounds that came twice may be of either time."""
    wanted = recorded(out)
    assert {key for key in held if not key.startswith("summary/")} == set(wanted)
    for key, pairs in wanted.items():
        assert [step for step, _ in held[key]] == [step for step, _ in pairs], key
        if not key.startswith("seconds/"):
            assert [v for _, v in held[key]] == pytest.approx([v for _, v in pairs], rel=tolerance, abs=0), key


def board(out: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"), purge_orphaned_data=False)
    found.Reload()
    assert found.Tags()["tensors"] == ["parameters/text_summary"]
    assert b"| learning_rate.lr | `0.1` |" in found.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.parametrize("harm", ["nothing", "cut off", "removed"])
def test_tensorboard_holds_what_the_records_hold_also_after_a_resume(harm: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(out, "tensorboard")
    (before,) = (out / "tensorboard").iterdir()
    assert [step for step, _ in board(out)["round/lr"]] == list(range(1, 9))
    if harm == "cut off":
        with before.open("rb+") as file:
            file.truncate(before.stat().st_size // 2)
    elif harm == "removed":
        before.unlink()
    summary = run(tiny(), out, resume=True, trackers=["tensorboard"]).summary
    assert summary["trackers"] == {"tensorboard": None}
    held = board(out)
    agrees(held, out, tolerance=1e-6)
    assert held["summary/test_accuracy"] == [(12, pytest.approx(summary["test_accuracy"]))]
    assert len(list((out / "tensorboard").iterdir())) == 1


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store for all tests: making one takes seconds."""
    pytest.importorskip("sqlalchemy")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def test_mlflow_goes_on_with_its_run_without_duplicates(database: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    out = tmp_path / "run"
    tracker = MLflow(uri=database, experiment="resumed")
    interrupted(out, tracker)
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("resumed")
    (first,) = client.search_runs([experiment.experiment_id])
    assert first.info.status == "KILLED"
    assert client.get_metric_history(first.info.run_id, "round/lr")[-1].step == 8
    summary = run(tiny(), out, resume=True, trackers=[tracker]).summary
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == first.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["learning_rate.lr"] == "0.1"
    assert found.data.params["attack.kind"] == "pgd"
    assert found.data.metrics["summary/test_accuracy"] == summary["test_accuracy"]
    held = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    agrees(held, out)
    # Another run, of the same configuration: one of its own.
    run(tiny(rounds=3, evaluation__every=3), tmp_path / "other", trackers=[tracker])
    assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights & Biases without a network, and with nothing outside the test's folder."""
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb = pytest.importorskip("wandb")
    try:
        yield
    finally:
        wandb.teardown()


def history(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log in blocks of 32 KiB, whose records may be split over several."""
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    assert content[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_goes_on_with_its_run_without_duplicates(offline: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(out, WeightsAndBiases(project="p"))
    summary = run(tiny(), out, resume=True, trackers=[WeightsAndBiases(project="p")]).summary
    files = sorted(out.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    held: dict[str, list[tuple[int, float]]] = {}
    runs, config, final = set(), {}, {}
    for file in files:
        for record in history(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add((record.run.run_id, record.run.project))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    if not key.startswith("_"):
                        held.setdefault(key, []).append((record.history.step.num, json.loads(item.value_json)))
            elif kind == "summary":
                final |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.summary.update}
    assert len(runs) == 1
    assert {project for _, project in runs} == {"p"}
    assert config["learning_rate.lr"] == 0.1
    assert final["summary/test_accuracy"] == summary["test_accuracy"]
    agrees(held, out)


@dataclass
class Lines:
    """A series that keeps what it is told; it may break."""

    path: Path
    logged: int
    breaks: int | None
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    ended: list[Any] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.breaks:
            raise OSError("disk full")
        self.told.append((step, dict(values)))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        self.ended.append(summary)


@dataclass(frozen=True)
class Mine:
    """A tracker of one's own."""

    breaks: int | None = None
    logged: int = 0
    series: list[Lines] = field(default_factory=list, compare=False)
    started: list[Started] = field(default_factory=list, compare=False)

    def start(self, run: Started) -> Lines:
        self.started.append(run)
        if self.breaks == 0:
            raise OSError("no such server")
        self.series.append(Lines(run.folder, self.logged, self.breaks))
        return self.series[-1]


def test_a_tracker_of_ones_own_is_told_each_round_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first, second = Mine(), Mine(logged=4)
    interrupted(out, first)
    assert first.series[0].ended == [None]
    assert [step for step, _ in first.series[0].told] == list(range(1, 9))
    result = run(tiny(), out, resume=True, trackers=[second])
    (started,) = second.started
    assert (started.name, started.key, started.round, started.folder) == ("tiny", tiny().hash(), 6, out)
    assert started.parameters["defence.server.kind"] == "sparsefed"
    assert [step for step, _ in second.series[0].told] == list(range(5, 13))
    assert second.series[0].told[-1][1]["evaluation/test_accuracy"] == result.test_accuracy
    assert [ended["test_accuracy"] for ended in second.series[0].ended] == [result.test_accuracy]
    assert result.summary["trackers"] == {"Mine": None}
    # What has finished is not followed again.
    run(tiny(), out, resume=True, trackers=[third := Mine()])
    assert not third.started


@pytest.mark.parametrize("breaks", [0, 5])
def test_a_tracker_that_fails_is_told_of_once_and_changes_nothing(breaks: int, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="tracker Mine failed, the run goes on without it") as seen:
        result = run(tiny(), tmp_path / "run", trackers=[Mine(breaks=breaks), other := Mine()])
    assert len(seen) == 1
    report = result.summary["trackers"]
    assert set(report) == {"Mine", "Mine 2"}
    assert report["Mine 2"] is None
    assert report["Mine"] == ("after round 0: OSError: no such server", "after round 5: OSError: disk full")[breaks > 0]
    assert len(other.series[0].told) == 12
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["trackers"] == report
    run(tiny(), tmp_path / "plain")
    for name in (METRICS, WEIGHTS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_mistakes_are_found_before_the_first_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def start(self, run: Started) -> Lines:
            raise ConfigError("no such project")

    before = Mine()
    for trackers, says in (
        (["tensorbord"], "unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
        ([{"kind": "mlflow", "url": "x"}], "tracker 'mlflow' has no parameter 'url'; did you mean 'uri'"),
        ([{"kind": "wandb", "mode": "of"}], "'online', 'offline' or 'disabled'"),
        ([3], "a tracker is a name or a table"),
        ([before, Wrong()], "no such project"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(tiny(), tmp_path / "run", trackers=trackers)
    assert before.series[0].ended == [None]
    with pytest.raises(ConfigError, match="trackers write into the run's directory"):
        run(tiny(), trackers=["tensorboard"])
    base = importlib.import_module("bezoar.tracking.base")
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(ConfigError, match=rf"needs the library .* pip install 'bezoar\[{name}\]'"):
            chosen([name])


def test_values_are_the_finite_numbers() -> None:
    record = {
        "kind": "round",
        "round": 3,
        "lr": 1,
        "skipped": "text",
        "clipped": None,
        "attack": {"scale": 2.5, "note": "x", "deep": {"list": [1.0, None, float("inf")]}},
        "huge": 10**400,
        "attacking": True,
    }
    assert values(record) == {
        "round/lr": 1.0,
        "round/attack/scale": 2.5,
        "round/attack/deep/list/0": 1.0,
        "round/attacking": 1.0,
    }
    assert values({"round": 3, "clients": 0.5}) == {"seconds/clients": 0.5}


def test_packages_bring_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_trackers.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Theirs:\n"
        "    '''A tracker of theirs.'''\n\n"
        "    def start(self, run):\n        raise OSError('only a test')\n"
    )
    info = tmp_path / "their_trackers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-trackers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bezoar.trackers]\ntheirs = their_trackers:Theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    kinds = importlib.import_module("bezoar.tracking.kinds")
    fresh = type(TRACKERS)("tracker", {"tensorboard": TensorBoard}, group="bezoar.trackers")
    monkeypatch.setattr(kinds, "TRACKERS", fresh)
    try:
        assert list(kinds.chosen(["theirs"])) == ["theirs"]
        assert [entry.summary for entry in fresh.entries()][-1] == "A tracker of theirs."
    finally:
        sys.modules.pop("their_trackers", None)


def test_a_comparison_keeps_its_runs_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    board, store, group = together(["tensorboard", "mlflow", "wandb"], "grid", tmp_path)
    assert board == TensorBoard()
    assert store == MLflow(f"sqlite:///{tmp_path.resolve()}/mlflow/mlflow.db", "grid")
    assert group == WeightsAndBiases(group="grid")
    # Where there is no shared disk, each run keeps its own.
    assert together(["mlflow"], "grid", None) == (MLflow(None, "grid"),)
    assert dataclasses.is_dataclass(store)


def test_the_command_line_tracks(database: str, tmp_path: Path) -> None:
    import tomlkit
    from mlflow.tracking import MlflowClient

    file, out = tmp_path / "g.toml", tmp_path / "out"
    table = override({key: value for key, value in TABLE.items() if key != "seed"}, {"rounds": 4})
    file.write_text(tomlkit.dumps({**table, "grid": {"seed": [0, 1]}}))
    follow = ["--track", "tensorboard", "--track", f'{{kind = "mlflow", uri = "{database}", experiment = "cli"}}']
    done = CliRunner().invoke(app, ["compare", str(file), "--out", str(out), "--jobs", "2", "--quiet", *follow])
    assert done.exit_code == 0, done.output
    cells = list((out / "cells").iterdir())
    for cell in cells:
        agrees(board(cell), cell, tolerance=1e-6)
    client = MlflowClient(database)
    found = client.search_runs([client.get_experiment_by_name("cli").experiment_id])
    assert sorted(run.data.params["seed"] for run in found) == ["0", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for wrong, says in (
            (["run", str(file), "--track", "tensorbord"], "did you mean 'tensorboard'"),
            (["compare", "expected-guard", "--track", "tensorboard"], "have none"),
        ):
            refused = CliRunner().invoke(app, [*wrong, "--out", str(tmp_path / "no")])
            assert isinstance(refused.exception, ConfigError)
            assert says in str(refused.exception)
