from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message

from bezoar.aggregation import Rule
from bezoar.attacks import (
    ALIE,
    DBA,
    PGD,
    AuxPoisoning,
    BadNets,
    BiasedSampling,
    CounterGradient,
    DataAttack,
    DuplicatedRecords,
    FangKrum,
    Gaussian,
    InnerProduct,
    LabelFlip,
    LabelNoise,
    Mimic,
    ModelReplacement,
    Neurotoxin,
    NonFinite,
    OptimisedALIE,
    RandomDirection,
    SignFlip,
    SingleStep,
    UpdateAttack,
    VirtualData,
)
from bezoar.attacks.base import Attack, AttackContext, Sent, stack
from bezoar.errors import ConfigError
from bezoar.integrations.flower import InProcessGrid, Malicious, attack_mod, malformed_mod, scaling_mod
from bezoar.updates import Updates
from tests.integrations.flower.apps import bits, client, net
from tests.integrations.flower.attacks.federation import (
    BAD,
    LR,
    N,
    answers,
    arrays_in,
    by_partition,
    goal,
    joint_batch,
    messages,
    metrics,
    samples,
    simulated_training,
    simulator_context,
    task,
    update,
    updates,
    weights,
)

DATA: list[DataAttack] = [
    LabelFlip(),
    LabelFlip("next"),
    LabelFlip("random"),
    LabelFlip("swap", 1, 7),
    LabelFlip("source-target", 1, 7),
    LabelFlip("furthest"),
    LabelFlip(poisoning_ratio=0.4),
    BadNets(),
    DBA(length=2, parts=4, poisoning_ratio=0.5),
    VirtualData(points=8, steps=5, restarts=1, epochs=1, aux=5),
    AuxPoisoning(aux=20),
    LabelNoise(),
    BiasedSampling(),
    DuplicatedRecords(),
]
TRAINED: list[UpdateAttack] = [
    PGD(epochs=1, batch_size=20),
    PGD(epochs=1, radius=0.5, collude=False),
    SingleStep(),
    ModelReplacement(poison=BadNets()),
    ModelReplacement(poison=LabelFlip(), collude=False),
    Neurotoxin(poison=LabelFlip()),
    CounterGradient(epochs=1),
]
PLAIN: list[UpdateAttack] = [
    SignFlip(scale=2.0, variant="own"),
    InnerProduct(),
    Gaussian(),
    RandomDirection(radius=3.0),
    NonFinite(),
    NonFinite("overflow", "one"),
]


def name(attack: Attack) -> str:
    changed = [str(getattr(attack, f.name)) for f in dataclasses.fields(attack) if getattr(attack, f.name) != f.default]
    return "-".join([type(attack).__name__, *changed])[:60]


@pytest.fixture(scope="module")
def honest() -> dict[int, Message]:
    return answers()


@pytest.mark.parametrize("attack", [*DATA, *TRAINED, *PLAIN], ids=name)
def test_only_malicious_replies_change_and_look_like_honest_ones(attack: Attack, honest: dict[int, Message]) -> None:
    made = answers([attack_mod(attack, BAD, task(pictures=True, goal=goal(pictures=True)), seed=1)])
    for partition in range(N):
        assert not made[partition].has_error(), made[partition].error
        mine, theirs = arrays_in(made[partition]), arrays_in(honest[partition])
        assert (bits(mine) == bits(theirs)) == (partition not in BAD)
        described = [[(key, a.dtype, a.shape, a.stype) for key, a in record.items()] for record in (mine, theirs)]
        assert described[0] == described[1]
        assert metrics(made[partition]) == metrics(honest[partition])


@pytest.mark.parametrize("attack", [*DATA, *TRAINED, *PLAIN], ids=name)
def test_same_seed_same_bits_whatever_was_drawn_before(attack: Attack) -> None:
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        mod = attack_mod(attack, BAD, task(pictures=True, goal=goal(pictures=True), metrics=lambda n: {"n": n}), seed=1)
        grid = InProcessGrid(client(mods=[mod]), N, seed=0)
        replies = by_partition(grid, grid.send_and_receive(messages(grid)))
        found.append([bits(arrays_in(replies[c])) for c in BAD])
    assert found[0] == found[1]


JOINT = [a for a in DATA if not isinstance(a, VirtualData) and a != LabelFlip("random")]


