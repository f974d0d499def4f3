from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomlkit

from bezoar.cli import app
from bezoar.errors import BezoarError
from bezoar.experiments import Experiment, run
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
    directory = tmp_path / "run"
    summary = run(Experiment.load(config), directory).summary
    done = bezoar("certify", directory, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((directory / "certificate" / "certificate.json").read_text())
    assert record["hash"] == summary["hash"]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty directory; settings of the process stay the tests' own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bezoar.cli.certify.prepare", lambda *settings: None)


@pytest.mark.usefixtures("inside")
def test_no_measure_and_quiet(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app(["certify", str(config), "--no-measure", "--quiet", "--seed", "4"], standalone_mode=False)
    assert capfd.readouterr() == ("", "")
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
        (["certificate-tight", "--out", __file__], "can not be written"),
        (["certificate-tight", "--c", "-1"], "c must be a positive number"),
        (["certificate-tight", "--set", "defence=none"], "clipped"),
        (["certificate-tight", "--set", "adversary.cuont=3"], "did you mean 'count'"),
    ],
)
@pytest.mark.usefixtures("inside")
def test_wrong_use(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(BezoarError, match=re.escape(words)) as error:
        app(["certify", *arguments, "--quiet"], standalone_mode=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    done = bezoar("certify", "certificate-tight", "--set", "defence=none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("bezoar: defence.pipeline: ")
    assert done.stderr.count("\n") == 1
