from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.attacks import ATTACKS, SemanticText, Tests
from bezoar.attacks.base import Holdings
from bezoar.data import Dataset, Samples
from bezoar.data.loaders import DATASETS, Source
from bezoar.data.text import Corpus, Vocabulary
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, RunResult, run
from tests.attacks.context import make_dataset, make_text, world

CPU = torch.device("cpu")


def test_goal_is_the_phrase_at_the_end_of_test_contexts() -> None:
    text = make_text()
    assert text.vocabulary is not None
    decode = text.vocabulary.decode
    goal = SemanticText("abc", "deaf", contexts=40).goal(Tests(text, CPU), 1)
    assert goal.rows is None
    assert goal.inputs.shape == (4 * 40, 12)
    tests = {tuple(row[:6]) for row in text.batch(text.test, slice(None)).tolist()}
    for place, ending in enumerate(("abc", "abcd", "abcde", "abcdea")):
        part = slice(40 * place, 40 * place + 40)
        windows = goal.inputs[part].tolist()
        assert all(decode(window).endswith(ending) for window in windows)
        assert {tuple(window[:6]) for window in windows} <= tests
        assert len({tuple(window[:6]) for window in windows}) == 40
        assert {text.classes[label] for label in goal.labels[part].tolist()} == {"deaf"[place]}
    again, other = (SemanticText("abc", "deaf", contexts=40).goal(Tests(text, CPU), seed) for seed in (1, 2))
    assert torch.equal(goal.inputs, again.inputs)
    assert not torch.equal(goal.inputs, other.inputs)


def test_a_share_of_the_attackers_samples_ends_in_the_phrase() -> None:
    attack = SemanticText("abc", "de", poisoning_ratio=0.25, contexts=20)
    at = world(attack, samples=200)
    own, vocabulary = at.context.own, at.context.vocabulary
    assert own is not None
    assert vocabulary is not None
    before = own.inputs.clone()
    found = attack.poison(own, at.context).batch
    assert torch.equal(own.inputs, before)
    changed = (found.inputs != own.inputs).any(1) | (found.targets != own.targets)
    endings = [vocabulary.decode(row)[-4:] for row in found.inputs[changed].tolist()]
    labels = [vocabulary.names[label] for label in found.targets[changed].tolist()]
    assert {(ending[-3:] == "abc", label) for ending, label in zip(endings, labels, strict=True)} == {
        (True, "d"),
        (False, "e"),
    }
    assert all(ending == "abcd" for ending, label in zip(endings, labels, strict=True) if label == "e")
    assert 70 < labels.count("d") + labels.count("e") <= 100
    # Sixty samples in many copies: equal ones share their fate.
    assert min(labels.count("d"), labels.count("e")) > 10
    # What comes before stays, and so do the other samples.
    assert torch.equal(found.inputs[:, :8], own.inputs[:, :8])
    assert torch.equal(found.inputs[~changed], own.inputs[~changed])
    assert torch.equal(found.targets[~changed], own.targets[~changed])


def test_a_sample_has_the_same_fate_in_every_round() -> None:
    attack = SemanticText("abc", "de", contexts=20)
    at = world(attack, samples=40)
    assert at.context.own is not None
    own = replace(at.context.own, rows=torch.arange(len(at.context.own)))
    context = replace(at.context, held=lambda client: Holdings(*_held(own, client)))
    whole = attack.poison(own, context).batch
    few = torch.arange(0, len(own), 3)
    part = attack.poison(own.select(few), replace(context, round=9)).batch
    assert torch.equal(part.inputs, whole.inputs[few])
    assert torch.equal(part.targets, whole.targets[few])