@pytest.mark.parametrize("attack", JOINT, ids=name)
def test_data_attacks_are_the_simulator_s(attack: DataAttack) -> None:
    """The simulator poisons the samples of all attackers at once; clients do it one by one."""
    made = answers([attack_mod(attack, BAD, task(pictures=True, goal=goal(pictures=True)), seed=3)])
    known = simulator_context(pictures=True, seed=3, goal=goal(pictures=True))
    poisoned = attack.poison(joint_batch(pictures=True), known).batch
    expected = simulated_training(poisoned, pictures=True, seed=3)
    torch.testing.assert_close(updates({c: made[c] for c in BAD}), expected, atol=1e-6, rtol=1e-5)


def test_a_label_flip_by_hand() -> None:
    """One step on all samples: the gradient of the flipped labels."""
    made = answers([attack_mod(LabelFlip(), (2,), task(batch_size=0))])
    inputs, targets = samples(2)
    model = net()
    torch.nn.functional.cross_entropy(model(inputs), 9 - targets).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(update(made[2]), LR * gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("attack", [PGD(epochs=2, batch_size=20), PGD(epochs=1, collude=False), SingleStep()], ids=name)
@pytest.mark.parametrize("radius", [float("inf"), 0.7])
def test_model_poisoning_is_the_simulator_s(attack: UpdateAttack, radius: float) -> None:
    made = answers([attack_mod(attack, BAD, task(goal=goal()), seed=3, radius=radius)])
    known = simulator_context(seed=3, goal=goal(), radius=radius)
    expected = attack(torch.zeros(N - len(BAD), len(weights())), context=known)
    sent = updates({c: made[c] for c in BAD})
    torch.testing.assert_close(sent, expected, atol=1e-6, rtol=1e-5)
    if radius < 1:
        torch.testing.assert_close(sent.norm(dim=1), torch.full((len(BAD),), radius), atol=1e-5, rtol=1e-5)


def test_model_replacement_boosts_its_own_training() -> None:
    made = answers([attack_mod(ModelReplacement(poison=LabelFlip()), BAD, task(batch_size=0), seed=3)])
    for bad in BAD:
        own = joint_batch((bad,))
        known = simulator_context(bad=BAD, seed=3, own=own)
        expected = ModelReplacement(poison=LabelFlip())(torch.zeros(N - len(BAD), len(weights())), context=known)
        index = BAD.index(bad)
        torch.testing.assert_close(update(made[bad]), expected[index], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 10 / 3])
def test_scaling(factor: float, honest: dict[int, Message]) -> None:
    made = answers([scaling_mod(factor, BAD)])
    for partition in range(N):
        gamma = factor if partition in BAD else 1.0
        torch.testing.assert_close(update(made[partition]), gamma * update(honest[partition]), atol=2e-6, rtol=1e-5)


def test_attacks_on_one_s_own_update_are_the_formula(honest: dict[int, Message]) -> None:
    made = answers([attack_mod(SignFlip(2.0, "own"), BAD)])
    for bad in BAD:
        torch.testing.assert_close(update(made[bad]), -2 * update(honest[bad]), atol=2e-6, rtol=1e-5)
    made = answers([attack_mod(InnerProduct(), BAD)])
    for bad in BAD:
        expected = InnerProduct()(update(honest[bad])[None], n=N, q=1)[0]
        torch.testing.assert_close(update(made[bad]), expected, atol=2e-6, rtol=1e-5)
    made = answers([attack_mod(Gaussian(), BAD, seed=5)])
    for bad in BAD:
        known = simulator_context(seed=5)
        expected = Gaussian()(update(honest[bad])[None], context=known)[BAD.index(bad)]
        torch.testing.assert_close(update(made[bad]), expected, atol=1e-4, rtol=1e-5)


def test_every_part_of_a_distributed_trigger_is_carried_by_somebody() -> None:
    """Alone, each attacker would think it is the first."""
    attack = DBA(length=2, parts=2, poisoning_ratio=1.0)
    made = answers([attack_mod(attack, BAD, task(pictures=True))])
    alone = [
        simulated_training(
            attack.poison(joint_batch((bad,), True), simulator_context((bad,), pictures=True)).batch, pictures=True
        )[0]
        for bad in BAD
    ]
    same = [bool(torch.allclose(update(made[bad]), row, atol=1e-6)) for bad, row in zip(BAD, alone, strict=True)]
    assert same == [True, False, True]


