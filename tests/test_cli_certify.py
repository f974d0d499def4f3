from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomlkit

from tests.experiments.test_certificates import TABLE
from tests.test_cli import bezoar


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "e.toml"
    path.write_text(tomlkit.dumps({**TABLE, "rounds": 3}))
    return path


def test_table_words_and_records(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bezoar("certify", config, "--k", "100%", "--k", "65", "--attacks", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Certified radius, 650 parameters" in done.stdout
    assert "vacuous" in done.stdout
    assert "By construction" in done.stdout
    assert "of 2 attacks none got out of the radius" in " ".join(done.stdout.split())
    record = json.loads((out / "certificate.json").read_text())
    assert record["command"].startswith("bezoar certify ")
    assert [cell["k"] for cell in record["cells"]] == [650, 65]


def test_a_run_directory(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert bezoar("run", config, "--out", run, "--quiet").returncode == 0
    done = bezoar("certify", run, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((run / "certificate" / "certificate.json").read_text())
    assert record["hash"] == json.loads((run / "summary.json").read_text())["hash"]


def test_no_measure_and_quiet(config: Path, tmp_path: Path) -> None:
    done = bezoar("certify", config, "--no-measure", "--quiet", "--seed", "4", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    record = json.loads((tmp_path / "runs" / "small-certificate" / "certificate.json").read_text())
    assert record["seed"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.toml"], "no such file"),
        (["."], "no run: there is no experiment.toml in it"),
        (["rules-vs-attacks"], "this is a grid"),
        (["equivalence-mnist"], "personalised"),
        (["certificate-tight", "--method", "radiis"], "did you mean 'radius'"),
        (["certificate-tight", "--k", "true"], "--k is a count or a share"),
        (["certificate-tight", "--k", "70000"], "more than the model's 650 parameters"),
        (["certificate-tight", "--c", "-1"], "c must be a positive number"),
        (["certificate-tight", "--set", "defence=none"], "clipped"),
        (["certificate-tight", "--set", "adversary.cuont=3"], "did you mean 'count'"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = bezoar("certify", *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("bezoar: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
