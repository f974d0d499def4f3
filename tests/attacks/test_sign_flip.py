"""Each attacker's own update reversed; the reversed mean is in test_honest_statistics."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bezoar.aggregation import Mean
from bezoar.attacks import ATTACKS, SignFlip
from bezoar.errors import ConfigError
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import prepare
from bezoar.updates import DenseUpdates
from tests.attacks.context import bare, hostile, world
from tests.experiments.tiny import tiny


def test_each_attacker_sends_its_own_update_reversed() -> None:
    attack = SignFlip(scale=2.5, variant="own")
    at = world(attack, attackers=(3, 8, 10), method="loop")
    assert at.context.own_rows is not None
    own = at.context.own_rows.materialise()
    rows = attack.rows(at.view, Mean(), at.context)
    assert rows.clients[rows.malicious].tolist() == [3, 8, 10]
    assert torch.equal(rows.materialise()[rows.malicious], -2.5 * own)
    assert not torch.equal(own[0], own[1])


def test_a_spoilt_update_of_one_attacker_does_not_spoil_the_others() -> None:
    own = hostile("plain", h=2)
    own[0, 3] = torch.nan
    view, context = bare(hostile("plain"), 2, own_rows=DenseUpdates(own, torch.tensor([1, 3])))
    sent = SignFlip(variant="own").rows(view, Mean(), context).materialise()
    assert torch.equal(sent[3], -own[1])
    assert sent[1].isnan().any()


def test_own_updates_must_be_there_for_every_attacker() -> None:
    view, context = bare(hostile("plain"), 2)
    for own in (None, DenseUpdates(hostile("plain", h=2), torch.tensor([1, 4]))):
        with pytest.raises(ConfigError, match="own_rows"):
            SignFlip(variant="own").rows(view, Mean(), dataclasses.replace(context, own_rows=own))


def test_only_the_own_variant_asks_for_training_and_is_named_in_tables() -> None:
    assert SignFlip(variant="own").uses_own
    assert not SignFlip().uses_own
    assert ATTACKS.table(SignFlip()) == {"kind": "sign-flip", "scale": 1.0}
    assert ATTACKS.build(ATTACKS.table(SignFlip(variant="own"))) == SignFlip(variant="own")
    with pytest.raises(ConfigError, match="variant"):
        SignFlip(variant="other")  # type: ignore[arg-type]


def test_in_an_experiment_it_needs_no_honest_updates() -> None:
    experiment = tiny(attack={"kind": "sign-flip", "variant": "own"}, adversary={"share": 0.3, "knowledge": "own-data"})
    _, record, _ = play(prepare(experiment, None, torch.device("cpu")), State())
    assert record["attackers"] > 0
    assert record["skipped"] is None