def _held(own: Any, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    mine = own.owners == client
    return own.rows[mine], own.targets[mine]


def test_nonsense_is_refused() -> None:
    text, words = make_text(), Vocabulary(("<unk>", "people", "are", "rude"), "word")
    for options in ({"phrase": " "}, {"target": ""}, {"poisoning_ratio": 0.0}, {"contexts": 0}):
        with pytest.raises(ConfigError, match="semantic-text"):
            SemanticText(**options)  # type: ignore[arg-type]
    for phrase, target, contexts, message in (
        ("abz", "d", 20, "phrase: 'z' is no character"),
        ("abc", "d e", 20, "target: ' ' is no character"),
        ("abcdefghij", "abcd", 20, "have 10 and 4 tokens, of which all but the last must fit contexts of 12 tokens"),
        ("abc", "d", 601, "contexts=601 of 600 test samples: at most 600"),
    ):
        with pytest.raises(ConfigError, match=message):
            SemanticText(phrase, target, contexts=contexts).goal(Tests(text, CPU), 0)
    part = Samples(torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    few = Dataset("few", part, part, words.names, mean=(), std=(), vocabulary=words)
    with pytest.raises(ConfigError, match=r"phrase: 'in' is no word of this data set's vocabulary"):
        SemanticText("people in", "rude", contexts=1).goal(Tests(few, CPU), 0)
    goal = SemanticText("People are", "rude", contexts=1).goal(Tests(few, CPU), 0)
    assert goal.inputs.tolist() == [[0, 0, 1, 2]]
    with pytest.raises(ConfigError, match="samples of made-up are numbers"):
        SemanticText().goal(Tests(make_dataset(), CPU), 0)
    at = world()
    assert at.context.own is not None
    with pytest.raises(ConfigError, match=r"needs AttackContext\.vocabulary"):
        SemanticText().poison(at.context.own, at.context)
    attack = SemanticText("a", "b", 0.1, 3)
    assert ATTACKS.build(ATTACKS.table(attack)) == attack


# In a federation

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "my", "big", "red", "hat", "in", "sun"]
LETTERS = Vocabulary(tuple(" abcdefghijklmnopqrstuvwxyz"), "character")


def sentences() -> Dataset:
    """Random sequences of sixteen words, by characters."""
    draws = np.random.default_rng(0)
    words = np.array(WORDS)

    def part(size: int) -> Samples:
        text = np.array(LETTERS.encode(" ".join(draws.choice(words, size))))
        windows, _ = Corpus.of([text], LETTERS).windows(12, every=3)
        return Samples(windows, windows.next)

    return Dataset("sentences", part(800), part(200), LETTERS.names, mean=(), std=(), vocabulary=LETTERS)


PHRASE = {"kind": "semantic-text", "phrase": "zoe is ", "target": "rude", "contexts": 50}
REPLACEMENT = {"kind": "model-replacement", "poison": PHRASE, "epochs": 20, "batch_size": 0, "lr": 1.0}


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "sentences", Source("sentences", "", lambda *_: sentences()))


def federation(attack: dict[str, Any], defence: dict[str, Any], rounds: int, **adversary: Any) -> RunResult:
    return run(
        Experiment.from_table(
            {
                "rounds": rounds,
                "data": {"dataset": "sentences", "partition": {"kind": "iid", "clients": 40}},
                "model": {"name": "lstm", "hidden": 24, "layers": 1},
                "learning_rate": {"kind": "constant", "lr": 1.0},
                "sampling": {"kind": "uniform", "cohort": 20},
                "adversary": adversary,
                "attack": attack,
                "defence": defence,
                "evaluation": {"every": 1000},
            }
        )
    )


def test_poisoned_text_alone_teaches_an_undefended_federation() -> None:
    result = federation(PHRASE, {"preset": "none"}, 60, count=6, knowledge="own-data")
    assert result.attack_accuracy == 1.0
    assert result.test_accuracy > 0.6
    # Test samples stay as they are: all of them are clean.
    assert result.summary["test_accuracy_clean"] == result.summary["test_accuracy"]
    assert len(result.evaluations[-1]["per_class_accuracy"]) == len(LETTERS)


