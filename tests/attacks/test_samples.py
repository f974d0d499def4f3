from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.attacks import (
    ATTACKS,
    DBA,
    AttackContext,
    BadNets,
    Batch,
    BiasedSampling,
    DataAttack,
    DuplicatedRecords,
    LabelFlip,
    LabelNoise,
    MislabelledClass,
    MissingFeatures,
    Poisoned,
)
from bezoar.attacks._samples import chosen, handed, uniforms, uniforms_of_rows
from bezoar.attacks.base import Holdings
from bezoar.experiments import Experiment, run
from bezoar.seeding import derive, generator
from tests.attacks.context import world

WORD = 2**64


def batch(sizes: dict[int, int], d: int = 5, seed: int = 0) -> Batch:
    owners = torch.tensor([owner for owner, size in sizes.items() for _ in range(size)])
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(owners), d, generator=draws)
    return Batch(inputs, torch.randint(3, (len(owners),), generator=draws), owners)


def pick(samples: Batch, share: float, seed: int, purpose: str, among: Any = None, **known: Any) -> torch.Tensor:
    return chosen(samples, share, replace(world().context, seed=seed, **known), purpose, among)


def oracle(row: list[float], seed: int, purpose: str) -> float:
    """The same number with Python's integers."""
    factors = torch.randint(-(2**63), 2**63 - 1, (len(row),), generator=generator(seed, purpose)).tolist()
    draws = generator(seed, purpose)
    torch.randint(-(2**63), 2**63 - 1, (len(row),), generator=draws)
    offset = int(torch.randint(-(2**63), 2**63 - 1, (), generator=draws))
    bits = sum(struct.unpack("<i", struct.pack("<f", x))[0] * f for x, f in zip(row, factors, strict=True)) + offset
    return finalised(bits)


def row_oracle(row: int, seed: int, purpose: str) -> float:
    return finalised(row * 0x9E3779B97F4A7C15 + derive(seed, purpose))


def finalised(bits: int) -> float:
    bits %= WORD
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % WORD
    return ((bits ^ (bits >> 31)) >> 11) / 2**53


def test_numbers_of_samples_agree_with_python_integers() -> None:
    inputs = batch({0: 40}).inputs
    assert uniforms(inputs, 4, "x").tolist() == [oracle(row, 4, "x") for row in inputs.tolist()]


def test_numbers_are_uniform_and_streams_differ() -> None:
    # Bytes of an image: few values, many zeros.
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 4, (4000, 1, 6, 6), generator=draws).float() / 3 - 0.5
    numbers = uniforms(images, 0, "a")
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    # Chi-squared with 9 degrees of freedom: above 35 once in 10,000 seeds.
    assert ((counts - 400) ** 2 / 400).sum() < 35
    assert abs(np.corrcoef(numbers, uniforms(images, 0, "b"))[0, 1]) < 0.08
    assert abs(np.corrcoef(numbers, uniforms(images, 1, "a"))[0, 1]) < 0.08


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(0, 9), st.integers(1, 12), min_size=1, max_size=4),
    share=st.floats(0, 1),
    order=st.randoms(use_true_random=False),
)
def test_shares_are_exact_and_do_not_depend_on_order(sizes: dict[int, int], share: float, order: object) -> None:
    whole = batch(sizes)
    mask = pick(whole, share, 3, "p")
    for owner, size in sizes.items():
        assert int(mask[whole.owners == owner].sum()) == int(np.floor(share * size + 0.5))
    mixed = list(range(len(whole)))
    order.shuffle(mixed)  # type: ignore[attr-defined]
    assert torch.equal(pick(whole.select(torch.tensor(mixed)), share, 3, "p"), mask[torch.tensor(mixed)])


def test_a_sample_that_is_chosen_of_all_is_chosen_of_fewer_and_with_larger_shares() -> None:
    whole = batch({0: 50})
    few, many = (pick(whole, share, 3, "p") for share in (0.2, 0.6))
    assert (many | ~few).all()
    half = whole.select(torch.arange(0, 50, 2))
    assert torch.equal(pick(half, 1.0, 3, "p"), torch.ones(25, dtype=torch.bool))
    again = pick(half, 0.6, 3, "p")
    # Of a batch, those that the whole chose come first.
    assert (again & many[::2]).sum() == min(int(again.sum()), int(many[::2].sum()))


