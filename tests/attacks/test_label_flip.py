from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bezoar.attacks import ATTACKS, Batch, Knowledge, LabelFlip, wrong_labels
from bezoar.attacks._samples import uniforms
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment
from bezoar.seeding import generator
from tests.attacks.context import CLASSES, World, world
from tests.attacks.test_samples import DIGITS

MODES: dict[str, dict[str, Any]] = {
    "static": {},
    "next": {},
    "random": {},
    "swap": {"source": 2, "target": 7},
    "source-target": {"source": 2, "target": 7},
    "furthest": {},
}


def own(at: World) -> Batch:
    assert at.context.own is not None
    return at.context.own


def flipped(mode: str, i: int, label: int, at: World) -> int:
    """One label, spelt out."""
    if mode == "static":
        return CLASSES - 1 - label
    if mode == "next":
        return 0 if label == CLASSES - 1 else label + 1
    if mode == "swap":
        return {2: 7, 7: 2}.get(label, label)
    if mode == "source-target":
        return 7 if label == 2 else label
    if mode == "random":
        draws = generator(at.context.seed, "attack", at.context.round)
        return int(wrong_labels(own(at).targets, CLASSES, draws)[i])
    return int(np.argmin(logits(at)[i]))


def logits(at: World) -> np.ndarray:
    """The global model in float64, layer by layer."""
    shapes = [p.shape for p in at.context.scratch.module.parameters()]
    flat, layers, start = at.context.weights.detach().double().numpy(), [], 0
    for shape in shapes:
        layers.append(flat[start : start + shape.numel()].reshape(shape))
        start += shape.numel()
    hidden = np.maximum(own(at).inputs.double().flatten(1).numpy() @ layers[0].T + layers[1], 0)
    return np.asarray(hidden @ layers[2].T + layers[3])


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_labels_agree_with_an_oracle_and_the_ratio_is_exact(mode: str, ratio: float) -> None:
    at = world(samples=15)
    before = own(at)
    kept = [tensor.clone() for tensor in (before.inputs, before.targets, before.owners)]
    attack = LabelFlip(mode, poisoning_ratio=ratio, **MODES[mode])  # type: ignore[arg-type]
    after = attack.poison(before, at.context).batch
    numbers = uniforms(before.inputs, at.context.seed, "flipped samples")
    for owner in (3, 8):
        rows = [i for i in range(len(before)) if before.owners[i] == owner]
        poisoned = sorted(rows, key=lambda i: numbers[i])[: int(ratio * len(rows) + 0.5)]
        for i in rows:
            label = int(before.targets[i])
            assert int(after.targets[i]) == (flipped(mode, i, label, at) if i in poisoned else label)
    assert torch.equal(after.inputs, before.inputs)
    assert torch.equal(after.owners, before.owners)
    assert all(torch.equal(a, b) for a, b in zip(kept, (before.inputs, before.targets, before.owners), strict=True))


def test_furthest_reads_the_model_in_evaluation_mode_and_leaves_it_as_it_was() -> None:
    at = world(samples=300)
    dropping = nn.Sequential(at.context.scratch.module, nn.Dropout(0.9))
    at.context.scratch.module = dropping.train()
    weights = at.context.weights.clone()
    after = LabelFlip("furthest").poison(own(at), at.context).batch
    assert dropping.training
    assert torch.equal(at.context.weights, weights)
    at.context.scratch.module = dropping[0]
    assert after.targets.tolist() == np.argmin(logits(at), 1).tolist()


def test_the_same_samples_are_flipped_in_every_round() -> None:
    at = world(samples=12)
    attack = LabelFlip("next", poisoning_ratio=0.5)
    one = attack.poison(own(at), at.context).batch.targets
    assert torch.equal(one, attack.poison(own(at), replace(at.context, round=6)).batch.targets)
    assert not torch.equal(one, attack.poison(own(at), replace(at.context, seed=8)).batch.targets)


def test_random_labels_are_those_of_the_stream_of_the_round() -> None:
    at = world()
    drawn = wrong_labels(own(at).targets, CLASSES, generator(7, "attack", 5))
    assert torch.equal(LabelFlip("random").poison(own(at), at.context).batch.targets, drawn)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "swap"},
        {"mode": "swap", "source": 1},
        {"mode": "source-target", "source": 1, "target": 1},
        {"mode": "source-target", "source": -1, "target": 1},
        {"mode": "static", "source": 1},
        {"mode": "flip"},
        {"poisoning_ratio": 0.0},
        {"poisoning_ratio": 1.5},
        {"poisoning_ratio": float("nan")},
    ],
    ids=str,
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="label-flip"):
        LabelFlip(**options)


def test_classes_that_do_not_exist_are_refused_before_the_first_round() -> None:
    at = world()
    with pytest.raises(ConfigError, match=r"target=10 is no class of this data set: classes are 0\.\.9"):
        LabelFlip("swap", 1, 10).goal(at.tests, 0)
    assert LabelFlip("swap", 1, 9).goal(at.tests, 0) is None
    with pytest.raises(ConfigError, match="call poison"):
        LabelFlip("furthest").labels(own(at).targets, CLASSES, torch.Generator())


def test_only_the_furthest_class_takes_the_model() -> None:
    assert {mode: LabelFlip(mode, **MODES[mode]).least for mode in MODES} == {  # type: ignore[arg-type]
        mode: Knowledge.MODEL if mode == "furthest" else Knowledge.NONE for mode in MODES
    }
    table = {**DIGITS, "rounds": 1, "attack": {"kind": "label-flip", "mode": "furthest"}}
    with pytest.raises(ConfigError, match="needs at least 'model'"):
        Experiment.from_table({**table, "adversary": {"count": 3, "knowledge": "own-data"}})
    Experiment.from_table({**table, "adversary": {"count": 3, "knowledge": "model"}})


def test_tables_show_the_ratio_only_where_it_matters() -> None:
    assert ATTACKS.table(LabelFlip("next")) == {"kind": "label-flip", "mode": "next"}
    for attack in (LabelFlip("swap", 1, 2), LabelFlip(poisoning_ratio=0.25)):
        assert ATTACKS.build(ATTACKS.table(attack)) == attack
    assert ATTACKS.table(LabelFlip(poisoning_ratio=0.25))["poisoning_ratio"] == 0.25
