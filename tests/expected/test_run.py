"""Whole experiments: records, sharing, draws, readings, resuming, bad input, the command line."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
import torch
from typer.testing import CliRunner

from bezoar.cli import app
from bezoar.errors import ConfigError
from bezoar.expected import Expected, make_problem, run
from bezoar.expected import cells as cells_module
from bezoar.expected.play import Steps, play
from bezoar.expected.run import count, results
from bezoar.expected.tasks import shares
from bezoar.experiments.run import Interrupted
from bezoar.priors import PRIORS
from tests.expected.small import PRIOR, RIDGE, RULES, SOFTMAX, small, table


def timeless(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in cell.items() if key != "seconds"} for cell in cells]


def test_cells_are_those_of_single_trainings() -> None:
    experiment = small(
        attack=[{"kind": "none"}, {"label": "FOE", "kind": "ipm", "epsilon": 2.0}, {"kind": "label-flip"}]
    )
    found = {(c["rule"], c["attack"], c["set"]): c for c in run(experiment).cells}
    problem = make_problem(experiment.task, 0)
    sets = [tuple(c["bad"]) for key, c in found.items() if key[:2] == ("mean", "none")]
    assert sorted(sets) == [(), (0,), (3, 4)]
    family = experiment.prior.support()
    largest = [problem.curvature(mask) for mask in family.honest]
    lr = 1 / max(c.smoothness for c in largest if c is not None)
    for (rule, attack, index), cell in found.items():
        mask = family.honest[index]
        assert cell["bad"] == np.flatnonzero(~mask).tolist()
        assert cell["log_prob"] == pytest.approx(float(experiment.prior.log_prob(mask)))
        entry = next(e for e in experiment.rule if e.label == rule)
        against = next(a for a in experiment.attack if a.label == attack)
        bad = cell["bad"] if against.attack is not None else []
        alone = play(problem, entry.pipeline, against.attack, bad, Steps(15, lr, 0.0, 0), mask[None])
        loss = float(shares(mask) @ problem.losses(alone.theta))
        least = problem.minimum(shares(mask))
        assert least is not None
        assert cell["loss"] == pytest.approx(loss, rel=1e-12)
        assert cell["excess"] == pytest.approx(loss - least, abs=1e-12)
        assert cell["variance"] == pytest.approx(float(alone.traces[0].variances.mean()), rel=1e-9)
        assert cell["broke"] == (rule == "mean" and len(cell["bad"]) > 0)
        assert cell["kappa"] == (None if cell["broke"] else {"mean": 0.0, "trimmed": 2 / (3 - len(cell["bad"]))}[rule])


def test_the_summary_is_the_expectation_over_sets() -> None:
    found = run(small())
    row = next(r for r in found.summary["results"] if (r["rule"], r["attack"]) == ("mean", "FOE"))
    mine = [c for c in found.cells if (c["rule"], c["attack"]) == ("mean", "FOE")]
    weights = [math.exp(c["log_prob"]) for c in mine]
    assert sum(weights) == pytest.approx(1)
    assert row["expected"] == pytest.approx(sum(w * c["excess"] for w, c in zip(weights, mine, strict=True)))
    assert row["broken"] == pytest.approx(0.5)
    assert row["holding"] == pytest.approx(next(c["excess"] for c in mine if not c["bad"]))
    assert row["worst"] == max(c["excess"] for c in mine)


def test_trainings_that_diverge_count_as_infinite() -> None:
    found = run(small(attack=[{"kind": "ipm", "epsilon": 1e9}], rounds=200))
    row = next(r for r in found.summary["results"] if r["rule"] == "mean")
    assert row["expected"] is None
    assert row["worst"] is None
    assert row["diverged"] == pytest.approx(0.5)
    cell = next(c for c in found.cells if c["diverged"])
    assert cell["excess"] is cell["loss"] is cell["accuracy"] is None
    assert json.dumps(found.cells, allow_nan=False)


def test_many_sets_are_drawn_and_the_same_set_is_trained_once() -> None:
    changes: dict[str, Any] = {
        "prior": {"kind": "independent", "p": 0.3},
        "sets": {"most": 3, "draws": 12},
        "rule": RULES[:1],
    }
    experiment = small(**changes)
    found = run(experiment)
    foe = [c for c in found.cells if c["attack"] == "FOE"]
    assert [c["draw"] for c in foe] == list(range(12))
    assert all("log_prob" not in c for c in found.cells)
    by_set: dict[tuple[int, ...], set[float]] = {}
    for cell in foe:
        by_set.setdefault(tuple(cell["bad"]), set()).add(cell["excess"])
    assert len(by_set) < 12
    assert all(len(values) == 1 for values in by_set.values())
    assert not found.summary["exact"]
    other = run(small(**changes, seed=1))
    assert [c["bad"] for c in other.cells] != [c["bad"] for c in found.cells]


def test_reading_two_scores_the_expected_loss_of_honest_clients() -> None:
    rules = [{"label": "mean", "pipeline": ["mean"]}]
    found = run(small(reading="R2", attack=[{"kind": "none"}], rule=rules, rounds=400))
    assert found.summary["reading"] == "R2"
    (cell,) = found.cells
    weights = PRIORS.build(PRIOR).weights()
    problem = make_problem(small().task, 0)
    least = problem.minimum(weights)
    assert least is not None
    assert cell["loss"] - cell["excess"] == pytest.approx(least)
    # The plain mean finds the optimum of another loss.
    plain = problem.minimum(np.full(5, 0.2))
    assert plain is not None
    assert cell["excess"] > 1e-6
    with pytest.raises(ConfigError, match="leave the attacks out"):
        small(reading="R2")


def test_rules_are_told_what_is_assumed() -> None:
    rules = [{"label": "SIP", "pipeline": [{"kind": "sip"}]}]
    wrong = {"kind": "explicit", "clients": 5, "bad": [[], [1]], "p": [0.5, 0.5]}
    right, told = run(small(rule=rules)), run(small(rule=rules, assumed=wrong))
    assert not any(c["broke"] for c in right.cells)
    # Sets that the rule does not think of are none that it promises anything for.
    assert [c["broke"] for c in told.cells] == [c["bad"] != [] for c in told.cells]
    assert small(rule=rules, assumed=wrong).hash() != small(rule=rules).hash()


def test_runs_are_repeatable_and_what_is_on_disk_is_what_was_returned(tmp_path: Path) -> None:
    experiment = small(task=SOFTMAX, attack=[{"kind": "mimic"}, {"kind": "worst-of", "refresh": 5}])
    first, second = run(experiment, tmp_path / "a"), run(experiment)
    assert timeless(first.cells) == timeless(second.cells)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert lines == first.cells
    read = Expected.load(tmp_path / "a" / "experiment.toml")
    assert read.hash() == experiment.hash()
    assert read == experiment
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["hash"] == experiment.hash()
    assert run(experiment, tmp_path / "a", resume=True).cells == first.cells


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_goes_on_where_it_was_broken_off(tmp_path: Path, stop: int) -> None:
    experiment, folder = small(), tmp_path / "run"
    whole = run(experiment)
    seen = 0

    def interrupt(record: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--resume"):
        run(experiment, folder, progress=interrupt)
    # Half a line, as a machine that lost power leaves it.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "cell", "ru')
    with pytest.raises(ConfigError, match="already holds a run"):
        run(experiment, folder)
    with pytest.raises(ConfigError, match="another configuration"):
        run(small(seed=1), folder, resume=True)
    told: list[int] = []
    again = run(experiment, folder, resume=True, progress=lambda record: told.append(record["round"]))
    assert told == list(range(stop + 1, 13))
    assert timeless(again.cells) == timeless(whole.cells)


def test_damaged_records_are_told(tmp_path: Path) -> None:
    run(small(), tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "cell"}\n')
    with pytest.raises(ConfigError, match="line 1: damaged"):
        run(small(), tmp_path / "run", resume=True)


def test_models_are_scored_by_loss_and_accuracy() -> None:
    task = {"kind": "model", "dataset": "digits", "partition": {"kind": "iid", "clients": 5}, "samples": 40,
            "model": {"name": "mlp", "hidden": [8]}, "batch_size": 10}  # fmt: skip
    attacks = [{"kind": "none"}, {"kind": "label-flip", "mode": "furthest"}, {"kind": "sign-flip"}]
    # One of the rules reads layers.
    rules = [*RULES, {"label": "LFighter", "pipeline": ["lfighter"]}]
    found = run(small(task=task, lr=0.2, attack=attacks, rule=rules))
    for cell in found.cells:
        assert cell["excess"] is cell["bound"] is None
        assert 0 <= cell["accuracy"] <= 1
        assert cell["loss"] > 0
    by = {(c["rule"], c["attack"], tuple(c["bad"])): c["loss"] for c in found.cells}
    assert by["mean", "label-flip", (3, 4)] != by["mean", "none", (3, 4)]
    assert found.summary["results"][0]["measure"] == "loss"
    assert timeless(run(small(task=task, lr=0.2, attack=attacks, rule=rules)).cells) == timeless(found.cells)
    with pytest.raises(ConfigError, match="give a learning rate"):
        small(task=task)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"task": {**RIDGE, "classes": 3}}, "classes means nothing"),
    ({"task": {**RIDGE, "l2": 0.0}}, "l2 must be positive"),
    ({"task": {**RIDGE, "l2": math.nan}}, r"task\.l2"),
    ({"task": {**RIDGE, "groups": [0, 5]}}, "sizes >= 1"),
    ({"task": {**RIDGE, "dataset": "mnits"}}, "mnist"),
    ({"task": {"kind": "ridge", "dataset": "digits"}}, "give partition"),
    ({"task": {"kind": "ridge"}}, "clients or groups"),
    ({"task": {**RIDGE, "clients": 7}}, "groups have 5 clients"),
    ({"task": {**RIDGE, "kind": "model"}}, "registered data set"),
    ({"task": {**RIDGE, "kind": "lasso"}}, "ridge"),
    ({"rule": []}, "at least one"),
    ({"rule": [RULES[0], RULES[0]]}, "label 'mean'"),
    ({"rule": [{"label": "x", "pipeline": ["meen"]}]}, "mean"),
    ({"attack": [{"kind": "none"}, {"kind": "none"}]}, "label 'none'"),
    ({"attack": [{"kind": "none", "z": 1}]}, "no parameters"),
    ({"attack": [{"kind": "alei"}]}, "alie"),
    ({"attack": [{"label": "x"}]}, "key kind"),
    ({"attack": [{"kind": "label-noise"}]}, "targets of synthetic ridge"),
    ({"attack": [{"kind": "pgd"}]}, "untargeted"),
    ({"prior": {"kind": "explicit", "clients": 5, "bad": [[7]], "p": [1.0]}}, "7"),
    ({"sets": {"most": 0}}, "most"),
    ({"reading": "R3"}, "R1"),
    ({"lr": -1.0}, "lr"),
    ({"momentum": 1.0}, "momentum"),
    ({"name": "a/b"}, "folder name"),
    ({"rouns": 3}, "rounds"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_bad_settings_say_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Expected.from_table(table(**changes), "file.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": {"kind": "explicit", "clients": 4, "bad": [[]], "p": [1.0]}}, "prior: "),
        ({"assumed": {"kind": "explicit", "clients": 4, "bad": [[]], "p": [1.0]}}, "assumed: "),
        ({"rule": [{"label": "big", "pipeline": [{"kind": "trimmed-mean", "f": 3}]}]}, "rule 'big': .*between 0 and 2"),
        ({"rule": [{"label": "root", "pipeline": ["fltrust"]}]}, "rule 'root': .*trusts"),
        (
            {"rule": [{"label": "x", "pipeline": ["sip"]}], "prior": {"kind": "independent", "p": 0.3}},
            "rule 'x': .*disjoint",
        ),
        (
            {"rule": [{"label": "x", "pipeline": ["guarded-sip"]}], "prior": {"kind": "independent", "p": 0.3}},
            "rule 'x'",
        ),
        ({"rule": [{"label": "layers", "pipeline": ["lfighter"]}]}, "rule 'layers'"),
    ],
)
def test_what_does_not_fit_is_found_before_the_first_round(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(small(**changes))


def test_the_number_of_cells_is_known_in_advance() -> None:
    for changes in ({}, {"prior": {"kind": "independent", "p": 0.3}}, {"reading": "R2", "attack": []}):
        experiment = small(**changes)
        assert count(experiment) == len(run(experiment).cells)


def test_nothing_is_kept_from_one_run_for_the_next() -> None:
    cells_module.honest_sets.cache_clear()
    before = timeless(run(small()).cells)
    run(small(seed=5))
    torch.manual_seed(9)
    assert timeless(run(small()).cells) == before


def test_the_command_line_runs_resumes_and_compares(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(tomlkit.dumps(table()))
    runner = CliRunner()
    done = runner.invoke(app, ["run", str(file), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "trimmed" in done.output
    assert "report:" in done.output
    again = runner.invoke(app, ["run", str(file), "--out", str(tmp_path / "run")])
    assert isinstance(again.exception, ConfigError)
    assert runner.invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--resume", "-q"]).exit_code == 0
    grid = {**table(), "grid": {"seed": [0, 1], "task": [{"label": "easy", **RIDGE}, {"label": "hard", **SOFTMAX}]}}
    del grid["task"]
    file.write_text(tomlkit.dumps(grid))
    compared = runner.invoke(app, ["compare", str(file), "--out", str(tmp_path / "grid")])
    assert compared.exit_code == 0, compared.output
    index = json.loads((tmp_path / "grid" / "comparison.json").read_text())
    assert [cell["labels"]["task"] for cell in index["cells"]] == ["easy", "hard", "easy", "hard"]
    for cell in index["cells"]:
        held = tomllib.loads((tmp_path / "grid" / cell["dir"] / "experiment.toml").read_text())
        assert held["kind"] == "expected"
    again = runner.invoke(app, ["compare", str(file), "--out", str(tmp_path / "grid")])
    assert again.output.count("finished before") == 4


def test_results_of_draws_weigh_equally() -> None:
    cell = {"rule": "r", "attack": "a", "diverged": False, "broke": False, "bound": None, "skipped": 0, "loss": 1.0}
    (row,) = results([{**cell, "set": i, "draw": i, "excess": float(i)} for i in range(4)])
    assert row["expected"] == 1.5
    assert row["bound"] is None
    assert row["worst_set"] == 3
