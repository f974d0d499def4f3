"""Certified labels survive the worst that can be done: every malicious set, every vote of every model it touches."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.certify import (
    ABSTAINED,
    all_subsets,
    count_votes,
    disjoint_groups,
    exact_ensemble,
    fixed_groups,
    flcert_d,
    random_subsets,
    sampled_ensemble,
)
from bezoar.certify.ensemble import _costs, touched
from bezoar.errors import ConfigError

Groups = list[np.ndarray]


def survives(votes: np.ndarray, groups: Groups, n: int, classes: int, m: int) -> bool:
    """Whether no m clients can change the label of one point, by brute force.

    The best that the models they touch can do against the label y in favour of z is to vote z, all of them; every z is
    tried, so that every vote of those models is covered.
    """
    label = int(np.bincount(votes, minlength=classes).argmax())
    for bad in itertools.combinations(range(n), m):
        hit = np.array([bool(set(group.tolist()) & set(bad)) for group in groups])
        for rival in range(classes):
            if int(np.bincount(np.where(hit, rival, votes), minlength=classes).argmax()) != label:
                return False
    return True


def truth(votes: np.ndarray, groups: Groups, n: int, classes: int) -> int:
    """The largest m for which no m clients can change the label."""
    return next((m - 1 for m in range(1, n + 1) if not survives(votes, groups, n, classes, m)), n)


def test_voting_for_one_rival_is_the_worst_that_touched_models_can_do() -> None:
    """The oracle above leaves out mixed votes; here none are."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        votes = rng.integers(0, 3, 6)
        hit = rng.random(6) < 0.4
        label = int(np.bincount(votes, minlength=3).argmax())
        changed = []
        for chosen in itertools.product(range(3), repeat=int(hit.sum())):
            mixed = votes.copy()
            mixed[hit] = chosen
            changed.append(int(np.bincount(mixed, minlength=3).argmax()) != label)
        pure = [int(np.bincount(np.where(hit, z, votes), minlength=3).argmax()) != label for z in range(3)]
        assert any(changed) == any(pure)


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (5, 2), (5, 3), (6, 2), (5, 5)])
def test_certified_by_all_subsets_survives_every_malicious_set(n: int, k: int) -> None:
    groups = all_subsets(n, k)
    rng = np.random.default_rng(10 * n + k)
    held = 0
    for _ in range(60):
        votes = rng.choice(3, size=len(groups), p=rng.dirichlet([0.4] * 3))
        certified = int(exact_ensemble(count_votes(votes[:, None], 3), n, k).malicious[0])
        assert survives(votes, groups, n, 3, certified)
        held += certified
    assert (held > 0) == (2 * touched(n, k, 1) <= len(groups))


@pytest.mark.parametrize(("n", "k"), [(4, 1), (5, 2), (6, 2), (6, 3)])
def test_no_certificate_from_counts_promises_more(n: int, k: int) -> None:
    """For every division of the votes between two classes, one more client than certified breaks some assignment."""
    groups = all_subsets(n, k)
    total = len(groups)
    for y in range((total + 1) // 2, total + 1):
        certified = int(exact_ensemble([[y, total - y]], n, k).malicious[0])
        bad = set(range(min(n, certified + 1)))
        # The votes for the label lie where the malicious clients are.
        order = sorted(range(total), key=lambda j: not bad & set(groups[j].tolist()))
        votes = np.ones(total, dtype=np.int64)
        votes[order[:y]] = 0
        if np.bincount(votes, minlength=2).argmax() == 0:
            assert not survives(votes, groups, n, 2, len(bad))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 4), st.data())
def test_flcert_d_is_exact(models: int, classes: int, data: st.DataObject) -> None:
    votes = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=models, max_size=models)))
    certified = int(flcert_d(count_votes(votes[:, None], classes)).malicious[0])
    # One client a group: no group can be touched more cheaply.
    alone = [np.array([j]) for j in range(models)]
    assert fixed_groups(votes[:, None], alone, models, classes).malicious[0] == certified
    if models <= 8:
        assert truth(votes, alone, models, classes) == certified


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_known_groups_survive_every_malicious_set(data: st.DataObject) -> None:
    n, classes = data.draw(st.integers(3, 7)), data.draw(st.integers(2, 3))
    models = data.draw(st.integers(1, 9))
    ids = st.sets(st.integers(0, n - 1), min_size=1, max_size=3)
    groups = [np.array(sorted(data.draw(ids))) for _ in range(models)]
    votes = np.array([data.draw(st.integers(0, classes - 1)) for _ in range(models)])
    certified = int(fixed_groups(votes[:, None], groups, n, classes).malicious[0])
    assert certified <= truth(votes, groups, n, classes)


