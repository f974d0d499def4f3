from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bezoar.clients import CLIENTS, Gradient, LocalSGD, accumulate, check_memory
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates, Needs


def rows(values: Any, ids: list[int]) -> DenseUpdates:
    return DenseUpdates(torch.as_tensor(values, dtype=torch.float32), torch.tensor(ids))


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_momentum_is_a_running_mean_of_each_client(beta: float) -> None:
    rng = np.random.default_rng(0)
    expected = np.zeros((5, 7))
    memory = None
    for _ in range(6):
        ids = sorted(rng.choice(5, rng.integers(1, 6), replace=False).tolist())
        fresh = rng.normal(size=(len(ids), 7)).astype(np.float32)
        expected[ids] = beta * expected[ids] + (1 - beta) * fresh
        before = None if memory is None else memory.clone()
        sent, new = accumulate(rows(fresh, ids), memory, beta, 5)
        assert memory is None or torch.equal(memory, before)
        memory = new
        assert sent.clients.tolist() == ids
        assert np.allclose(sent.values.numpy(), expected[ids], atol=1e-6)
        assert np.allclose(memory.numpy(), expected, atol=1e-6)


def test_the_first_step_is_a_part_of_the_gradient() -> None:
    sent, memory = accumulate(rows([[2.0, 4.0], [1.0, 0.0]], [0, 1]), None, 0.75, 2)
    assert sent.values.tolist() == memory.tolist() == [[0.5, 1.0], [0.25, 0.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_sent_and_forgotten(bad: float) -> None:
    _, memory = accumulate(rows([[1.0, 1.0], [2.0, 2.0]], [0, 1]), None, 0.5, 2)
    sent, after = accumulate(rows([[bad, 1.0], [2.0, 2.0]], [0, 1]), memory, 0.5, 2)
    assert sent.finite().tolist() == [False, True]
    assert after.tolist() == [[0.5, 0.5], [1.5, 1.5]]
    _, first = accumulate(rows([[bad, 1.0], [2.0, 2.0]], [0, 1]), None, 0.5, 2)
    assert first.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_all_at_once_or_in_parts_gives_the_same_bits() -> None:
    draws = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 1000, generator=draws) for _ in range(3)]
    whole = parts = None
    for fresh in values:
        _, whole = accumulate(rows(fresh, [0, 1, 2, 3]), whole, 0.9, 4)
        _, parts = accumulate(rows(fresh[:1], [0]), parts, 0.9, 4)
        _, parts = accumulate(rows(fresh[1:], [1, 2, 3]), parts, 0.9, 4)
    assert whole is not None
    assert parts is not None
    assert torch.equal(whole, parts)


def test_a_part_of_the_clients_is_remembered_as_among_all() -> None:
    draws = torch.Generator().manual_seed(1)
    known, whole, part = torch.tensor([1, 4, 6]), None, None
    for ids in ([1, 4, 6], [4], [1, 6], [1, 4, 6]):
        fresh = torch.randn(len(ids), 5, generator=draws)
        _, whole = accumulate(rows(fresh, ids), whole, 0.9, 7)
        sent, part = accumulate(rows(fresh, ids), part, 0.9, 3, known)
        assert sent.clients.tolist() == ids
        assert torch.equal(whole[known], part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(dtype: torch.dtype) -> None:
    fresh = DenseUpdates(torch.ones(2, 3, dtype=dtype), torch.tensor([0, 1]))
    sent, memory = accumulate(fresh, torch.ones(2, 3, dtype=dtype), 0.5, 2)
    assert sent.dtype == memory.dtype == dtype
    assert memory.tolist() == [[1.0] * 3] * 2


def test_too_much_memory_is_refused_with_advice() -> None:
    check_memory(10, 100, 4, 4000)
    with pytest.raises(ConfigError, match="10 clients x 100 parameters takes 4,000 bytes, more than max_bytes=3,999"):
        check_memory(10, 100, 4, 3999)


@pytest.mark.parametrize("kind", ["gradient", "local"])
@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_is_at_least_zero_and_below_one(kind: str, momentum: float) -> None:
    with pytest.raises(ConfigError, match="momentum must be at least 0 and below 1"):
        CLIENTS[kind](momentum=momentum)
    with pytest.raises(ConfigError, match="batch_size"):
        CLIENTS[kind](batch_size=-1)  # type: ignore[call-arg]


def test_tables_round_trip_and_leave_new_defaults_out() -> None:
    assert CLIENTS.table(Gradient()) == {"kind": "gradient", "method": "auto"}
    assert set(CLIENTS.table(LocalSGD())) == {"kind", "epochs", "batch_size", "server_lr_factor", "max_bytes"}
    for clients in (
        Gradient("loop", 8, momentum=0.9),
        LocalSGD(2, 4, momentum=0.5, max_bytes=7),
        Gradient(max_bytes=9),
    ):
        assert CLIENTS.build(CLIENTS.table(clients)) == clients


def test_minibatches_are_drawn_by_client_and_round() -> None:
    owners = np.repeat([2, 5, 9], [6, 2, 30])
    samples = np.arange(100, 138)
    kept, whose = Gradient(batch_size=4).chosen(samples, owners, seed=1, round=3)
    assert whose.tolist() == [2] * 4 + [5] * 2 + [9] * 4
    assert len(set(kept.tolist())) == 10
    assert (owners[kept - 100] == whose).all()
    # A client's draw depends on nobody else.
    alone, _ = Gradient(batch_size=4).chosen(samples[8:], owners[8:], seed=1, round=3)
    assert alone.tolist() == kept[6:].tolist()
    # Two clients with as many samples draw each their own.
    equal, _ = Gradient(batch_size=4).chosen(np.arange(60), np.repeat([0, 1], 30), seed=1, round=3)
    assert equal[:4].tolist() != (equal[4:] - 30).tolist()
    for seed, round in ((1, 4), (2, 3)):
        assert Gradient(batch_size=4).chosen(samples, owners, seed, round)[0].tolist() != kept.tolist()
    for every in (Gradient(), LocalSGD(batch_size=4)):
        assert every.chosen(samples, owners, 1, 3)[0] is samples


def test_minibatches_are_uniform() -> None:
    owners, samples = np.zeros(6, dtype=np.int64), np.arange(6)
    counts = np.zeros(6)
    for round in range(600):
        counts[Gradient(batch_size=2).chosen(samples, owners, 0, round)[0]] += 1
    assert abs(counts - 200).max() < 60


def test_what_updates_can_be_asked_for_depends_on_the_memory_they_may_take() -> None:
    assert Needs.LAYOUT in Gradient().offers(1000, 10**9)
    assert LocalSGD(max_bytes=1).offers(10, 100) == ~Needs.NONE
    trained = LocalSGD(epochs=2, max_bytes=1000)
    assert trained.offers(10, 100) == ~Needs.NONE
    assert trained.offers(10, 101) == Needs.NORMS | Needs.DOT
