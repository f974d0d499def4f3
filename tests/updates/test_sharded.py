"""Rows on several ranks (threads here) answer as the plain matrix does, and every rule with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bezoar.aggregation import Aggregate, Krum, Mean, Median, Rule
from bezoar.attacks import ATTACKS, UpdateAttack
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.ranks import Ranks
from bezoar.updates import DenseUpdates, Layout, Mixed, Sharded, Shifted, Stacked, Updates, client_gradients
from bezoar.updates.gradients import layout_of as layout_of_model
from bezoar.updates.streamed import StreamedUpdates
from tests.aggregation.test_contract import RULE_LIST, D, ask, held, honest, layout_of, remembering
from tests.ranks.threads import in_ranks
from tests.updates.oracle import check_against, close

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def matrix(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dealt(n: int, size: int) -> Tensor:
    """Owners in no order; with more ranks than rows some have none."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(n)) * 7 % size


def sharded(rows: Tensor, ranks: Ranks, layout: Layout = (), clients: Tensor | None = None) -> Sharded:
    clients = torch.arange(len(rows)) if clients is None else clients
    owners = dealt(len(rows), ranks.size)
    mine = owners == ranks.rank
    local = DenseUpdates(rows[mine], clients[mine], layout) if mine.any() else None
    return Sharded(local, clients, owners, ranks, rows[0], layout)


def equal_on_all(answers: list[Any]) -> Any:
    """The answer, which must be the same on all ranks, bit by bit."""
    for answer in answers[1:]:
        assert same_bits(answers[0], answer)
    return answers[0]


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(nan=1.5), other.nan_to_num(nan=1.5))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same_bits, one, other))
    if isinstance(one, Aggregate):
        return same_bits(vars(one), vars(other))
    return bool(one == other)


def in_all(size: int, action: Callable[[Ranks], Any]) -> Any:
    return equal_on_all(in_ranks(size, action))


# Every answer


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "d", "size"), [(1, 1, 2), (5, 40, 2), (7, 41, 4), (3, 2, 5)])
def test_answers_agree_with_brute_force(n: int, d: int, size: int, dtype: torch.dtype) -> None:
    rows, clients = matrix(n, d, dtype), torch.arange(n) * 3
    in_ranks(size, lambda ranks: check_against(sharded(rows, ranks, clients=clients), rows, TOLERANCE[dtype]))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wrapped_rows_agree_with_brute_force(dtype: torch.dtype) -> None:
    rows, mixing = matrix(6, 90, dtype), matrix(4, 6, seed=1)
    vector = matrix(1, 90, dtype, seed=2)[0]
    coefficients, basis = matrix(2, 2, seed=3), matrix(2, 90, dtype, seed=4)
    below = torch.cat([rows.double(), coefficients @ basis.double()])

    def check(ranks: Ranks) -> None:
        plain = sharded(rows, ranks)
        check_against(Mixed(plain, mixing), mixing @ rows.double(), TOLERANCE[dtype] * 4)
        check_against(Shifted(plain, vector), rows.double() + vector.double(), TOLERANCE[dtype] * 20)
        check_against(Stacked(plain, coefficients, basis), below, TOLERANCE[dtype] * 4)

    in_ranks(2, check)


