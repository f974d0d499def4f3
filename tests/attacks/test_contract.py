"""What every registered attack promises, whatever it computes: one contract for all of them, against every rule.

An attack that is registered but not in ``TABLE`` fails here, and so does one that breaks a promise.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import Aggregate, Clip, Krum, Mean, Rule, TrimmedMean
from bezoar.attacks import ATTACKS, Attack, AttackContext, Batch, DataAttack, Knowledge, Poisoned, Sent, UpdateAttack
from bezoar.attacks.base import masked
from bezoar.data.loaders import DATASETS, Source
from bezoar.errors import ConfigError
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import prepare
from bezoar.registry import card
from bezoar.updates import DenseUpdates, Updates, client_gradients
from tests.aggregation.test_contract import RULE_LIST
from tests.aggregation.test_contract import TABLE as RULE_TABLE
from tests.attacks.context import CLASSES, HOSTILE, World, hostile, make_text, reads_text, world
from tests.experiments.tiny import tiny

#: Every registered name with one or more tables of parameters.
TABLE: dict[str, list[dict[str, Any]]] = {
    "pgd": [{"aux": 20, "epochs": 1}, {"aux": 20, "epochs": 1, "collude": False}],
    "single-step": [{"aux": 20}],
    "adaptive-pgd": [{"aux": 20, "epochs": 1}],
    "random-direction": [{}, {"collude": False}],
    "sign-flip": [{}, {"variant": "own"}],
    "ipm": [{}, {"epsilon": 20.0}],
    "alie": [{}, {"z": 1.5, "direction": "plus"}],
    "gaussian": [{}, {"around": "mean", "sigma": 0.1}, {"collude": True}],
    "non-finite": [
        *({"value": value} for value in ("nan", "inf", "-inf", "overflow")),
        {"where": "one"},
        {"value": "overflow", "where": "one"},
    ],
    "mimic": [{}, {"client": 6}],
    "min-max": [{"direction": direction} for direction in ("unit", "sign", "std")],
    "min-sum": [{"direction": direction} for direction in ("unit", "sign", "std")],
    "agr-tailored": [{"tolerance": 0.3}],
    "opt-alie": [{}, {"refresh": 2}],
    "opt-ipm": [{}],
    "worst-of": [{}, {"refresh": 2}],
    "black-box": [{"trials": 10, "whole_trials": 5, "aux": 20}, {"objective": "loss", "whole_trials": 3, "aux": 20}],
    "fang-krum": [{}],
    "fang-trimmed-mean": [{}],
    "fang-median": [{}],
    "anti-cge": [{}],
    "model-replacement": [
        {"epochs": 1},
        {"epochs": 1, "collude": False, "alpha": 0.5},
        {"epochs": 1, "poison": {"kind": "semantic-text", "phrase": "abc", "target": "d", "contexts": 20}},
    ],
    "neurotoxin": [{"epochs": 1}],
    "label-flip": [
        *({"mode": mode} for mode in ("static", "next", "random", "furthest")),
        {"mode": "static", "poisoning_ratio": 0.5},
        {"mode": "swap", "source": 1, "target": 7},
        {"mode": "source-target", "source": 1, "target": 7},
    ],
    "aux-poisoning": [{"aux": 20}, {"aux": 20, "share": 0.5, "batch_size": 4}],
    "semantic": [{}, {"keep_own": False}],
    "semantic-text": [{"phrase": "abc", "target": "de", "contexts": 20}],
    "badnets": [{}],
    "dba": [{}],
    "edge-case": [{}],
    "label-noise": [{}],
    "mislabelled-class": [{}],
    "missing-features": [{}],
    "unit-error": [{}],
    "biased-sampling": [{}],
    "duplicated-records": [{}],
    "counter-gradient": [{"epochs": 1}, {"epochs": 1, "honest": "seen"}],
    "virtual-data": [{"steps": 3}],
}

#: Attacks that train or measure on data: alone, without a context, they say what they need.
NEED_CONTEXT = ("pgd", "single-step", "adaptive-pgd", "model-replacement", "neurotoxin", "counter-gradient")

#: Where what is sent need not be finite.
NOT_FINITE = ("non-finite",)


def build(name: str, options: dict[str, Any]) -> Any:
    return ATTACKS.build({"kind": name, **options})


def label(attack: Any) -> str:
    return repr(attack)


INSTANCES: list[Any] = [build(name, options) for name, tables in TABLE.items() for options in tables if name in ATTACKS]
SENDERS: list[Any] = [attack for attack in INSTANCES if isinstance(attack, UpdateAttack)]
POISONERS: list[Any] = [attack for attack in INSTANCES if isinstance(attack, DataAttack)]
TRAINED = [
    attack
    for attack in SENDERS
    if ATTACKS.name(attack) in NEED_CONTEXT or attack.uses_own or getattr(attack, "objective", "") == "loss"
]
ALONE = [attack for attack in SENDERS if attack not in TRAINED]

sender = pytest.mark.parametrize("attack", SENDERS, ids=label)
poisoner = pytest.mark.parametrize("attack", POISONERS, ids=label)
alone = pytest.mark.parametrize("attack", ALONE, ids=label)
any_attack = pytest.mark.parametrize("attack", INSTANCES, ids=label)

IDS = (0, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13)
BAD = (3, 8)
DEFENCE = Clip(2.0) >> TrimmedMean(f=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Rows this short only wait for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def at(attack: Attack) -> World:
    """The round that ``attack`` is in; nothing may change it, which is checked."""
    return world(attack, honest=tuple(i for i in IDS if i not in BAD), attackers=BAD, method="loop")


def honest_of(attack: Attack) -> Tensor:
    return at(attack).view.materialise()


def finite_sender(attack: UpdateAttack) -> bool:
    return ATTACKS.name(attack) not in NOT_FINITE


def tensors(thing: Any) -> list[Tensor]:
    """All tensors in a dataclass, a mapping or a module, by whatever path."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, Updates):
        return [thing.materialise(), thing.clients]
    if isinstance(thing, dict):
        return [tensor for value in thing.values() for tensor in tensors(value)]
    if dataclasses.is_dataclass(thing):
        return [tensor for spec in dataclasses.fields(thing) for tensor in tensors(getattr(thing, spec.name))]
    return []


