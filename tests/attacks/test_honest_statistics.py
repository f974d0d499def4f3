"""Attacks made from statistics of the honest updates, against plain float64 NumPy."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import Mean
from bezoar.attacks import ALIE, ATTACKS, AttackContext, InnerProduct, SignFlip, UpdateAttack
from bezoar.attacks.alie import largest_hidden_shift
from bezoar.clients import Scratch
from bezoar.errors import ConfigError
from bezoar.experiments.setup import cross_entropy
from bezoar.models import flatten, make_model
from bezoar.updates import DenseUpdates, Stacked, Updates, client_gradients
from bezoar.updates.mixed import Mixed
from bezoar.updates.streamed import StreamedUpdates

Z = [(25, 5, 0.25335), (50, 12, 0.33604), (50, 10, 0.25335), (20, 4, 0.15731), (11, 2, 0.13971), (10, 2, 0.0),
     (100, 20, 0.28584)]  # fmt: skip


def context(q: int, honest: int) -> AttackContext:
    model = make_model("linear", (1, 2, 2), 3, seed=0)
    attackers = torch.arange(q) * 2 + 1
    return AttackContext(4, 7, attackers, flatten(model), Scratch(model), cross_entropy, float("inf"), None, honest + q)


def random_rows(n: int, d: int = 37, scale: float = 1.0, shift: float = 0.0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(n).normal(shift, scale, (n, d))


def sent(attack: UpdateAttack, rows: Updates, q: int) -> torch.Tensor:
    """The one vector that all attackers send."""
    stacked = attack.rows(rows, Mean(), context(q, len(rows)))
    assert isinstance(stacked, Stacked)
    assert stacked.honest is rows
    assert stacked.coefficients.tolist() == [[1.0]] * q
    assert stacked.clients[stacked.malicious].tolist() == [2 * i + 1 for i in range(q)]
    return stacked.basis[0]


def view(values: np.ndarray[Any, Any], dtype: torch.dtype = torch.float64) -> DenseUpdates:
    return DenseUpdates(torch.from_numpy(values).to(dtype), torch.arange(len(values)) * 2)


def phi(z: float) -> float:
    return statistics.NormalDist().cdf(z)


def oracle(attack: UpdateAttack, rows: np.ndarray[Any, Any], q: int) -> np.ndarray[Any, Any]:
    """Straight from the formulas, column by column; the quantile by bisection."""
    mean = np.array([sum(column) / len(rows) for column in rows.T])
    if isinstance(attack, SignFlip):
        return -attack.scale * mean
    if isinstance(attack, InnerProduct):
        return -attack.epsilon * mean
    assert isinstance(attack, ALIE)
    z = attack.z
    if z is None:
        n = len(rows) + q
        s = int(np.floor(n / 2 + 1)) - q
        low, high = 0.0, 10.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if phi(middle) < (n - q - s) / (n - q) else (low, middle)
        z = low
    deviation = np.array(
        [np.sqrt(sum((column - m) ** 2) / (len(rows) - 1)) for column, m in zip(rows.T, mean, strict=True)]
    )
    return mean + (-z if attack.direction == "minus" else z) * deviation


@pytest.mark.parametrize(("n", "q", "z"), Z)
def test_z_is_that_of_the_paper(n: int, q: int, z: float) -> None:
    assert largest_hidden_shift(n, q) == pytest.approx(z, abs=5e-6)


@pytest.mark.parametrize(("n", "q"), [(2, 1), (3, 2), (10, 6), (10, 9), (20, 10), (1, 0)])
def test_z_is_finite_for_every_share_of_attackers(n: int, q: int) -> None:
    assert 0 <= largest_hidden_shift(n, q) < 10


def test_golden_vectors() -> None:
    honest = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0]])
    assert sent(InnerProduct(), view(honest), 1).tolist() == pytest.approx([-0.2, -0.2])
    assert sent(SignFlip(), view(honest), 1).tolist() == pytest.approx([-2.0, -2.0])
    assert sent(ALIE(), view(honest), 1).tolist() == pytest.approx([2.0, 2.0])
    assert sent(ALIE(z=1.0), view(honest), 1).tolist() == pytest.approx([2 - 0.816497] * 2, abs=1e-6)


ATTACKERS = [SignFlip(), SignFlip(scale=3.5), InnerProduct(), InnerProduct(epsilon=10.0), ALIE(), ALIE(z=1.5),
             ALIE(z=0.4, direction="plus")]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKERS, ids=str)
@pytest.mark.parametrize(("honest", "q"), [(16, 4), (21, 5), (2, 1), (9, 2)])
def test_attacks_agree_with_their_formulas(attack: UpdateAttack, honest: int, q: int) -> None:
    for scale, shift in ((1.0, 0.0), (1e-4, 1e3), (1e-30, 0.0), (1e30, 0.0)):
        rows = random_rows(honest, scale=scale, shift=shift)
        expected = oracle(attack, rows, q)
        assert np.allclose(sent(attack, view(rows), q).numpy(), expected, rtol=1e-9, atol=1e-9 * abs(expected).max())


@pytest.mark.parametrize("attack", ATTACKERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_are_kept(attack: UpdateAttack, dtype: torch.dtype) -> None:
    rows = view(random_rows(12), dtype)
    before = rows.values.clone()
    vector = sent(attack, rows, 3)
    assert vector.dtype == dtype
    expected = oracle(attack, before.double().numpy(), 3)
    assert np.allclose(vector.double().numpy(), expected, atol=0.02 * abs(expected).max())
    assert torch.equal(rows.values, before)


@pytest.mark.parametrize("attack", ATTACKERS, ids=str)
def test_every_kind_of_updates_gives_the_same_vector(attack: UpdateAttack) -> None:
    model = make_model("mlp", (1, 3, 3), 3, seed=0, hidden=[5])
    draws = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(18, 1, 3, 3, generator=draws), torch.randint(3, (18,), generator=draws)
    owners = torch.arange(9).repeat(2) * 2
    flatten(model)
    ghost, loop = (
        client_gradients(model, cross_entropy, inputs, targets, owners, method=method) for method in ("ghost", "loop")
    )
    expected = oracle(attack, loop.materialise().double().numpy(), 2)
    for rows in (ghost, loop, Mixed(loop, torch.ones(9))):
        assert np.allclose(sent(attack, rows, 2).numpy(), expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("attack", ATTACKERS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_honest_rows_that_are_not_finite_are_left_out(attack: UpdateAttack, bad: float) -> None:
    rows = random_rows(8)
    spoilt = np.insert(rows, 3, bad, axis=0)
    attack = ALIE(z=0.3) if attack == ALIE() else attack
    assert np.allclose(sent(attack, view(spoilt), 2).numpy(), oracle(attack, rows, 2))
    assert not torch.isfinite(sent(attack, view(np.full((3, 4), bad)), 2)).any()


def test_one_honest_row_and_equal_rows_have_no_spread() -> None:
    row = random_rows(1)
    assert np.allclose(sent(ALIE(z=2.0), view(row), 1).numpy(), row[0])
    assert np.allclose(sent(ALIE(z=2.0), view(np.repeat(row, 5, axis=0)), 1).numpy(), row[0])


def test_the_mean_of_all_rows_is_reversed_from_the_stated_epsilon_on() -> None:
    rows = random_rows(16, shift=1.0)
    for epsilon, reversed_ in ((3.9, False), (4.1, True)):
        stacked = InnerProduct(epsilon=epsilon).rows(view(rows), Mean(), context(4, 16))
        total = Mean()(stacked.materialise())
        assert bool(total @ torch.from_numpy(rows.mean(0)) < 0) is reversed_


def test_alie_says_what_it_needs_and_the_others_need_nothing() -> None:
    rows = torch.from_numpy(random_rows(5))
    streamed = StreamedUpdates(lambda i: rows[i], rows[0], torch.arange(5) * 2)
    assert ALIE.needs & ~streamed.offers
    for attack in (SignFlip(), InnerProduct()):
        assert not attack.needs & ~streamed.offers
        assert torch.allclose(sent(attack, streamed, 1), sent(attack, DenseUpdates(rows, streamed.clients), 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SignFlip(scale=0.0),
        lambda: SignFlip(scale=float("nan")),
        lambda: InnerProduct(epsilon=-0.1),
        lambda: InnerProduct(epsilon=float("inf")),
        lambda: ALIE(z=-1.0),
        lambda: ALIE(z=float("nan")),
        lambda: ALIE(direction="up"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_names_and_tables() -> None:
    for name, attack in (("sign-flip", SignFlip(2.0)), ("ipm", InnerProduct(0.5)), ("alie", ALIE(1.0, "plus"))):
        table = ATTACKS.table(attack)
        assert table["kind"] == name
        assert ATTACKS.build(table) == attack
    assert ATTACKS.build("alie") == ALIE()
