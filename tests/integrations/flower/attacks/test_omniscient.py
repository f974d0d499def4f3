from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from bezoar.aggregation import NNM, FLTrust, Krum, TrimmedMean
from bezoar.aggregation import Mean as PlainMean
from bezoar.attacks import (
    ALIE,
    PGD,
    AdaptivePGD,
    AGRTailored,
    AntiCGE,
    FangKrum,
    FangMedian,
    FangTrimmedMean,
    Gaussian,
    InnerProduct,
    Knowledge,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    ModelReplacement,
    NonFinite,
    OptimisedALIE,
    OptimisedIPM,
    RandomDirection,
    SignFlip,
    UpdateAttack,
    WorstOf,
)
from bezoar.attacks.base import AttackContext, masked, standalone
from bezoar.errors import ConfigError
from bezoar.integrations.flower import InProcessGrid, Malicious, OmniscientGrid, RobustStrategy, Status
from bezoar.integrations.flower.attacks.memory import History
from bezoar.reports.records import load
from bezoar.servers import SparseFed
from bezoar.updates import DenseUpdates
from bezoar.updates.base import Segment
from tests.integrations.flower.apps import accuracy, bits, client, net
from tests.integrations.flower.attacks.federation import (
    BAD,
    N,
    answers,
    arrays_in,
    by_partition,
    goal,
    messages,
    metrics,
    task,
    update,
    updates,
    weights,
)
from tests.integrations.flower.test_strategy import Renamed

GOOD = tuple(c for c in range(N) if c not in BAD)
RULE = NNM(f=3) >> TrimmedMean(f=3)

ATTACKS: list[UpdateAttack] = [
    ALIE(),
    InnerProduct(),
    MinMax(),
    MinSum(),
    FangKrum(),
    FangTrimmedMean(),
    FangMedian(),
    Mimic(),
    SignFlip(3.0),
    SignFlip(3.0, "own"),
    Gaussian(),
    RandomDirection(radius=2.0),
    NonFinite(),
    AntiCGE(),
    AGRTailored(),
    OptimisedALIE(),
    OptimisedIPM(),
    WorstOf(),
    PGD(epochs=1, batch_size=20),
]


def name(attack: UpdateAttack) -> str:
    return type(attack).__name__ + ("-own" if attack.uses_own else "")


@pytest.fixture(scope="module")
def honest() -> dict[int, Message]:
    return answers()


def attacked(attack: UpdateAttack, app: Any = None, **options: Any) -> dict[int, Message]:
    inner = InProcessGrid(app or client(), N, seed=0)
    grid = OmniscientGrid(inner, attack, **{"who": BAD, **options})
    return by_partition(inner, grid.send_and_receive(messages(grid)))


def oracle(honest: dict[int, Message], seed: int = 0, **more: Any) -> tuple[DenseUpdates, AttackContext]:
    """The same updates, and what the simulator would say beside them."""
    rows = updates(honest)
    segments, start = [], 0
    for key, p in net().named_parameters():
        segments.append(Segment(key, start, start + p.numel(), tuple(p.shape)))
        start += p.numel()
    view, own = (DenseUpdates(rows[list(who)], torch.tensor(who), tuple(segments)) for who in (GOOD, BAD))
    known = replace(
        standalone(view, N, len(BAD), seed), clients=torch.tensor(BAD), weights=weights(), own_rows=own, **more
    )
    return view, known


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_attackers_send_what_the_simulator_s_would(attack: UpdateAttack, honest: dict[int, Message]) -> None:
    made = attacked(attack, defence=RULE, task=task(goal=goal()), seed=7)
    known_task = task(goal=goal()).load({k: a.numpy() for k, a in arrays_in(honest[0]).items()})
    view, known = oracle(honest, 7, scratch=known_task.scratch, loss_fn=task().loss, goal=goal(), classes=10)
    known = replace(known, server_context=replace(known.server_context, round=1, model=weights()))
    expected = attack.send(view, RULE, known).rows.sent()
    sent = updates({c: made[c] for c in BAD})
    torch.testing.assert_close(sent, expected, atol=3e-6, rtol=1e-4, equal_nan=True)
    for c in range(N):
        assert (bits(arrays_in(made[c])) == bits(arrays_in(honest[c]))) == (c not in BAD)
        assert metrics(made[c]) == metrics(honest[c])


def test_alie_by_hand(honest: dict[int, Message]) -> None:
    rows = updates(honest)[list(GOOD)].double()
    made = attacked(ALIE(z=1.5))
    expected = (rows.mean(0) - 1.5 * rows.std(0)).float()
    for bad in BAD:
        torch.testing.assert_close(update(made[bad]), expected, atol=1e-6, rtol=1e-4)


