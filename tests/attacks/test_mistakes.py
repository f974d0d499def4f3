from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.attacks import (
    ATTACKS,
    AttackContext,
    Batch,
    BiasedSampling,
    DataAttack,
    DuplicatedRecords,
    LabelNoise,
    MislabelledClass,
    MissingFeatures,
    UnitError,
)
from bezoar.attacks._samples import uniforms
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from tests.attacks.context import MEAN, STD, world

KINDS: list[type[DataAttack]] = [
    LabelNoise, MislabelledClass, MissingFeatures, UnitError, BiasedSampling, DuplicatedRecords,
]  # fmt: skip
CLIENTS = (3, 8, 10)


def images(samples: int = 15) -> tuple[Batch, AttackContext]:
    at = world(attackers=CLIENTS, samples=samples).context
    assert at.own is not None
    return at.own, at


def table(samples: int = 15) -> tuple[Batch, AttackContext]:
    """Six features with a mean and a deviation each."""
    own, at = images(samples)
    inputs = torch.randn(len(own), 6, generator=torch.Generator().manual_seed(3))
    mean, std = torch.tensor([0.0, 50.0, -3.0, 1.0, 9.0, 0.1]), torch.tensor([1.0, 10.0, 2.0, 0.5, 3.0, 0.2])
    return replace(own, inputs=inputs), replace(at, mean=mean, std=std)


def chosen_rows(batch: Batch, owner: int, ratio: float, purpose: str, among: list[int] | None = None) -> list[int]:
    numbers = uniforms(batch.inputs, 7, purpose)
    rows = [i for i in range(len(batch)) if batch.owners[i] == owner and (among is None or i in among)]
    # Random draws repeat samples: equal ones in their order.
    return sorted(rows, key=lambda i: (numbers[i], i))[: int(ratio * len(rows) + 0.5)]


def features_of(owner: int, size: int, share: float, purpose: str) -> list[int]:
    order = torch.randperm(size, generator=generator(7, purpose, owner)).tolist()
    return order[: max(1, int(share * size + 0.5))]


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_label_noise_agrees_with_an_oracle(ratio: float) -> None:
    batch, at = images()
    found = LabelNoise(ratio).poison(batch, at).batch
    numbers = uniforms(batch.inputs, 7, "noisy label")
    for owner in CLIENTS:
        noisy = chosen_rows(batch, owner, ratio, "label noise")
        for i in np.flatnonzero(batch.owners.numpy() == owner):
            label = int(batch.targets[i])
            expected = (label + 1 + int(numbers[i] * 9)) % 10 if i in noisy else label
            assert int(found.targets[i]) == expected
            assert (int(found.targets[i]) != label) == (i in noisy)
    assert torch.equal(found.inputs, batch.inputs)


def test_noisy_labels_are_uniform_over_the_wrong_classes() -> None:
    draws = torch.Generator().manual_seed(0)
    big = Batch(torch.randn(4500, 4, generator=draws), torch.arange(4500) % 10, torch.zeros(4500).long())
    found = LabelNoise(1.0).poison(big, images()[1]).batch.targets
    counts = np.bincount((found - big.targets).numpy() % 10, minlength=10)
    assert counts[0] == 0
    # Chi-squared with 8 degrees of freedom.
    assert ((counts[1:] - 500) ** 2 / 500).sum() < 35
    two = replace(images()[1], classes=2)
    binary = replace(big, targets=big.targets % 2)
    assert torch.equal(LabelNoise(1.0).poison(binary, two).batch.targets, 1 - binary.targets)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_class_is_taken_for_another(ratio: float) -> None:
    batch, at = images(40)
    found = MislabelledClass(4, 9, ratio).poison(batch, at).batch
    source = [i for i in range(len(batch)) if batch.targets[i] == 4]
    assert len(source) > 3
    wrong = [i for owner in CLIENTS for i in chosen_rows(batch, owner, ratio, "mislabelled", source)]
    expected = [9 if i in wrong else int(batch.targets[i]) for i in range(len(batch))]
    assert found.targets.tolist() == expected
    assert torch.equal(found.inputs, batch.inputs)


@pytest.mark.parametrize("make", [images, table])
@pytest.mark.parametrize("options", [{}, {"features": (1, 5)}, {"share": 0.01, "ratio": 0.4}], ids=str)
@pytest.mark.parametrize("kind", [MissingFeatures, UnitError])
def test_wrong_values_agree_with_an_oracle(kind: Any, options: dict[str, Any], make: Any) -> None:
    attack = kind(**options)
    batch, at = make()
    found = attack.poison(batch, at).batch
    purpose = {MissingFeatures: "missing features", UnitError: "unit error"}[kind]
    flat, size = batch.inputs.flatten(1).double().numpy(), batch.inputs[0].numel()
    mean, std = (np.broadcast_to(value.flatten().double().numpy(), size) for value in (at.mean, at.std))
    expected = flat.copy()
    for owner in CLIENTS:
        features = attack.features or features_of(owner, size, attack.share, purpose)
        for i in chosen_rows(batch, owner, attack.ratio, f"{purpose}, samples"):
            for j in features:
                if kind is MissingFeatures:
                    expected[i, j] = 0.0
                else:
                    expected[i, j] = (attack.factor * (flat[i, j] * std[j] + mean[j]) - mean[j]) / std[j]
    np.testing.assert_allclose(found.inputs.flatten(1).double().numpy(), expected, rtol=1e-4, atol=1e-4)
    untouched = torch.from_numpy(expected == flat).view(batch.inputs.shape)
    assert torch.equal(found.inputs[untouched], batch.inputs[untouched])
    assert torch.equal(found.targets, batch.targets)


