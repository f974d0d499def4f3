"""Rounds that fail closed: kept, skipped or the end of the run when more clients look hostile than declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar.errors import ConfigError, SuspectsError, UnsupportedError
from bezoar.experiments import run
from bezoar.experiments.defence import defence
from bezoar.experiments.records import CHECKPOINT, METRICS
from tests.experiments.tiny import tiny

#: Everybody takes part, five of twenty send NaN in rounds 3 and 4.
WITH_NAN: dict[str, Any] = {
    "data__partition": {"kind": "iid", "clients": 20},
    "sampling": {"kind": "uniform", "cohort": 20},
    "adversary": {"count": 5, "start": 3, "stop": 4},
    "attack": {"kind": "non-finite"},
    "rounds": 6,
    "evaluation__every": 6,
}
MEAN = {"pipeline": ["mean"]}


def test_rounds_go_on_by_default_and_the_hash_is_as_before() -> None:
    result = run(tiny(**WITH_NAN, defence=MEAN))
    assert [record["excluded"] for record in result.rounds] == [0, 0, 5, 5, 0, 0]
    assert result.summary["rounds_skipped"] == 0
    assert "more_than_f" not in defence(MEAN).table()
    assert tiny(defence={**MEAN, "more_than_f": "go-on"}).hash() == tiny(defence=MEAN).hash()
    hashes = {tiny(defence={**MEAN, "more_than_f": how, "declared_f": 4}).hash() for how in ("skip", "stop")}
    assert len(hashes | {tiny(defence=MEAN).hash()}) == 3


def test_skipped_rounds_keep_the_model_and_say_why() -> None:
    server = {"kind": "sgd", "momentum": 0.9}
    skipping = {**MEAN, "server": server, "more_than_f": "skip", "declared_f": 4}
    result = run(tiny(**WITH_NAN, defence=skipping))
    why = [record["skipped"] for record in result.rounds]
    assert [reason is None for reason in why] == [True, True, False, False, True, True]
    assert why[2].startswith("5 clients look hostile, more than the declared f=4: rows ")
    assert "(not finite)" in why[2]
    assert result.rounds[2]["excluded"] == 5
    assert result.rounds[2]["detected"] == 1.0
    assert result.rounds[2]["aggregate_norm"] is None
    assert result.summary["rounds_skipped"] == 2
    # As if the two rounds had not been: two steps, and after them a third with the momentum of the second.
    two = run(tiny(**{**WITH_NAN, "rounds": 2}, defence=skipping))
    four = run(tiny(**{**WITH_NAN, "rounds": 4}, defence=skipping))
    assert all(torch.equal(two.weights[name], value) for name, value in four.weights.items())
    enough = run(tiny(**WITH_NAN, defence={**skipping, "declared_f": 5}))
    assert enough.summary["rounds_skipped"] == 0


def test_a_run_that_stops_keeps_what_it_had(tmp_path: Path) -> None:
    experiment = tiny(**WITH_NAN, defence={**MEAN, "more_than_f": "stop", "declared_f": 4})
    for resume in (False, True):
        with pytest.raises(SuspectsError, match=r"round 3: 5 clients look hostile, more than the declared f=4: rows"):
            run(experiment, tmp_path, resume=resume)
        assert (tmp_path / METRICS).read_text().count('"kind": "round"') == 2
        assert (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(("how", "error"), [("skip", False), ("stop", True)])
def test_a_rule_whose_f_is_exceeded_by_rows_that_are_not_finite(how: str, error: bool) -> None:
    experiment = tiny(**WITH_NAN, defence={"pipeline": [{"kind": "trimmed-mean", "f": 3}], "more_than_f": how})
    if error:
        with pytest.raises(SuspectsError, match="round 3: TrimmedMean: 5 of 20 updates are not finite"):
            run(experiment)
    else:
        assert run(experiment).summary["rounds_skipped"] == 2


def test_a_filters_own_verdict_counts() -> None:
    flips = {**WITH_NAN, "attack": {"kind": "sign-flip", "scale": 3.0}, "rounds": 3}
    filtering = {"pipeline": ["signguard"], "more_than_f": "skip"}
    result = run(tiny(**flips, defence={**filtering, "declared_f": 1}))
    assert result.rounds[2]["skipped"].startswith(f"{result.rounds[2]['excluded']} clients look hostile")
    result = run(tiny(**flips, defence={**filtering, "declared_f": 19}))
    assert result.rounds[2]["skipped"] is None
    assert result.rounds[2]["excluded"] > 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({**MEAN, "more_than_f": "halt", "declared_f": 1}, "more_than_f must be 'go-on', 'skip' or 'stop', got 'halt'"),
        ({**MEAN, "more_than_f": "skip"}, "more_than_f: Mean declares no f: say how many with declared_f"),
        ({**MEAN, "declared_f": 2}, "declared_f decides nothing where more_than_f is 'go-on'"),
        ({**MEAN, "more_than_f": "skip", "declared_f": -1}, "declared_f must be a whole number >= 0, got -1"),
        ({**MEAN, "more_than_f": "skip", "declared_f": True}, "declared_f must be a whole number >= 0, got True"),
        ({**MEAN, "more_then_f": "skip"}, "a defence has no key 'more_then_f'; did you mean 'more_than_f'"),
    ],
)
def test_wrong_options_say_what_is_right(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        defence(table)


def test_a_preset_takes_it_beside_its_parameters() -> None:
    found = defence({"preset": "trimmed-mean", "f": 2, "more_than_f": "stop"})
    assert (found.f, found.more_than_f, found.declared_f) == (2, "stop", None)
    assert defence(found.table()) == found
    assert defence({"preset": "clip", "radius": 1.0, "more_than_f": "skip", "declared_f": 3}).f == 3


def test_the_radius_is_not_certified_where_attackers_can_end_rounds() -> None:
    from bezoar.experiments.certificates._covered import check_covered

    experiment = tiny(attack="none", defence={"preset": "clip", "more_than_f": "skip", "declared_f": 3})
    with pytest.raises(UnsupportedError, match=r"defence\.more_than_f: attackers can end rounds with it"):
        check_covered(experiment)