def test_clients_of_no_group_can_do_nothing() -> None:
    found = fixed_groups([[0], [0], [0]], [[0], [0], [0]], n=4, classes=2)
    assert found.malicious.tolist() == [0]
    # Client 0 alone decides: without it, the three others are free to be malicious, but m counts any clients.
    assert truth(np.zeros(3, dtype=int), [np.array([0])] * 3, 4, 2) == 0


def test_disjoint_groups_with_many_clients_are_as_good_as_with_one() -> None:
    rng = np.random.default_rng(1)
    groups = disjoint_groups(20, 6, seed=3)
    votes = rng.integers(0, 3, (6, 30))
    votes[:4] = 1
    by_groups = fixed_groups(votes, groups, 20, 3).malicious
    assert np.array_equal(by_groups, flcert_d(count_votes(votes, 3)).malicious)
    assert by_groups.max() > 0


def naive(votes: np.ndarray, groups: Groups, n: int, classes: int) -> list[int]:
    """The bound for known groups as it is written: for every point and rival the largest sums over clients."""
    found = []
    for vote in votes.T:
        counts = np.bincount(vote, minlength=classes)
        label = int(counts.argmax())
        held = n
        for rival in set(range(classes)) - {label}:
            weight = 1 + (vote == label).astype(int) - (vote == rival)
            loads = sorted(sum(int(w) for w, g in zip(weight, groups, strict=True) if i in g) for i in range(n))
            spent = np.cumsum(loads[::-1])
            held = min(held, int((spent <= counts[label] - counts[rival] - (rival < label)).sum()))
        found.append(held)
    return found


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 40))
def test_searching_from_the_most_groups_on_changes_nothing(seed: int, first: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    n, models, classes = int(rng.integers(1, 30)), int(rng.integers(1, 25)), int(rng.integers(2, 5))
    groups = [rng.choice(n, rng.integers(1, 1 + rng.integers(1, n + 1)), replace=False) for _ in range(models)]
    if seed % 3 == 0:
        # Many clients of one kind.
        groups = [groups[rng.integers(0, 1 + models // 4)] for _ in range(models)]
    votes = rng.choice(classes, (models, 6), p=rng.dirichlet(np.full(classes, 0.4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bezoar.certify.ensemble._FIRST_KINDS", first)
        patch.setattr("bezoar.certify.ensemble._BLOCK", block)
        assert fixed_groups(votes, groups, n, classes).malicious.tolist() == naive(votes, groups, n, classes)


def test_blocks_of_points_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = np.random.default_rng(2).choice(3, (20, 50), p=[0.7, 0.2, 0.1])
    groups = random_subsets(12, 3, 20, seed=0)
    whole = fixed_groups(votes, groups, 12, 3)
    monkeypatch.setattr("bezoar.certify.ensemble._BLOCK", 12 * 7)
    parts = fixed_groups(votes, groups, 12, 3)
    assert np.array_equal(whole.malicious, parts.malicious)
    assert len(set(whole.malicious.tolist())) > 1


def test_sampled_bounds_are_safe_and_come_near_the_exact_certificate() -> None:
    n, k = 30, 2
    subsets = all_subsets(n, k)
    rng = np.random.default_rng(0)
    tilt = rng.dirichlet([0.3] * 3, size=40)
    votes = np.stack([rng.choice(3, size=len(subsets), p=p) for p in tilt], axis=1)
    exact = exact_ensemble(count_votes(votes, 3), n, k)
    drawn = rng.integers(0, len(subsets), 20_000)
    sampled = sampled_ensemble(count_votes(votes[drawn], 3), n, k, alpha=0.01)
    told = sampled.labels != ABSTAINED
    assert told.mean() > 0.7
    assert (sampled.labels[told] == exact.labels[told]).all()
    assert (sampled.malicious <= exact.malicious).all()
    assert (exact.malicious - sampled.malicious)[told].max() <= 1
    assert sampled.confidence == 0.99


def test_sampled_certificates_are_wrong_at_most_as_often_as_they_say() -> None:
    """Many draws of one ensemble near the edge: how often is more certified than the exact certificate has?"""
    n, k, classes = 6, 2, 2
    subsets = all_subsets(n, k)
    votes = np.array([0] * 10 + [1] * 5)
    exact = int(exact_ensemble([[10, 5]], n, k).malicious[0])
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        drawn = votes[rng.integers(0, len(subsets), 25)]
        found = sampled_ensemble(count_votes(drawn[:, None], classes), n, k, alpha=0.3)
        wrong += int(found.malicious[0]) > exact or int(found.labels[0]) == 1
    assert wrong <= 0.3 * 2000


def test_rounding_to_shares_that_exist() -> None:
    """With all of 200 drawn votes for one class of 6 subsets, the lower bound 0.96 is rounded up to 6 of 6."""
    certified = sampled_ensemble([[200, 0]], 6, 1, alpha=0.001)
    assert certified.malicious.tolist() == exact_ensemble([[6, 0]], 6, 1).malicious.tolist() == [3]
    # The other way round the tie at m = 3 goes to the rival.
    certified = sampled_ensemble([[0, 200]], 6, 1, alpha=0.001)
    assert certified.malicious.tolist() == exact_ensemble([[0, 6]], 6, 1).malicious.tolist() == [2]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_binomials_are_exact(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    costs = _costs(n, k)
    for m, cost in enumerate(costs):
        assert cost == 2 * touched(n, k, m) == 2 * (math.comb(n, k) - math.comb(n - m, k))
    assert costs[-1] > math.comb(n, k)
    share = Fraction(1)
    for i in range(k):
        share *= Fraction(max(0, n - 3 - i), n - i)
    if n >= 3:
        assert 1 - Fraction(touched(n, k, 3), math.comb(n, k)) == share


def test_binomials_of_numpy_integers_do_not_overflow() -> None:
    counts = [[700, 200, 100]]
    for kind in (np.int32, np.int64):
        for n, k in ((62, 31), (80, 20)):
            assert _costs(kind(n), kind(k)) == _costs(n, k)
            found = sampled_ensemble(counts, kind(n), kind(k))
            assert found.malicious.tolist() == sampled_ensemble(counts, n, k).malicious.tolist()


def test_binomials_beyond_floats() -> None:
    n, k = 100_000, 200
    assert math.comb(n, k) > 10**400
    found = sampled_ensemble([[1000, 0, 0], [600, 390, 10]], n, k, alpha=0.001)
    share = 1 - Fraction(math.comb(n - int(found.malicious[0]), k), math.comb(n, k))
    more = 1 - Fraction(math.comb(n - int(found.malicious[0]) - 1, k), math.comb(n, k))
    assert share < Fraction(1, 2) < more + Fraction(1, 50)
    assert found.malicious[0] > found.malicious[1] > 0


def test_drawn_subsets_are_uniform_and_repeatable() -> None:
    drawn = random_subsets(5, 2, 4000, seed=1)
    again = random_subsets(5, 2, 4000, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    counts: dict[tuple[int, ...], int] = {}
    for subset in drawn:
        key = tuple(subset.tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 10
    # Chi-squared with 9 degrees of freedom: 27.9 is the 99.9% quantile.
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 27.9
    # A longer draw goes on where a shorter one ends.
    assert all(np.array_equal(a, b) for a, b in zip(random_subsets(5, 2, 7, seed=1), drawn, strict=False))


def test_groups_are_disjoint_even_and_of_the_seed() -> None:
    groups = disjoint_groups(103, 10, seed=0)
    assert sorted(np.concatenate(groups).tolist()) == list(range(103))
    assert {len(group) for group in groups} == {10, 11}
    assert any(not np.array_equal(a, b) for a, b in zip(groups, disjoint_groups(103, 10, seed=1), strict=True))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: exact_ensemble([[3, 1]], 5, 2), "5 clients have 10 subsets of 2"),
        (lambda: exact_ensemble([[3, 1], [1, 1]], 4, 1), "same number of votes"),
        (lambda: exact_ensemble([[3.0, 1.0]], 4, 1), "whole numbers"),
        (lambda: exact_ensemble([[5, -1]], 4, 1), ">= 0"),
        (lambda: flcert_d([[4]]), "2 classes at least"),
        (lambda: flcert_d(np.zeros((0, 3), dtype=int)), "whole numbers"),
        (lambda: sampled_ensemble([[3, 1]], 5, 6), "k must be in 1..5"),
        (lambda: sampled_ensemble([[3, 1]], 5, 0), "k must be in 1..5"),
        (lambda: sampled_ensemble([[3, 1]], 5, 2, alpha=0.0), "alpha"),
        (lambda: all_subsets(1000, 10), "sample them"),
        (lambda: all_subsets(1400, 700), r"about 10\^419 subsets .* sample them"),
        (lambda: exact_ensemble([[3, 1]], 100_000, 50_000), r"about 10\^30100 subsets"),
        (lambda: random_subsets(5, 2, 0, seed=0), "at least 1"),
        (lambda: touched(5, 2, 6), "0..5"),
        (lambda: disjoint_groups(3, 4, seed=0), "1..3"),
        (lambda: fixed_groups([[0], [1]], [[0]], 2, 2), "there are 1 groups"),
        (lambda: fixed_groups([[0]], [[2]], 2, 2), "0..1"),
        (lambda: fixed_groups([[0]], [[]], 2, 2), "at least one"),
    ],
)
def test_bad_input(call: object, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        call()  # type: ignore[operator]
