from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import Mean
from bezoar.attacks import Mimic
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates import DenseUpdates
from tests.attacks.context import HOSTILE, bare, hostile, world

Array = np.ndarray[Any, Any]
IDS = (0, 2, 4, 6, 8, 10, 12)


def cohort(round: int, d: int = 9) -> Tensor:
    """Clients of two kinds: those at 0, 2, 4 and 6 pull one way, the others the other way."""
    draws = np.random.default_rng(round)
    side = np.where(np.arange(len(IDS)) < 4, 1.0, -1.0)
    return torch.from_numpy(side[:, None] * np.linspace(1, 2, d) + draws.normal(0, 0.3, (len(IDS), d)) + 5.0)


def oracle(rounds: int, warmup: int, seed: int = 7) -> list[int]:
    """Ids that are copied, round by round, straight from the formulas."""
    mean: Array = np.zeros(0)
    z: Array = np.zeros(0)
    copied, chosen = [], -1
    for t in range(1, rounds + 1):
        rows = cohort(t).numpy()
        if t <= warmup:
            if t == 1:
                mean = rows.mean(0)
                z = torch.randn(rows.shape[1], generator=generator(seed, "mimic direction")).double().numpy()
            else:
                mean = (t - 1) / t * mean + rows.mean(0) / t
            s = np.zeros_like(z)
            for row in rows:
                s = s + ((row - mean) @ z) * (row - mean)
            s /= np.linalg.norm(s)
            z = s if t == 1 else (t - 1) / t * z + s / t
            z /= np.linalg.norm(z)
            chosen = int(np.argmax(rows @ z))
        copied.append(IDS[chosen])
    return copied


def play(attack: Mimic, rounds: int) -> tuple[list[int], dict[str, Tensor]]:
    state: Any = {}
    copied = []
    for t in range(1, rounds + 1):
        view, context = bare(cohort(t), 2, round=t, state=state)
        sent = attack.send(view, Mean(), context)
        rows, state = sent.rows, sent.state
        which = [i for i, row in enumerate(view.values) if torch.equal(row, rows.basis[0])]
        assert len(which) == 1
        assert IDS[which[0]] == sent.report["copied_client"]
        copied.append(IDS[which[0]])
    return copied, state


@pytest.mark.parametrize("warmup", [1, 3, 20])
def test_learning_agrees_with_an_oracle(warmup: int) -> None:
    assert play(Mimic(warmup=warmup), 8)[0] == oracle(8, warmup)


def test_after_the_warm_up_one_client_is_copied_for_good() -> None:
    copied, state = play(Mimic(warmup=3), 9)
    assert len(set(copied[2:])) == 1
    # Not because it is the best every time.
    assert len(set(play(Mimic(warmup=20), 9)[0])) > 1
    assert int(state["rounds"]) == 3


def test_the_direction_is_that_of_the_largest_variance() -> None:
    _, state = play(Mimic(warmup=30), 30)
    rows = np.concatenate([cohort(t).numpy() - cohort(t).numpy().mean(0) for t in range(1, 31)])
    top = np.linalg.svd(rows)[2][0]
    assert abs(top @ state["direction"].numpy()) > 0.995


def test_a_client_that_is_away_is_replaced_for_the_round() -> None:
    copied, state = play(Mimic(warmup=2), 2)
    here = [i for i, client in enumerate(IDS) if client != copied[-1]]
    view = DenseUpdates(cohort(3)[here], torch.tensor(IDS)[here])
    _, context = bare(cohort(3), 2, state=state)
    sent = Mimic(warmup=2).send(view, Mean(), context)
    assert sent.state == state
    best = int((view.values @ state["direction"]).argmax())
    assert torch.equal(sent.rows.basis[0], view.values[best])


@pytest.mark.parametrize(("client", "copied"), [(0, 0), (4, 4), (5, 6), (12, 12), (13, 0)])
def test_a_fixed_client_or_the_next_one(client: int, copied: int) -> None:
    view, context = bare(cohort(1))
    sent = Mimic(client=client).send(view, Mean(), context)
    assert sent.report["copied_client"] == copied
    assert torch.equal(sent.rows.basis[0], view.values[IDS.index(copied)])
    # Order of the rows does not matter.
    back = DenseUpdates(view.values.flip(0), view.clients.flip(0))
    assert torch.equal(Mimic(client=client).send(back, Mean(), context).rows.basis, sent.rows.basis)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("attack", [Mimic(), Mimic(client=4)], ids=str)
def test_the_copy_has_no_distance_from_an_honest_row(kind: str, attack: Mimic) -> None:
    view, context = bare(hostile(kind), 2)
    sent = attack.send(view, Mean(), context)
    assert all(torch.isfinite(value.double()).all() for value in sent.state.values())
    finite = sent.rows.finite()
    assert finite[sent.rows.malicious].all()
    rows = sent.rows.select(finite.nonzero().flatten())
    bad = torch.isin(rows.clients, torch.tensor([1, 3]))
    distances = rows.squared_distances()
    assert float(distances[bad][:, bad].max()) == 0
    assert float(distances[bad][:, ~bad].min()) == 0


def test_rows_that_are_never_stored_are_copied_as_well() -> None:
    ghost, loop = (world(method=method) for method in ("ghost", "loop"))
    copies = [Mimic().send(at.view, Mean(), at.context) for at in (ghost, loop)]
    assert copies[0].report == copies[1].report
    assert torch.allclose(copies[0].rows.basis, copies[1].rows.basis, atol=1e-6)


def test_the_input_state_is_not_changed() -> None:
    _, state = play(Mimic(), 2)
    before = {key: value.clone() for key, value in state.items()}
    view, context = bare(cohort(3), state=state)
    Mimic().send(view, Mean(), dataclasses.replace(context))
    assert all(torch.equal(before[key], state[key]) for key in state)


@pytest.mark.parametrize("options", [{"warmup": 0}, {"client": -1}])
def test_nonsense_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="mimic"):
        Mimic(**options)