def test_a_unit_error_multiplies_the_raw_value() -> None:
    at = images()[1]
    raw = torch.tensor([0.0, 0.1, 0.05]).view(3, 1, 1, 1)
    batch = Batch((raw - MEAN) / STD, torch.zeros(3).long(), torch.tensor([3, 8, 10]))
    found = UnitError(factor=38.67, features=(0,)).poison(batch, at).batch
    torch.testing.assert_close(found.inputs * STD + MEAN, 38.67 * raw)
    with pytest.raises(ConfigError, match=r"AttackContext\.mean"):
        UnitError().poison(batch, replace(at, mean=None))


def test_features_are_a_clients_own_and_the_same_in_every_round() -> None:
    batch, at = images()
    one = MissingFeatures(share=0.3).poison(batch, at).batch.inputs
    assert torch.equal(one, MissingFeatures(share=0.3).poison(batch, replace(at, round=99)).batch.inputs)
    blank = [(one[batch.owners == owner] == 0).flatten(1).all(0) for owner in CLIENTS]
    assert all(int(mask.sum()) >= 19 for mask in blank)
    assert not torch.equal(blank[0], blank[1])


@pytest.mark.parametrize("favoured", [None, 4])
@pytest.mark.parametrize("keep", [0.0, 0.3])
def test_biased_clients_keep_one_class_and_few_others(favoured: int | None, keep: float) -> None:
    batch, at = images(30)
    batch = batch.select(~((batch.owners == 8) & (batch.targets == 4)))
    found = BiasedSampling(favoured, keep).poison(batch, at).batch
    expected: list[int] = []
    for owner in CLIENTS:
        mine = [i for i in range(len(batch)) if batch.owners[i] == owner]
        held = sorted({int(batch.targets[i]) for i in mine})
        draw = int(torch.randint(len(held), (), generator=generator(7, "favoured class", owner)))
        kind = held[draw] if favoured is None else favoured
        others = [i for i in mine if int(batch.targets[i]) != kind]
        few = chosen_rows(batch, owner, keep, "biased sampling", others)
        left = [i for i in mine if int(batch.targets[i]) == kind or i in few]
        expected += left or mine[:1]
    assert torch.equal(found.inputs, batch.inputs[expected])
    assert torch.equal(found.targets, batch.targets[expected])
    assert torch.equal(found.owners, batch.owners[expected])
    assert set(found.owners.tolist()) == set(CLIENTS)


@pytest.mark.parametrize(("ratio", "copies"), [(0.2, 4), (1.0, 1)])
def test_records_are_entered_several_times(ratio: float, copies: int) -> None:
    batch, at = images()
    found = DuplicatedRecords(ratio, copies).poison(batch, at).batch
    expected: list[int] = []
    twice = [i for owner in CLIENTS for i in chosen_rows(batch, owner, ratio, "duplicated records")]
    for i in range(len(batch)):
        expected += [i] * (1 + copies * (i in twice))
    assert torch.equal(found.inputs, batch.inputs[expected])
    assert torch.equal(found.targets, batch.targets[expected])
    assert torch.equal(found.owners, batch.owners[expected])
    assert len(found) == len(CLIENTS) * (15 + copies * round(ratio * 15))


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_in_the_data(kind: type[DataAttack]) -> None:
    batch, at = images(30)
    before = [part.clone() for part in (batch.inputs, batch.targets, batch.owners)]
    attack = kind()
    found = attack.poison(batch, at).batch
    assert all(torch.equal(a, b) for a, b in zip(before, (batch.inputs, batch.targets, batch.owners), strict=True))
    again = attack.poison(batch, replace(at, round=at.round + 1)).batch
    assert torch.equal(found.inputs, again.inputs)
    assert torch.equal(found.targets, again.targets)
    changed = len(found) != len(batch) or not (
        torch.equal(found.inputs, batch.inputs) and torch.equal(found.targets, batch.targets)
    )
    assert changed
    assert not attack.targeted
    assert attack.goal(world().tests, 0) is None
    assert ATTACKS.build(ATTACKS.table(attack)) == attack


def test_nonsense_is_refused() -> None:
    bad: list[tuple[type[DataAttack], dict[str, Any]]] = [
        (LabelNoise, {"ratio": 0.0}), (LabelNoise, {"ratio": 1.1}), (MislabelledClass, {"source": 1}),
        (MislabelledClass, {"ratio": -1.0}), (MissingFeatures, {"features": (1, 1)}),
        (MissingFeatures, {"features": (-1,)}), (MissingFeatures, {"share": 0.0}), (MissingFeatures, {"ratio": 2.0}),
        (UnitError, {"factor": float("inf")}), (UnitError, {"share": 1.5}), (BiasedSampling, {"favoured": -1}),
        (BiasedSampling, {"keep": 1.0}), (DuplicatedRecords, {"ratio": 0.0}), (DuplicatedRecords, {"copies": 0}),
    ]  # fmt: skip
    for kind, options in bad:
        with pytest.raises(ConfigError, match=ATTACKS.name(kind())):
            kind(**options)
    tests = world().tests
    with pytest.raises(ConfigError, match=r"feature 64 does not exist: features are 0\.\.63"):
        MissingFeatures((64,)).goal(tests, 0)
    with pytest.raises(ConfigError, match="feature 64 does not exist"):
        UnitError(features=(3, 64)).goal(tests, 0)
    with pytest.raises(ConfigError, match="target=12 is no class"):
        MislabelledClass(1, 12).goal(tests, 0)
    with pytest.raises(ConfigError, match="favoured=10 is no class"):
        BiasedSampling(10).goal(tests, 0)
    assert ATTACKS.build({"kind": "missing-features", "features": [1, 5]}) == MissingFeatures((1, 5))
