"""What a server does with the model itself: clipping and noise, seeded by the round, in every round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bezoar.errors import ConfigError
from bezoar.experiments import run
from bezoar.experiments.defence import Defence, defence
from bezoar.experiments.rounds import State, play
from bezoar.experiments.setup import prepare
from bezoar.seeding import generator
from bezoar.servers import MODEL_POSTS
from bezoar.servers.model_post import ClipModel, ModelNoise
from tests.experiments.tiny import tiny

CRFL = {"preset": "crfl", "radius": 1.0, "std": 0.05, "model_radius": 2.0, "growth": 0.1}


def test_clipping_brings_into_the_ball_and_leaves_what_is_in_it() -> None:
    long, short = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    draw = torch.Generator()
    assert ClipModel(2.0, 0.5)(long, 2, draw).tolist() == pytest.approx([1.8, 2.4])
    assert torch.equal(ClipModel(2.0)(short, 1, draw), short)
    assert torch.equal(ClipModel(2.0)(torch.zeros(3), 1, draw), torch.zeros(3))
    assert long.tolist() == [3.0, 4.0]


def test_noise_has_its_size_and_is_of_the_generator() -> None:
    weights = torch.ones(40_000)
    one, again, other = (ModelNoise(0.3)(weights, 1, generator(s, "x")) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert float((one - weights).std()) == pytest.approx(0.3, rel=0.02)
    assert float((one - weights).mean()) == pytest.approx(0.0, abs=0.01)
    assert torch.equal(ModelNoise(0.0)(weights, 1, generator(0, "x")), weights)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"kind": "clip", "radius": 0.0}, "radius must be > 0"),
        ({"kind": "clip", "radius": 1.0, "growth": -1.0}, "growth >= 0"),
        ({"kind": "gaussian-noise", "std": -0.1}, "std must be"),
        ({"kind": "gaussian-nois", "std": 0.1}, "gaussian-noise"),
    ],
)
def test_bad_steps(part: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        defence({"pipeline": ["mean"], "model_post": [part]})


def test_a_defence_without_them_is_described_as_before() -> None:
    assert "model_post" not in defence("none").table()
    crfl = defence(CRFL)
    assert crfl.model_post == (ClipModel(2.0, 0.1), ModelNoise(0.05))
    assert defence(crfl.table()) == crfl
    assert crfl.table()["model_post"][0] == {"kind": "clip", "radius": 2.0, "growth": 0.1}
    with pytest.raises(ConfigError, match="model_post must be a list"):
        defence({"pipeline": ["mean"], "model_post": "clip"})
    assert sorted(MODEL_POSTS) == ["clip", "gaussian-noise"]


def test_a_round_by_hand() -> None:
    plain = tiny(attack="none", defence={"preset": "clip", "radius": 1.0, "momentum": 0.0})
    noisy = tiny(attack="none", defence=CRFL)
    setups = [prepare(experiment, None, torch.device("cpu")) for experiment in (plain, noisy)]
    state = State()
    for setup in setups:
        play(setup, state)
    before = setups[0].weights
    clipped = before * min(1.0, 2.1 / float(before.norm()))
    assert float(before.norm()) > 2.1
    expected = ModelNoise(0.05)(clipped, 1, generator(noisy.seed, "model post", 1, 1))
    torch.testing.assert_close(setups[1].weights, expected)


def test_skipped_rounds_have_noise_too() -> None:
    experiment = tiny(
        attack={"kind": "non-finite"},
        adversary={"share": 1.0},
        defence=CRFL,
        sampling={"kind": "uniform", "cohort": 20},
    )
    setup = prepare(experiment, None, torch.device("cpu"))
    before = setup.weights.clone()
    _, record, _ = play(setup, State())
    assert record["skipped"] is not None
    moved = setup.weights - before * min(1.0, 2.1 / float(before.norm()))
    assert float(moved.std()) == pytest.approx(0.05, rel=0.15)


def test_rounds_that_do_not_take_place_have_noise_too() -> None:
    experiment = tiny(attack="none", defence=CRFL, sampling={"kind": "epoch", "cohort": 400, "skip_tail": True})
    setup = prepare(experiment, None, torch.device("cpu"))
    state, _, _ = play(setup, State())
    before = setup.weights.clone()
    _, record, _ = play(setup, state)
    assert "tail of an epoch" in record["skipped"]
    clipped = before * min(1.0, 2.2 / float(before.norm()))
    assert torch.equal(setup.weights, ModelNoise(0.05)(clipped, 2, generator(experiment.seed, "model post", 2, 1)))


def test_runs_repeat_and_resume(tmp_path: Path) -> None:
    experiment = tiny(defence=CRFL)
    whole, again = run(experiment), run(experiment)
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)

    def stop(record: object) -> None:
        if record["kind"] == "round" and record["round"] == 7:  # type: ignore[index]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "run", progress=stop)
    resumed = run(experiment, tmp_path / "run", resume=True)
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_every_client_fetches_the_whole_model() -> None:
    """Noise moves all of it, however few coordinates the server's step has."""
    sparse = {"preset": "sparsefed", "radius": 2.0, "k": 10, "model_post": [{"kind": "gaussian-noise", "std": 0.01}]}
    found = run(tiny(rounds=2, attack="none", defence=sparse))
    d = found.summary["parameters"]
    assert [record["bytes_down"] for record in found.rounds] == [20 * 4 * d] * 2


def test_positions_of_old_arguments_stay() -> None:
    old = defence("none")
    assert Defence(old.pipeline, old.server, (), False, 100) == old