def given(here: World) -> list[Tensor]:
    """Everything that an attack is handed, but for the scratch model, which it owns."""
    return tensors(here.view) + tensors(here.context)


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(nan=1.25), other.nan_to_num(nan=1.25))


def check_memory(state: Any, report: Any) -> None:
    assert all(isinstance(value, Tensor) and not value.requires_grad for value in state.values())
    assert all(isinstance(name, str) and math.isfinite(float(value)) for name, value in report.items())


# The table


def test_the_table_covers_every_registered_name() -> None:
    ours = {name for name in ATTACKS if ATTACKS[name].__module__.startswith("bezoar.")}
    assert set(TABLE) == ours, "an attack was registered without an instance in TABLE (or the other way round)"
    for name, tables in TABLE.items():
        for options in tables:
            attack = build(name, options)
            assert ATTACKS.name(attack) == name
            assert isinstance(attack, UpdateAttack | DataAttack)
            assert ATTACKS.build(ATTACKS.table(attack)) == attack
            assert hash(attack) == hash(build(name, options))


@pytest.mark.parametrize("name", list(TABLE))
def test_docstrings_have_a_formula_and_say_what_they_must(name: str) -> None:
    missing = {"Formula", "Knows", "Reference"} - set(card(ATTACKS[name]))
    assert not missing, f"{name}: the docstring lacks {missing}"


# 1. Attacks on updates, in a round


@sender
def test_honest_rows_stay_and_attackers_stand_where_their_ids_say(attack: UpdateAttack) -> None:
    here = at(attack)
    sent = attack.send(here.view, DEFENCE, here.context)
    assert isinstance(sent, Sent)
    rows = sent.rows
    assert rows.clients.tolist() == list(IDS)
    assert rows.malicious.tolist() == [client in BAD for client in IDS]
    assert rows.shape == (len(IDS), here.view.shape[1])
    assert rows.dtype == here.view.dtype
    whole = rows.materialise()
    assert torch.equal(whole[~rows.malicious], honest_of(attack))
    assert rows.sent().shape == (len(BAD), rows.shape[1])
    if finite_sender(attack):
        assert torch.isfinite(whole).all()
        assert torch.allclose(whole[rows.malicious], rows.sent(), rtol=1e-4, atol=1e-6)
        expected = whole.double().square().sum(1)
        assert torch.allclose(rows.squared_norms(), expected, rtol=1e-4)
        # Every kind of question tells of the same rows.
        weights = torch.linspace(-1, 1, len(IDS), dtype=torch.float64)
        assert torch.allclose(rows.combine(weights).double(), weights @ whole.double(), rtol=1e-3, atol=1e-4)
    check_memory(sent.state, sent.report)
    assert torch.equal(attack.rows(here.view, DEFENCE, here.context).sent().nan_to_num(), rows.sent().nan_to_num())


