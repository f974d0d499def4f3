from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.attacks import Batch
from bezoar.attacks._samples import chosen, handed, uniforms
from bezoar.seeding import generator

WORD = 2**64


def batch(sizes: dict[int, int], d: int = 5, seed: int = 0) -> Batch:
    owners = torch.tensor([owner for owner, size in sizes.items() for _ in range(size)])
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(owners), d, generator=draws)
    return Batch(inputs, torch.randint(3, (len(owners),), generator=draws), owners)


def oracle(row: list[float], seed: int, purpose: str) -> float:
    """The same number with Python's integers."""
    factors = torch.randint(-(2**63), 2**63 - 1, (len(row),), generator=generator(seed, purpose)).tolist()
    bits = sum(struct.unpack("<i", struct.pack("<f", x))[0] * f for x, f in zip(row, factors, strict=True)) % WORD
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
    mask = chosen(whole, share, 3, "p")
    for owner, size in sizes.items():
        assert int(mask[whole.owners == owner].sum()) == int(np.floor(share * size + 0.5))
    mixed = list(range(len(whole)))
    order.shuffle(mixed)  # type: ignore[attr-defined]
    assert torch.equal(chosen(whole.select(torch.tensor(mixed)), share, 3, "p"), mask[torch.tensor(mixed)])


def test_a_sample_that_is_chosen_of_all_is_chosen_of_fewer_and_with_larger_shares() -> None:
    whole = batch({0: 50})
    few, many = (chosen(whole, share, 3, "p") for share in (0.2, 0.6))
    assert (many | ~few).all()
    half = whole.select(torch.arange(0, 50, 2))
    assert torch.equal(chosen(half, 1.0, 3, "p"), torch.ones(25, dtype=torch.bool))
    again = chosen(half, 0.6, 3, "p")
    # Of a batch, those that the whole chose come first.
    assert (again & many[::2]).sum() == min(int(again.sum()), int(many[::2].sum()))


def test_among_restricts_the_choice_and_its_count() -> None:
    whole = batch({0: 20, 4: 10})
    among = whole.targets == 1
    for share in (0.5, 1.0):
        mask = chosen(whole, share, 3, "p", among)
        assert not (mask & ~among).any()
        for owner in (0, 4):
            mine = whole.owners == owner
            assert int(mask[mine].sum()) == int(np.floor(share * int((among & mine).sum()) + 0.5))


def test_equal_samples_are_counted_exactly_too() -> None:
    same = Batch(torch.ones(10, 3), torch.zeros(10, dtype=torch.int64), torch.tensor([0] * 6 + [1] * 4))
    mask = chosen(same, 0.5, 0, "p")
    assert mask.tolist() == [True] * 3 + [False] * 3 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_any_number_may_be_in_a_sample(bad: float) -> None:
    whole = batch({0: 10})
    whole.inputs[3] = bad
    assert int(chosen(whole, 0.5, 0, "p").sum()) == 5


def test_handed_samples_go_to_every_client() -> None:
    like = batch({7: 3}, d=2)
    inputs, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])
    given_ = handed(like, inputs, targets, torch.tensor([2, 7, 9]))
    assert given_.owners.tolist() == [2, 2, 7, 7, 9, 9]
    assert given_.targets.tolist() == [1, 0] * 3
    assert given_.inputs.tolist() == inputs.tolist() * 3
