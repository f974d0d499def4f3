"""The recurrence of the certified radius against exact arithmetic, against dynamics that attain it, and SparseFed."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.certify.radius import (
    error_feedback_bound,
    exact_solution,
    grow,
    guaranteed_loss_rate,
    invalid_below_lr_one,
    linear,
    log_radius,
    log_reach,
    memory_bound,
    poison_bound,
    safe_bound,
    update_bound,
)
from bezoar.errors import ConfigError
from bezoar.servers import SparseFed
from bezoar.servers.schedules import Triangular

RATES = st.lists(st.floats(0, 3, allow_subnormal=False), min_size=1, max_size=12)
AMOUNT = st.floats(1e-6, 1e6)


def exact(lrs: list[float], growth: list[float], force: list[float], momentum: float = 0.0) -> list[Fraction]:
    """The recurrence in rational numbers."""
    radius, held, found = Fraction(0), Fraction(0), []
    for lr, g, b in zip(lrs, growth, force, strict=True):
        held = Fraction(momentum) * held + Fraction(g) * radius + Fraction(b)
        radius += Fraction(lr) * held
        found.append(radius)
    return found


def log_of(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator) if value else -math.inf


@given(st.data(), RATES, st.sampled_from([0.0, 0.5, 0.9]))
@settings(max_examples=60)
def test_recurrence_is_the_rational_one(data: st.DataObject, lrs: list[float], momentum: float) -> None:
    growth = data.draw(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=len(lrs), max_size=len(lrs)))
    force = data.draw(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=len(lrs), max_size=len(lrs)))
    found = log_radius(lrs, growth, force, momentum)
    # m <- momentum m + g r + b and r <- r + lr m is r <- r (1 + g lr) + lr b where there is no momentum.
    for mine, truth in zip(found, exact(lrs, growth, force, momentum), strict=True):
        assert mine == pytest.approx(log_of(truth), rel=1e-9, abs=1e-9)


@given(RATES, AMOUNT, AMOUNT)
def test_closed_form_solves_it_and_the_safe_bound_is_above(lrs: list[float], growth: float, force: float) -> None:
    last = log_radius(lrs, growth, force)[-1]
    assert exact_solution(lrs, growth, force) == pytest.approx(last, rel=1e-9, abs=1e-9)
    assert last <= safe_bound(lrs, growth, force) + 1e-9


@given(RATES, st.floats(0, 1e-3), AMOUNT)
def test_closed_form_with_almost_no_growth(lrs: list[float], growth: float, force: float) -> None:
    last = log_radius(lrs, growth, force)[-1]
    assert exact_solution(lrs, growth, force) == pytest.approx(last, rel=1e-9, abs=1e-9)


@given(RATES, AMOUNT, AMOUNT, st.floats(1, 10), st.integers(0, 11))
def test_radius_rises_with_every_argument(
    lrs: list[float], growth: float, force: float, factor: float, where: int
) -> None:
    before = log_radius(lrs, growth, force)
    more = list(lrs)
    more[where % len(lrs)] *= factor
    for after in (
        log_radius(more, growth, force),
        log_radius(lrs, growth * factor, force),
        log_radius(lrs, growth, force * factor),
        log_radius(lrs, growth, force, momentum=1 - 1 / (1 + factor)),
    ):
        assert all(a >= b - 1e-12 for a, b in zip(after, before, strict=True))
    assert all(b >= a for a, b in itertools.pairwise(before))


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=20), st.floats(0.1, 1e4), AMOUNT)
def test_the_papers_closed_form_is_no_bound_below_lr_one(lrs: list[float], growth: float, force: float) -> None:
    """Bernoulli's inequality holds the other way round: every single round already grows by more."""
    for lr in lrs:
        assert math.log1p(growth * lr) > lr * math.log1p(growth) * (1 - 1e-12)
    total = sum(math.log1p(growth * lr) for lr in lrs)
    assert total >= sum(lrs) * math.log1p(growth) * (1 - 1e-12)