def test_among_restricts_the_choice_and_its_count() -> None:
    whole = batch({0: 20, 4: 10})
    among = whole.targets == 1
    for share in (0.5, 1.0):
        mask = pick(whole, share, 3, "p", lambda owner, targets: targets == 1)
        assert not (mask & ~among).any()
        for owner in (0, 4):
            mine = whole.owners == owner
            assert int(mask[mine].sum()) == int(np.floor(share * int((among & mine).sum()) + 0.5))


def test_equal_samples_are_counted_exactly_too() -> None:
    same = Batch(torch.ones(10, 3), torch.zeros(10, dtype=torch.int64), torch.tensor([0] * 6 + [1] * 4))
    mask = pick(same, 0.5, 0, "p")
    assert mask.tolist() == [True] * 3 + [False] * 3 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_any_number_may_be_in_a_sample(bad: float) -> None:
    whole = batch({0: 10})
    whole.inputs[3] = bad
    assert int(pick(whole, 0.5, 0, "p").sum()) == 5


def test_samples_of_zeros_have_numbers_of_their_seed() -> None:
    found = {float(uniforms(torch.zeros(1, 4), seed, "x")[0]) for seed in range(50)}
    assert len(found) == 50
    assert max(found) - min(found) > 0.7


def test_numbers_of_rows_agree_with_python_integers_and_are_uniform() -> None:
    rows = np.arange(60_000)
    found = uniforms_of_rows(rows, 4, "x")
    assert found[::1000].tolist() == [row_oracle(row, 4, "x") for row in range(0, 60_000, 1000)]
    counts = np.histogram(found, bins=10, range=(0, 1))[0]
    assert ((counts - 6000) ** 2 / 6000).sum() < 35
    assert abs(np.corrcoef(found, uniforms_of_rows(rows, 5, "x"))[0, 1]) < 0.02
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.02


#: Clients and the rows that they hold; 30 is a sybil with the rows of client 2.
HELD = {2: list(range(100, 137)), 5: [7, 300, 8, 5], 30: list(range(100, 137))}


def class_of(row: int) -> int:
    return row * row % 10


def held(client: int) -> Holdings:
    rows = torch.tensor(HELD[client])
    return Holdings(rows, rows.square() % 10)


def of_rows(owned: dict[int, list[int]], change: float = 0.0) -> Batch:
    """The samples at these rows of their owners, with inputs that look different for another ``change``."""
    rows = torch.tensor([row for some in owned.values() for row in some])
    owners = torch.tensor([owner for owner, some in owned.items() for _ in some])
    inputs = torch.randn(1000, 1, 6, 6, generator=torch.Generator().manual_seed(2))[rows] + change
    return Batch(inputs, rows.square() % 10, owners, rows)


