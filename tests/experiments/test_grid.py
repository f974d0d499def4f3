from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar.errors import BezoarError, BusyError, ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments.grid import Grid, Outcome, compare
from bezoar.experiments.records import METRICS, alone, load_tensors
from bezoar.experiments.run import distances, run
from bezoar.reports import Comparison, judged, load, published_table
from tests.experiments.tiny import TABLE

AXES: dict[str, Any] = {
    "seed": [0, 1],
    "attack": [{"label": "none", "kind": "none"}, {"label": "PGD", "kind": "pgd", "aux": 10, "epochs": 1}],
    "defence": [{"label": "clipping", "preset": "clip", "radius": 1.0}, "none"],
}


BASE = {key: value for key, value in TABLE.items() if key not in AXES} | {"rounds": 4}


def grid(**changes: Any) -> Grid:
    return Grid.from_table({**BASE, "grid": {**AXES, **changes}}, "g.toml")


def test_every_combination_is_a_cell_with_labels() -> None:
    found = grid()
    assert found.axes == ("seed", "attack", "defence")
    assert len(found.cells) == 8
    assert found.cells[0].labels == {"seed": 0, "attack": "none", "defence": "clipping"}
    assert found.cells[-1].title == "seed 1, PGD, none"
    assert len({cell.folder for cell in found.cells}) == 8


def test_axes_may_be_dotted_keys_and_a_seed_replaces_the_axis() -> None:
    base = {**BASE, "attack": TABLE["attack"], "defence": {"preset": "sparsefed"}, "model": {"name": "mlp"}}
    table = {**base, "grid": {"model.hidden": [[8], [16]], "defence.k": ["1%", 7], "seed": [1, 2]}}
    found = Grid.from_table(table, "g.toml", seed=9)
    assert [cell.experiment.model.options["hidden"] for cell in found.cells] == [[8], [8], [16], [16]]
    assert {cell.experiment.seed for cell in found.cells} == {9}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"seed": []}, "grid.seed must be a list of at least one value"),
        ({"seed": 3}, "grid.seed must be a list"),
        ({"seed": [1, 1]}, "are the same experiment"),
        ({"defence": ["none", {"preset": "none", "momentum": 0.5}]}, "two values have the same label"),
        ({"defence": [{"pipeline": ["mean"]}]}, "needs a label"),
        ({"defence": ["nome"]}, r"g.toml \[0, none, nome\]: defence: unknown preset 'nome'; did you mean 'none'"),
        ({"evaluation.evry": [1]}, "unknown key 'evaluation.evry'"),
        ({"settings": ["slow"]}, "grid.settings must be a list of tables of dotted keys, got 'slow'"),
        ({"settings": [{"rounds": 3}]}, "needs a label"),
        ({"settings": [{"label": "a", "evaluation.evry": 1}]}, "unknown key 'evaluation.evry'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(**axes)


def test_an_axis_may_set_several_keys_after_all_others() -> None:
    slow = {"label": {"pace": "slow"}, "learning_rate.lr": 0.01, "rounds": 9}
    wide = {"label": {"pace": "wide"}, "model.hidden": [32], "defence.radius": 3.0}
    clips = [
        {"preset": "clip", "label": "clip", "radius": 1.0},
        {"preset": "sparsefed", "label": "sparse", "radius": 2.0},
    ]
    found = grid(settings=[slow, wide], defence=clips, seed=[0], attack=["none"])
    assert found.axes == ("seed", "attack", "defence", "pace")
    ways = {
        (cell.labels["defence"], cell.labels["pace"]): cell.experiment
        for cell in found.cells
        if isinstance(cell.experiment, Experiment)
    }
    assert [ways["clip", pace].rounds for pace in ("slow", "wide")] == [9, 4]
    assert [ways["clip", pace].learning_rate.at(1, 1) for pace in ("slow", "wide")] == [0.01, 0.1]
    assert [ways["sparse", pace].model.options["hidden"] for pace in ("slow", "wide")] == [[16], [32]]
    assert [ways["sparse", pace].defence.radius(1.0) for pace in ("slow", "wide")] == [2.0, 3.0]


def test_a_file_without_axes_is_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"no \[grid\] table; run it with 'bezoar run'"):
        Grid.from_table(TABLE, "g.toml")