def learned(strategy: Strategy, attack: UpdateAttack | None, rounds: int = 6, **options: Any) -> float:
    grid: Any = InProcessGrid(client(), N, seed=0)
    if attack is not None:
        grid = OmniscientGrid(grid, attack, who=Malicious(count=3, seed=2), **options)
    result = strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=rounds)
    assert result.arrays is not None
    return accuracy(result.arrays)


def test_flower_s_average_falls_and_ours_stands() -> None:
    attack = SignFlip(scale=5.0)
    assert learned(FedAvg(fraction_evaluate=0.0), None) > 0.75
    assert learned(FedAvg(fraction_evaluate=0.0), attack) < 0.3
    assert learned(FedMedian(fraction_evaluate=0.0), attack) > 0.5
    assert learned(RobustStrategy(RULE, fraction_evaluate=0.0), attack) > 0.7


def test_same_seed_same_bits_for_flower_s_own_strategy() -> None:
    """Nodes have other names and answer in another order."""
    found = []
    for names in (0, 1):
        grid = OmniscientGrid(Renamed(client(), N, names), Gaussian(), who=Malicious(share=0.3, seed=1), seed=4)
        result = FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(net().state_dict()), num_rounds=2)
        assert result.arrays is not None
        found.append(bits(result.arrays))
        assert grid.reports[1]["clients"] == Malicious(share=0.3, seed=1).of(N)
    assert found[0] == found[1]
    other = OmniscientGrid(InProcessGrid(client(), N), Gaussian(), who=Malicious(share=0.3, seed=1), seed=5)
    result = FedAvg(fraction_evaluate=0.0).start(other, ArrayRecord(net().state_dict()), num_rounds=2)
    assert result.arrays is not None
    assert bits(result.arrays) != found[0]


def test_a_resumed_run_repeats(tmp_path: Path) -> None:
    def run(folder: Path, dies: int, resume: bool, forgets: bool = False) -> Any:
        strategy = RobustStrategy(RULE, fraction_train=0.8, fraction_evaluate=0.0, seed=3)
        inner = InProcessGrid(client(), N, seed=0)
        memory = None if forgets else folder / "attack"
        grid = OmniscientGrid(inner, OptimisedIPM(refresh=3), BAD, defence=strategy, seed=1, folder=memory)

        def evaluate(number: int, arrays: ArrayRecord) -> None:
            if number == dies:
                raise RuntimeError("killed")

        return strategy.start(
            grid,
            ArrayRecord(net().state_dict()),
            5,
            evaluate_fn=evaluate,
            out=folder / "run",
            resume=resume,
            checkpoint_every=2,
        )

    whole = bits(run(tmp_path / "whole", -1, False).arrays)
    for forgets in (False, True):
        folder = tmp_path / f"parts {forgets}"
        # A checkpoint after round 2: round 3 is played again.
        with pytest.raises(RuntimeError, match="killed"):
            run(folder, 3, False, forgets)
        assert (bits(run(folder, -1, True, forgets).arrays) == whole) == (not forgets)


def test_a_round_finds_what_was_remembered_before_it() -> None:
    assert bool(History().before(1)) is False
    history = History(keep=2)
    for number in range(1, 6):
        assert history.before(number) == ({} if number == 1 else {"a": number - 1})
        history.after(number, {"a": number})  # type: ignore[dict-item]
    assert history.before(5) == {"a": 4}
    assert history.before(4) == {}
    history.after(2, {"a": 9})  # type: ignore[dict-item]
    assert history.before(6) == {"a": 9}


def test_files_of_a_run_that_was_given_up_are_not_read(tmp_path: Path) -> None:
    for number in range(1, 5):
        History(tmp_path, keep=3).after(number, {"a": torch.tensor(number)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"attack-{number:08d}.safetensors" for number in (2, 3, 4)
    ]
    anew = History(tmp_path, keep=3)
    assert anew.before(1) == {}
    anew.after(1, {})
    assert list(tmp_path.iterdir()) == []


def test_only_clients_of_the_cohort_attack_and_only_in_their_rounds() -> None:
    grid = OmniscientGrid(InProcessGrid(client(), N), ALIE(), who=Malicious(clients=BAD, start=2))
    strategy = RobustStrategy(
        PlainMean(), fraction_train=0.6, fraction_evaluate=0.0, seed=5, known_malicious=Malicious(clients=BAD, start=2)
    )
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=4)
    assert 1 not in grid.reports
    cohort = {v.client for v in strategy.verdicts}
    assert set(grid.reports[4]["clients"]) == cohort & set(BAD)


