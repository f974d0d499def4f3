"""The app in examples/flower, run in three ways: in this process, in Flower's simulation, and deployed."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy

from bezoar.integrations.flower import RobustStrategy, run_in_process
from bezoar.reports import write_report
from tests.integrations.flower.daemons import ROOT, Daemons, daemons, free_ports

APP = ROOT / "examples" / "flower"
FEDAVG = '["mean"]'
#: What a deployment of three clients uses: one of them is left out in every round.
MDA = '[{kind = "mda", f = 1}]'


def defaults() -> dict[str, Any]:
    table = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))
    config: dict[str, Any] = table["tool"]["flwr"]["app"]["config"]
    return config


@pytest.fixture(scope="module")
def apps() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APP))
        from bezoar_digits import client_app, server_app  # type: ignore[import-not-found, unused-ignore]

        yield server_app.app, client_app.app


def play(apps: tuple[ServerApp, ClientApp], out: Path, clients: int = 10, **settings: object) -> Path:
    """The app in this process; ``settings`` are keys of its configuration."""
    keys = {key.replace("_", "-"): value for key, value in settings.items()}
    run_in_process(*apps, clients, {**defaults(), **keys, "out": str(out)})
    return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and Flower's processes have other numbers than this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def accuracy(out: Path) -> float:
    return float(json.loads((out / "summary.json").read_text())["test_accuracy"])


def rounds(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "round"]


def same(one: Path, other: Path) -> None:
    """The same model and the same records, to the last bit."""
    for name in ("weights.safetensors", "metrics.jsonl", "experiment.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_rule_keeps_what_the_attack_takes_from_the_mean(apps: Any, tmp_path: Path) -> None:
    calm = play(apps, tmp_path / "calm", rounds=8, attack="none", rule=FEDAVG)
    harmed = play(apps, tmp_path / "harmed", rounds=8, rule=FEDAVG)
    kept = play(apps, tmp_path / "kept", rounds=8)
    assert accuracy(calm) > 0.85
    assert accuracy(harmed) < 0.4
    assert accuracy(kept) > 0.85


def test_labels_that_are_wrong_make_the_malicious_clients_models_worse(apps: Any, tmp_path: Path) -> None:
    calm, flipped = (
        play(apps, tmp_path / attack, rounds=6, malicious=0.4, attack=attack, rule=FEDAVG)
        for attack in ("none", "label-flip")
    )
    assert accuracy(flipped) < accuracy(calm) - 0.02


def test_the_same_seed_gives_the_same_bits(apps: Any, tmp_path: Path) -> None:
    one, two, other = (
        play(apps, tmp_path / name, rounds=2, fraction_train=0.7, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    same(one, two)
    assert (one / "weights.safetensors").read_bytes() != (other / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    "rule", ["clip", '{preset = "krum", f = 2, momentum = 0.0}', '[{kind = "clip", radius = 1.0}, "mean"]']
)
def test_rules_are_names_tables_or_pipelines(apps: Any, tmp_path: Path, rule: str) -> None:
    assert len(rounds(play(apps, tmp_path / "out", rounds=1, rule=rule))) == 1


def test_the_app_as_a_command(apps: Any, tmp_path: Path) -> None:
    from bezoar_digits.__main__ import main  # type: ignore[import-not-found, unused-ignore]

    main(["clients=4", "rounds=1", "rule='[\"median\"]'", f"out='{tmp_path / 'out'}'"])
    (only,) = rounds(tmp_path / "out")
    assert only["cohort"] == 4
    with pytest.raises(SystemExit, match="no setting is called 'round'"):
        main(["round=1"])


def test_a_wrong_attack_is_named(apps: Any, tmp_path: Path) -> None:
    out = play(apps, tmp_path / "out", rounds=1, attack="sign-flop")
    (only,) = rounds(out)
    assert only["skipped"] == "no replies"
    assert "attack must be one of none, sign-flip, label-flip, got 'sign-flop'" in only["verdicts"]["0"]


def test_a_killed_server_goes_on_to_the_same_bits(apps: Any, tmp_path: Path) -> None:
    """Killed by a signal that nobody can catch, in the middle of round 3."""
    whole = play(apps, tmp_path / "whole", rounds=4, rule='{preset = "sparsefed", k = 200}')
    code = """
