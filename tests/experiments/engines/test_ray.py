"""Cells on a cluster of two nodes, which both run on this machine."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments.engines import Ray
from bezoar.experiments.grid import compare
from bezoar.experiments.records import CHECKPOINT, METRICS, alone
from bezoar.reports import Comparison, load, write_report
from tests.experiments.engines import runners
from tests.experiments.engines.test_local import same, small
from tests.experiments.tiny import TABLE

ROOT = Path(__file__).resolve().parents[3]

# Ray leaves sockets and processes of its own to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

engine = importlib.import_module("bezoar.experiments.engines.ray")


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found, fresh = set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with a processor each; this process is connected to it."""
    pytest.importorskip("ray")
    before = descendants(os.getpid())
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "OMP_NUM_THREADS": "1",
        # Memory that others use on this machine is no reason to kill a worker.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    earlier = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    mine: set[int] = set()
    cluster = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            from ray.cluster_utils import Cluster

            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        yield cluster.address
    finally:
        mine = descendants(os.getpid()) - before
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            ray.shutdown()
            if cluster is not None:
                cluster.shutdown()
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name, value in earlier.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.mark.parametrize("shared", [True, False])
def test_a_killed_worker_costs_only_its_cell(
    shared: bool, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both where nodes share the folder and where files have to come back: the bits are those of an unharmed run."""
    if not shared:
        monkeypatch.setattr(engine, "_mark", lambda token: None)
    where = "here" if shared else "elsewhere"
    grid = small()
    told: list[str] = []
    outcomes = compare(
        grid,
        tmp_path / "out",
        data_dir=tmp_path,
        engine=Ray(address),
        runner=runners.killed_once,
        progress=lambda cell: told.append(cell.title),
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert sorted(runners.noted(tmp_path)) == [
        f"begins 0 {where}",
        f"begins 0 {where}",
        f"begins 1 {where}",
        "seed 0 from 1",
        # After the checkpoint of round 6, which was here before the worker died.
        "seed 0 from 7",
        "seed 1 from 1",
    ]
    assert sorted(told) == ["seed 0", "seed 1"]
    compare(grid, tmp_path / "calm", jobs=2)
    same(grid, tmp_path / "out", tmp_path / "calm")
    assert {path.name for path in (tmp_path / "out" / "cells").iterdir()} == {cell.key for cell in grid.cells}
    assert not list((tmp_path / "out").rglob(CHECKPOINT))
    # Finished cells are not run again.
    assert all(outcome.skipped for outcome in compare(grid, tmp_path / "out", engine=Ray(address)))


def test_a_cell_whose_workers_all_die_has_failed_and_others_have_not(address: str, tmp_path: Path) -> None:
    outcomes = compare(
        small(),
        tmp_path / "out",
        data_dir=tmp_path,
        engine=Ray(address, retries=1),
        runner=runners.killed_always,
    )
    by_seed = {outcome.cell.labels["seed"]: outcome for outcome in outcomes}
    assert by_seed[1].error is None
    assert re.match(r"its worker died 2 times, at last on node \S+ \(process \d+\): .", str(by_seed[0].error))


def test_errors_name_the_node_and_busy_cells_come_last(address: str, tmp_path: Path) -> None:
    missing = {"data.dataset": "cifar10", "data.partition": {"kind": "iid", "clients": 10}, "model.name": "linear"}
    grid = small(1, **missing, **{"model": {"name": "linear"}})
    (failed,) = compare(grid, tmp_path / "one", data_dir=tmp_path / "nothing", engine=Ray(address))
    assert re.search(r"data set 'cifar10' is not in \S+/nothing.*\(on node \S+\)$", str(failed.error))

    found = small()
    store = tmp_path / "cells"
    order: list[str] = []
    with contextlib.ExitStack() as other:
        other.enter_context(alone(store / found.cells[0].key))

        def finished(outcome: Any) -> None:
            order.append(outcome.cell.key)
            if len(order) == 1:
                other.close()

        compare(found, tmp_path / "out", cells=store, engine=Ray(address), finished=finished)
    assert order == [found.cells[1].key, found.cells[0].key]


def test_what_can_not_run_is_told_before_anything_runs(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no node of the cluster has 64 CPUs and 0 GPUs for a cell; nodes have "):
        compare(small(), tmp_path, engine=Ray(address, cpus=64))
    ours = engine.code()
    for change, says in (
        ({"version": "0.0.1"}, r"node \S+ has bezoar \S+, this machine 0.0.1: install the same on all"),
        ({"source": "other"}, r"node \S+ has another bezoar \S+ than this machine \(its source differs\)"),
    ):
        monkeypatch.setattr(engine, "code", lambda change=change: {**ours, **change})
        with pytest.raises(ConfigError, match=says):
            compare(small(), tmp_path, engine=Ray(address))
    assert not list((tmp_path / "cells").iterdir())


def test_the_command_line_stops_and_goes_on(address: str, tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    import tomlkit

    table = {key: value for key, value in TABLE.items() if key != "seed"}
    file.write_text(tomlkit.dumps({**table, "rounds": 10**6, "grid": {"seed": [0, 1]}}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bezoar", "compare", str(file), "--out", str(out), "--engine", "ray"]
    command += ["--ray-address", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline = time.monotonic() + 300
            while len(list(out.glob(f"cells/*/{CHECKPOINT}"))) < 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            # The report while it runs.
            write_report(out)
            found = load(out)
            assert isinstance(found, Comparison)
            assert {cell.state for cell in found.cells} == {"unfinished"}
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "stopped; run the same command to go on" in said
    assert "seed 0: 1000000 rounds" in said
    for folder in (out / "cells").iterdir():
        # The checkpoint counts on records that are there; on a slow machine more may have followed it.
        from bezoar.experiments.records import load_tensors

        _, metadata = load_tensors(folder / CHECKPOINT)
        assert (folder / METRICS).stat().st_size >= int(metadata["metrics"]) > 0
        with alone(folder):
            pass


def test_options_that_can_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for options, says in (
        ({"cpus": -1}, "cpus of a cell must be at least 0"),
        ({"cpus": float("nan")}, "cpus of a cell must be at least 0"),
        ({"cpus": 0}, "neither CPUs nor GPUs"),
        ({"gpus": 1.5}, "whole number or a part"),
    ):
        with pytest.raises(ConfigError, match=says):
            Ray(**options)
    for device, gpus, says in (
        ("cpu", 1, "add --device cuda"),
        ("cuda", 0, "--device cuda needs --gpus-per-cell"),
        ("cuda:1", 1, "Ray chooses a cell's GPU"),
    ):
        with pytest.raises(ConfigError, match=says):
            compare(small(), tmp_path, engine=Ray(gpus=gpus), device=device)
    with pytest.raises(ConfigError, match="give HOST:PORT of the cluster"):
        engine._connect(None, "ray://head:10001")
    for wrong in ("127.0.0.1:1", "127.0.0.1:many", "127.0.0.1:99999"):
        with pytest.raises(BezoarError, match=f"no Ray cluster answers at {wrong}"):
            engine._connect(None, wrong)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'bezoar\[cluster\]'"):
        engine._library()
