"""The l2 radius through virtual models: SparseFed on convex losses, attacked in every way, stays within it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.certify.error_feedback import Apart, log_sum
from bezoar.servers import SparseFed
from tests.certify.test_radius import hostile


@given(st.lists(st.floats(-600, 600), min_size=1, max_size=5))
def test_log_sum(terms: list[float]) -> None:
    assert log_sum(*terms) == pytest.approx(math.log(math.fsum(map(math.exp, terms))), abs=1e-9)
    assert log_sum(-math.inf, *terms) == pytest.approx(log_sum(*terms))


def test_log_sum_of_nothing_and_of_too_much() -> None:
    assert log_sum(-math.inf, -math.inf) == -math.inf
    assert log_sum(math.inf, 1.0) == math.inf
    assert log_sum(5000.0, 5000.0) == pytest.approx(5000 + math.log(2))


@pytest.mark.parametrize("lrs", [[0.2] * 40, [0.05 * (1 + t % 7) for t in range(40)], [4.0] * 6, [0.0, 0.3, 0.0, 0.5]])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_runs_on_a_convex_loss_stay_within(lrs: list[float], k: int) -> None:
    """Quadratic losses (Hessian between 0 and beta), of the honest mean; the attacker adds what it likes, clipped."""
    d, radius, q, n, beta = 10, 2.0, 1, 5, 1.0
    draws = torch.Generator().manual_seed(k)
    turn = torch.linalg.qr(torch.randn(d, d, generator=draws, dtype=torch.float64)).Q
    hessian = turn @ torch.diag(torch.linspace(0, beta, d, dtype=torch.float64)) @ turn.T
    centre = torch.randn(d, generator=draws, dtype=torch.float64) * 0.1
    server, kept = SparseFed(k, momentum=0.0), math.sqrt(1 - k / d)
    for kind in range(5):
        models, states = torch.zeros(2, d, dtype=torch.float64), [{}, {}]
        apart, last = Apart(), torch.zeros(d, dtype=torch.float64)
        for t, lr in enumerate(lrs):
            updates = (models - centre) @ hessian
            # "Along": the attacker drives the models apart; else of some kind.
            push = hostile(d, radius, draws, kind) if kind < 4 or not last.any() else radius * last / last.norm()
            honest = updates[1].clone()
            updates[1] = honest + q / n * 2 * push
            bound = max(float(updates.norm(dim=1).max()), radius)
            for i in range(2):
                step = server.step(updates[i], lr, states[i])
                models[i] -= step.dense(d)
                states[i] = dict(step.state)
            apart = apart.after(
                lr,
                smoothness=beta,
                clipped=0.0,
                force=q / n * 2 * radius,
                kept=kept,
                radius=bound,
                update=float(updates[0].norm()),
                memory=float(states[0]["error"].norm()),
            )
            last = models[0] - models[1]
            assert float(last.norm()) <= math.exp(apart.distance(lr)) * (1 + 1e-9) + 1e-15
            # What the argument is about: the memories and the virtual models.
            gap = states[0]["error"] - states[1]["error"]
            assert float(gap.norm()) <= math.exp(apart.gap) * (1 + 1e-9) + 1e-15
            virtual = last - lr * gap
            assert float(virtual.norm()) <= math.exp(apart.virtual) * (1 + 1e-9) + 1e-15
            apart = apart.at(lr, lrs[min(t + 1, len(lrs) - 1)])


def test_it_is_attained_where_nothing_is_held_back() -> None:
    """k = d and a flat direction: the distance is exactly the sum of the pushes."""
    apart = Apart()
    for t in range(5):
        apart = apart.after(0.5, 1.0, 0.0, 0.2, kept=0.0, radius=1.0, update=0.3, memory=0.0)
        assert math.exp(apart.distance(0.5)) == pytest.approx(0.1 * (t + 1))


@given(st.floats(0.01, 1), st.floats(0, 3), st.floats(0, 2), st.floats(0, 0.99), st.floats(1, 3))
def test_it_rises_with_every_argument(lr: float, clipped: float, force: float, kept: float, factor: float) -> None:
    def end(**changed: float) -> float:
        given = {
            "smoothness": 1.0,
            "clipped": clipped,
            "force": force,
            "kept": kept,
            "radius": 2.0,
            "update": 0.5,
            "memory": 0.1,
        } | changed
        apart = Apart()
        for _ in range(4):
            apart = apart.after(lr, **given)
        return apart.distance(lr)

    plain = end()
    for name, value in {"clipped": clipped, "force": force, "update": 0.5, "memory": 0.1, "smoothness": 1.0}.items():
        assert end(**{name: value * factor}) >= plain - 1e-12
    assert end(kept=1 - (1 - kept) / factor) >= plain - 1e-12


def test_numbers_too_large_for_floats() -> None:
    apart = Apart()
    for _ in range(50):
        apart = apart.after(1e30, 1e30, 1e30, 1e30, kept=0.9, radius=1e30, update=1.0, memory=1.0)
    assert 2000 < apart.distance(1e30) < math.inf
