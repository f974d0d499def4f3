"""The method "expected" of `bezoar certify`: gradients of a clean run, constants of the rule, the prior's chances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.certify import expected_guarantee, frontiers
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments.certificates import Request, method, write
from bezoar.experiments.frontiers import clean, grams
from bezoar.experiments.setup import cross_entropy, prepare
from bezoar.models import flatten
from bezoar.updates import client_gradients

TABLE: dict[str, Any] = {
    "name": "tiny",
    "rounds": 6,
    "prior": {"kind": "groups", "sizes": [4, 2, 2], "p": 0.2},
    "data": {"dataset": "digits", "partition": {"kind": "dirichlet", "clients": 8, "alpha": 0.5}},
    "model": {"name": "linear"},
    "learning_rate": {"kind": "constant", "lr": 0.1},
    "sampling": {"kind": "uniform", "cohort": 8},
    "defence": {"pipeline": [{"kind": "trimmed-mean", "f": 3}], "server": {"kind": "sgd", "momentum": 0.0}},
}


def tiny(**changes: Any) -> Experiment:
    return Experiment.from_table({**TABLE, **changes})


def test_grams_are_those_of_whole_gradients_at_the_models_of_the_run() -> None:
    experiment = clean(tiny(clients={"kind": "gradient", "batch_size": 4}))
    setup = prepare(experiment, None, torch.device("cpu"))
    first = setup.weights.clone()
    looks = grams(setup, 6, every=2)
    assert looks.shape == (3, 8, 8)
    fresh = prepare(experiment, None, torch.device("cpu"))
    flatten(fresh.model).copy_(first)
    dataset = fresh.federation.dataset
    rows, owners = fresh.federation.samples_of(np.arange(8))
    inputs, targets = dataset.batch(dataset.train, rows), dataset.train.targets[torch.from_numpy(rows)]
    own = client_gradients(fresh.model, cross_entropy, inputs, targets, torch.from_numpy(owners)).materialise().double()
    np.testing.assert_allclose(looks[0], (own @ own.T).numpy(), rtol=1e-4, atol=1e-6)
    again = grams(prepare(experiment, None, torch.device("cpu")), 6, every=2)
    assert (again == looks).all()


def test_the_outcome_is_the_guarantee_with_the_frontiers_of_the_run(tmp_path: Path) -> None:
    experiment = tiny()
    request = Request(experiment, options={"mu": 0.5, "cost": 3.0}, folder=tmp_path)
    outcome = method("expected")(request)
    setup = prepare(clean(experiment), None, torch.device("cpu"))
    looks = grams(setup, 6)
    assert setup.prior is not None
    wanted = expected_guarantee(
        setup.experiment.defence.pipeline, setup.prior, lambda mask: frontiers(looks, mask[None])[0], mu=0.5
    )
    record = outcome.record
    assert record["value"] == pytest.approx(wanted.value)
    assert record["breakdown"] == pytest.approx(wanted.breakdown)
    # The group of four breaks f = 3, and so do the two others together; nobody honest is no outcome.
    assert record["breakdown"] == pytest.approx((1 - 0.8 * (1 - 0.2**2) - 0.2**3) / (1 - 0.2**3))
    assert record["best_f"] in range(4)
    assert record["reading"] == "R1"
    assert "Vacuous" not in outcome.words[0]
    written = write(outcome, request, tmp_path / "out", "bezoar certify", 1.0)
    assert written["rule"] == "TrimmedMean"
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 1000


def test_weight_decay_is_part_of_what_is_bounded() -> None:
    """Gradients hold it, it is the PL constant of softmax regression, and split decay is that of a round's share."""
    for split, value in ((False, 0.05), (True, 0.05 / 8)):
        experiment = clean(tiny(clients={"kind": "gradient", "weight_decay": 0.05, "split_decay": split}))
        setup = prepare(experiment, None, torch.device("cpu"))
        theta = setup.weights.double().clone()
        plain = prepare(clean(tiny()), None, torch.device("cpu"))
        dataset = plain.federation.dataset
        rows, owners = plain.federation.samples_of(np.arange(8))
        inputs, targets = dataset.batch(dataset.train, rows), dataset.train.targets[torch.from_numpy(rows)]
        own = client_gradients(plain.model, cross_entropy, inputs, targets, torch.from_numpy(owners))
        wanted = own.materialise().double() + value * theta
        np.testing.assert_allclose(grams(setup, 1)[0], (wanted @ wanted.T).numpy(), rtol=1e-4, atol=1e-6)
        record = method("expected")(Request(experiment)).record
        assert record["mu"] == pytest.approx(value)
        assert method("expected")(Request(experiment, options={"mu": 0.3})).record["mu"] == 0.3
    # Not convex: nothing is known.
    hidden = tiny(model={"name": "mlp"}, clients={"kind": "gradient", "weight_decay": 0.05})
    assert method("expected")(Request(hidden)).record["mu"] is None


def test_the_adversarys_prior_serves_as_well_and_what_it_rests_on_is_told() -> None:
    prior = TABLE["prior"]
    table = {**TABLE, "adversary": {"prior": prior}, "sampling": {"kind": "uniform", "cohort": 7}}
    del table["prior"]
    outcome = method("expected")(Request(Experiment.from_table(table), options={"mu": 1e-6}))
    assert outcome.record["breakdown"] == pytest.approx(method("expected")(Request(tiny())).record["breakdown"])
    assert any(text.startswith("Vacuous as a number: the untrained model's loss is 2.") for text in outcome.words)
    assert any("only 7 of 8 clients" in text for text in outcome.words)
    assert not any("Vacuous" in text for text in method("expected")(Request(tiny(), options={"mu": 1e6})).words)


def test_a_rule_that_promises_nothing_is_called_vacuous() -> None:
    outcome = method("expected")(Request(tiny(defence={"pipeline": ["bayes-mean"], "server": "sgd"})))
    assert outcome.words[0].startswith("Vacuous")
    assert outcome.record["breakdown"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"prior": None}, {}, "give the experiment a \\[prior\\]"),
        ({"clients": {"kind": "local", "epochs": 1, "batch_size": 4}}, {}, "send several local steps"),
        ({}, {"mue": 1.0}, "no option 'mue'"),
        ({}, {"mu": -1.0}, "mu: must be a positive number"),
        ({}, {"every": 0}, "every: must be a whole number"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    table = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        method("expected")(Request(Experiment.from_table(table), options=options))
