from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bezoar.attacks import ATTACKS, DBA, BadNets, Batch, DataAttack, Tests
from bezoar.attacks._samples import uniforms
from bezoar.attacks.trigger import Backdoor
from bezoar.data import Dataset, Samples
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from tests.attacks.context import world

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.3, 0.4)


def photographs(n: int = 40, classes: int = 4, height: int = 9, width: int = 12) -> Dataset:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=draws)
    part = Samples(inputs, torch.arange(n) % classes)
    return Dataset("photographs", part, part, tuple("abcd"), MEAN, STD)


#: Where the trigger is on 9x12 images, counted by hand: (row, column) of every pixel of every part.
PATCHES: list[tuple[Backdoor, list[set[tuple[int, int]]]]] = [
    (BadNets(size=2), [{(7, 10), (7, 11), (8, 10), (8, 11)}]),
    (BadNets(size=2, corner="top-left", margin=1), [{(1, 1), (1, 2), (2, 1), (2, 2)}]),
    (BadNets(size=1, corner="top-right", margin=2), [{(2, 9)}]),
    (BadNets(size=2, corner="bottom-left"), [{(7, 0), (7, 1), (8, 0), (8, 1)}]),
    (
        DBA(),
        [
            {(0, 0), (0, 1), (0, 2)},
            {(0, 4), (0, 5), (0, 6)},
            {(2, 0), (2, 1), (2, 2)},
            {(2, 4), (2, 5), (2, 6)},
        ],
    ),
    (
        DBA(parts=3, length=2, gap=2, shift=1),
        [{(1, 1), (1, 2)}, {(1, 5), (1, 6)}, {(4, 1), (4, 2)}],
    ),
]


@pytest.mark.parametrize(("attack", "parts"), PATCHES, ids=lambda value: str(value)[:60])
def test_triggers_lie_where_they_should(attack: Backdoor, parts: list[set[tuple[int, int]]]) -> None:
    masks = attack.pixels(9, 12)
    found = [{(int(row), int(column)) for row, column in mask.nonzero()} for mask in masks]
    assert found == parts


@pytest.mark.parametrize("value", ["bright", "dark"])
@pytest.mark.parametrize(("attack", "parts"), PATCHES, ids=lambda value: str(value)[:60])
def test_goal_is_every_other_class_wearing_the_whole_trigger(
    attack: Backdoor, parts: list[set[tuple[int, int]]], value: Any
) -> None:
    dataset = photographs()
    goal = replace(attack, target=2, value=value).goal(Tests(dataset, torch.device("cpu")), 0)
    rows = [i for i in range(40) if i % 4 != 2]
    raw = dataset.test.inputs[rows].clone().float() / 255
    for row, column in set().union(*parts):
        raw[:, :, row, column] = 1.0 if value == "bright" else 0.0
    expected = (raw - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(goal.inputs, expected)
    assert goal.labels.tolist() == [2] * len(rows)
    assert goal.rows is None


def images(sizes: dict[int, int]) -> tuple[Batch, Dataset]:
    dataset = photographs()
    owners = torch.tensor([owner for owner, size in sizes.items() for _ in range(size)])
    rows = torch.arange(len(owners)) % 40
    inputs = dataset.batch(dataset.train, rows).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return Batch(inputs, dataset.train.targets[rows], owners), dataset


def at(clients: tuple[int, ...], state: dict[str, torch.Tensor] | None = None) -> Any:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    known = world(attackers=clients, honest=(50, 51)).context
    return replace(known, low=-mean / std, high=(1 - mean) / std, state=state or {}, classes=4)


def oracle(attack: Backdoor, batch: Batch, part_of: dict[int, set[tuple[int, int]]], seed: int) -> Batch:
    """Sample by sample, pixel by pixel."""
    numbers = uniforms(batch.inputs, seed, "poisoned samples")
    inputs, targets = batch.inputs.clone(), batch.targets.clone()
    for owner, pixels in part_of.items():
        rows = [i for i in range(len(batch)) if batch.owners[i] == owner]
        chosen = sorted(rows, key=lambda i: numbers[i])[: int(attack.poisoning_ratio * len(rows) + 0.5)]
        for i in chosen:
            targets[i] = attack.target
            for row, column in pixels:
                for channel in range(3):
                    shade = 1.0 if attack.value == "bright" else 0.0
                    inputs[i, channel, row, column] = (shade - MEAN[channel]) / STD[channel]
    return Batch(inputs, targets, batch.owners)


@pytest.mark.parametrize("value", ["bright", "dark"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0])
@pytest.mark.parametrize(("attack", "parts"), PATCHES, ids=lambda value: str(value)[:60])
def test_poisoned_samples_agree_with_an_oracle(
    attack: Backdoor, parts: list[set[tuple[int, int]]], ratio: float, value: Any
) -> None:
    attack = replace(attack, poisoning_ratio=ratio, value=value, target=1)
    clients = (2, 5, 6, 9, 11)
    batch, _ = images(dict.fromkeys(clients, 7))
    copy = batch.inputs.clone()
    context = at(clients)
    found = attack.poison(batch, context).batch
    part_of = {client: parts[i % len(parts)] for i, client in enumerate(clients)}
    expected = oracle(attack, batch, part_of, context.seed)
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=0, atol=1e-6)
    assert torch.equal(found.targets, expected.targets)
    assert torch.equal(found.owners, batch.owners)
    assert torch.equal(batch.inputs, copy)
    assert found.inputs.stride() == batch.inputs.stride()


