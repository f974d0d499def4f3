from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomlkit

from tests.experiments.tiny import TABLE

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def bezoar(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bezoar", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
        cwd=cwd,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "e.toml"
    path.write_text(tomlkit.dumps(TABLE))
    return path


def test_run_report_resume_and_json(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bezoar("run", config, "--out", out, "--set", "rounds=8", "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert "round 8/8" in done.stdout
    assert "report: " in done.stdout
    page = out / "report" / "report.html"
    assert page.exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seed"] == 5
    assert summary["rounds"] == 8
    assert summary["command"].startswith("bezoar run ")
    page.unlink()
    assert bezoar("report", out).returncode == 0
    assert page.exists()
    again = bezoar("run", config, "--out", out, "--set", "rounds=8", "--seed", "5")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "--resume" in again.stderr
    resumed = bezoar("run", config, "--out", out, "--set", "rounds=8", "--seed", "5", "--resume", "--json")
    assert resumed.returncode == 0
    assert json.loads(resumed.stdout) == summary


def test_quiet_prints_nothing(config: Path, tmp_path: Path) -> None:
    done = bezoar("run", config, "--out", tmp_path / "out", "--set", "rounds=2", "--quiet", "--set", "attack=none")
    assert done.stdout == ""


def test_compare_prints_one_table(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    grid = {"defence": ["none", {"preset": "clip", "radius": 1.0}], "seed": [0, 1]}
    base = {key: value for key, value in TABLE.items() if key not in grid}
    path.write_text(tomlkit.dumps({**base, "rounds": 3, "attack": "none", "grid": grid}))
    done = bezoar("compare", path, "--out", tmp_path / "out", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "clip" in done.stdout
    assert (tmp_path / "out" / "report" / "report.html").exists()
    assert "finished before" in bezoar("compare", path, "--out", tmp_path / "out").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope"], "neither a file nor a recipe"),
        (["run", "nope.toml"], "no such file"),
        (["compare", "CONFIG"], "no [grid] table"),
        (["run", "CONFIG", "--set", "rounds"], "KEY=VALUE"),
        (["run", "CONFIG", "--set", "rouns=3"], "did you mean 'rounds'"),
        (["run", "CONFIG", "--set", "adversary={count=601}"], "count=601 compromised clients of 600"),
        (["run", "CONFIG", "--set", "defence.k=10000000"], "more than the model's"),
        (["run", "CONFIG", "--set", "defence.radius=-1"], "radius must be a positive number"),
        (["run", "CONFIG", "--device", "cuda:7"], "not available"),
        (["run", "CONFIG", "--allocator", "none"], "'tuned' or 'default'"),
        (["list", "rule"], "did you mean 'rules'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_two(
    arguments: list[str], words: str, config: Path, tmp_path: Path
) -> None:
    done = bezoar(*[str(config) if a == "CONFIG" else a for a in arguments], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("bezoar: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_missing_data_says_what_is_looked_for(config: Path, tmp_path: Path) -> None:
    done = bezoar(
        "run", config, "--set", "data.dataset=fashion-mnist", "--data-dir", tmp_path / "absent", "--out", tmp_path / "o"
    )
    assert done.returncode == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert str(tmp_path / "absent") in done.stderr


def test_report_of_nothing(tmp_path: Path) -> None:
    done = bezoar("report", tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("bezoar: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_is_a_clean_stop(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bezoar", "run", str(config), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [*command, "--set", "rounds=100000", "--set", "evaluation.every=5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "round 10/" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in errors
    assert errors.count("\n") == 1
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("what", ["recipes", "rules", "attacks", "priors", "datasets", "models", "partitions"])
def test_lists(what: str) -> None:
    done = bezoar("list", what)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 3


def test_help_and_version() -> None:
    assert "compare" in bezoar("--help").stdout
    assert bezoar("--version").stdout.startswith("bezoar ")


def test_import_is_light() -> None:
    code = """
import sys, time
import torch
start = time.perf_counter()
import bezoar
elapsed = time.perf_counter() - start
heavy = {"matplotlib", "sklearn", "pyarrow", "PIL", "typer", "rich", "scipy", "pandas", "torchvision"}
print(elapsed, ",".join(sorted(heavy & set(sys.modules))))
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    elapsed, heavy = done.stdout.strip("\n").split(" ")
    assert heavy == ""
    assert float(elapsed) < time.perf_counter() - start


def test_readings_are_listed_and_run(config: Path, tmp_path: Path) -> None:
    listed = bezoar("list", "readings")
    assert listed.returncode == 0, listed.stderr
    assert "code-2021-05" in listed.stdout
    one = bezoar("list", "readings", "code-2021-05")
    assert "13 trimmed mean: " in one.stdout
    assert 'defence.rule.variant = "code-2021-05"' in one.stdout
    out = tmp_path / "out"
    done = bezoar("run", config, "--out", out, "--set", "rounds=2", "--set", "reading=paper")
    assert done.returncode == 0, done.stderr
    recorded = (out / "experiment.toml").read_text()
    assert 'reading = "paper"' in recorded
    assert 'masking = "subtract"' in recorded
    assert json.loads((out / "summary.json").read_text())["regime"] == "uncompressed"
    assert bezoar("run", out / "experiment.toml", "--out", tmp_path / "again").returncode == 0