@pytest.mark.parametrize("d", [1500, 2048, 1537])
def test_wide_rows_are_dealt_in_many_stripes_and_windows(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bezoar.updates.sharded.CHUNK", 16)
    monkeypatch.setattr("bezoar.updates.sharded.BLOCK_BYTES", 3 * 2 * 16 * 7 * 4)
    rows = matrix(7, d, torch.float32)

    def check(ranks: Ranks) -> tuple[Tensor, Tensor]:
        for u in (sharded(rows, ranks), Mixed(sharded(rows, ranks), torch.eye(7))):
            found = torch.full_like(rows, torch.nan)
            for block in u.share(600):
                found[:, block.start : block.stop] = block.values
            assert len(sharded(rows, ranks).spread.own) > 40  # type: ignore[attr-defined]
            joined = torch.stack([u.spread.join(row) for row in found])
            assert torch.equal(joined, rows)
        return sharded(rows, ranks).gram(), torch.cat([b.values for b in sharded(rows, ranks).blocks(2000)], 1)

    gram, whole = in_all(2, check)
    assert torch.equal(whole, rows)
    torch.testing.assert_close(gram, rows.double() @ rows.double().T, rtol=1e-5, atol=1e-3)


@given(st.integers(1, 9), st.integers(1, 60), st.integers(2, 4), st.integers(0, 3))
@settings(max_examples=30)
def test_shares_make_up_all_columns(n: int, d: int, size: int, seed: int) -> None:
    rows = matrix(n, d, seed=seed)

    def assemble(ranks: Ranks) -> tuple[Tensor, Tensor]:
        u = sharded(rows, ranks)
        vector, sums = torch.full((d,), torch.nan, dtype=rows.dtype), torch.zeros(n, dtype=rows.dtype)
        for block in u.share(64):
            assert torch.equal(block.values, rows[:, block.start : block.stop])
            vector[block.start : block.stop] = block.values.amax(0)
            sums += block.values.sum(1)
        return u.spread.join(vector), u.spread.total(sums)

    found = in_ranks(size, assemble)
    assert all(torch.equal(vector, rows.amax(0)) for vector, _ in found)
    for _, sums in found:
        torch.testing.assert_close(sums, rows.sum(1))


def test_distances_keep_their_digits_and_huge_rows_do_no_harm() -> None:
    rows = 1e3 * matrix(1, 3000, torch.float32) + 1e-4 * matrix(8, 3000, torch.float32, seed=1)
    rows[3] *= 1e27
    rows[6] *= 1e-33
    rows[7] = rows[0]
    exact = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    found = in_all(3, lambda ranks: sharded(rows, ranks).squared_distances())
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)
    assert float(found[0, 7]) == 0.0
    mixing = torch.eye(8, dtype=torch.float64)
    mixing[1, :3] = 1 / 3
    mixing[1, 1] = 1 / 3
    close_rows = rows[:3]
    small = mixing[:3, :3]
    wanted = small @ close_rows.double()
    wanted_distances = torch.cdist(wanted, wanted, compute_mode="donot_use_mm_for_euclid_dist").square()
    found = in_all(2, lambda ranks: Mixed(sharded(close_rows, ranks), small).squared_distances())
    one = Mixed(DenseUpdates(close_rows), small).squared_distances()
    assert (found - wanted_distances).norm() <= 2 * (one - wanted_distances).norm() + 1e-3 * wanted_distances.norm()


def test_rows_far_from_finite_are_seen_and_left_out() -> None:
    rows = matrix(9, 50, torch.float32)
    rows[1, 3], rows[4] = torch.nan, torch.inf
    expected = DenseUpdates(rows)
    for rule in (Mean(), Median(), Krum(f=2)):
        answer = in_all(2, lambda ranks, rule=rule: rule.aggregate(sharded(rows, ranks)))  # type: ignore[misc]
        alone = rule.aggregate(expected)
        assert answer.excluded == alone.excluded == {1: "not finite", 4: "not finite"}
        close(answer.vector, alone.vector.double(), 1e-6)
    with pytest.raises(HostileRowsError, match=r"rows \[1, 4\]"):
        in_ranks(2, lambda ranks: Krum(f=1).aggregate(sharded(rows, ranks)))


def test_rows_are_handed_on_once_and_norm_rules_hand_on_none() -> None:
    n, d, size = 8, 1000, 2
    rows = matrix(n, d, torch.float32)

    def ask_twice(ranks: Ranks) -> tuple[int, int]:
        u = sharded(rows, ranks)
        Mean().aggregate(u)
        before = ranks.sent["exchange"]
        for rule in (Krum(f=1), Median(), Krum(f=1)):
            rule.aggregate(u)
        Krum(f=1).aggregate(u.select(torch.arange(1, n)))
        return before, ranks.sent["exchange"]

    for rank, (before, after) in enumerate(in_ranks(size, ask_twice)):
        held_here = int((dealt(n, size) == rank).sum())
        assert (before, after) == (0, held_here * d // 2 * 4)


def test_ghost_and_streamed_rows_can_lie_on_ranks() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Tanh(), torch.nn.Linear(20, 4))
    inputs, targets = torch.randn(24, 30), torch.randint(4, (24,))
    owners = torch.arange(24) % 7
    layout = layout_of_model(model)
    rank_of = torch.tensor([0, 1, 1, 0, 2, 2, 0])

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, wanted, reduction="none")

    exact = client_gradients(model, loss, inputs, targets, owners, method="loop").materialise()

    # Hooks of two threads on one model would meet: gradients are taken before the threads start.
    taken = [
        client_gradients(
            model, loss, inputs[rank_of[owners] == r], targets[rank_of[owners] == r], owners[rank_of[owners] == r]
        )
        for r in range(3)
    ]

    def check(ranks: Ranks) -> None:
        local = taken[ranks.rank] if ranks.rank < 3 else None
        check_against(Sharded(local, torch.arange(7), rank_of, ranks, exact[0], layout), exact, 1e-5)

    in_ranks(4, check)

    def stream(ranks: Ranks) -> Tensor:
        mine = (rank_of == ranks.rank).nonzero().flatten()
        local = StreamedUpdates(lambda i: exact[mine[i]], exact[0], mine, layout)
        return Mean().aggregate(Sharded(local, torch.arange(7), rank_of, ranks, exact[0], layout)).vector

    close(in_all(3, stream), exact.mean(0).double(), 1e-6)


