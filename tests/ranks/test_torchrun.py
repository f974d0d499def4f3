"""Runs on several processes are those of one process; they stop together, and go on with any number of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bezoar.errors import BezoarError, ConfigError, UnsupportedError
from bezoar.experiments import Experiment, run
from bezoar.experiments.config import override
from bezoar.experiments.setup import Setup, prepare
from bezoar.experiments.together import agreed, check_same
from bezoar.ranks import ALONE, Ranks
from bezoar.ranks.base import VARIABLES
from bezoar.ranks.torchrun import device_of, joined
from tests.ranks.launch import by_hand, end, environment, start, torchrun
from tests.ranks.threads import in_ranks

pytestmark = pytest.mark.slow

#: What all experiments here have in common: 30 clients of very different sizes.
BASE: dict[str, Any] = {
    "seed": 5,
    "rounds": 50,
    "data": {"dataset": "digits", "partition": {"kind": "dirichlet", "clients": 30, "alpha": 0.3}},
    "model": {"name": "mlp", "hidden": [12]},
    "learning_rate": {"kind": "constant", "lr": 0.1},
    "sampling": {"kind": "uniform", "cohort": 13},
    "adversary": {"count": 3},
    "evaluation": {"every": 25, "batch_size": 50},
    "checkpoint_every": 20,
}
ALL = {"sampling.cohort": 30}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    # One step: ghost gradients.
    "clip-sparsefed-pgd": {
        "attack": {"kind": "pgd", "aux": 10, "epochs": 1, "batch_size": 5},
        "defence": {"preset": "sparsefed", "radius": 2.0, "k": "5%"},
    },
    "krum-alie": {"attack": {"kind": "alie", "z": 1.0}, "defence": {"pipeline": [{"kind": "multi-krum", "f": 3}]}},
    "momentum-nnm-alie": {
        **ALL,
        "clients": {"kind": "gradient", "momentum": 0.9, "batch_size": 6, "weight_decay": 1e-4},
        "attack": {"kind": "alie"},
        "defence": {"pipeline": [{"kind": "nnm", "f": 3}, {"kind": "trimmed-mean", "f": 3}]},
        "evaluation.measure": True,
    },
    # Several local steps: rows in memory, or streamed.
    "local-median-ipm": {
        "clients": {"kind": "local", "epochs": 1, "batch_size": 16},
        "attack": {"kind": "ipm"},
        "defence": {"pipeline": ["median"]},
        # Rounding grows from step to step, at the full rate to 1e-6: as much as between one thread and two.
        "learning_rate.lr": 0.02,
    },
    "streamed-clip": {
        "clients": {"kind": "local", "epochs": 1, "batch_size": 16, "max_bytes": 5000},
        "attack": {"kind": "label-flip"},
        "defence": {"pipeline": [{"kind": "clip", "radius": 0.5}, "mean"]},
    },
    "local-bulyan-sybils": {
        **ALL,
        "clients": {"kind": "local", "momentum": 0.5},
        "adversary": {"count": 2, "sybils": 2, "start": 5, "every": 2},
        "attack": {"kind": "label-flip"},
        "defence": {"pipeline": [{"kind": "bulyan", "f": 4}]},
        "rounds": 20,
    },
    "fltrust-twin": {
        "attack": {"kind": "sign-flip"},
        "defence": {"pipeline": ["fltrust"], "root_samples": 50},
        "evaluation.twin": True,
        "rounds": 12,
    },
    "centred-fetchsgd": {
        "attack": {"kind": "alie"},
        "defence": {
            "pipeline": [{"kind": "centered-clipping", "radius": 1.0}],
            "server": {"kind": "fetchsgd", "k": 100, "columns": 400},
        },
        "rounds": 12,
    },
}
#: Interrupted after round 23 by rank 0 alone.
STOPPED = {**EXPERIMENTS["momentum-nnm-alie"], "name": "stopped"}


def table(name: str) -> dict[str, Any]:
    return override(BASE, {"name": name, **EXPERIMENTS.get(name, STOPPED)})


def compare(one: Path, many: Path) -> float:
    """The relative distance of the weights; records must agree but for rounding."""
    a, b = load_file(one / "weights.safetensors"), load_file(many / "weights.safetensors")
    first, second = (torch.cat([part[name].double().reshape(-1) for name in a]) for part in (a, b))
    for here, there in zip(lines(one), lines(many), strict=True):
        assert here.keys() == there.keys()
        for key, value in here.items():
            if isinstance(value, float) and key != "clipped" and isinstance(there[key], float):
                assert there[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (key, here["round"])
            # A row as long as the radius may be clipped, or not, by rounding.
            elif not isinstance(value, dict | list) and key != "clipped":
                assert there[key] == value, (key, here["round"])
    return float((first - second).norm() / first.norm())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Played:
    """What two launches left behind: all experiments on two ranks, some on four, one stopped and gone on with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        two = [{"table": table(name), "out": str(folder / f"{name}.2")} for name in EXPERIMENTS]
        two += [{"table": table("stopped"), "out": str(folder / f"stopped.{i}"), "stop_at": 23} for i in "ab"]
        there = str(folder / "krum-alie.2")
        two.append({"table": table("krum-alie"), "out": there, "say": str(folder / "again"), "resume": True})
        two.append({"table": table("fltrust-twin"), "out": there, "say": str(folder / "other"), "resume": True})
        two.append({"table": table("krum-alie"), "out": there, "say": str(folder / "taken")})
        self.status_two = self.launch(2, two)
        names = ("momentum-nnm-alie", "local-bulyan-sybils", "clip-sparsefed-pgd")
        four = [{"table": table(name), "out": str(folder / f"{name}.4")} for name in names]
        four.append({"table": table("stopped"), "out": str(folder / "stopped.a"), "resume": True})
        self.status_four = self.launch(4, four)

    def launch(self, size: int, jobs: list[dict[str, Any]]) -> str:
        path = self.folder / f"jobs{size}.json"
        path.write_text(json.dumps(jobs))
        status, log = torchrun(size, ["-m", "tests.ranks.player", str(path)], self.folder / f"log{size}")
        assert status == 0, log
        return log

    def said(self, name: str, size: int) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"{name}.rank{rank}.json").read_text()) for rank in range(size)]

    def one(self, name: str) -> Path:
        """The same experiment in one process."""
        out = self.folder / f"{name}.1"
        if not out.exists():
            run(Experiment.from_table(table(name)), out)
        return out


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Played(tmp_path_factory.mktemp("ranks"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [2, 4])
def test_all_kinds_of_talk(played: Played, size: int) -> None:
    said = [json.loads((played.folder / f"jobs{size}.json.talk{rank}.json").read_text()) for rank in range(size)]
    # Sums of floating point numbers, the same bits on all ranks.
    assert all(part["total"] == said[0]["total"] for part in said)
    last = size - 1
    assert said[0]["whys"] == [f"BezoarError: rank {last}: broken at {last}", "BezoarError: broken at 0"]
    for part in said[1:]:
        assert part["whys"] == [f"ElsewhereError: broken at {last}", "ElsewhereError: broken at 0"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_ranks_learn_what_one_process_learns(played: Played, name: str) -> None:
    assert compare(played.one(name), played.folder / f"{name}.2") <= 1e-6
    first, second = played.said(f"{name}.2", 2)
    assert first["checksum"] == second["checksum"]
    assert first["summary"] == second["summary"]
    assert first["directory"] is not None
    assert second["directory"] is None
    if name == "fltrust-twin":
        assert compare(played.one(name) / "twin", played.folder / f"{name}.2" / "twin") <= 1e-6


@pytest.mark.parametrize("name", ["momentum-nnm-alie", "local-bulyan-sybils", "clip-sparsefed-pgd"])
def test_four_ranks_learn_what_one_process_learns(played: Played, name: str) -> None:
    assert compare(played.one(name), played.folder / f"{name}.4") <= 1e-6
    assert len({part["checksum"] for part in played.said(f"{name}.4", 4)}) == 1


def test_a_stopped_run_goes_on_with_any_number_of_ranks(played: Played) -> None:
    first, second = played.said("stopped.b", 2)
    assert first["error"] == "Interrupted: stopped after round 23 of 50; go on with --resume"
    assert second["error"].startswith("ElsewhereError: ")
    checkpoint = load_file(played.folder / "stopped.b" / "checkpoint.safetensors")
    # Of all clients, though each rank keeps that of its own only.
    assert checkpoint["clients.momentum"].shape[0] == 30
    run(Experiment.from_table(table("stopped")), played.folder / "stopped.b", resume=True)
    assert compare(played.one("stopped"), played.folder / "stopped.b") <= 1e-6
    # The other one went on with four.
    assert compare(played.one("stopped"), played.folder / "stopped.a") <= 1e-6
    assert len({part["checksum"] for part in played.said("stopped.a", 4)}) == 1


def test_a_finished_run_is_returned_and_another_one_refused(played: Played) -> None:
    for before, after in zip(played.said("krum-alie.2", 2), played.said("again", 2), strict=True):
        assert {**before, "sent": None} == {**after, "sent": None}
        assert not after["sent"].get("exchange")
    for name, why in {"other": "holds a finished run of another configuration", "taken": "already holds a run"}.items():
        first, second = played.said(name, 2)
        assert first["error"].startswith("ConfigError: ")
        assert why in first["error"]
        assert second["error"].startswith("ElsewhereError: ")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs")
def test_two_gpus_learn_what_one_process_learns(tmp_path: Path) -> None:
    names = ("krum-alie", "momentum-nnm-alie", "clip-sparsefed-pgd")
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps([{"table": table(name), "out": str(tmp_path / name)} for name in names]))
    status, log = torchrun(2, ["-m", "tests.ranks.player", str(path), "cuda"], tmp_path / "log")
    assert status == 0, log
    for name in names:
        run(Experiment.from_table(table(name)), tmp_path / f"{name}.1", device="cuda:0")
        assert compare(tmp_path / f"{name}.1", tmp_path / name) <= 1e-5


def test_devices_are_those_of_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda") == "cuda:1"
    with pytest.raises(ConfigError, match="every rank takes the GPU of its LOCAL_RANK"):
        device_of("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match="LOCAL_RANK is 1, but there are 1 GPUs here: start at most 1 ranks a machine"
    ):
        device_of("cuda")
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(ConfigError, match="LOCAL_RANK must be a whole number >= 0 as torchrun sets it, got 'x'"):
        device_of("cuda")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "2", "RANK is 2, but WORLD_SIZE is 2"),
        ("RANK", "one", "RANK must be a whole number"),
        ("WORLD_SIZE", "-1", "WORLD_SIZE must be a whole number >= 1"),
        ("MASTER_PORT", None, "MASTER_PORT missing: start many ranks with torchrun"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    name: str, value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.get(variable, "1"))
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), joined(timeout=1):
        pass