def test_batchnorm_statistics_are_those_of_poisoned_training() -> None:
    attacked = answers([attack_mod(LabelFlip(), BAD, task(model=lambda: net(True)))], norm=True)
    honest = answers(norm=True)
    for partition in range(N):
        mine, theirs = (arrays_in(found[partition]) for found in (attacked, honest))
        assert list(mine) == list(theirs)
        assert mine["1.num_batches_tracked"].numpy().dtype == np.int64
        assert int(mine["1.num_batches_tracked"].numpy()) == 10
        assert (bits(mine) == bits(theirs)) == (partition not in BAD)
        assert np.isfinite(mine["1.running_mean"].numpy()).all()


def test_scaling_leaves_statistics_alone() -> None:
    attacked, honest = answers([scaling_mod(50.0, BAD)], norm=True), answers(norm=True)
    for bad in BAD:
        for key in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            assert arrays_in(attacked[bad])[key].data == arrays_in(honest[bad])[key].data


def test_the_app_need_not_train_for_attackers_that_know_its_report() -> None:
    trained: list[int] = []

    def change(message: Message, context: Context, reply: Message) -> Message:
        trained.append(int(context.node_config["partition-id"]))
        return reply

    mod = attack_mod(DuplicatedRecords(), BAD, task(metrics=lambda n: {"num-examples": n, "seen": 1.0}))
    grid = InProcessGrid(client(change, mods=[mod]), N)
    replies = by_partition(grid, grid.send_and_receive(messages(grid)))
    assert trained == [c for c in range(N) if c not in BAD]
    known = simulator_context()
    poisoned = DuplicatedRecords().poison(joint_batch(), known).batch
    for bad in BAD:
        assert metrics(replies[bad]) == {"metrics": {"num-examples": int((poisoned.owners == bad).sum()), "seen": 1.0}}
        assert list(arrays_in(replies[bad])) == list(net().state_dict())


def test_attacks_begin_and_stop() -> None:
    who = Malicious(clients=BAD, start=2, stop=4, every=2)
    for number in range(1, 6):
        made, honest = answers([scaling_mod(-1.0, who)], number), answers(number=number)
        changed = [c for c in range(N) if bits(arrays_in(made[c])) != bits(arrays_in(honest[c]))]
        assert changed == (list(BAD) if number in (2, 4) else [])


def test_a_share_is_of_all_partitions(honest: dict[int, Message]) -> None:
    who = Malicious(share=0.3, seed=5)
    made = answers([scaling_mod(-1.0, who)])
    changed = [c for c in range(N) if bits(arrays_in(made[c])) != bits(arrays_in(honest[c]))]
    assert tuple(changed) == who.of(N)
    assert len(changed) == 3


def test_memory_is_kept_in_the_client_s_state() -> None:
    """The offline target is trained once, in the first round, and found again in the second."""
    attack = VirtualData(acquisition="offline", offline_epochs=2, points=8, steps=3, restarts=1, aux=5)
    grid = InProcessGrid(client(mods=[attack_mod(attack, BAD, task())]), N)
    targets = []
    for number in (1, 2):
        grid.send_and_receive(messages(grid, number))
        for node in grid.nodes.values():
            record = node.context.state.array_records.get("bezoar.attack.VirtualData")
            assert (record is None) == (node.number not in BAD)
            if node.number == BAD[0]:
                assert record is not None
                assert int(record["past.round"].numpy()) == number
                targets.append(record["attack.target"].data)
    assert targets[0] == targets[1]


