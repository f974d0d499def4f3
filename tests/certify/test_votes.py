from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.certify import ABSTAINED, Certified, count_votes
from bezoar.certify.votes import label_bounds, leads, majority, share_bounds
from bezoar.errors import ConfigError


def tail(hits: int, total: int, share: float) -> float:
    """P(at least ``hits`` of ``total``) by summing exact terms."""
    return math.fsum(math.comb(total, i) * share**i * (1 - share) ** (total - i) for i in range(hits, total + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.data(), st.sampled_from([0.05, 1e-3, 1e-7]))
def test_clopper_pearson_is_where_the_tail_is_alpha(total: int, data: st.DataObject, alpha: float) -> None:
    hits = data.draw(st.integers(0, total))
    lower, upper = (float(bound[0]) for bound in share_bounds(np.array([hits]), total, alpha))
    assert 0 <= lower <= hits / total <= upper <= 1
    if hits:
        assert tail(hits, total, lower) == pytest.approx(alpha, rel=1e-6)
        assert tail(hits, total, lower) <= alpha * (1 + 1e-9)
    else:
        assert lower == 0
    if hits < total:
        assert 1 - tail(hits + 1, total, upper) == pytest.approx(alpha, rel=1e-6, abs=1e-12)
    else:
        assert upper == 1


def test_upper_bounds_near_one_are_not_rounded_below_it() -> None:
    for total, alpha in ((7, 5e-9), (100, 1e-14), (1000, 1e-14)):
        _, upper = share_bounds(np.array([total - 1]), total, alpha)
        # The probability of at most total - 1 hits, exactly.
        assert 1 - Fraction(float(upper[0])) ** total <= Fraction(alpha)


def test_bounds_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.6, 0.3, 0.1])
    counts = rng.multinomial(50, shares, size=20_000).astype(np.int64)
    labels = majority(counts)
    alpha = 0.2
    least, most = label_bounds(counts, labels, alpha, joint=False)
    wrong = least > shares[labels]
    for rival in range(3):
        wrong |= (labels != rival) & (most[:, rival] < shares[rival])
    assert 0.01 < wrong.mean() < alpha


def test_joint_bounds_are_those_of_a_smaller_alpha() -> None:
    counts = np.array([[30, 10], [25, 15], [40, 0], [21, 19]])
    labels = majority(counts)
    joint = label_bounds(counts, labels, 0.04, joint=True)
    single = label_bounds(counts, labels, 0.01, joint=False)
    for a, b in zip(joint, single, strict=True):
        assert np.array_equal(a, b)


def test_a_rival_has_no_more_than_what_the_label_leaves() -> None:
    counts = np.array([[999, 1]])
    least, most = label_bounds(counts, np.array([0]), 0.001, joint=False)
    assert most[0, 1] == pytest.approx(1 - least[0])
    assert most[0, 1] >= 1 - least[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=5))
def test_leads_say_how_much_may_be_lost(counts: list[int]) -> None:
    given_counts = np.array([counts])
    label = int(majority(given_counts)[0])
    lead = leads(given_counts, majority(given_counts))[0]
    for rival in range(len(counts)):
        if rival == label:
            continue
        for spent in range(2 * sum(counts) + 2):
            # The lead shrinks by one a unit; the label wins ties against higher indices.
            gap = counts[label] - counts[rival] - spent
            wins = gap > 0 or (gap == 0 and label < rival)
            assert wins == (spent <= lead[rival])


def test_counting_by_hand_and_ties_to_the_lowest() -> None:
    counts = count_votes(np.array([[2, 0], [1, 0], [2, 1], [1, 1]]), classes=3)
    assert counts.tolist() == [[0, 2, 2], [2, 2, 0]]
    assert majority(counts).tolist() == [1, 0]


def test_certified_accuracy_counts_right_labels_only() -> None:
    certified = Certified(np.array([0, 1, ABSTAINED, 2]), np.array([3, 0, ABSTAINED, 5]))
    assert certified.accuracy([0, 1, 0, 0]).tolist() == [0.5, 0.25, 0.25, 0.25, 0.0]
    assert certified.accuracy([0, 1, 0, 0], most=1).tolist() == [0.5, 0.25]
    assert certified.accuracy([1, 0, 0, 0]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("votes", "classes", "what"),
    [
        ([[0, 3]], 3, "classes 0..2, got 0..3"),
        ([[0, -1]], 3, "classes 0..2, got -1..0"),
        ([[0.0, 1.0]], 3, "float64"),
        ([[math.nan]], 2, "float64"),
        ([0, 1], 3, "models, points"),
        (np.zeros((0, 4), dtype=int), 3, r"\[0, 4\]"),
        ([[True, False]], 2, "bool"),
        ([[0]], 1, "at least 2"),
    ],
)
def test_votes_that_are_none(votes: object, classes: int, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        count_votes(votes, classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        label_bounds(np.array([[1, 0]]), np.array([0]), alpha, joint=True)


def test_targets_must_fit() -> None:
    certified = Certified(np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(ConfigError, match="one whole number a point"):
        certified.accuracy([0])
    with pytest.raises(ConfigError, match="one whole number a point"):
        certified.accuracy([0.0, 1.0])


def test_certified_accuracy_counts_every_number_of_clients() -> None:
    rng = np.random.default_rng(0)
    labels, malicious = rng.integers(0, 2, 40), rng.integers(-1, 6, 40)
    labels[malicious < 0] = ABSTAINED
    targets = rng.integers(0, 2, 40)
    found = Certified(labels, malicious).accuracy(targets, most=7)
    assert found.tolist() == [((labels == targets) & (malicious >= m)).mean() for m in range(8)]