def spoilt(what: str, who: tuple[int, ...]) -> Callable[[Message, Context, Message], Message]:
    def change(message: Message, context: Context, reply: Message) -> Message:
        if int(context.node_config["partition-id"]) not in who:
            return reply
        if what == "error":
            return Message(Error(code=7, reason="no"), reply_to=message)
        if what == "garbage":
            record = arrays_in(reply)
            first = next(iter(record))
            arrays = {**record, first: Array(record[first].dtype, record[first].shape, record[first].stype, b"x")}
            reply.content["arrays"] = ArrayRecord(arrays)
        if what == "nan":
            arrays_ = {key: Array(np.full_like(a.numpy(), np.nan)) for key, a in arrays_in(reply).items()}
            reply.content["arrays"] = ArrayRecord(arrays_)
        if what == "nothing":
            reply.content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
        return reply

    return change


@pytest.mark.parametrize("what", ["error", "garbage", "nan", "nothing"])
def test_honest_clients_that_fail_are_not_looked_at(what: str, honest: dict[int, Message]) -> None:
    made = attacked(MinMax(), client(spoilt(what, (0, 9))))
    rows = updates({c: honest[c] for c in GOOD if c not in (0, 9)})
    expected = MinMax()(rows, n=N, q=3) if what == "nan" else MinMax()(rows, n=N - 2, q=3)
    torch.testing.assert_close(updates({c: made[c] for c in BAD}), expected, atol=3e-6, rtol=1e-4)
    assert made[0].has_error() == (what == "error")


@pytest.mark.parametrize("what", ["error", "garbage", "nan", "nothing"])
def test_attackers_whose_training_fails(what: str, honest: dict[int, Message]) -> None:
    made = attacked(MinMax(), client(spoilt(what, (4,))))
    assert made[4].has_error() == (what == "error")
    others = [c for c in BAD if c != 4 or what != "error"]
    n = len(GOOD) + len(others)
    expected = MinMax()(updates({c: honest[c] for c in GOOD}), n=n, q=len(others))
    torch.testing.assert_close(updates({c: made[c] for c in others}), expected, atol=3e-6, rtol=1e-4)


def test_nobody_honest_left() -> None:
    made = attacked(ALIE(), client(spoilt("error", GOOD)))
    plain = answers()
    for bad in BAD:
        assert bits(arrays_in(made[bad])) == bits(arrays_in(plain[bad]))


def test_strategies_are_looked_into() -> None:
    """Attackers know radius, server and memory of the strategy that they are given."""
    seen: list[AttackContext] = []

    class Spy(InnerProduct):
        def rows(self, view: Any, defence: Any, context: AttackContext) -> Any:
            seen.append(context)
            return super().rows(view, defence, context)

    from bezoar.aggregation import Clip

    strategy = RobustStrategy(
        Clip(0.5) >> PlainMean(weighted=True), server=SparseFed(k=100), fraction_evaluate=0.0, lr=0.7
    )
    grid = OmniscientGrid(InProcessGrid(client(), N), Spy(), who=BAD, defence=strategy)
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=2)
    first, second = seen
    assert first.radius == 0.5
    assert first.server == SparseFed(k=100)
    assert first.server_lr == 0.7
    assert first.server_context.client_weights is not None
    assert first.server_context.client_weights.tolist() == [150.0] * N
    assert not first.server_state
    assert second.server_state
    assert second.server_context.last_aggregate is not None
    assert second.round == 2


def test_attackers_remember_the_round_before() -> None:
    seen: list[AttackContext] = []

    class Spy(InnerProduct):
        remembers = True

        def rows(self, view: Any, defence: Any, context: AttackContext) -> Any:
            seen.append(context)
            return super().rows(view, defence, context)

    grid = OmniscientGrid(InProcessGrid(client(), N), Spy(), BAD)
    first = {grid.number_of(reply): reply for reply in grid.send_and_receive(messages(grid))}
    grid.send_and_receive(messages(grid, 2, arrays_in(first[0])))
    grid.send_and_receive(messages(grid, 4))
    assert seen[0].previous_weights is None
    assert seen[1].previous_weights is not None
    assert seen[1].previous_sent is not None
    assert torch.equal(seen[1].previous_weights, weights())
    sent = updates({c: first[c] for c in BAD}).sum(0)
    torch.testing.assert_close(seen[1].previous_sent, sent, atol=1e-5, rtol=1e-5)
    assert seen[1].previous_cohort == N
    assert seen[2].previous_weights is None