#: Ranks are threads here and share torch's global generator, from which models are initialised.
_ONE_BY_ONE = threading.Lock()


def prepared(experiment: Experiment) -> Setup:
    with _ONE_BY_ONE:
        return prepare(experiment, None, torch.device("cpu"))


def test_dropout_that_depends_on_the_cohort_is_refused() -> None:
    def refuse(ranks: Ranks, **settings: Any) -> None:
        experiment = Experiment.from_table(override(table("krum-alie"), settings))
        setup = prepared(experiment)
        setup.model.add_module("drop", torch.nn.Dropout(0.1))
        check_same(replace(setup, ranks=ranks), experiment.hash())

    with pytest.raises(UnsupportedError, match="'drop' is a Dropout that drops out, and draws for all clients at once"):
        in_ranks(2, refuse)
    local = {"clients": {"kind": "local", "batch_size": 4}}
    in_ranks(2, lambda ranks: refuse(ranks, **local))
    refuse(ALONE)


def test_ranks_with_other_experiments_or_data_are_told_apart() -> None:
    def check(ranks: Ranks) -> None:
        seed = {} if ranks.rank < 2 else {"seed": 6}
        experiment = Experiment.from_table(override(table("krum-alie"), seed))
        setup = prepared(experiment)
        digest = "same" if ranks.size == 4 else experiment.hash()
        check_same(replace(setup, ranks=ranks), digest)

    with pytest.raises(ConfigError, match="the experiment of rank 2 is not that of rank 0"):
        in_ranks(3, check)
    with pytest.raises(ConfigError, match="the partition of rank 2 is not that of rank 0"):
        in_ranks(4, check)


