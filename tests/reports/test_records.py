from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bezoar.errors import BezoarError
from bezoar.reports import Comparison, RecordsError, Run, load
from tests.reports.fakes import two_by_two, write_comparison, write_run


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", seed=7, attack_accuracy=None))
    assert isinstance(run, Run)
    assert [r.round for r in run.rounds] == list(range(1, 11))
    assert [e.round for e in run.evaluations] == [2, 4, 6, 8, 10]
    assert run.evaluations[-1].test_accuracy == 0.8
    assert run.evaluations[-1].attack_accuracy is None
    assert run.timings[0].seconds["clients"] == 0.8
    assert run.summary is not None
    assert run.summary.seed == 7
    assert run.summary.attack_accuracy is None
    assert run.summary.seconds_per_round == pytest.approx(1.1)
    assert run.settings == {"name": "fake", "seed": 7, "server.momentum": 0.9}


def test_a_comparison_is_read_back(tmp_path: Path) -> None:
    comparison = load(two_by_two(tmp_path))
    assert isinstance(comparison, Comparison)
    assert comparison.axes == ("defence", "attack", "seed")
    assert len(comparison.cells) == 12
    assert comparison.cells[0].labels == {"defence": "none", "attack": "PGD", "seed": "1"}
    assert {cell.state for cell in comparison.cells} == {"finished"}


@pytest.mark.parametrize("keep", [1, 40, -2])
def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path, keep: int) -> None:
    file = write_run(tmp_path, finished=False) / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:keep])
    run = load(tmp_path)
    assert isinstance(run, Run)
    assert run.summary is None
    assert run.last_round == 10
    assert run.evaluations[-1].round == 8


def test_a_cut_in_the_middle_of_a_character_is_a_cut_too(tmp_path: Path) -> None:
    file = write_run(tmp_path, finished=False) / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + '{"kind":"round","round":11,"skipped":"ü'.encode()[:-1])
    run = load(tmp_path)
    assert isinstance(run, Run)
    assert run.last_round == 10


def test_damage_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    file = write_run(tmp_path) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:2], '{"kind": "rou\n', *lines[3:]]))
    with pytest.raises(RecordsError, match=r"metrics\.jsonl, line 3: damaged JSON"):
        load(tmp_path)


def test_a_last_line_that_was_finished_but_is_no_record_is_damage(tmp_path: Path) -> None:
    file = write_run(tmp_path) / "timings.jsonl"
    file.write_text(file.read_text() + "[1, 2]\n")
    with pytest.raises(RecordsError, match=r"timings\.jsonl, line 11: expected an object"):
        load(tmp_path)


def test_other_damage_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "summary.json").write_text('{"name": "x",\n oops}')
    with pytest.raises(RecordsError, match=r"summary\.json, line 2"):
        load(run)
    (run / "summary.json").write_text('{"name": "x"}')
    with pytest.raises(RecordsError, match=r"summary\.json: no 'rounds'"):
        load(run)
    run = write_run(tmp_path / "b", settings="[server")
    with pytest.raises(RecordsError, match=r"experiment\.toml: damaged TOML"):
        load(run)
    comparison = write_comparison(tmp_path / "c", ["defence", "seed"], [({"defence": "none"}, {})])
    with pytest.raises(RecordsError, match=r"cells\[0\]: no label for the axis 'seed'"):
        load(comparison)
    with pytest.raises(RecordsError, match="a comparison without cells"):
        load(write_comparison(tmp_path / "d", ["seed"], []))


def test_a_directory_without_records(tmp_path: Path) -> None:
    with pytest.raises(BezoarError, match="no records here"):
        load(tmp_path)
    with pytest.raises(BezoarError, match="no such directory"):
        load(tmp_path / "nowhere")


def test_a_round_written_twice_by_a_resumed_run_counts_once(tmp_path: Path) -> None:
    file = write_run(tmp_path) / "metrics.jsonl"
    again = json.dumps({"kind": "evaluation", "round": 10, "test_accuracy": 0.5})
    file.write_text(file.read_text() + again + "\n")
    run = load(tmp_path)
    assert isinstance(run, Run)
    assert len(run.evaluations) == 5
    assert run.evaluations[-1].test_accuracy == 0.5


def test_nan_and_null_are_unknown_never_zero(tmp_path: Path) -> None:
    run = load(write_run(tmp_path, test_accuracy=math.nan, distance_l2=math.inf))
    assert isinstance(run, Run)
    assert run.summary is not None
    assert math.isnan(run.summary.test_accuracy)
    assert run.summary.distance_l2 == math.inf


def test_missing_and_unfinished_cells(tmp_path: Path) -> None:
    cells = [({"defence": "a", "seed": 1}, {}), ({"defence": "a", "seed": 2}, None),
             ({"defence": "a", "seed": 3}, {"finished": False})]  # fmt: skip
    comparison = load(write_comparison(tmp_path, ["defence", "seed"], cells))
    assert isinstance(comparison, Comparison)
    assert [cell.state for cell in comparison.cells] == ["finished", "missing", "unfinished"]


def test_a_personalised_run_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text('kind = "personalized"\n')
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(RecordsError, match="a personalised run has no page"):
        load(tmp_path)
