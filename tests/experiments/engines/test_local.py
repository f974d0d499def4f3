from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bezoar.errors import BezoarError
from bezoar.experiments.cells import Cell, Outcome
from bezoar.experiments.config import override
from bezoar.experiments.engines import Processes
from bezoar.experiments.engines.parcel import Packer, Parcel, unpack
from bezoar.experiments.grid import Grid, compare
from bezoar.experiments.records import CHECKPOINT, SUMMARY
from tests.experiments.engines import runners
from tests.experiments.tiny import TABLE


def small(seeds: int = 2, **settings: Any) -> Grid:
    base = {key: value for key, value in TABLE.items() if key != "seed"}
    return Grid.from_table(override({**base, "grid": {"seed": list(range(seeds))}}, settings), "g.toml")


def same(grid: Grid, one: Path, two: Path) -> None:
    """Records and weights of all cells are equal bit for bit."""
    for cell in grid.cells:
        for name in ("metrics.jsonl", "weights.safetensors", "experiment.toml"):
            assert (one / cell.folder / name).read_bytes() == (two / cell.folder / name).read_bytes()


def test_a_process_that_is_killed_costs_only_its_cell(tmp_path: Path) -> None:
    grid = small()
    options: dict[str, Any] = {"data_dir": tmp_path, "runner": runners.killed_once, "progress": lambda _: None}
    outcomes = compare(grid, tmp_path / "out", engine=Processes(2), **options)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert sorted(runners.noted(tmp_path)) == [
        "begins 0 here",
        "begins 0 here",
        "begins 1 here",
        "seed 0 from 1",
        # After the checkpoint of round 6.
        "seed 0 from 7",
        "seed 1 from 1",
    ]
    compare(grid, tmp_path / "calm")
    same(grid, tmp_path / "out", tmp_path / "calm")


def test_a_cell_whose_workers_all_die_has_failed_and_others_have_not(tmp_path: Path) -> None:
    told: list[Outcome] = []
    outcomes = compare(
        small(),
        tmp_path / "out",
        data_dir=tmp_path,
        engine=Processes(2, retries=1),
        runner=runners.killed_always,
        finished=told.append,
    )
    by_seed = {outcome.cell.labels["seed"]: outcome for outcome in outcomes}
    assert by_seed[1].error is None
    assert by_seed[0].error is not None
    assert "its worker process ended abruptly 2 times, at last by signal SIGKILL" in by_seed[0].error
    assert len(told) == 2


def test_a_reader_that_gives_up_ends_the_processes(tmp_path: Path) -> None:
    def stop(cell: Cell) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        compare(small(), tmp_path, engine=Processes(2), progress=stop)
    import multiprocessing

    assert not multiprocessing.active_children()


def test_parcels_make_folders_alike(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "deep").mkdir(parents=True)
    for name in ("a", "deep/b", CHECKPOINT, "half.part"):
        (here / name).write_text(name)
    (here / "away").symlink_to(tmp_path)
    packer = Packer(here)
    first = packer.pack()
    assert set(first.files) == {"a", "deep/b", CHECKPOINT} == first.names
    unpack(first, there)
    assert {path.name for path in there.rglob("*") if path.is_file()} == {"a", "b", CHECKPOINT}
    (here / CHECKPOINT).unlink()
    (here / "a").write_text("longer")
    (here / SUMMARY).write_text("{}")
    second = packer.pack()
    assert set(second.files) == {"a", SUMMARY}
    assert second.names == {"a", "deep/b", SUMMARY}
    unpack(second, there)
    assert (there / "a").read_text() == "longer"
    assert not (there / CHECKPOINT).exists()
    assert packer.pack() == Parcel({}, second.names)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "deep/../../outside"])
def test_parcels_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(BezoarError, match="leads out of it"):
        unpack(Parcel({name: b"x"}, frozenset({name})), tmp_path / "folder")
    assert not list(tmp_path.rglob("outside"))
