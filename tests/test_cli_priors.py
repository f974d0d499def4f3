from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomlkit
from typer.testing import CliRunner

from bezoar.cli import app
from bezoar.errors import ConfigError
from tests.experiments.tiny import TABLE
from tests.test_cli import bezoar

TWELVE = '[prior]\nkind = "groups"\nsizes = [12, 4, 4]\np = [0.1, 0.05, 0.02]\n'


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A file that holds a prior and nothing else."""
    path = tmp_path / "p.toml"
    path.write_text(TWELVE)
    return path


def test_a_prior_alone_is_described(alone: Path, tmp_path: Path) -> None:
    done = bezoar("priors", "describe", alone, "--rule", '[{kind = "nnm", f = 2}, {kind = "trimmed-mean", f = 2}]',
                  cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "f = 12 covers 95%" in text
    assert "SIP attains rho_S for each" in text
    assert "If client 0 were trusted" in text
    out = tmp_path / "runs" / "p" / "prior"
    kinds = {"prior": ("json", "pdf", "png"), **dict.fromkeys(("clients", "bad-count", "rules"), ("csv", "tex"))}
    assert {path.name for path in out.iterdir()} == {f"{name}.{kind}" for name in kinds for kind in kinds[name]}
    found = json.loads((out / "prior.json").read_text())
    assert found["rules"][0]["withstands"] == 2
    assert found["overlap"]["rho_worst"] == 3


def test_an_experiment_and_its_run_are_described(tmp_path: Path) -> None:
    table = {**TABLE, "rounds": 2, "adversary": {}, "attack": "sign-flip", "defence": {"pipeline": ["median"]},
             "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 6}},
             "sampling": {"kind": "uniform", "cohort": 6}, "prior": {"kind": "independent", "p": 0.2}}  # fmt: skip
    path = tmp_path / "e.toml"
    path.write_text(tomlkit.dumps(table))
    out = tmp_path / "run"
    done = bezoar("run", path, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    who = json.loads(done.stdout)["honesty"]
    assert who["bad_count"] == len(who["bad"])
    assert who["log_probability"] < 0
    described = bezoar("priors", "describe", out, "--json")
    assert described.returncode == 0, described.stderr
    found = json.loads(described.stdout)
    assert (out / "prior" / "prior.png").exists()
    assert found["clients"] == 6
    assert found["rules"][0] == {
        "rule": "this experiment's",
        "withstands": 2,
        "breaks": found["rules"][0]["breaks"],
    }


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("rounds = 3\n", [], "there is no table [prior] in it"),
        ('[prior]\nkind = "independent"\np = 0.1\n', [], "--clients 20"),
        (TWELVE, ["--clients", "19"], "sizes add up to 20, but there are 19 clients"),
        (TWELVE, ["--delta", "2"], "delta must be a number from 0 to 1"),
        (TWELVE, ["--rule", "krim"], "did you mean 'krum'"),
        (TWELVE, ["--rule", '{kind = "krum", f = 10}'], "f=10 is out of range"),
        (TWELVE, ["--set", "prior.p=1.5"], "p must be a number from 0 to 1"),
        ('[prior]\nkind = "explicit"\nclients = 3\nbad = [[0], [1]]\np = [0.5, 0.4]\n', [], "p must add up to 1"),
        (
            '[prior]\nkind = "explicit"\nclients = 2\nbad = [[0, 1]]\np = [1.0]\n',
            [],
            "hardly any draw has an honest client",
        ),
        ("[prior]\nsizes = [3]\n", [], "a name or a table with a key kind"),
        ("[prior", [], "not valid TOML"),
    ],
)
def test_wrong_use(
    text: str, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["priors", "describe", str(path), *arguments])
    # The entry point turns these into one line and exit code 2.
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_count_and_prior(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text(tomlkit.dumps({**TABLE, "prior": {"kind": "independent", "p": 0.1}}))
    done = bezoar("run", path, cwd=tmp_path)
    assert done.returncode == 2
    assert "[prior] and adversary.share both say who is malicious" in done.stderr
    assert done.stderr.count("\n") == 1
