"""The table [prior]: who is drawn, who is told what, labels from data, and what a run is scored by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import RULES, Mean, TrimmedMean, Weighting
from bezoar.attacks import ATTACKS, AttackContext, Sent, UpdateAttack
from bezoar.data import Federation
from bezoar.data.dataset import Dataset, Samples
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.experiments.certificates.members import Member, Trainer
from bezoar.experiments.honesty import FromData, Strangers, about, client_labels, read_prior, told
from bezoar.experiments.losses import client_losses
from bezoar.experiments.setup import cross_entropy, prepare
from bezoar.priors import PRIORS, Explicit, Groups, HonestPrior, Independent
from bezoar.registry import holds
from bezoar.updates import Needs, Stacked, Updates
from tests.experiments.tiny import tiny

CPU = torch.device("cpu")
SEEN: list[Any] = []


@dataclass(frozen=True)
class Informed(Weighting):
    """The mean weighted by how likely each row's client is honest."""

    prior: HonestPrior | None = holds(PRIORS.build, PRIORS.table, default=None)  # noqa: RUF009
    needs: ClassVar[Needs] = Needs.NONE
    by_client: ClassVar[bool] = True

    def weights(self, rows: Updates) -> tuple[Tensor, Tensor | None]:
        assert self.prior is not None
        SEEN.append((self.prior, rows.clients.tolist()))
        family = self.prior.support()
        chances = np.exp(family.log_prob) @ family.honest
        weights = torch.from_numpy(chances)[rows.clients.cpu()]
        return weights / weights.sum(), None


@dataclass(frozen=True)
class Spy(UpdateAttack):
    """Sends zeros and remembers which defence it was shown."""

    shown: ClassVar[list[Any]] = []

    def rows(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def send(self, honest: Updates, defence: Any, context: AttackContext) -> Sent:
        self.shown.append(defence)
        zeros = torch.zeros(len(context.clients), honest.shape[1], dtype=honest.dtype)
        return Sent(Stacked.by_client(honest, torch.eye(len(zeros)), zeros, context.clients))


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, name, part in ((RULES, "test-informed", Informed), (ATTACKS, "test-spy", Spy)):
        monkeypatch.setitem(registry._parts, name, part)  # type: ignore[attr-defined]
        monkeypatch.setitem(registry._names, part, name)  # type: ignore[attr-defined]
    SEEN.clear()
    Spy.shown.clear()


def silo(**settings: Any) -> Experiment:
    """Eight clients, all of them in every round."""
    base: dict[str, Any] = {
        "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 8}},
        "sampling": {"kind": "uniform", "cohort": 8},
        "rounds": 2,
        "adversary": {},
        "attack": {"kind": "sign-flip"},
        "prior": {"kind": "groups", "sizes": [3, 3, 2], "p": [0.5, 0.4, 0.3]},
        "defence": {"pipeline": ["mean"]},
    }
    return tiny(**(base | settings))


def test_attackers_are_drawn_from_the_prior_as_from_the_adversarys() -> None:
    seen = set()
    for seed in range(12):
        mine = prepare(silo(seed=seed), None, CPU)
        theirs = prepare(silo(seed=seed, prior=None, adversary={"prior": silo().table()["prior"]}), None, CPU)
        assert len(mine.malicious) < 8
        if len(theirs.malicious) < 8:
            assert mine.malicious.tolist() == theirs.malicious.tolist()
        seen.add(tuple(mine.malicious.tolist()))
    assert len(seen) > 3


def test_somebody_is_honest_where_the_prior_is_the_servers() -> None:
    always = {"kind": "independent", "p": [1.0] * 7 + [0.98]}
    assert all(prepare(silo(prior=always, seed=seed), None, CPU).malicious.tolist() == [*range(7)] for seed in range(5))
    with pytest.raises(ConfigError, match="hardly any draw has an honest client"):
        prepare(silo(prior={"kind": "independent", "p": 1.0}), None, CPU)


def test_hashes_of_experiments_without_a_prior_stay() -> None:
    assert "prior" not in tiny().table()
    assert silo(prior=None, attack="none").hash() != silo(attack="none").hash()
    again = Experiment.from_table(silo().table())
    assert again == silo()
    assert again.hash() == silo().hash()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adversary": {"count": 2}}, "[prior] and adversary.count both say who is malicious"),
        ({"adversary": {"share": 0.1}}, "[prior] and adversary.share both say"),
        ({"prior": None}, "nobody is malicious"),
        ({"prior": {"kind": "independent", "p": 1.5}}, "p must be a number from 0 to 1"),
        ({"prior": {"kind": "groups", "sizes": [3], "p": 0.1}}, "prior: groups: sizes add up to 3, but there are 8"),
        ({"prior": {"kind": "explicit", "clients": 8, "bad": [[1], [2]], "p": [0.5, 0.4]}}, "p must add up to 1"),
        ({"prior": {"kind": "explicit", "clients": 8, "bad": [[1], [9]], "p": [0.5, 0.5]}}, "ids from 0 to 7"),
        ({"prior": {"kind": "group"}}, "did you mean 'groups'"),
        ({"prior": {"kind": "groups", "sizes": [8], "p": 0.1, "wihtin": 1.0}}, "did you mean 'within'"),
        (
            {"defence": {"pipeline": ["sip"]}},
            "defence.pipeline: the candidate sets number 0 (bad: 0, 1, 2) and 6 (bad: 3, 4, 5, 6, 7) are disjoint",
        ),
        (
            {"defence": {"pipeline": ["test-informed"]}, "prior": None, "adversary": {"count": 1}},
            "write a table [prior]",
        ),
    ],
)
def test_wrong_priors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare(silo(**settings), None, CPU)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rule_is_told_the_prior_and_so_is_who_attacks_it() -> None:
    result = run(silo(defence={"pipeline": [{"kind": "clip", "radius": 1.0}, "test-informed"]}, seed=1,
                      attack={"kind": "test-spy"}))  # fmt: skip
    assert SEEN
    assert all(prior == Groups((3, 3, 2), (0.5, 0.4, 0.3)) for prior, _ in SEEN)
    assert len(Spy.shown) == 2
    assert all(defence.rule.prior is not None for defence in Spy.shown)
    assert result.summary["honesty"]["bad_count"] == result.summary["malicious"]