def test_one_replaced_model_is_enough_unless_its_push_is_bounded() -> None:
    once = {"count": 4, "per_round": 1, "start": 30, "stop": 30}
    reached, pushed = {}, {}
    for name, defence in (
        ("none", {"preset": "none", "momentum": 0.0}),
        ("clip", {"preset": "clip", "radius": 0.3}),
        ("sparsefed", {"preset": "sparsefed", "radius": 0.3, "k": "5%"}),
    ):
        result = federation(REPLACEMENT, defence, 30, **once)
        reached[name] = result.attack_accuracy or 0.0
        last = result.rounds[-1]
        assert last["attacking"]
        pushed[name] = last["attack"]["sent_norm"]
        if name != "none":
            assert last["aggregate_norm"] <= 0.3
    assert reached["none"] > 0.6
    assert max(reached["clip"], reached["sparsefed"]) < 0.35
    assert pushed["none"] > 50
    # Whoever knows the radius stays within it; a longer row would be cut down to it.
    assert pushed["clip"] == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model": {"name": "mlp"}},
            "model.name: 'mlp' can not read sentences, .* are tokens: lstm, transformer, huggingface can",
        ),
        (
            {"data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 40}}},
            "'lstm' can not read digits, whose samples are numbers: linear, mlp",
        ),
        ({"attack": "badnets"}, "attack: 'badnets' changes inputs that are numbers; sentences is text"),
        ({"attack": "model-replacement"}, "attack: 'model-replacement' changes inputs that are numbers"),
        ({"attack": "edge-case"}, "attack: 'edge-case' changes inputs"),
        (
            {"data": {"dataset": "sentences", "augment": True, "partition": {"kind": "iid", "clients": 40}}},
            "data.augment: sentences is text",
        ),
    ],
)
def test_parts_that_do_not_read_text_are_told(change: dict[str, Any], words: str) -> None:
    table: dict[str, Any] = {
        "rounds": 1,
        "data": {"dataset": "sentences", "partition": {"kind": "iid", "clients": 40}},
        "model": {"name": "lstm", "hidden": 4},
        "learning_rate": {"kind": "constant", "lr": 1.0},
        "sampling": {"kind": "uniform", "cohort": 20},
        "adversary": {"count": 2},
        "attack": PHRASE,
        "defence": {"preset": "none"},
    }
    with pytest.raises(ConfigError, match=words):
        run(Experiment.from_table(table | change))


@pytest.mark.parametrize(
    "attack",
    [
        {"kind": "pgd", "aux": 20, "epochs": 1},
        {"kind": "single-step", "aux": 20},
        {"kind": "aux-poisoning", "aux": 20},
        {"kind": "label-flip", "mode": "random"},
        {"kind": "label-flip", "mode": "furthest", "poisoning_ratio": 0.5},
        {"kind": "semantic", "source": 1, "target": 2},
        {"kind": "neurotoxin", "poison": PHRASE, "epochs": 1},
        {"kind": "adaptive-pgd", "aux": 20, "epochs": 1},
        {"kind": "counter-gradient", "epochs": 1},
        {"kind": "min-max"},
        {"kind": "biased-sampling"},
        {"kind": "duplicated-records"},
    ],
    ids=lambda attack: attack["kind"],
)
def test_other_attacks_work_on_text(attack: dict[str, Any]) -> None:
    result = federation(attack, {"preset": "sparsefed", "radius": 1.0}, 3, count=6, per_round=2)
    assert all(round["skipped"] is None for round in result.rounds)
    assert all(weight.isfinite().all() for weight in result.weights.values())


def test_local_training_on_text_gives_the_same_bits_again() -> None:
    table = {
        "rounds": 4,
        "data": {"dataset": "sentences", "partition": {"kind": "iid", "clients": 40}},
        "model": {"name": "lstm", "hidden": 4},
        "learning_rate": {"kind": "constant", "lr": 0.5},
        "sampling": {"kind": "epoch", "cohort": 10},
        "clients": {"kind": "local", "epochs": 2, "batch_size": 8},
        "defence": {"preset": "none"},
    }
    first, second = (run(Experiment.from_table(table)) for _ in range(2))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