def test_what_they_do_not_know_they_do_not_see() -> None:
    seen: list[tuple[Any, AttackContext]] = []

    class Spy(InnerProduct):
        def rows(self, view: Any, defence: Any, context: AttackContext) -> Any:
            seen.append((view, context))
            return super().rows(view, defence, context)

    strategy = RobustStrategy(NNM(f=3) >> TrimmedMean(f=3))
    attacked(Spy(), defence=strategy, knowledge=Knowledge.OWN_DATA)
    view, context = seen[0]
    assert view.clients.tolist() == list(BAD)
    assert not context.weights.any()
    attacked(Spy(), defence=strategy, knowledge=Knowledge.HONEST_UPDATES)
    assert seen[1][0].clients.tolist() == list(GOOD)
    assert masked(seen[1][1], Knowledge.MODEL).weights.any()


def test_targeted_attacks_with_knowledge_of_the_defence() -> None:
    made = {}
    for attack in (AdaptivePGD(epochs=1, radius=2.0), PGD(epochs=1)):
        strategy = RobustStrategy(PlainMean(), server=SparseFed(k=100))
        made[type(attack)] = attacked(attack, defence=strategy, task=task(goal=goal()))
    assert float(update(made[AdaptivePGD][BAD[0]]).norm()) == pytest.approx(2.0, rel=1e-3)


def test_records_say_who_was_caught(tmp_path: Path) -> None:
    grid = OmniscientGrid(InProcessGrid(client(), N), NonFinite(), who=Malicious(clients=BAD, start=2))
    strategy = RobustStrategy(Krum(f=3), fraction_evaluate=0.0, seed=1, known_malicious=Malicious(clients=BAD, start=2))
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=3, out=tmp_path / "run")
    run = load(tmp_path / "run")
    found = [(record.attackers, record.excluded) for record in run.rounds]
    assert found == [(3, 0), (3, 3), (3, 3)]
    assert run.summary is not None
    assert run.summary.detected == 1.0
    assert run.summary.false_alarms == pytest.approx(6 / 7)  # Krum keeps one.
    assert run.summary.attackers_per_round_mean == 2.0
    assert [v.status for v in strategy.verdicts if v.client in BAD] == [Status.EXCLUDED] * 3


def test_rules_that_tell_nobody_apart_detect_nobody() -> None:
    strategy = RobustStrategy(TrimmedMean(f=3), fraction_evaluate=0.0, known_malicious=BAD)
    grid = OmniscientGrid(InProcessGrid(client(), N), ALIE(), who=BAD)
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=1)
    record = strategy.record
    assert (record["attackers"], record["attacking"]) == (3, True)
    assert record["detected"] is record["false_alarms"] is None


def test_nobody_known_to_be_malicious_changes_nothing() -> None:
    one, two = RobustStrategy(Krum(f=3)), RobustStrategy(Krum(f=3), known_malicious=BAD)
    assert "known_malicious" not in one.settings()["flower"]
    assert two.settings()["flower"]["known_malicious"]["clients"] == list(BAD)
    found = []
    for strategy in (one, two):
        result = strategy.start(InProcessGrid(client(), N), ArrayRecord(net().state_dict()), num_rounds=2)
        assert result.arrays is not None
        found.append(bits(result.arrays))
    assert found[0] == found[1]
    assert one.record["attackers"] == 0


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (LabelFlip(), {}, "use attack_mod"),
        ("alie", {}, "an attack on updates is wanted"),
        (ModelReplacement(), {}, "not here: use attack_mod"),
        (PGD(), {}, "give task=LocalTask"),
        (PGD(), {"task": task()}, "goal="),
        (OptimisedALIE(), {}, "needs to know 'defence': give defence="),
        (OptimisedALIE(), {"defence": RULE, "knowledge": Knowledge.MODEL}, "knowledge is 'model'"),
        (ALIE(), {"defence": FLTrust()}, "give the RobustStrategy itself"),
        (ALIE(), {"defence": 3}, "a defence is a rule"),
        (ALIE(), {"who": Malicious(clients=BAD), "keep": 0}, "keep must be at least 1"),
    ],
)
def test_what_can_not_be_made_is_said(attack: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OmniscientGrid(InProcessGrid(client(), N), attack, **{"who": BAD, **options})


def test_clients_without_partition_ids_can_not_be_told_apart() -> None:
    grid = OmniscientGrid(InProcessGrid(client(roll_call=False), N), ALIE(), who=BAD)
    with pytest.raises(ConfigError, match="answer_roll_call"):
        grid.send_and_receive(messages(grid))


def test_pushed_training_is_refused_and_the_rest_passes() -> None:
    grid = OmniscientGrid(InProcessGrid(client(), N), ALIE(), who=BAD)
    sent = messages(grid)
    with pytest.raises(ConfigError, match="send_and_receive"):
        grid.push_messages(sent)
    for message in sent:
        message.metadata.message_type = "evaluate"
    assert len(list(grid.pull_messages(grid.push_messages(sent)))) == N
    assert len(grid.send_and_receive(sent)) == N
    assert not grid.reports
