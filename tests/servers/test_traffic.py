"""Bytes up and down, against clients that really hold copies of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.servers import SGD, FetchSGD, SparseFed, Traffic
from bezoar.servers.traffic import dense, fetch_, move_, open_ledger, sparse


def test_dense_both_ways_by_default() -> None:
    assert SGD().traffic(10) == Traffic(up=40, down=40)


@pytest.mark.parametrize(("k", "down"), [(1, 8), (4, 32), (5, 40), (10, 40), ("30%", 24)])
def test_sparsefed_fetches_pairs_or_the_model(k: int | str, down: int) -> None:
    assert SparseFed(k=k).traffic(10) == Traffic(up=40, down=down)


def test_fetchsgd_sends_its_cells() -> None:
    assert FetchSGD(k=2, rows=3, columns=2).traffic(10) == Traffic(up=4 * 3 * 2, down=16)


#: d, clients, and rounds: a cohort and the coordinates that move (None: the round is skipped, "all": a dense step).
PLANS = st.integers(1, 12).flatmap(
    lambda d: st.tuples(
        st.just(d),
        st.lists(
            st.tuples(
                st.sets(st.integers(0, 5), min_size=1),
                st.one_of(st.none(), st.just("all"), st.sets(st.integers(0, d - 1), min_size=1)),
            ),
            min_size=1,
            max_size=12,
        ),
    )
)


@settings(max_examples=200, deadline=None)
@given(PLANS)
def test_a_client_fetches_exactly_what_it_does_not_hold(plan: tuple[int, list[Any]]) -> None:
    d, rounds = plan
    model: list[int] = [0] * d
    versions: dict[int, list[int]] = {}
    ledger = open_ledger(d, 6, len(rounds))
    for t, (cohort, moves) in enumerate(rounds, start=1):
        clients = sorted(cohort)
        fetched = fetch_(ledger, torch.tensor(clients), t).tolist()
        for client, amount in zip(clients, fetched, strict=True):
            if client not in versions:
                assert amount == 4 * d
            else:
                missing = sum(a != b for a, b in zip(model, versions[client], strict=True))
                assert amount == min(8 * missing, 4 * d)
            versions[client] = list(model)
        if moves is None:
            continue
        index = None if moves == "all" else torch.tensor(sorted(moves))
        for place in range(d) if index is None else index.tolist():
            model[place] = t
        move_(ledger, index, t)
        assert int(ledger["counts"].sum()) == d
        assert (ledger["counts"] >= 0).all()


def test_a_coordinate_that_moved_twice_is_fetched_once() -> None:
    ledger = open_ledger(100, 2, 3)
    assert fetch_(ledger, torch.tensor([0, 1]), 1).tolist() == [400, 400]
    move_(ledger, torch.tensor([3, 7]), 1)
    assert fetch_(ledger, torch.tensor([1]), 2).tolist() == [16]
    move_(ledger, torch.tensor([7, 9]), 2)
    assert fetch_(ledger, torch.tensor([0, 1]), 3).tolist() == [24, 16]


def test_counts_do_not_overflow_in_large_models() -> None:
    d = 2**28
    assert sparse(d, d) == dense(d) == 2**30
    ledger = {
        "moved": torch.zeros(1, dtype=torch.int32).expand(d),
        "counts": torch.tensor([0, d - 1, 1]),
        "seen": torch.tensor([1, 2], dtype=torch.int32),
    }
    assert fetch_(ledger, torch.tensor([0, 1]), 2).tolist() == [2**30, 8]