def test_compare_skips_what_has_finished_and_measures_twins(tmp_path: Path) -> None:
    first = compare(grid(), tmp_path)
    assert [o.summary is not None and o.summary["distance_l2"] is not None for o in first] == [
        False,
        False,
        True,
        True,
    ] * 2
    assert [outcome.error for outcome in first] == [None] * 8
    index = json.loads((tmp_path / "comparison.json").read_text())
    assert len(index["cells"]) == 8
    cells = {(c["labels"]["seed"], c["labels"]["attack"], c["labels"]["defence"]): c["dir"] for c in index["cells"]}
    summary = json.loads((tmp_path / cells[0, "PGD", "clipping"] / "summary.json").read_text())
    attacked, _ = load_tensors(tmp_path / cells[0, "PGD", "clipping"] / "weights.safetensors")
    clean, _ = load_tensors(tmp_path / cells[0, "none", "clipping"] / "weights.safetensors")
    assert summary["distance_l2"] == distances(attacked, clean)["distance_l2"] > 0
    assert json.loads((tmp_path / cells[0, "none", "clipping"] / "summary.json").read_text())["distance_l2"] is None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("weights.safetensors")}
    # One more seed: only its cells run.
    again: list[Outcome] = []
    compare(grid(seed=[0, 1, 2]), tmp_path, finished=again.append)
    assert sum(outcome.skipped for outcome in again) == 8
    assert sum(not outcome.skipped for outcome in again) == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_parallel_cells_give_the_same_weights(tmp_path: Path) -> None:
    told: list[str] = []
    small = grid(seed=[0])
    compare(small, tmp_path / "two", jobs=2, progress=lambda cell: told.append(cell.title))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        compare(small, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    assert set(told) <= {cell.title for cell in small.cells}
    assert told
    for cell in small.cells:
        two, one = (tmp_path / name / cell.folder / "weights.safetensors" for name in ("two", "one"))
        assert two.read_bytes() == one.read_bytes()


def test_settings_reach_every_cell_and_never_fight_an_axis() -> None:
    table = {**BASE, "grid": {"attack": AXES["attack"], "seed": [0]}, "defence": "none"}
    found = Grid.from_table(table, "g.toml", settings={"attack.aux": 7, "rounds": 9})
    assert {cell.experiment.rounds for cell in found.cells} == {9}
    assert [getattr(cell.experiment.attack, "aux", None) for cell in found.cells] == [None, 7]
    with pytest.raises(ConfigError, match=r"unknown key 'evaluation\.evry'"):
        Grid.from_table(table, "g.toml", settings={"evaluation.evry": 7})
    with pytest.raises(ConfigError, match="seed can not be set, it is an axis"):
        Grid.from_table(table, "g.toml", settings={"seed": 7})
    with pytest.raises(ConfigError, match="attack is set above and is an axis"):
        Grid.from_table({**table, "attack": {"kind": "pgd"}}, "g.toml")


def test_any_error_of_a_cell_is_its_own(tmp_path: Path) -> None:
    models = [{"label": "bad", "name": "tests.experiments.models:broken"}, {"label": "good", "name": "linear"}]
    base = {**BASE, "defence": "none", "attack": "none", "grid": {"model": models}}
    base.pop("model")
    bad, good = compare(Grid.from_table(base, "g.toml"), tmp_path)
    assert bad.error == "RuntimeError: broken on purpose"
    assert good.error is None


def test_a_failing_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    found = grid(seed=[0], attack=["none"])
    blocked = tmp_path / found.cells[0].folder
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a directory should be")
    outcomes = compare(found, tmp_path)
    assert [outcome.error is None for outcome in outcomes] == [False, True]
    assert "can not be" in str(outcomes[0].error)


def test_comparisons_share_cells(tmp_path: Path) -> None:
    small, large = grid(seed=[0]), grid(seed=[0, 1])
    first = compare(small, tmp_path / "one", cells=tmp_path / "cells")
    again = compare(large, tmp_path / "deep" / "two", cells=tmp_path / "cells")
    assert not any(outcome.skipped for outcome in first)
    assert sum(outcome.skipped for outcome in again) == len(small.cells)
    assert len(list((tmp_path / "cells").iterdir())) == len(large.cells)
    found = load(tmp_path / "deep" / "two")
    assert isinstance(found, Comparison)
    assert {cell.state for cell in found.cells} == {"finished"}
    assert all(cell.dir.startswith("../../cells/") for cell in found.cells)
    assert not (tmp_path / "one" / "cells").exists()
    # Records that are kept without weights are enough for a comparison that shares them.
    for weights in (tmp_path / "cells").glob("*/weights.safetensors"):
        weights.unlink()
    assert all(outcome.skipped for outcome in compare(large, tmp_path / "three", cells=tmp_path / "cells"))


def test_cells_that_can_not_be_written_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BezoarError, match=r"file: can not be written"):
        compare(grid(seed=[0]), tmp_path / "out", cells=tmp_path / "file")