def test_a_rule_keeps_its_own_prior() -> None:
    own = {"kind": "independent", "p": 0.25, "clients": 8}
    run(silo(defence={"pipeline": [{"kind": "test-informed", "prior": own}]}))
    assert {prior for prior, _ in SEEN} == {Independent(0.25, 8)}


def test_rules_may_be_told_something_else() -> None:
    truth = {"kind": "explicit", "clients": 8, "bad": [[0, 1]], "p": [1.0]}
    wrong = {"kind": "explicit", "clients": 8, "bad": [[6], []], "p": [0.25, 0.75]}
    result = run(silo(defence={"pipeline": ["test-informed"]}, prior=wrong, adversary={"prior": truth}))
    assert {prior for prior, _ in SEEN} == {Explicit(8, ((6,), ()), (0.25, 0.75))}
    who = result.summary["honesty"]
    assert who["bad"] == [0, 1]
    assert who["log_probability"] == 0.0
    assert who["log_probability_told"] is None
    named = run(silo(prior=wrong, adversary={"clients": [6]})).summary["honesty"]
    assert named["bad"] == [6]
    assert named["log_probability"] == pytest.approx(np.log(0.25))


def test_the_prior_is_about_all_clients_whoever_is_in_the_cohort() -> None:
    run(silo(defence={"pipeline": ["test-informed"]}, sampling={"kind": "uniform", "cohort": 4}, rounds=4, seed=2))
    assert all(prior.n == 8 and len(clients) == 4 for prior, clients in SEEN)
    assert len({tuple(clients) for _, clients in SEEN}) > 1


def test_nobody_vouches_for_sybils() -> None:
    named = {"kind": "explicit", "clients": 8, "bad": [[0], []], "p": [0.5, 0.5]}
    result = run(silo(defence={"pipeline": ["test-informed"]}, prior=named, adversary={"sybils": 2, "clients": [0]}))
    prior, clients = SEEN[-1]
    assert clients == list(range(10))
    assert prior.n == 10
    assert prior.weights()[8:].tolist() == [0, 0]
    assert prior.bad_count()[:5].tolist() == [0, 0, 0.5, 0.5, 0]
    assert result.summary["honesty"]["bad"] == [0]


def test_strangers_are_a_prior() -> None:
    prior = Strangers(Independent(0.3), 2).of(6)
    assert prior.n == 6
    sets = prior.sample(500, seed=1)
    assert not sets[:, 4:].any()
    assert sets[:, :4].any(1).all()
    inner = Independent(0.3, 4)
    assert prior.weights()[:4].tolist() == inner.weights().tolist()
    family = prior.support()
    assert np.allclose(prior.log_prob(family.honest), family.log_prob)
    assert prior.log_prob(np.ones(6, dtype=bool)) == -np.inf
    assert family.mass == pytest.approx(1)
    with pytest.raises(ConfigError, match="not about 5"):
        prior.of(7)


def test_told_without_anything_to_tell() -> None:
    assert told(TrimmedMean(f=1), None, 4) == TrimmedMean(f=1)
    with pytest.raises(ConfigError, match=r"Informed needs .* \[prior\] .* prior = "):
        told(Informed(), None, 4)
    assert told(Informed(), Independent(0.1, 4), 4, 2).prior == Strangers(Independent(0.1, 4), 2)


def test_ensembles_tell_a_model_of_its_clients() -> None:
    experiment = silo(defence={"pipeline": ["test-informed"]}, adversary={"clients": [0]})
    trainer = Trainer(experiment, None, "cpu")
    trainer.vote(Member.of(np.array([1, 4, 7]), 0))
    prior, clients = SEEN[-1]
    assert prior.n == 3
    assert clients == [0, 1, 2]