import json, os, signal, sys
from bezoar.integrations.flower import run_in_process
from bezoar_digits import client_app, server_app, task

honest = task.train

def train(*arguments):
    # Ten clients a round.
    train.calls += 1
    if train.calls == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*arguments)

train.calls = 0
task.train = train
run_in_process(server_app.app, client_app.app, 10, json.loads(sys.argv[1]))
"""
    config = {**defaults(), "rounds": 4, "rule": '{preset = "sparsefed", k = 200}', "out": str(tmp_path / "killed")}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(APP)]), "FLWR_TELEMETRY_ENABLED": "0"}
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(config)], env=env, capture_output=True, timeout=120, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert [r["round"] for r in rounds(tmp_path / "killed")] == [1, 2]
    same(play(apps, tmp_path / "killed", rounds=4, rule='{preset = "sparsefed", k = 200}', resume=True), whole)


def flwr_run(processes: Daemons, out: Path, config: str, *options: str) -> Path:
    """``flwr run`` of the app; its ``out``."""
    said = processes.run(
        "run", ["flwr", "run", str(APP), "here", "--stream", "--run-config", f"out='{out}' {config}", *options]
    )
    assert (out / "weights.safetensors").exists(), f"{said}\n{processes.said()}"
    return out


def superlink(processes: Daemons, port: int, *options: str) -> None:
    command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    processes.start("superlink", [*command, "--disable-runtime-dependency-installation", *options])
    processes.listening("superlink", port)
    processes.connect(port)


def test_the_page_lists_every_option() -> None:
    page = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", page, flags=re.M))
    made = inspect.signature(RobustStrategy).parameters
    started = inspect.signature(RobustStrategy.start).parameters
    flowers = inspect.signature(Strategy.start).parameters
    assert listed.keys() == {*made, *(started.keys() - flowers.keys())}
    for name, default in listed.items():
        if re.fullmatch(r"[\d.]+|`.*`", default.strip()):
            value = {**started, **made}[name].default
            assert default.strip().strip("`") == (f'"{value}"' if isinstance(value, str) else str(value)), name


@pytest.mark.slow
def test_simulation(apps: Any, one_thread: None, tmp_path: Path) -> None:
    """``flwr run`` with its engine on Ray: two actors, answers in any order, the same bits."""
    pytest.importorskip("ray")
    expected = play(apps, tmp_path / "expected", rounds=3)
    with daemons(tmp_path / "sim", limit=240) as processes:
        (port,) = free_ports(1)
        superlink(processes, port, "--simulation")
        federation = "num-supernodes=10 client-resources-num-cpus=1"
        out = flwr_run(processes, tmp_path / "out", "rounds=3", "--federation-config", federation)
    same(out, expected)
    page = write_report(out).read_text(encoding="utf-8")
    assert "One run of 3 rounds" in page


@pytest.mark.slow
def test_deployment(apps: Any, one_thread: None, tmp_path: Path) -> None:
    """A SuperLink and three SuperNodes as processes of their own; partition 0 is malicious."""
    expected = play(apps, tmp_path / "expected", clients=3, rounds=2, malicious=0.34, rule=MDA)
    with daemons(tmp_path / "real", limit=240) as processes:
        port, *own = free_ports(4)
        superlink(processes, port)
        for number, its in enumerate(own):
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(its)]
            processes.start(
                f"supernode-{number}", [*command, "--node-config", f"partition-id={number} num-partitions=3"]
            )
        out = flwr_run(processes, tmp_path / "out", f"rounds=2 malicious=0.34 rule='{MDA}'")
    same(out, expected)
    assert [r["cohort"] for r in rounds(out)] == [3, 3]
    assert all(list(r["verdicts"]) == ["0"] and r["verdicts"]["0"].startswith("flagged") for r in rounds(out))