@sender
def test_what_attackers_are_handed_is_not_changed_and_the_same_seed_gives_the_same_bits(attack: UpdateAttack) -> None:
    here = at(attack)
    before = [tensor.clone() for tensor in given(here)]
    first = attack.send(here.view, DEFENCE, here.context)
    torch.manual_seed(1234)
    np.random.seed(99)  # noqa: NPY002
    second = attack.send(here.view, DEFENCE, here.context)
    assert all(map(same, before, given(here)))
    assert same(first.rows.sent(), second.rows.sent())
    assert first.report == second.report
    assert first.state.keys() == second.state.keys()
    assert all(same(value, second.state[name]) for name, value in first.state.items())


def global_numbers() -> str:
    return repr(np.random.get_state())  # noqa: NPY002


@sender
def test_the_global_generators_are_left_alone(attack: UpdateAttack) -> None:
    here = at(attack)
    torch.manual_seed(5)
    before, numbers = torch.get_rng_state(), global_numbers()
    attack.send(here.view, DEFENCE, here.context)
    assert torch.equal(before, torch.get_rng_state())
    assert numbers == global_numbers()


@sender
def test_memory_can_be_handed_back(attack: UpdateAttack) -> None:
    here = at(attack)
    state: Any = {}
    for t in (5, 6, 7):
        sent = attack.send(here.view, DEFENCE, dataclasses.replace(here.context, round=t, state=state))
        kept = {name: value.clone() for name, value in sent.state.items()}
        attack.send(here.view, DEFENCE, dataclasses.replace(here.context, round=t + 1, state=sent.state))
        assert all(same(value, sent.state[name]) for name, value in kept.items()), "the state was changed in place"
        state = sent.state


@sender
def test_attackers_need_to_know_no_more_than_they_say(attack: UpdateAttack) -> None:
    here = at(attack)
    least = attack.least
    view = here.view
    if least < Knowledge.HONEST_UPDATES:
        assert here.context.own_rows is not None
        view = here.context.own_rows if least > Knowledge.NONE else DenseUpdates(torch.zeros(1, view.shape[1]))
    sent = attack.send(view, Mean() if least < Knowledge.DEFENCE else DEFENCE, masked(here.context, least))
    assert sent.rows.sent().shape == (len(BAD), here.view.shape[1])
    if finite_sender(attack):
        assert torch.isfinite(sent.rows.sent()).all()


class Asked(Exception):
    """The defence was used."""


@dataclasses.dataclass(frozen=True)
class Secret(Mean):
    """A rule that nobody may look at."""

    def aggregate(self, *arguments: Any, **options: Any) -> Aggregate:
        raise Asked


@sender
def test_the_defence_is_asked_by_those_who_know_it_only(attack: UpdateAttack) -> None:
    here = at(attack)
    if attack.least < Knowledge.DEFENCE:
        sent = attack.send(here.view, Secret(), here.context)
        assert same(sent.rows.sent(), attack.send(here.view, DEFENCE, here.context).rows.sent())


@sender
def test_one_honest_client_is_enough(attack: UpdateAttack) -> None:
    here = at(attack)
    view = here.view.select(torch.tensor([0]))
    known = dataclasses.replace(
        here.context,
        cohort=3,
        server_context=dataclasses.replace(here.context.server_context, client_weights=torch.ones(3)),
    )
    rows = attack.send(view, Mean(), known).rows
    assert len(rows) == 3
    if finite_sender(attack):
        assert torch.isfinite(rows.materialise()).all()