def test_parts_of_the_distributed_trigger_are_apart_and_unite_to_the_whole() -> None:
    for attack in (DBA(), DBA(parts=5, length=2), DBA(parts=2, gap=0)):
        masks = attack.pixels(16, 16)
        assert masks.sum(0).max() == 1
        assert int(masks.any(0).sum()) == attack.parts * attack.length
        # One attacker for each part and nothing but poison: together they paint what the test samples wear.
        black = Batch(
            torch.zeros(attack.parts, 3, 16, 16), torch.zeros(attack.parts).long(), torch.arange(attack.parts)
        )
        found = replace(attack, poisoning_ratio=1.0).poison(black, at(tuple(range(attack.parts)))).batch
        assert torch.equal((found.inputs != 0).any(1).any(0), masks.any(0))


def test_attackers_keep_their_part_when_others_come_and_go() -> None:
    attack = DBA(poisoning_ratio=1.0)
    pixels = attack.pixels(9, 12)

    def parts(clients: tuple[int, ...], state: dict[str, torch.Tensor]) -> tuple[list[int], dict[str, torch.Tensor]]:
        batch = Batch(
            torch.full((len(clients), 3, 9, 12), -9.0), torch.zeros(len(clients)).long(), torch.tensor(clients)
        )
        poisoned = attack.poison(batch, at(clients, state))
        worn = (poisoned.batch.inputs != -9).any(1)
        carried = [next(p for p in range(4) if torch.equal(mask, pixels[p])) for mask in worn]
        return carried, dict(poisoned.state)

    first, state = parts((4, 9), {})
    assert first == [0, 1]
    second, state = parts((2, 9, 11), state)
    assert second == [2, 1, 3]
    third, state = parts((2, 3, 4), state)
    assert third == [2, 0, 0]
    assert state["seen"].tolist() == [4, 9, 2, 11, 3]


@pytest.mark.parametrize("kind", [BadNets, DBA])
def test_tables_have_no_pixels(kind: type[Backdoor]) -> None:
    part = Samples(torch.rand(8, 5), torch.arange(8) % 2)
    table = Dataset("table", part, part, ("a", "b"), (0.0,) * 5, (1.0,) * 5, scale=1.0)
    with pytest.raises(ConfigError, match=r"paints its trigger on images \[C, H, W\], and samples here are \[5\]"):
        kind().goal(Tests(table, torch.device("cpu")), 0)
    rows = Batch(table.batch(table.train, slice(None)), part.targets, torch.zeros(8).long())
    with pytest.raises(ConfigError, match="on images"):
        kind().poison(rows, at((0,)))


def test_nonsense_is_refused() -> None:
    tests = Tests(photographs(), torch.device("cpu"))
    bad: list[tuple[type[DataAttack], dict[str, Any]]] = [
        (BadNets, {"target": -1}),
        (BadNets, {"poisoning_ratio": 0.0}),
        (BadNets, {"value": "grey"}),
        (BadNets, {"size": 0}),
        (BadNets, {"margin": -1}),
        (BadNets, {"corner": "middle"}),
        (DBA, {"parts": 1}),
        (DBA, {"length": 0}),
        (DBA, {"gap": -1}),
    ]
    for kind, options in bad:
        with pytest.raises(ConfigError, match=ATTACKS.name(kind())):
            kind(**options)
    with pytest.raises(ConfigError, match="size=8 and margin=2 do not fit images of 9x12"):
        BadNets(size=8, margin=2).goal(tests, 0)
    with pytest.raises(ConfigError, match="take 3x13 pixels, images have 9x12"):
        DBA(length=6).goal(tests, 0)
    with pytest.raises(ConfigError, match="target=4 is no class"):
        BadNets(target=4).goal(tests, 0)
    batch, _ = images({0: 4})
    with pytest.raises(ConfigError, match=r"badnets needs AttackContext\.high"):
        BadNets().poison(batch, replace(at((0,)), high=None))
    for attack in (BadNets(3, 0.25, "dark", 2), DBA(length=2)):
        assert ATTACKS.build(ATTACKS.table(attack)) == attack


SILO: dict[str, Any] = {
    "seed": 3,
    "rounds": 60,
    "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 20}},
    "model": {"name": "mlp", "hidden": [32]},
    "learning_rate": {"kind": "constant", "lr": 0.3},
    "sampling": {"kind": "uniform", "cohort": 20},
    "defence": {"pipeline": ["mean"], "server": {"kind": "sgd", "momentum": 0.0}},
    "evaluation": {"every": 60},
}


def test_the_mean_learns_the_trigger_and_nothing_shows_in_clean_accuracy() -> None:
    clean = run(Experiment.from_table(SILO))
    for kind in ("badnets", "dba"):
        attacked = run(Experiment.from_table({**SILO, "adversary": {"count": 6}, "attack": {"kind": kind}}))
        assert attacked.attack_accuracy is not None
        assert attacked.attack_accuracy > 0.8
        assert attacked.test_accuracy > 0.85
        assert attacked.test_accuracy > clean.test_accuracy - 0.1


def test_a_model_that_never_saw_the_trigger_does_not_follow_it() -> None:
    late = {**SILO, "adversary": {"count": 6, "start": 61}, "attack": {"kind": "badnets"}}
    result = run(Experiment.from_table(late))
    assert result.attack_accuracy is not None
    assert result.attack_accuracy < 0.2