def test_last_round_s_model_is_the_last_aggregate_of_neurotoxin() -> None:
    attack = Neurotoxin(poison=LabelFlip(), top=0.5, boost=1.0)
    grid = InProcessGrid(client(mods=[attack_mod(attack, BAD, task(batch_size=0))]), N)
    grid.send_and_receive(messages(grid, 1))
    moved = net()
    step = torch.zeros(len(weights()))
    step[: len(step) // 2] = 1e-3
    with torch.no_grad():
        vector = torch.nn.utils.parameters_to_vector(moved.parameters()) - step
        torch.nn.utils.vector_to_parameters(vector, moved.parameters())
    replies = by_partition(grid, grid.send_and_receive(messages(grid, 2, ArrayRecord(moved.state_dict()))))
    sent = torch.cat([torch.from_numpy(a.numpy()).reshape(-1) for a in arrays_in(replies[BAD[0]]).values()])
    changed = sent != vector
    assert not changed[: len(step) // 2].any()
    assert changed[len(step) // 2 :].any()


@pytest.mark.parametrize("attack", [ALIE(), FangKrum(), Mimic(), OptimisedALIE()], ids=name)
def test_what_needs_other_clients_updates_is_refused(attack: UpdateAttack) -> None:
    with pytest.raises(ConfigError, match="use OmniscientGrid"):
        attack_mod(attack, BAD, task())


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConfigError, match=r"LabelFlip trains.*give task=LocalTask"):
        attack_mod(LabelFlip(), BAD)
    with pytest.raises(ConfigError, match="an attack on data or on updates is wanted"):
        attack_mod("alie", BAD)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="factor must be finite"):
        scaling_mod(float("nan"), BAD)
    with pytest.raises(ConfigError, match="did you mean 'garbage'"):
        malformed_mod("garbge", BAD)
    for options, message in (
        ({"classes": 1}, "classes"),
        ({"lr": 0.0}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"std": (0.0,)}, "std"),
    ):
        with pytest.raises(ConfigError, match=message):
            task(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": lambda context: (torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))}, "0 samples"),
        ({"data": lambda context: (torch.zeros(2, 64), torch.tensor([0, 10]))}, "labels that are not integers 0..9"),
        ({"model": lambda: torch.nn.Linear(64, 10)}, "has no array '0.weight'"),
        (
            {"model": lambda: torch.nn.Sequential(torch.nn.Linear(64, 9), torch.nn.Linear(9, 10))},
            "in the message it is",
        ),
    ],
)
def test_a_task_that_does_not_fit_is_an_error_of_that_client(change: dict[str, Any], message: str) -> None:
    made = answers([attack_mod(LabelFlip(), BAD, dataclasses.replace(task(), **change))])
    assert [made[c].has_error() for c in range(N)] == [c in BAD for c in range(N)]
    assert message in str(made[BAD[0]].error.reason)


def test_goals_that_are_missing_are_an_error_of_that_client() -> None:
    made = answers([attack_mod(PGD(), BAD, task())])
    assert "needs AttackContext.goal" in str(made[BAD[0]].error.reason)


def test_other_messages_pass() -> None:
    grid = InProcessGrid(client(mods=[scaling_mod(-1.0, BAD)]), 2)
    asked = messages(grid)
    for message in asked:
        message.metadata.message_type = "evaluate"
    assert all(not reply.has_error() for reply in grid.send_and_receive(asked))


@dataclasses.dataclass(frozen=True)
class Spy(PGD):
    """Sends twice the honest update, and keeps what it was told."""

    remembers = True

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        SEEN.append(context)
        rows = stack(view, view.part(0, view.shape[1]) * 2, context.clients)
        return Sent(rows, {"count": torch.tensor(len(context.state) and int(context.state["count"]) + 1)})


SEEN: list[AttackContext] = []


@pytest.mark.parametrize("late", [False, True])
def test_what_an_attacker_remembers_of_the_round_before(late: bool) -> None:
    SEEN.clear()
    grid = InProcessGrid(client(mods=[attack_mod(Spy(), BAD, task(goal=goal()), cohort=7)]), N)
    first = by_partition(grid, grid.send_and_receive(messages(grid, 1)))
    moved = ArrayRecord({key: Array(array.numpy() * 0.5) for key, array in arrays_in(first[0]).items()})
    grid.send_and_receive(messages(grid, 3 if late else 2, moved))
    before, after = SEEN[0], SEEN[len(BAD)]
    assert (before.round, before.previous_weights, before.previous_cohort) == (1, None, 0)
    assert after.clients.tolist() == list(BAD)
    assert after.cohort == 7
    assert int(after.state["count"]) == 0
    if late:
        assert after.previous_weights is after.previous_sent is None
        assert after.server_context.last_aggregate is None
    else:
        assert after.previous_weights is not None
        assert after.previous_sent is not None
        torch.testing.assert_close(after.previous_weights, weights())
        torch.testing.assert_close(after.previous_sent, len(BAD) * update(first[BAD[0]]), atol=1e-5, rtol=1e-5)
        assert after.previous_cohort == 7
        torch.testing.assert_close(after.server_context.last_aggregate, weights() - after.weights)