@sender
def test_updates_that_are_never_stored_can_be_attacked(attack: UpdateAttack) -> None:
    ghost = world(attack, honest=tuple(i for i in IDS if i not in BAD), attackers=BAD, method="ghost")
    ghost.view.require(attack.needs, label(attack))
    here = at(attack)
    found = attack.send(ghost.view, Mean(), ghost.context).rows.sent()
    expected = attack.send(here.view, Mean(), here.context).rows.sent()
    if finite_sender(attack):
        size = float(expected.norm())
        assert float((found - expected).norm()) <= 0.02 * size
    else:
        assert same(found, expected)


# 2. Against every rule


#: One instance of every rule.
FIRST = [rules[0] for rules in RULE_TABLE.values()]


@functools.cache
def blind(attack: UpdateAttack) -> Any:
    """What an attack sends that does not ask the rule."""
    here = at(attack)
    return attack.send(here.view, Mean(), here.context).rows


@pytest.mark.parametrize("rule", RULE_LIST, ids=repr)
def test_every_rule_survives_every_attack(rule: Rule) -> None:
    for attack in SENDERS:
        here = at(attack)
        context = here.context.server_context
        knows = attack.least == Knowledge.DEFENCE
        if knows and rule not in FIRST:
            # Those who ask the rule do so up to a hundred times; its variants differ little to them.
            continue
        rows = attack.send(here.view, rule, here.context).rows if knows else blind(attack)
        # No copy of anything that an earlier rule may have changed.
        assert torch.equal(rows.materialise()[~rows.malicious], honest_of(attack)), f"{attack!r} against {rule!r}"
        answer = rule.aggregate(rows, context=context)
        assert torch.isfinite(answer.vector).all(), f"{attack!r} against {rule!r}"
        assert answer.vector.shape == (rows.shape[1],)
        bad = set(rows.malicious.nonzero().flatten().tolist())
        if not finite_sender(attack) and not rows.finite().all():
            assert set(answer.excluded) >= bad, f"{attack!r} against {rule!r}: rows that are no numbers took part"


# 3. Alone, without an experiment


@alone
def test_called_with_honest_updates_alone(attack: UpdateAttack) -> None:
    honest = hostile("plain", h=8, d=15)
    before = honest.clone()
    rule = TrimmedMean(f=2)
    rows = attack(honest, n=10, q=2, defence=rule)
    assert isinstance(rows, Tensor)
    assert rows.shape == (2, 15)
    assert rows.dtype == honest.dtype
    assert same(before, honest)
    assert same(rows, attack(honest, q=2, defence=rule))
    assert same(rows, attack(honest, n=10, defence=rule))
    array = attack(honest.numpy(), n=10, q=2, defence=rule)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert same(torch.from_numpy(array), rows)
    for many in (list(honest), [row.numpy() for row in honest]):
        listed = attack(many, n=10, q=2, defence=rule)
        assert same(torch.stack([torch.as_tensor(row) for row in listed]), rows)
    vector = attack(honest)
    assert vector.shape == (15,)
    with pytest.raises(ConfigError, match="do not fit"):
        attack(honest, n=9, q=2)


@alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", HOSTILE)
def test_legal_rows_of_any_size_give_finite_attacks(attack: UpdateAttack, kind: str, dtype: torch.dtype) -> None:
    honest = hostile(kind, dtype=dtype)
    sent = attack(honest, q=2)
    assert sent.dtype == dtype
    assert sent.shape == (2, honest.shape[1])
    assert not finite_sender(attack) or torch.isfinite(sent).all()
    if attack.least < Knowledge.DEFENCE:
        return
    rule = Krum(f=2) if len(honest) > 1 else Mean()
    assert not finite_sender(attack) or torch.isfinite(attack(honest, q=2, defence=rule)).all()


@pytest.mark.parametrize("attack", TRAINED, ids=label)
def test_attacks_that_train_say_that_they_need_a_context(attack: UpdateAttack) -> None:
    with pytest.raises(ConfigError, match=re.compile("context", re.IGNORECASE)):
        attack(hostile("plain"), q=2)
    here = at(attack)
    assert attack(here.view, context=here.context).shape == (len(BAD), here.view.shape[1])


# 4. Attacks on data


def samples(attack: DataAttack, context: AttackContext | None = None) -> tuple[Batch, AttackContext]:
    here = at(attack)
    assert here.context.own is not None
    return here.context.own, here.context if context is None else context