def test_scale_and_claims_are_kept_with_the_records(tmp_path: Path) -> None:
    claim = {"of": "Table 1", "says": "it learns", "checks": [{"metric": "test", "at": {"attack": "none"}, "above": 0}]}
    table = {**BASE, "grid": AXES, "scale": {"tiny": {"rounds": 2, "grid.seed": [0]}}, "paper": {"claims": [claim]}}
    chosen = Grid.from_table(table, settings={"scale": "tiny"})
    compare(chosen, tmp_path)
    found = load(tmp_path)
    assert isinstance(found, Comparison)
    assert found.scale == "tiny"
    assert found.claims == chosen.claims
    assert [one.verdict.word for one in judged(found)] == ["agrees"]
    shown = published_table(found)
    assert shown is not None
    assert "Table 1: agrees" in shown.notes[1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_another_process_is_running_comes_last(jobs: int, tmp_path: Path) -> None:
    found = grid(seed=[0, 1], attack=["none"])
    store, order = tmp_path / "cells", []
    with contextlib.ExitStack() as other:
        other.enter_context(alone(store / found.cells[0].key))
        with pytest.raises(BusyError, match="another process is running this"):
            run(found.cells[0].experiment, store / found.cells[0].key, resume=True)

        def finished(outcome: Outcome) -> None:
            order.append(outcome.cell.key)
            assert outcome.error is None
            if len(order) == len(found.cells) - 1:
                assert not (store / found.cells[0].key / METRICS).exists()
                other.close()

        compare(found, tmp_path / "out", cells=store, jobs=jobs, finished=finished)
    assert order[-1] == found.cells[0].key
    assert sorted(order) == sorted(cell.key for cell in found.cells)
    for cell in found.cells:
        kinds = [json.loads(line)["kind"] for line in (store / cell.key / METRICS).read_text().splitlines()]
        assert kinds.count("round") == 4


def test_what_another_process_finished_meanwhile_is_taken(tmp_path: Path) -> None:
    experiment = grid().cells[0].experiment
    first = run(experiment, tmp_path / "run")
    with alone(tmp_path / "run"):
        # Nothing is written to a finished run.
        assert run(experiment, tmp_path / "run", resume=True).summary == first.summary
    with pytest.raises(ConfigError, match="already holds a run"):
        run(experiment, tmp_path / "run")


def test_a_run_that_can_not_start_leaves_no_directory(tmp_path: Path) -> None:
    table = {**TABLE, "sampling": {"kind": "uniform", "cohort": 10**6}}
    with pytest.raises(ConfigError, match="cohort"):
        run(Experiment.from_table(table), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_value_may_be_reported_under_several_names() -> None:
    values = [
        {"label": {"rule": rule, "radius": radius}, "preset": rule, "radius": radius}
        for rule, radius in (("clip", 1.0), ("clip", 2.0), ("sparsefed", 1.0))
    ]
    table = {**TABLE, "grid": {"seed": [0, 1], "defence": values}}
    table.pop("defence", None)
    table.pop("seed", None)
    grid = Grid.from_table(table)
    assert grid.axes == ("seed", "rule", "radius")
    assert grid.cells[1].labels == {"seed": 0, "rule": "clip", "radius": 2.0}
    values[0]["label"] = "clip"
    with pytest.raises(ConfigError, match="labels must all name the same things"):
        Grid.from_table(table)