def test_the_counter_example() -> None:
    """d = 1, G(theta) = -c theta, one attacker who pushes by rho: the distance obeys the recurrence with equality."""
    c, lr, rho, rounds = 100, Fraction(1, 10), 1, 10
    clean, poisoned = Fraction(1), Fraction(1)
    for _ in range(rounds):
        clean -= lr * (-c * clean)
        poisoned -= lr * (-c * poisoned - rho)
    distance = abs(poisoned - clean)
    lrs = [float(lr)] * rounds
    certified = log_radius(lrs, growth=float(c), force=float(rho))[-1]
    assert certified == pytest.approx(log_of(distance), rel=1e-12)
    assert f"{float(distance):.1e}" == "2.6e+08"
    claimed = linear(invalid_below_lr_one(lrs, growth=float(c), force=float(rho)))
    assert claimed == pytest.approx(101)
    assert claimed < distance / 10**6
    assert log_of(distance) <= safe_bound(lrs, growth=float(c), force=float(rho))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_dynamics_that_attain_the_recurrence(momentum: float) -> None:
    """An updates' field with all entries -c spreads every push over all coordinates: equality in the l1 norm."""
    d, c, lrs = 5, 0.3, [0.1, 0.0, 0.7, 2.0, 0.2]
    matrix = torch.full((d, d), -c, dtype=torch.float64)
    push = torch.full((d,), 0.4, dtype=torch.float64)
    models, held = torch.ones(2, d, dtype=torch.float64), torch.zeros(2, d, dtype=torch.float64)
    found = log_radius(lrs, growth=d * c, force=float(push.sum()), momentum=momentum)
    for lr, certified in zip(lrs, found, strict=True):
        updates = models @ matrix.T
        updates[1] -= push
        held = momentum * held + updates
        models = models - lr * held
        assert linear(certified) == pytest.approx(float((models[0] - models[1]).abs().sum()), rel=1e-12)


def test_the_papers_own_setting_is_vacuous() -> None:
    """Triangular 0.2, 2,400 rounds, c = 1/4, k = 1e3, as in its experiments."""
    lrs = [Triangular(peak=0.2).at(t, 2400) for t in range(1, 2401)]
    growth = 2000 * 0.25
    assert sum(lrs) == pytest.approx(240)
    assert math.fsum(grow(0.0, lr, growth, 0.0) for lr in lrs) == pytest.approx(8787, abs=1)
    assert invalid_below_lr_one(lrs, growth, 1.0) - math.log(240) == pytest.approx(1492, abs=0.1)
    # Twice what the exponent says, and no overflow anywhere on the way.
    assert log_radius(lrs, growth, 1.0)[-1] == pytest.approx(exact_solution(lrs, growth, 1.0), rel=1e-12)
    assert linear(log_radius(lrs, growth, 1.0)[-1]) == math.inf


def test_huge_and_tiny_numbers() -> None:
    assert log_radius([1e200, 1e200], 1e200, 1e200)[-1] == pytest.approx(800 * math.log(10))
    assert log_radius([1e-200] * 2, 1e-200, 1e-200)[-1] == pytest.approx(math.log(2) - 400 * math.log(10))
    assert log_radius([0.0, 0.0], 5.0, 3.0) == (-math.inf, -math.inf)
    assert exact_solution([0.0], 5.0, 3.0) == -math.inf
    assert log_radius([], 1.0, 1.0) == ()
    assert log_reach([0.0, 1.0], 0.0, 2.0) == (-math.inf, math.log(4))


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_numbers_that_are_none(wrong: float) -> None:
    for call in (
        lambda: log_radius([wrong], 1.0, 1.0),
        lambda: log_radius([1.0], wrong, 1.0),
        lambda: log_radius([1.0], [wrong], 1.0),
        lambda: log_radius([1.0], 1.0, wrong),
        lambda: log_radius([1.0], 1.0, 1.0, momentum=wrong),
        lambda: safe_bound([1.0], wrong, 1.0),
        lambda: exact_solution([1.0], 1.0, wrong),
        lambda: invalid_below_lr_one([1.0], wrong, 1.0),
        lambda: poison_bound(1, 2, wrong, 3),
        lambda: memory_bound(wrong, 1.0),
        lambda: update_bound(wrong, 3),
        lambda: log_reach([wrong], 0.5, 1.0),
    ):
        with pytest.raises(ConfigError):
            call()


def test_one_value_for_every_round() -> None:
    with pytest.raises(ConfigError, match="growth has 3 values for 2 rounds"):
        log_radius([0.1, 0.1], [1.0, 1.0, 1.0], 1.0)
    with pytest.raises(ConfigError, match="3 attackers in a cohort of 2"):
        poison_bound(3, 2, 1.0, 1)
    with pytest.raises(ConfigError, match="k must be between 1 and 3"):
        guaranteed_loss_rate(4, 3)
    with pytest.raises(ConfigError, match="clip must be"):
        poison_bound(1, 2, 1.0, 1, clip="l3")  # type: ignore[arg-type]


