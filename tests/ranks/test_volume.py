"""What ranks send is what the documentation says: the formulas here are those of docs/many-machines.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bezoar.aggregation import (
    NNM,
    Bulyan,
    CenteredClipping,
    Clip,
    Context,
    DnC,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Rule,
    TrimmedMean,
)
from bezoar.attacks import ALIE
from bezoar.ranks import Ranks, longest_first
from bezoar.updates import DenseUpdates, Sharded, Stacked
from tests.ranks.threads import in_ranks

N, D = 12, 5003
BYTES = 4


class Volume:
    """Bytes that leave a rank with ``rows`` of n rows, ``most`` being the largest number on any rank, d columns."""

    def __init__(self, size: int, rows: int, most: int, n: int, d: int, chunk: int = 16384) -> None:
        self.size, self.n, self.d = size, n, d
        #: Columns of each rank: d / R, rounded up.
        self.width = -(-d // size)
        if self.width >= 8 * chunk:
            self.width = -(-self.width // chunk) * chunk
        self.norms = 8 * most * (size - 1)
        self.products = 8 * most * (size - 1)
        self.sum = 2 * BYTES * d * (size - 1) // size
        self.rows = BYTES * rows * self.width * (size - 1)
        self.pairs = 2 * 8 * n * n * (size - 1) // size
        self.join = BYTES * self.width * (size - 1)
        self.column = BYTES * most * (size - 1)


RULES: list[tuple[Rule, Callable[[Volume], int]]] = [
    (Mean(), lambda v: v.norms + v.sum),
    (Clip(1.0) >> Mean(), lambda v: v.norms + v.sum),
    (FLTrust(), lambda v: v.norms + v.products + v.sum),
    (CenteredClipping(radius=1.0, iterations=1), lambda v: v.norms + v.products + v.sum),
    (Krum(f=2), lambda v: v.norms + v.rows + v.pairs + v.sum),
    (MultiKrum(f=2), lambda v: v.norms + v.rows + v.pairs + v.sum),
    (GeometricMedian(), lambda v: v.norms + v.rows + v.pairs + v.sum),
    (NNM(f=2) >> Krum(f=2), lambda v: v.norms + v.rows + v.pairs + v.sum),
    (Median(), lambda v: v.norms + v.rows + v.join),
    (TrimmedMean(f=2), lambda v: v.norms + v.rows + v.join),
    (Clip(1.0) >> TrimmedMean(f=2), lambda v: v.norms + v.rows + v.join),
    (NNM(f=2) >> TrimmedMean(f=2), lambda v: v.norms + v.rows + v.pairs + v.join),
    (Bulyan(f=2), lambda v: v.norms + v.rows + v.pairs + v.join),
    (DnC(f=2, iterations=2, columns=100), lambda v: v.norms + 2 * 100 * v.column + v.sum),
]


def rows() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def sharded(ranks: Ranks, owners: torch.Tensor) -> Sharded:
    mine = (owners == ranks.rank).nonzero().flatten()
    local = DenseUpdates(rows()[mine], mine) if len(mine) else None
    return Sharded(local, torch.arange(N), owners, ranks, torch.zeros(D))


@pytest.mark.parametrize(("rule", "formula"), RULES, ids=[repr(rule) for rule, _ in RULES])
@pytest.mark.parametrize(("size", "chunk"), [(2, 16384), (3, 16384), (2, 100)])
def test_rules_send_what_the_formula_says(
    rule: Rule, formula: Callable[[Volume], int], size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bezoar.updates.sharded.CHUNK", chunk)
    owners = torch.from_numpy(longest_first(np.array([9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), size))
    lengths = torch.bincount(owners, minlength=size).tolist()
    context = Context(root_gradient=rows().mean(0), last_aggregate=rows().mean(0))

    def sent(ranks: Ranks) -> int:
        rule.aggregate(sharded(ranks, owners), context=context)
        return sum(ranks.sent.values())

    for rank, amount in enumerate(in_ranks(size, sent)):
        assert amount == formula(Volume(size, lengths[rank], max(lengths), N, D, chunk))


def test_an_attack_that_sees_honest_rows_shares_what_the_rule_needs() -> None:
    owners = torch.arange(N) % 2
    clients = torch.tensor([N, N + 1])

    def sent(ranks: Ranks) -> tuple[int, int]:
        view = sharded(ranks, owners)
        vector = ALIE(z=1.0)(view)
        before = sum(ranks.sent.values())
        Krum(f=2).aggregate(Stacked.by_client(view, torch.ones(2, 1), vector[None], clients))
        return before, sum(ranks.sent.values())

    volume = Volume(2, N // 2, N // 2, N, D)
    for before, after in in_ranks(2, sent):
        assert before == volume.norms + volume.rows + volume.join
        # The rows are handed on already; the malicious one is known to all, and its products with the rest are new.
        assert after - before == volume.pairs + volume.products + volume.sum


def test_work_is_dealt_longest_first() -> None:
    sizes = np.array([5, 3, 3, 2, 2, 2, 1])
    assert longest_first(sizes, 3).tolist() == [0, 1, 2, 1, 2, 0, 1]
    draws = np.random.default_rng(0)
    for size in (2, 3):
        every = np.array(list(itertools.product(range(size), repeat=7)))
        for _ in range(20):
            sizes = draws.integers(1, 100, 7)
            busiest = np.bincount(longest_first(sizes, size), sizes, minlength=size).max()
            best = np.stack([(every == rank) @ sizes for rank in range(size)]).max(0).min()
            assert best <= busiest <= (4 / 3 - 1 / (3 * size)) * best