def test_the_two_readings_against_a_plain_loop() -> None:
    experiment = silo(seed=5, rounds=3, attack={"kind": "label-flip"})
    result = run(experiment)
    setup = prepare(experiment, None, CPU)
    setup.model.load_state_dict(result.weights)
    federation, train = setup.federation, setup.federation.dataset.train
    expected = []
    for i in range(federation.n):
        rows = federation.client(i)
        inputs = federation.dataset.batch(train, rows)
        outputs = setup.model(inputs).detach()
        expected.append(float(cross_entropy(outputs, train.targets[torch.from_numpy(rows)]).double().mean()))
    losses = np.array(expected)
    assert client_losses(setup) == pytest.approx(losses, rel=1e-5)
    honest = np.setdiff1d(np.arange(8), setup.malicious)
    assert 0 < len(honest) < 8
    who = result.summary["honesty"]
    assert who["honest_loss"] == pytest.approx(losses[honest].mean(), rel=1e-5)
    assert setup.prior is not None
    assert who["expected_loss"] == pytest.approx(setup.prior.weights() @ losses, rel=1e-5)
    assert who["honest_loss"] != who["expected_loss"]
    assert "honest_loss" in result.evaluations[-1]
    assert "honest_loss" not in run(silo(prior=None, attack="none")).evaluations[-1]


def federated(natural: dict[str, Any]) -> Federation:
    part = Samples(torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64))
    columns = {key: np.array(value, dtype=np.int64) for key, value in natural.items()}
    dataset = Dataset("table", part, part, ("a", "b"), (0.0,) * 2, (1.0,) * 2, columns, scale=1.0)
    return Federation(dataset, np.array([0, 2, 4, 6]), np.arange(6))


def test_labels_of_clients() -> None:
    federation = federated({"site": [5, 5, 2, 2, 5, 5], "bed": [0, 1, 2, 3, 4, 5]})
    assert client_labels(federation, "site") == [5, 2, 5]
    with pytest.raises(ConfigError, match="client 0 has samples of 2 labels: 0, 1 in the column 'bed'"):
        client_labels(federation, "bed")
    with pytest.raises(ConfigError, match="table has no column 'sit'; did you mean 'site'"):
        client_labels(federation, "sit")
    with pytest.raises(ConfigError, match="it has no natural columns"):
        client_labels(federated({}), "site")


def test_priors_from_columns() -> None:
    federation = federated({"site": [5, 5, 2, 2, 5, 5], "device": [1, 1, 1, 1, 0, 0]})
    groups = read_prior({"kind": "groups", "labels": "site", "p": [0.1, 0.3]})
    assert isinstance(groups, FromData)
    assert groups.columns == ("site",)
    assert about(groups, federation) == Groups(labels=(5, 2, 5), p=(0.1, 0.3))
    ising = read_prior({"kind": "ising", "p": 0.1, "edges": [[1, 2, 0.25]], "metadata": {"site": 0.5, "device": 1.0}})
    assert ising is not None
    found = about(ising, federation)
    assert found.edges == ((0, 1, 1.0), (0, 2, 0.5), (1, 2, 0.25))  # type: ignore[attr-defined]
    mixed = read_prior({"kind": "mixture", "p": [0.5, 0.5], "parts": [
        {"kind": "groups", "labels": "site", "p": 0.2}, {"kind": "independent", "p": 0.1}]})  # fmt: skip
    assert mixed is not None
    assert about(mixed, federation).n == 3
    listed = read_prior({"kind": "groups", "labels": ["a", "b", "a"], "p": 0.1})
    assert listed == Groups(labels=("a", "b", "a"), p=0.1)
    for table, words in (
        ({"kind": "groups", "labels": "sit", "p": 0.1}, "did you mean 'site'"),
        ({"kind": "groups", "labels": "site", "p": [0.1]}, "1 probabilities for 2 groups"),
        ({"kind": "groups", "labels": "site", "p": 2.0}, "p must be a number from 0 to 1"),
        ({"kind": "ising", "p": 0.1, "metadata": {"site": "much"}}, "column = coupling"),
        ({"kind": "ising", "p": 0.1, "metadata": {"site": -1.0}}, "repulsive = true"),
    ):
        prior = read_prior(table)
        assert prior is not None
        with pytest.raises(ConfigError, match=words):
            about(prior, federation)


def test_mean_without_prior_is_left_alone() -> None:
    setup = prepare(silo(), None, CPU)
    assert setup.experiment.defence.pipeline == Mean()
    assert dataclasses.replace(setup.experiment.defence) == silo().defence
    assert isinstance(about(Independent(0.1), setup.federation), Independent)


def test_parameters_are_checked_before_there_are_data() -> None:
    with pytest.raises(ConfigError, match="has no parameter 'pp'"):
        FromData({"kind": "groups", "labels": "hospital", "pp": 0.1})
