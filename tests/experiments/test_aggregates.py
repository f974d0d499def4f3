from __future__ import annotations

import pytest
import torch

from bezoar.aggregation import Clip, Mean
from bezoar.experiments.aggregates import aggregates, trained
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import Setup, prepare
from bezoar.servers import SparseFed, Step
from tests.experiments.tiny import tiny


def prepared(**settings: object) -> Setup:
    return prepare(tiny(**settings).without_attack(), None, torch.device("cpu"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clients": {"kind": "local", "epochs": 2}, "defence__adaptive_clip": True},
        {"defence__post": [{"kind": "gaussian-noise", "std": 0.01}]},
        {"defence__server": {"lr_placement": "inside"}},
        {"clients": {"kind": "gradient", "batch_size": 1, "momentum": 0.5}, "sampling__cohort": 600},
        {"defence": {"pipeline": ["fltrust"], "server": {"kind": "sparsefed", "k": "5%"}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("rounds", [0, 3])
def test_the_first_vector_is_what_the_next_round_takes_the_top_k_of(
    settings: dict[str, object], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepared(**settings)
    state = trained(setup, rounds)
    assert state.round == rounds
    before = setup.weights.clone()
    mine = list(aggregates(setup, state, 2))
    assert torch.equal(setup.weights, before)
    seen: list[torch.Tensor] = []
    truth = SparseFed.step

    def watched(self: SparseFed, aggregate: torch.Tensor, lr: float, state: State) -> Step:
        step = truth(self, aggregate, lr, state)  # type: ignore[arg-type]
        whole = step.state["error"].clone()
        whole[step.index] = step.values / (lr if self.lr_placement == "outside" else 1)
        seen.append(whole)
        return step

    monkeypatch.setattr(SparseFed, "step", watched)
    play(setup, state)
    assert torch.allclose(mine[0], seen[0], rtol=1e-6, atol=0)
    assert not torch.equal(mine[0], mine[1])


def test_dense_servers_hand_over_the_clipped_mean() -> None:
    setup = prepared(defence={"preset": "clip", "radius": 0.5})
    assert isinstance(setup.experiment.defence.pipeline, type(Clip(0.5) >> Mean()))
    (vector,) = aggregates(setup, State(), 1)
    assert 0 < vector.norm() <= 0.5


def test_learning_rates_end_with_the_run() -> None:
    setup = prepared(rounds=2, learning_rate={"kind": "triangular", "peak": 0.2}, clients={"kind": "local"})
    assert all(vector.isfinite().all() and vector.any() for vector in aggregates(setup, State(), 5))


def test_cohorts_are_those_of_rounds_that_take_place() -> None:
    """Clients come as often as they have samples; the eighth, a tail, is left out."""
    sampling = {"kind": "epoch", "cohort": 80, "batch_size": 2, "skip_tail": True}
    setup = prepared(sampling=sampling, rounds=12)
    sizes = [len(setup.draw(t)) for t in range(7, 10)]
    assert sizes == [80, 40, 80]
    start = State(round=6)
    first, second = aggregates(setup, start, 2)
    (ninth,) = aggregates(setup, State(round=8), 1)
    assert torch.equal(second, ninth)
    assert not torch.equal(first, second)