def test_poison_bound_is_attained_by_replacing_updates() -> None:
    """Two of ten turn an update of full length round; in a direction of equal entries l1 is sqrt(d) times l2."""
    n, q, d, radius = 10, 2, 16, 3.0
    rows = torch.zeros(n, d, dtype=torch.float64)
    rows[:q] = radius / math.sqrt(d)
    poisoned = rows.clone()
    poisoned[:q] *= -1
    moved = (rows.mean(0) - poisoned.mean(0)).abs()
    assert float(moved.sum()) == pytest.approx(poison_bound(q, n, radius, d))
    assert float(moved.norm()) == pytest.approx(poison_bound(q, n, radius, 1))
    assert poison_bound(q, n, radius, d, clip="l1") == pytest.approx(q / n * 2 * radius)
    assert poison_bound(q, n, radius, d, honest=0.0) == pytest.approx(poison_bound(q, n, radius, d) / 2)
    # An honest update is never longer than the radius, whatever the caller measured before clipping.
    assert poison_bound(q, n, radius, d, honest=99.0) == poison_bound(q, n, radius, d)
    assert poison_bound(0, n, radius, d) == 0


def hostile(d: int, radius: float, draws: torch.Generator, kind: int) -> torch.Tensor:
    """An update of l2 norm ``radius`` at most: noise, equal signs, a spike, or next to nothing."""
    vector = torch.randn(d, generator=draws, dtype=torch.float64)
    if kind == 1:
        vector = vector.sign()
    elif kind == 2:
        vector = torch.zeros(d, dtype=torch.float64).index_fill_(0, torch.randint(d, (1,), generator=draws), 1.0)
    return radius * vector / vector.norm() * (0.01 if kind == 3 else 1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("masking", ["zero", "none"])
@pytest.mark.parametrize("k", [1, 7, 20])
def test_reach_and_memory_hold_for_the_server_whatever_is_sent(momentum: float, masking: str, k: int) -> None:
    d, radius, rounds = 20, 2.0, 25
    server = SparseFed(k, momentum=momentum, masking=masking)  # type: ignore[arg-type]
    update, rate = update_bound(radius, d, momentum), guaranteed_loss_rate(k, d)
    draws = torch.Generator().manual_seed(k)
    lrs = torch.rand(rounds, generator=draws).tolist()
    ends = []
    for run in range(8):
        weights, state, path = torch.zeros(d, dtype=torch.float64), {}, []
        for lr in lrs:
            step = server.step(hostile(d, radius, draws, run % 4), lr, state)
            step.apply_(weights)
            state = dict(step.state)
            path.append(weights.clone())
            assert float(state["error"].abs().sum()) <= memory_bound(rate, update) * (1 + 1e-9)
        ends.append(torch.stack(path))
    for a in ends:
        for b in ends:
            apart = (a - b).abs().sum(1).log()
            assert (apart <= torch.tensor(log_reach(lrs, rate, update)) + 1e-9).all()


@pytest.mark.parametrize("k", [1, 3, 12])
def test_recurrence_holds_for_the_server(k: int) -> None:
    """SparseFed on a linear field with known c, clipped attackers of every kind: never beyond, in no round."""
    d, c, radius, q, n, rounds = 12, 0.05, 3.0, 1, 4, 30
    draws = torch.Generator().manual_seed(k)
    field = c * (2 * torch.rand(d, d, generator=draws, dtype=torch.float64) - 1)
    lrs = (0.3 * torch.rand(rounds, generator=draws)).tolist()
    width = min(d, 2 * k)
    # The largest mean update that occurs, so that gamma covers the field, which nothing clips here.
    server = SparseFed(k, momentum=0.0)
    for kind in range(4):
        models, states = torch.ones(2, d, dtype=torch.float64), [{}, {}]
        longest, apart = 0.0, []
        for lr in lrs:
            updates = models @ field.T
            updates[1] += q / n * (hostile(d, radius, draws, kind) - hostile(d, radius, draws, kind))
            longest = max(longest, float(updates.abs().sum(1).max()))
            for i in range(2):
                step = server.step(updates[i], lr, states[i])
                models[i] -= step.dense(d)
                states[i] = dict(step.state)
            apart.append(float((models[0] - models[1]).abs().sum()))
        gamma = error_feedback_bound(guaranteed_loss_rate(k, d), longest)
        certified = log_radius(lrs, width * c, poison_bound(q, n, radius, width) + 2 * gamma)
        assert all(gap <= linear(bound) * (1 + 1e-9) for gap, bound in zip(apart, certified, strict=True))
        assert apart[-1] > 0
