"""Who attacks, what they know, sybils, and what is recorded about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bezoar import run
from bezoar.aggregation import Aggregate, Clip, Context, Krum, Mean, Median, Rule
from bezoar.attacks import ATTACKS, AttackContext, Batch, DataAttack, Knowledge, Poisoned, Sent, UpdateAttack
from bezoar.attacks.base import honest_mean, stack
from bezoar.data import DATASETS, Dataset, Samples, Source
from bezoar.errors import ConfigError
from bezoar.experiments import rounds
from bezoar.experiments.adversary import caught, flags, measured, play_clients
from bezoar.experiments.setup import prepare
from bezoar.updates import DenseUpdates, Stacked, Updates
from tests.experiments.tiny import tiny

SEEN: list[tuple[Updates, Rule, AttackContext]] = []
TRAINED: list[Batch] = []


def kept(rows: Updates) -> DenseUpdates:
    return DenseUpdates(rows.materialise(), rows.clients)


@dataclass(frozen=True)
class Spy(UpdateAttack):
    """Sends minus the mean of what it sees, counts its rounds, and keeps what it was shown."""

    remembers: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.NONE

    own: bool = False

    @property
    def uses_own(self) -> bool:  # type: ignore[override]
        return self.own

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        # Client gradients can not be asked once the model has moved.
        own = None if context.own_rows is None else kept(context.own_rows)
        SEEN.append((kept(view), defence, dataclasses.replace(context, own_rows=own, weights=context.weights.clone())))
        count = context.state.get("count", torch.zeros(1)) + 1
        return Sent(stack(view, -honest_mean(view)[None], context.clients), {"count": count}, {"count": float(count)})


@dataclass(frozen=True)
class Doubled(DataAttack):
    """Every attacker holds its samples twice."""

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        TRAINED.append(batch)
        return Poisoned(Batch.join(batch, batch), report={"samples": float(len(batch))})


@pytest.fixture(autouse=True)
def spies(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    TRAINED.clear()
    for attribute in ("_parts", "_names"):
        monkeypatch.setattr(ATTACKS, attribute, dict(getattr(ATTACKS, attribute)))
    ATTACKS.add("spy", Spy)
    ATTACKS.add("doubled", Doubled)


def spied(rounds: int = 3, **settings: Any) -> Any:
    base = {"attack": {"kind": "spy"}, "rounds": rounds, "adversary": {"count": 60}, "evaluation__every": rounds}
    return run(tiny(**{**base, **settings}))


def test_with_full_knowledge_attackers_see_honest_rows_the_rule_and_its_server() -> None:
    result = spied()
    view, defence, context = SEEN[-1]
    assert set(view.clients.tolist()).isdisjoint(context.clients.tolist())
    assert len(view) + len(context.clients) == context.cohort == 20
    assert context.radius == 2.0
    assert "Clip" in defence.name
    assert type(context.server).__name__ == "SparseFed"
    assert set(context.server_state) == {"momentum", "error"}
    assert context.server_context.last_aggregate is not None
    assert context.server_context.client_weights is not None
    assert context.server_context.client_weights.tolist() == [2.0] * 20
    assert context.own is not None
    assert sorted(set(context.own.owners.tolist())) == context.clients.tolist()
    assert context.own_rows is None
    assert [record["attack"]["count"] for record in result.rounds] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("level", ["none", "own-data", "model", "honest-updates"])
def test_what_attackers_do_not_know_is_hidden(level: str) -> None:
    spied(adversary={"count": 60, "knowledge": level})
    view, defence, context = SEEN[-1]
    assert isinstance(defence, Mean)
    assert context.radius == float("inf")
    assert context.server_state == {}
    assert context.server_context.client_weights is None
    if level == "honest-updates":
        assert set(view.clients.tolist()).isdisjoint(context.clients.tolist())
    elif level == "none":
        assert not view.materialise().any()
        assert context.own is None
    else:
        assert view.clients.tolist() == context.clients.tolist()
    if level in ("none", "own-data"):
        assert not context.weights.any()
        assert context.previous_weights is None
        assert context.server_context.last_aggregate is None
    else:
        assert context.weights.any()
        assert context.previous_weights is not None
        assert context.server_context.last_aggregate is not None


def test_without_knowledge_of_others_the_attack_is_made_from_the_attackers_own_updates() -> None:
    setting = {"data__dataset": "digits", "rounds": 1, "clients": {"kind": "gradient"}}
    full = spied(adversary={"count": 60}, attack={"kind": "spy", "own": True}, **setting)
    own_rows = SEEN[-1][2].own_rows
    assert own_rows is not None
    expected = -own_rows.materialise().mean(0)
    SEEN.clear()
    blind = spied(adversary={"count": 60, "knowledge": "own-data"}, **setting)
    view = SEEN[-1][0]
    assert torch.allclose(-view.materialise().mean(0), expected, atol=1e-7)
    assert full.rounds[0]["cohort"] == blind.rounds[0]["cohort"] == 20


def test_an_attack_that_does_not_fit_the_defence_is_refused_before_the_first_round() -> None:
    attack = {"kind": "agr-tailored", "objective": "selection"}
    late = {"count": 60, "start": 9}
    with pytest.raises(ConfigError, match=r"attack: agr-tailored: objective 'selection' .* Median works"):
        prepare(tiny(attack=attack, adversary=late, defence={"pipeline": ["median"]}), None, torch.device("cpu"))
    prepare(tiny(attack=attack, adversary=late, defence={"preset": "krum", "f": 3}), None, torch.device("cpu"))


def test_too_little_knowledge_for_an_attack_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"adversary\.knowledge is 'own-data', but 'pgd' needs at least 'model'"):
        tiny(adversary__knowledge="own-data")
    with pytest.raises(ConfigError, match="unknown knowledge 'modell'; did you mean 'model'"):
        tiny(adversary__knowledge="modell")


def test_last_round_is_remembered_for_attacks_that_ask() -> None:
    result = spied(adversary={"count": 60}, defence={"pipeline": ["mean"], "server": {"kind": "sgd", "momentum": 0.0}})
    (_, _, first), (view, _, second), (_, _, third) = SEEN
    assert first.previous_weights is None
    assert first.previous_sent is None
    assert third.previous_cohort == 20
    # w_t = w_{t-1} - lr/n (sum of honest + sum of sent), all of which the attackers can work out.
    assert second.previous_weights is not None
    sent = -view.materialise().mean(0) * len(second.clients)
    assert third.previous_sent is not None
    assert torch.allclose(third.previous_sent, sent, atol=1e-6)
    assert len(result.rounds) == 3


def test_sybils_join_every_cohort_while_the_attack_runs() -> None:
    result = spied(rounds=6, adversary={"sybils": 3, "start": 2, "every": 2, "stop": 5})
    assert [record["attackers"] for record in result.rounds] == [0, 3, 0, 3, 0, 0]
    assert [record["cohort"] for record in result.rounds] == [20, 23, 20, 23, 20, 20]
    assert all(context.clients.tolist() == [600, 601, 602] for _, _, context in SEEN)
    assert len(SEEN) == 2
    assert result.summary["outsized_impact"] is None


def test_sybils_hold_copies_of_malicious_clients_samples() -> None:
    spied(adversary={"clients": [5, 9], "sybils": 3}, attack={"kind": "doubled"}, sampling__cohort=600)
    batch = TRAINED[-1]
    by_owner = {i: batch.inputs[batch.owners == i] for i in (5, 9, 600, 601, 602)}
    assert {len(rows) for rows in by_owner.values()} == {2}
    for sybil, source in ((600, 5), (601, 9), (602, 5)):
        assert torch.equal(by_owner[sybil], by_owner[source])
    assert len(batch) == 10


def test_momentum_is_kept_for_sybils_too() -> None:
    partition = {"kind": "iid", "clients": 10}
    result = spied(
        data__partition=partition, sampling__cohort=10, adversary={"count": 2, "sybils": 2},
        attack={"kind": "label-flip"}, clients={"kind": "gradient", "momentum": 0.9}, rounds=3,
    )  # fmt: skip
    assert [record["cohort"] for record in result.rounds] == [12, 12, 12]


def claimed(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[int, float]:
    """What every client of the last round said it held."""
    found: dict[int, float] = {}

    def watched(*arguments: Any) -> Any:
        cast = play_clients(*arguments)
        found.update(zip(cast.updates.clients.tolist(), cast.claims.tolist(), strict=True))
        return cast

    monkeypatch.setattr(rounds, "play_clients", watched)
    spied(rounds=1, **settings)
    return found


@pytest.mark.parametrize("batch_size", [0, 1, 4])
def test_clients_claim_what_they_train_on_whatever_the_batch(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "data__partition": {"kind": "iid", "clients": 20},
        "clients": {"kind": "gradient", "batch_size": batch_size},
    }
    plain = claimed(monkeypatch, **settings, attack={"kind": "none"}, adversary={"count": 0})
    doubled = claimed(monkeypatch, **settings, attack={"kind": "doubled"}, adversary={"clients": [3], "sybils": 1})
    drawn = batch_size or plain[3]
    assert doubled[3] == doubled[20] == plain[3] + drawn
    assert {client: doubled[client] for client in plain if client != 3} == {c: v for c, v in plain.items() if c != 3}


@pytest.mark.parametrize(
    ("attack", "counted"), [({"kind": "pgd", "aux": 10}, 10), ("model-replacement", 2), ({"kind": "semantic"}, 2)]
)
def test_attackers_count_with_what_they_train_on(attack: Any, counted: int) -> None:
    epoch = {"kind": "epoch", "cohort": 20, "batch_size": 1}
    setup = prepare(tiny(attack=attack, adversary={"clients": [5]}, sampling=epoch), None, torch.device("cpu"))
    assert setup.held.tolist() == [counted if client == 5 else 2 for client in range(600)]


def test_copies_of_samples_change_no_mean_gradient() -> None:
    unweighted: dict[str, Any] = {"defence": {"pipeline": ["mean"]}, "rounds": 2}
    plain = spied(**unweighted, attack={"kind": "none"}, adversary={"count": 0})
    doubled = spied(**unweighted, attack={"kind": "doubled"}, adversary={"clients": list(range(300))})
    for name, value in plain.weights.items():
        assert torch.allclose(value, doubled.weights[name], atol=1e-6)


def test_attacks_on_data_do_not_see_more_than_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AttackContext] = []

    def watched(self: Doubled, batch: Batch, context: AttackContext) -> Poisoned:
        seen.append(dataclasses.replace(context, weights=context.weights.clone()))
        return Poisoned(batch)

    monkeypatch.setattr(Doubled, "poison", watched)
    for level in ("none", "defence"):
        spied(attack={"kind": "doubled"}, adversary={"count": 60, "knowledge": level}, rounds=2)
    blind, all_knowing = seen[1], seen[-1]
    assert not blind.weights.any()
    assert (blind.radius, blind.own, blind.server_state) == (float("inf"), None, {})
    assert blind.held is not None
    assert all_knowing.weights.any()
    assert all_knowing.server_state
    assert all_knowing.held is not None
    client = int(all_knowing.clients[0])
    assert len(all_knowing.held(client).rows) == 2


def test_only_pictures_have_a_darkest_and_a_brightest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    part = Samples(torch.rand(40, 3, generator=draws) * 100, torch.randint(2, (40,), generator=draws))
    table = Dataset("table", part, part, ("a", "b"), (50.0,) * 3, (20.0,) * 3, scale=1.0)
    monkeypatch.setitem(DATASETS, "table", Source("table", "", lambda *_: table))
    spied(data={"dataset": "table", "partition": {"kind": "iid", "clients": 4}}, sampling__cohort=4,
          model={"name": "linear"}, adversary={"count": 1})  # fmt: skip
    assert SEEN[-1][2].low is SEEN[-1][2].high is None
    assert SEEN[-1][2].mean is not None
    spied()
    low, high = SEEN[-1][2].low, SEEN[-1][2].high
    assert low is not None
    assert high is not None
    assert float(high - low) == pytest.approx(1 / 0.3762)


def test_attackers_by_list_and_by_prior() -> None:
    cpu = torch.device("cpu")
    assert prepare(tiny(adversary={"clients": [7, 3]}), None, cpu).malicious.tolist() == [3, 7]
    prior = {"kind": "groups", "sizes": [200, 400], "p": [1.0, 0.0]}
    assert prepare(tiny(adversary={"prior": prior}), None, cpu).malicious.tolist() == list(range(200))
    drawn = prepare(tiny(adversary={"prior": {"kind": "independent", "p": 0.1}}), None, cpu).malicious
    assert 30 < len(drawn) < 95
    again = prepare(tiny(adversary={"prior": {"kind": "independent", "p": 0.1}}), None, cpu).malicious
    other = prepare(tiny(adversary={"prior": {"kind": "independent", "p": 0.1}}, seed=4), None, cpu).malicious
    assert drawn.tolist() == again.tolist() != other.tolist()
    nobody = {"prior": {"kind": "independent", "p": 0.0}, "knowledge": "own-data"}
    assert len(prepare(tiny(adversary=nobody, attack={"kind": "alie"}), None, cpu).malicious) == 0


@pytest.mark.parametrize(
    ("adversary", "message"),
    [
        ({"clients": [600]}, "adversary: clients: client 600 does not exist"),
        ({"clients": [1, 1]}, "clients must be different ids"),
        ({"clients": [-1]}, "clients must be different ids"),
        ({"clients": [1], "count": 2}, "not count and clients"),
        ({"prior": {"kind": "groups", "sizes": [5], "p": 0.5}}, "groups: sizes add up to 5, but there are 600 clients"),
        ({"prior": {"kind": "independent", "p": 1.5}}, "p must be a number from 0 to 1"),
        ({"sybils": 2, "knowledge": "model"}, "no malicious client has data"),
        ({"sybils": -1}, "sybils"),
        ({"count": 2, "every": 0}, "every"),
    ],
)  # fmt: skip
def test_impossible_adversaries_are_refused(adversary: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(tiny(adversary=adversary), None, torch.device("cpu"))


def test_sybils_without_data_can_not_train_on_labels() -> None:
    for attack in (
        {"kind": "sign-flip", "variant": "own"},
        {"kind": "model-replacement"},
        {"kind": "counter-gradient"},
    ):
        with pytest.raises(ConfigError, match="trains on the attackers'"):
            prepare(tiny(adversary={"sybils": 2}, attack=attack), None, torch.device("cpu"))
    with pytest.raises(ConfigError, match="there is no malicious client"):
        prepare(tiny(adversary={"sybils": 2}, attack={"kind": "label-flip"}), None, torch.device("cpu"))


def test_new_keys_at_their_defaults_leave_the_hash_alone() -> None:
    table = tiny().table()
    assert "sybils" not in table["adversary"]
    assert "measure" not in table["evaluation"]
    explicit = tiny(
        adversary={"share": 0.1, "sybils": 0, "knowledge": "defence", "every": 1}, evaluation__measure=False
    )
    assert explicit.hash() == tiny().hash()
    assert tiny(adversary={"share": 0.1, "every": 2}).hash() != tiny().hash()
    full = tiny(
        adversary={"prior": {"kind": "independent", "p": 0.1}, "sybils": 2, "knowledge": "model", "every": 3},
        evaluation__measure=True,
    )
    assert type(full).from_table(full.table()) == full


def test_an_attack_with_memory_resumes_to_the_same_bits(tmp_path: Path) -> None:
    experiment = tiny(attack={"kind": "spy"}, adversary={"count": 60}, rounds=6, checkpoint_every=2)
    whole = run(experiment, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record["kind"] == "round" and record["round"] == 5:
            raise Stop

    with pytest.raises(Stop):
        run(experiment, tmp_path / "cut", progress=stop)
    resumed = run(experiment, tmp_path / "cut", resume=True)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert resumed.rounds == whole.rounds
    assert resumed.rounds[-1]["attack"]["count"] > 3


ROWS = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def test_flags_are_what_the_rule_left_out() -> None:
    assert flags(Krum(f=1).aggregate(ROWS), 5).tolist() == [True, True, True, False, True]  # type: ignore[union-attr]
    assert flags(Mean().aggregate(ROWS), 5).tolist() == [False] * 5  # type: ignore[union-attr]
    assert flags(Median().aggregate(ROWS), 5) is None
    spoilt = ROWS.clone()
    spoilt[1] = torch.nan
    assert flags(Median().aggregate(spoilt), 5).tolist() == [False, True, False, False, False]  # type: ignore[union-attr]
    light = Aggregate(torch.zeros(2), weights=torch.tensor([1.0, 1.0, 1e-5, 0.0, 1.0]))
    assert flags(light, 5).tolist() == [False, False, True, True, False]  # type: ignore[union-attr]


def test_clipping_and_claims_are_no_flags() -> None:
    rows = ROWS * torch.tensor([[1.0], [1.0], [1.0], [1.0], [1e4]])
    clipped = (Clip(0.5) >> Mean()).aggregate(rows)
    assert flags(clipped, 5).tolist() == [False] * 5  # type: ignore[union-attr]
    claims = torch.tensor([1.0, 500.0, 500.0, 500.0, 500.0])
    weighted = Mean(weighted=True).aggregate(ROWS, context=Context(client_weights=claims))
    assert flags(weighted, 5, claims).tolist() == [False] * 5  # type: ignore[union-attr]
    assert flags(weighted, 5).tolist() == [True, False, False, False, False]  # type: ignore[union-attr]


def test_caught_counts_attackers_and_others() -> None:
    updates = DenseUpdates(ROWS, torch.tensor([3, 4, 5, 8, 9]))
    answer = Krum(f=1).aggregate(updates)
    found = caught(answer, updates, torch.tensor([5, 9]).numpy())
    assert float(found["detected"]) == 1.0
    assert float(found["false_alarms"]) == pytest.approx(2 / 3)
    assert caught(answer, updates, torch.tensor([], dtype=torch.int64).numpy())["detected"] is None


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_measured_is_the_variance_and_the_error(shift: float) -> None:
    rows = torch.randn(9, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-2 + shift
    vector = torch.full((30,), shift + 0.5, dtype=torch.float64)
    updates = DenseUpdates(rows)
    found = measured(vector, updates, torch.tensor([1, 2]).numpy())
    honest = rows[[0, 3, 4, 5, 6, 7, 8]]
    mean = honest.mean(0)
    expected = (honest - mean).square().sum(1).mean()
    assert float(found["variance"]) == pytest.approx(float(expected), rel=1e-3)
    assert float(found["deviation"]) == pytest.approx(float((vector - mean).square().sum()), rel=1e-6)
    assert float(found["floor"]) == pytest.approx(float(expected) * 2 / 5, rel=1e-3)
    most = measured(vector, updates, torch.arange(5).numpy())
    assert float(most["floor"]) == float("inf")


@pytest.mark.parametrize("row", [1, 5])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_do_not_spoil_the_measures(row: int, bad: float) -> None:
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    attackers = torch.tensor([1, 2]).numpy()
    kept = [i for i in range(9) if i not in (1, 2, row)]
    mean = rows[kept].mean(0)
    rows[row] = bad
    found = measured(mean, DenseUpdates(rows), attackers)
    assert float(found["variance"]) == pytest.approx(float((rows[kept] - mean).square().sum(1).mean()), rel=1e-5)
    assert float(found["deviation"]) == pytest.approx(0.0, abs=1e-10)


def test_rounds_without_an_honest_majority_are_counted() -> None:
    summary = run(tiny(attack={"kind": "ipm"}, adversary={"count": 300}, evaluation__measure=True)).summary
    majority = [r for r in run(tiny(attack={"kind": "ipm"}, adversary={"count": 300})).rounds if r["attackers"] >= 10]
    assert summary["floor_infinite"] == len(majority) > 0
    assert summary["deviation_infinite"] == 0


def test_measures_and_detection_reach_the_summary() -> None:
    result = run(
        tiny(
            attack={"kind": "sign-flip", "scale": 10.0}, evaluation__measure=True,
            adversary={"count": 60, "per_round": 2}, defence={"pipeline": [{"kind": "multi-krum", "f": 3}]}, rounds=3,
        )
    )  # fmt: skip
    summary = result.summary
    assert summary["detected"] == 1.0
    assert summary["false_alarms"] == pytest.approx(1 / 18)
    assert summary["floor"] == pytest.approx(summary["variance"] * 2 / 16)
    assert summary["deviation"] > 0
    without = run(tiny(attack={"kind": "none"}, rounds=2)).summary
    assert without["variance"] is None
    assert without["detected"] is None


def test_a_data_attack_that_loses_a_client_is_named() -> None:
    @dataclass(frozen=True)
    class Loses(DataAttack):
        def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
            return Poisoned(batch.select(batch.owners != batch.owners[0]))

    ATTACKS.add("loses", Loses)
    with pytest.raises(ValueError, match=r"Loses\.poison must return samples of clients"):
        run(tiny(attack={"kind": "loses"}, adversary={"clients": list(range(100))}, rounds=1))


def test_attacks_alone() -> None:
    honest = torch.arange(12.0).reshape(4, 3)
    flipped = ATTACKS.build("sign-flip")
    assert isinstance(flipped, UpdateAttack)
    assert flipped(honest).tolist() == (-honest.mean(0)).tolist()
    assert flipped(honest, q=3).shape == (3, 3)
    assert flipped(honest, n=6).shape == (2, 3)
    assert flipped(honest.numpy(), n=6, q=2).tolist() == [(-honest.mean(0)).tolist()] * 2
    assert [row.tolist() for row in flipped(list(honest), q=2)] == [(-honest.mean(0)).tolist()] * 2
    with pytest.raises(ConfigError, match="n=5 and q=2 do not fit 4 honest rows"):
        flipped(honest, n=5, q=2)
    with pytest.raises(ConfigError, match="goal"):
        ATTACKS.build("pgd")(honest)  # type: ignore[operator]
    assert Clip(1.0).name == "Clip"
    assert dataclasses.is_dataclass(flipped)


def test_the_context_of_an_attack_alone_can_not_train() -> None:
    @dataclass(frozen=True)
    class Trains(UpdateAttack):
        def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
            context.scratch.load(context.weights)
            raise AssertionError

    with pytest.raises(ConfigError, match="needs context=AttackContext"):
        Trains()(torch.ones(3, 2))
