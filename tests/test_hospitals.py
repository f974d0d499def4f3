"""The worked example's table is that of the committed record, and the record that of its prior."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bezoar.experiments import Experiment
from bezoar.experiments.config import read_toml
from bezoar.experiments.honesty import FromData
from bezoar.priors import Groups
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[1]


def script() -> ModuleType:
    return load("docs/make_hospitals.py")


def test_the_page_has_the_records_table() -> None:
    record = json.loads((ROOT / "results" / "hospitals.json").read_text())
    assert script().markdown(record) in (ROOT / "docs" / "hospitals.md").read_text(encoding="utf-8")
    cells = {(cell["mistake"], cell["rule"]): cell for cell in record["cells"]}
    for mistake in script().MISTAKES:
        worst = {rule: cells[mistake, rule]["worst"] for rule in script().RULES}
        # What step 4 of the page says.
        assert min(worst, key=worst.__getitem__) == "SIP around the geometric median"
        assert worst["SIP around the mean"] < worst["mean"]
    units = [cells["three features times 10", rule]["worst"] for rule in script().RULES]
    assert units[0] > 3 * max(units[1:])
    for mistake in script().MISTAKES:
        spread = [cells[mistake, rule]["accuracy_expected"] for rule in script().RULES]
        assert max(spread) - min(spread) < 0.03


def test_the_record_is_that_of_the_prior() -> None:
    record = json.loads((ROOT / "results" / "hospitals.json").read_text())
    family = Groups((6, 6, 2, 4), p=(0.05, 0.05, 0.15, 0.1)).support(record["delta"])
    assert [s["bad"] for s in record["sets"]] == [np.flatnonzero(~row).tolist() for row in family.honest]
    shares = np.exp(family.log_prob) / family.mass
    assert [s["share"] for s in record["sets"]] == pytest.approx(shares.tolist())


def test_the_experiment_is_valid_and_its_labels_are_the_hospitals(data_dir: Path) -> None:
    from bezoar.data import load, partition

    experiment = Experiment.from_table(read_toml(ROOT / "docs" / "hospitals.toml"))
    assert isinstance(experiment.prior, FromData)
    dataset = load("heart-disease", data_dir)
    prior = experiment.prior.within(partition(dataset, experiment.data.partition, 0))
    by_size = Groups((6, 6, 2, 4), p=(0.05, 0.05, 0.15, 0.1))
    assert prior.weights().tolist() == pytest.approx(by_size.weights().tolist())