@poisoner
def test_poisoned_samples_are_those_of_the_attackers(attack: DataAttack) -> None:
    batch, context = samples(attack)
    before = [tensor.clone() for tensor in tensors(batch) + given(at(attack))]
    answer = attack.poison(batch, context)
    assert isinstance(answer, Poisoned)
    assert all(map(same, before, tensors(batch) + given(at(attack))))
    found = answer.batch
    assert len(found) == len(found.inputs) == len(found.targets) == len(found.owners)
    assert torch.unique(found.owners).tolist() == list(BAD)
    assert found.owners.dtype == found.targets.dtype == torch.int64
    assert found.inputs.shape[1:] == batch.inputs.shape[1:]
    assert found.inputs.dtype == batch.inputs.dtype
    assert torch.isfinite(found.inputs).all()
    assert 0 <= int(found.targets.min()) <= int(found.targets.max()) < CLASSES
    assert not found.inputs.requires_grad
    check_memory(answer.state, answer.report)


@poisoner
def test_poison_is_the_same_for_the_same_seed(attack: DataAttack) -> None:
    batch, context = samples(attack)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = attack.poison(batch, context)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(77)
    second = attack.poison(batch, context)
    assert all(map(same, tensors(first.batch), tensors(second.batch)))
    assert first.report == second.report
    assert all(same(value, second.state[name]) for name, value in first.state.items())


@poisoner
def test_poison_is_at_work_and_attackers_who_know_little_can_do_it(attack: DataAttack) -> None:
    batch, context = samples(attack)
    hidden = dataclasses.replace(masked(context, attack.least), own=None)
    poisoned = attack.poison(batch, hidden).batch
    assert not (
        same(poisoned.inputs, batch.inputs)
        and same(poisoned.targets, batch.targets)
        and same(poisoned.owners, batch.owners)
    )


@poisoner
def test_memory_of_data_attacks_can_be_handed_back(attack: DataAttack) -> None:
    batch, context = samples(attack)
    state: Any = {}
    for t in (5, 6, 7):
        answer = attack.poison(batch, dataclasses.replace(context, round=t, state=state))
        kept = {name: value.clone() for name, value in answer.state.items()}
        attack.poison(batch, dataclasses.replace(context, round=t + 1, state=answer.state))
        assert all(same(value, answer.state[name]) for name, value in kept.items()), "the state was changed in place"
        state = answer.state


@functools.cache
def poisoned_updates(attack: DataAttack) -> Updates:
    here = at(attack)
    batch, context = samples(attack)
    poisoned = attack.poison(batch, context).batch
    context.scratch.load(context.weights)
    bad = client_gradients(
        context.scratch.module, context.loss_fn, poisoned.inputs, poisoned.targets, poisoned.owners, method="loop"
    )
    rows = torch.cat([here.view.materialise(), bad.materialise()])
    ids = torch.cat([here.view.clients, bad.clients])
    order = ids.argsort()
    return DenseUpdates(rows[order], ids[order], here.view.layout)


@pytest.mark.parametrize("rule", RULE_LIST, ids=repr)
def test_every_rule_survives_every_poisoned_data_set(rule: Rule) -> None:
    for attack in POISONERS:
        rows = poisoned_updates(attack)
        assert rows.clients.tolist() == list(IDS)
        answer = rule.aggregate(rows, context=at(attack).context.server_context)
        assert torch.isfinite(answer.vector).all(), f"{attack!r} against {rule!r}"


# 5. In an experiment


TEXT = Source("made-up text", "random letters", lambda *_: make_text(train=1200))


@any_attack
def test_two_rounds_of_an_experiment(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, TEXT.name, TEXT)
    text = {
        "data": {"dataset": TEXT.name, "partition": {"kind": "iid", "clients": 600}},
        "model": {"name": "lstm", "hidden": 4, "layers": 1},
    }
    experiment = tiny(attack=ATTACKS.table(attack), adversary={"share": 0.2}, **(text if reads_text(attack) else {}))
    plans = [prepare(experiment, None, torch.device("cpu")) for _ in range(2)]
    outcomes = []
    for setup in plans:
        state = State()
        for _ in range(2):
            state, record, _ = play(setup, state)
            assert record["attackers"] > 0
            assert record["skipped"] is None
        outcomes.append(setup.weights.clone())
    assert torch.isfinite(outcomes[0]).all()
    assert torch.equal(*outcomes)