def test_wrong_rows_are_refused() -> None:
    rows = matrix(4, 3, torch.float32)
    owners = torch.tensor([0, 0, 1, 1])

    def wrong(local: Updates | None) -> Callable[[Ranks], Sharded]:
        return lambda ranks: Sharded(local, torch.arange(4), owners, ranks, rows[0])

    with pytest.raises(ConfigError, match=r"rank \d should hold clients \[.*\], not \[\]"):
        in_ranks(2, wrong(None))
    with pytest.raises(ConfigError, match="should hold clients"):
        in_ranks(2, wrong(DenseUpdates(rows[:2], torch.tensor([1, 0]))))
    with pytest.raises(ConfigError, match=r"owners must give each of the 4 clients a rank, got \[3\]"):
        in_ranks(2, lambda ranks: Sharded(None, torch.arange(4), owners[:3], ranks, rows[0]))
    with pytest.raises(ConfigError, match=r"rows must be \[3\] torch.float32, got \[2\]"):
        in_ranks(
            2,
            lambda ranks: Sharded(
                DenseUpdates(rows[owners == ranks.rank, :2], torch.arange(4)[owners == ranks.rank]),
                torch.arange(4),
                owners,
                ranks,
                rows[0],
            ),
        )


# Every rule


@pytest.mark.parametrize("rule", RULE_LIST, ids=repr)
def test_rules_answer_as_in_one_process(rule: Rule) -> None:
    check_rule(rule, honest(), warm=False, size=3)


@pytest.mark.parametrize("rule", remembering, ids=repr)
def test_rules_with_memory_answer_as_in_one_process(rule: Rule) -> None:
    check_rule(rule, honest(seed=4), warm=True, size=2)


@pytest.mark.parametrize("rule", RULE_LIST, ids=repr)
def test_rules_answer_alike_with_a_huge_and_an_unusable_row(rule: Rule) -> None:
    rows = honest(seed=2)
    rows[3] *= 1e12
    check_rule(rule, rows, warm=False, size=2, huge=True)


def check_rule(rule: Rule, rows: Tensor, *, warm: bool, size: int, huge: bool = False) -> None:
    layout = layout_of(D)
    try:
        alone = ask(rule, held(rows), warm)
    except (HostileRowsError, ConfigError) as error:
        with pytest.raises(type(error)):
            in_ranks(size, lambda ranks: ask(rule, sharded(rows, ranks, layout), warm))
        return
    answer = in_all(size, lambda ranks: ask(rule, sharded(rows, ranks, layout), warm))
    exact = ask(rule, held(rows.double()), warm).vector if not warm else alone.vector.double()
    scale = float(exact.norm())
    assert (answer.vector.double() - alone.vector.double()).norm() <= 2e-6 * max(scale, 1e-30)
    assert (answer.vector.double() - exact).norm() <= 2e-5 * max(scale, 1e-30)
    assert answer.excluded == alone.excluded
    assert (answer.selected is None) == (alone.selected is None)
    if answer.selected is not None:
        assert torch.equal(answer.selected, alone.selected)
    for name in ("weights", "scores", "scales"):
        mine, theirs = getattr(answer, name), getattr(alone, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=1e-9, equal_nan=True)
    assert answer.state.keys() == alone.state.keys()


# Every attack that sees honest updates


@functools.cache
def attackable() -> tuple[str, ...]:
    return tuple(name for name in ATTACKS if issubclass(ATTACKS[name], UpdateAttack) and not ATTACKS[name].trains)


@pytest.mark.parametrize("name", attackable())
def test_attacks_send_what_they_send_in_one_process(name: str) -> None:
    rows = honest(n=8, seed=5)
    attack = ATTACKS.build(name)

    def sent(view: Any) -> Tensor:
        found: Tensor = attack(view, n=10, q=2, defence=Median(), seed=3)
        return found

    try:
        alone = sent(DenseUpdates(rows, layout=layout_of(D)))
    except ConfigError as error:
        pytest.skip(f"needs an experiment: {error}")
    found = in_all(2, lambda ranks: sent(sharded(rows, ranks, layout_of(D))))
    if not torch.isfinite(alone).all():
        assert torch.equal(found.nan_to_num(7.0), alone.nan_to_num(7.0))
        return
    assert (found - alone).double().norm() <= 1e-5 * float(alone.double().norm()) + 1e-30