def test_models_that_part_company_end_the_run() -> None:
    def check(ranks: Ranks) -> bool:
        setup = prepared(Experiment.from_table(table("krum-alie")))
        if ranks.size == 3 and ranks.rank == 1:
            setup.weights[5] += 1e-7
        return agreed(replace(setup, ranks=ranks), 7, ranks.rank == 1)

    assert in_ranks(2, check) == [True, True]
    with pytest.raises(BezoarError, match="after round 7 the model of rank 1 is not that of rank 0"):
        in_ranks(3, check)


# The command line


CLI = {
    **BASE,
    "name": "cli",
    "rounds": 400,
    "checkpoint_every": 5,
    "evaluation": {"every": 50},
    "defence": {"pipeline": [{"kind": "clip", "radius": 1.0}, "mean"]},
}


def write(folder: Path, content: dict[str, Any]) -> str:
    import tomlkit

    path = folder / "experiment.toml"
    path.write_text(tomlkit.dumps(content))
    return str(path)


def wait_for(happened: Callable[[], bool], seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def test_killed_ranks_end_the_run_and_it_can_be_resumed(tmp_path: Path) -> None:
    source = write(tmp_path, CLI)
    out = tmp_path / "out"
    arguments = ["-m", "bezoar", "run", source, "--out", str(out), "--rank-timeout", "60"]
    processes = by_hand(3, arguments, tmp_path)
    try:
        wait_for(lambda: (out / "checkpoint.safetensors").exists())
        os.kill(processes[1].pid, signal.SIGKILL)
        killed = time.monotonic()
        for rank in (0, 2):
            assert processes[rank].wait(100) == 1
            log = (tmp_path / f"rank{rank}.log").read_text()
            assert f"bezoar: rank {rank} has lost rank 1, killed or stuck; go on with --resume" in log
        assert time.monotonic() - killed < 100
    finally:
        for process in processes:
            end(process)
    assert not (out / "summary.json").exists()
    short = Experiment.from_table(CLI)
    result = run(short, out, resume=True)
    assert len(result.rounds) == 400
    alone = run(short, tmp_path / "alone")
    assert compare(alone.directory, out) <= 2e-6  # type: ignore[arg-type]


def test_torchrun_plays_an_experiment_and_refuses_what_it_can_not(tmp_path: Path) -> None:
    source = write(tmp_path, {**CLI, "rounds": 6})
    out = tmp_path / "out"
    status, log = torchrun(2, ["-m", "bezoar", "run", source, "--out", str(out)], tmp_path / "log")
    assert status == 0, log
    assert (out / "report" / "report.html").exists()
    # Rank 0 alone speaks.
    assert log.count("report: ") == 1
    # What every rank finds is said once: this is no experiment.
    grid = write(tmp_path, {**CLI, "grid": {"seed": [1, 2]}})
    status, log = torchrun(2, ["-m", "bezoar", "run", grid, "--out", str(tmp_path / "grid")], tmp_path / "log2")
    assert status != 0
    assert log.count("is a grid; torchrun plays one experiment on many processes") == 1
    assert not (tmp_path / "grid").exists()


def test_ranks_that_never_come_are_waited_for_no_longer_than_told(tmp_path: Path) -> None:
    source = write(tmp_path, CLI)
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-m", "bezoar", "run", source, "--out", str(tmp_path / "out"), "--rank-timeout", "2"]
    process = start(command, tmp_path / "log", environment(**told))
    try:
        assert process.wait(200) == 1
    finally:
        end(process)
    assert "bezoar: rank 0 could not meet the 1 others at 127.0.0.1:0 within 2 s" in (tmp_path / "log").read_text()