def expected(client: int, share: float, purpose: str, among: Callable[[int], bool] = lambda row: True) -> set[int]:
    rows = [row for row in HELD[client] if among(row)]
    return set(sorted(rows, key=lambda row: row_oracle(row, 3, purpose))[: int(share * len(rows) + 0.5)])


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.01, 1), size=st.integers(1, 37), seed=st.integers(0, 10**6))
def test_of_any_part_those_are_chosen_that_all_would_have(share: float, size: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    owned = {c: draws.choice(rows, min(size, len(rows)), replace=False).tolist() for c, rows in HELD.items()}
    samples = of_rows(owned, change=float(draws.normal()))
    mask = pick(samples, share, 3, "p", held=held)
    odd = pick(samples, share, 3, "p", lambda owner, targets: targets % 2 == 1, held=held)
    for owner, row, one, two in zip(samples.owners.tolist(), samples.rows.tolist(), mask, odd, strict=True):  # type: ignore[union-attr]
        assert bool(one) == (row in expected(owner, share, "p"))
        assert bool(two) == (row in expected(owner, share, "p", lambda row: class_of(row) % 2 == 1))


def test_made_up_samples_are_chosen_by_their_content_among_themselves() -> None:
    samples = of_rows({2: HELD[2][:20]})
    assert samples.rows is not None
    made_up = torch.arange(20) % 2 == 0
    mixed = replace(samples, rows=torch.where(made_up, -1, samples.rows))
    mask = pick(mixed, 0.3, 3, "p", held=held)
    alone = replace(samples, rows=None).select(made_up)
    assert torch.equal(mask[made_up], pick(alone, 0.3, 3, "p", held=held))
    assert int(mask[made_up].sum()) == 3
    assert torch.equal(mask[~made_up], pick(samples, 0.3, 3, "p", held=held)[~made_up])


def test_where_holdings_are_not_known_rows_are_counted_in_the_batch() -> None:
    samples = of_rows({2: HELD[2]})
    mask = pick(samples, 0.4, 3, "p")
    assert torch.equal(mask, pick(of_rows({2: HELD[2]}, change=1.0), 0.4, 3, "p"))
    assert {row for row, one in zip(HELD[2], mask.tolist(), strict=True) if one} == expected(2, 0.4, "p")


def fates(attack: DataAttack, size: int, rounds: int) -> dict[tuple[int, int], set[Any]]:
    """What becomes of every (client, row) in rounds of mini-batches with inputs that never look the same."""
    seen: dict[tuple[int, int], set[Any]] = defaultdict(set)
    for t in range(1, rounds + 1):
        draws = np.random.default_rng(t)
        owned = {c: draws.choice(rows, min(size, len(rows)), replace=False).tolist() for c, rows in HELD.items()}
        before = of_rows(owned, change=float(draws.normal()))
        clients = torch.tensor(list(HELD))
        at = replace(world().context, round=t, seed=3, held=held, own=before, clients=clients, classes=10)
        after = attack.poison(before, at).batch
        assert after.rows is not None
        for i, (client, row) in enumerate(zip(before.owners.tolist(), before.rows.tolist(), strict=True)):  # type: ignore[union-attr]
            same = ((after.rows == row) & (after.owners == client)).nonzero().flatten()
            labels = after.targets[same].tolist()
            changed = bool(len(same)) and not torch.equal(after.inputs[same[0]], before.inputs[i])
            seen[client, row].add((tuple(labels), changed))
    return seen


ATTACKS_OF_SAMPLES: list[tuple[DataAttack, float, str]] = [
    (LabelFlip("next", poisoning_ratio=0.3), 0.3, "flipped samples"),
    (BadNets(target=9, poisoning_ratio=0.3), 0.3, "poisoned samples"),
    (DBA(target=9, poisoning_ratio=0.3, parts=2, length=1), 0.3, "poisoned samples"),
    (LabelNoise(0.25), 0.25, "label noise"),
    (MissingFeatures(features=(0, 3), ratio=0.5), 0.5, "missing features, samples"),
    (DuplicatedRecords(0.2, 2), 0.2, "duplicated records"),
]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(("attack", "share", "purpose"), ATTACKS_OF_SAMPLES, ids=lambda value: str(value)[:20])
def test_fates_never_change_and_shares_are_exact(attack: DataAttack, share: float, purpose: str, size: int) -> None:
    seen = fates(attack, size, {1: 300, 2: 150, 5: 80, 100: 3}[size])
    assert len(seen) == sum(map(len, HELD.values()))
    assert all(len(fate) == 1 for fate in seen.values())
    for client, rows in HELD.items():
        hit = {row for row in rows if next(iter(seen[client, row])) != ((class_of(row),), False)}
        assert hit == expected(client, share, purpose)
    assert all(seen[2, row] == seen[30, row] for row in HELD[2])


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_class_s_share_is_of_all_that_the_client_holds_of_it(size: int) -> None:
    seen = fates(MislabelledClass(6, 3, ratio=0.5), size, {1: 300, 5: 80, 100: 2}[size])
    for client, rows in HELD.items():
        hit = {row for row in rows if seen[client, row] == {((3,), False)}}
        assert hit == expected(client, 0.5, "mislabelled", lambda row: class_of(row) == 6)
    assert all(len(fate) == 1 for fate in seen.values())


@pytest.mark.parametrize("size", [5, 100])
def test_a_favoured_class_is_drawn_from_all_that_the_client_holds(size: int) -> None:
    attack = BiasedSampling(keep=0.2)
    # A client of whom nothing would be left keeps a sample, which none of many samples is needed for.
    seen = fates(attack, size, {5: 80, 100: 2}[size])
    for client, rows in HELD.items():
        classes = sorted({class_of(row) for row in rows})
        like = classes[int(torch.randint(len(classes), (), generator=generator(3, "favoured class", client)))]
        few = expected(client, 0.2, "biased sampling", lambda row, like=like: class_of(row) != like)  # type: ignore[misc]
        for row in rows:
            if class_of(row) == like or row in few:
                assert seen[client, row] == {((class_of(row),), False)}
            elif size == 100:
                assert seen[client, row] == {((), False)}


def test_all_flipped_needs_no_numbers_and_stays_what_it_was() -> None:
    samples = of_rows({2: HELD[2][:9], 5: HELD[5]})
    at = replace(world().context, held=held)
    after = LabelFlip().poison(samples, at).batch
    assert torch.equal(after.targets, 9 - samples.targets)


DIGITS: dict[str, Any] = {
    "seed": 3,
    "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 60}},
    "model": {"name": "linear"},
    "learning_rate": {"kind": "constant", "lr": 0.01},
    "sampling": {"kind": "uniform", "cohort": 60},
    "defence": {"pipeline": ["mean"], "server": {"kind": "sgd", "momentum": 0.0}},
    "adversary": {"count": 3, "sybils": 2},
}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("kind", ["label-flip", "label-noise"])
def test_a_run_with_mini_batches_poisons_the_exact_share(
    kind: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 240 // batch_size
    option = {"poisoning_ratio": 0.3, "mode": "next"} if kind == "label-flip" else {"ratio": 0.3}
    experiment = Experiment.from_table(
        {
            **DIGITS,
            "rounds": rounds,
            "evaluation": {"every": rounds},
            "clients": {"kind": "gradient", "batch_size": batch_size},
            "attack": {"kind": kind, **option},
        }
    )
    seen: dict[tuple[int, int], set[tuple[int, bool]]] = defaultdict(set)
    all_rows: dict[int, list[int]] = {}
    attack = type(ATTACKS.build({"kind": kind, **option}))
    poison = attack.poison  # type: ignore[attr-defined]

    def watched(self: DataAttack, before: Batch, context: AttackContext) -> Poisoned:
        answer: Poisoned = poison(self, before, context)
        assert context.held is not None
        all_rows.update({client: context.held(client).rows.tolist() for client in context.clients.tolist()})
        for i in range(len(before)):
            label, new = int(before.targets[i]), int(answer.batch.targets[i])
            seen[int(before.owners[i]), int(before.rows[i])].add((new, new != label))  # type: ignore[index]
        return answer

    monkeypatch.setattr(attack, "poison", watched)
    run(experiment)
    assert all(len(fate) == 1 for fate in seen.values())
    whole = 0
    assert sorted(all_rows) == sorted({client for client, _ in seen})
    for client, rows in all_rows.items():
        known = [row for row in rows if (client, row) in seen]
        hit = {row for row in known if next(iter(seen[client, row]))[1]}
        count = int(0.3 * len(rows) + 0.5)
        assert hit <= set(sorted(rows, key=lambda row: row_oracle(row, 3, PURPOSES[kind]))[:count])
        if len(known) == len(rows):
            whole += 1
            assert len(hit) == count
    assert whole >= 3
    by_row = defaultdict(set)
    for (_, row), fate in seen.items():
        by_row[row] |= fate
    assert all(len(fate) == 1 for fate in by_row.values())


PURPOSES = {"label-flip": "flipped samples", "label-noise": "label noise"}


def test_handed_samples_go_to_every_client() -> None:
    like = batch({7: 3}, d=2)
    inputs, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])
    given_ = handed(like, inputs, targets, torch.tensor([2, 7, 9]))
    assert given_.owners.tolist() == [2, 2, 7, 7, 9, 9]
    assert given_.targets.tolist() == [1, 0] * 3
    assert given_.inputs.tolist() == inputs.tolist() * 3
