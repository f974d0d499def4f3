"""What rules are handed in a round, and what is kept between rounds, against plain autograd and NumPy."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import RULES, Mixing
from bezoar.errors import ConfigError, DivergedError
from bezoar.experiments import Experiment, run
from bezoar.experiments.rounds import State, play
from bezoar.experiments.run import Interrupted, _restore, _tensors
from bezoar.experiments.setup import Setup, cross_entropy, prepare
from bezoar.models import make_model
from bezoar.updates import Needs
from tests.experiments.rules import NAMES, Plain
from tests.experiments.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, rule in NAMES.items():
        monkeypatch.setitem(RULES._parts, name, rule)
        monkeypatch.setitem(RULES._names, rule, name)
    Plain.seen.clear()
    yield
    Plain.seen.clear()


def silo(rule: Any = "test-plain", **settings: Any) -> Experiment:
    """Twelve clients of uneven size, all in every round."""
    base: dict[str, Any] = {
        "data__partition": {"kind": "dirichlet", "clients": 12, "alpha": 1.0},
        "sampling__cohort": 12,
        "adversary": {"count": 3},
        "attack": "none",
        "rounds": 4,
        "defence": {"pipeline": [rule], "server": {"kind": "sgd", "momentum": 0.5}},
    }
    return tiny(**{**base, **settings})


def gradient(setup: Setup, weights: torch.Tensor, rows: Any, flip: bool = False) -> np.ndarray[Any, Any]:
    """Plain autograd in float64 of the mean loss of the training samples ``rows``."""
    dataset = setup.federation.dataset
    model = make_model("mlp", dataset.shape, 10, 3, hidden=[16]).double()
    torch.nn.utils.vector_to_parameters(weights.double(), model.parameters())
    targets = dataset.train.targets[torch.from_numpy(rows)]
    loss = cross_entropy(model(dataset.batch(dataset.train, rows).double()), 9 - targets if flip else targets).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients]).numpy()


def close(found: Any, expected: Any) -> bool:
    return np.allclose(np.asarray(found, dtype=np.float64), expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("attack", ["none", "label-flip"])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_rows_and_root_follow_the_formula(beta: float, attack: str) -> None:
    experiment = silo("test-rooted", clients={"kind": "gradient", "momentum": beta}, attack=attack)
    setup = prepare(experiment, None, CPU)
    run(experiment)
    assert [seen["round"] for seen in Plain.seen] == [1, 2, 3, 4]
    momentum, own = np.zeros((12, setup.weights.numel())), np.zeros(setup.weights.numel())
    for seen in Plain.seen:
        assert seen["clients"].tolist() == list(range(12))
        assert seen["layout"][-1].stop == setup.weights.numel()
        for i in range(12):
            flip = attack == "label-flip" and i in setup.malicious
            g = gradient(setup, seen["model"], setup.federation.client(i), flip)
            momentum[i] = beta * momentum[i] + (1 - beta) * g
        own = beta * own + (1 - beta) * gradient(setup, seen["model"], setup.root)
        assert close(seen["rows"], momentum)
        assert close(seen["root"], own)
        assert seen["weights"].tolist() == setup.federation.counts().tolist()
        assert seen["weights"].dtype == torch.float64


def test_attackers_replace_rows_after_momentum_and_stand_still_meanwhile() -> None:
    """In rounds 2 and 3 attackers send mean - z std of the honest momentum rows; in round 4 they go on as before."""
    beta = 0.8
    experiment = silo(
        clients={"kind": "gradient", "momentum": beta},
        attack={"kind": "alie", "z": 2.0},
        adversary={"count": 3, "start": 2, "stop": 3},
    )
    setup = prepare(experiment, None, CPU)
    run(experiment)
    bad = setup.malicious
    good = np.setdiff1d(np.arange(12), bad)
    momentum = np.zeros((12, setup.weights.numel()))
    for seen in Plain.seen:
        attacking = seen["round"] in (2, 3)
        for i in good if attacking else range(12):
            g = gradient(setup, seen["model"], setup.federation.client(i))
            momentum[i] = beta * momentum[i] + (1 - beta) * g
        expected = momentum.copy()
        if attacking:
            expected[bad] = momentum[good].mean(0) - 2.0 * momentum[good].std(0, ddof=1)
        assert close(seen["rows"], expected)
        assert seen["clients"].tolist() == list(range(12))
        assert seen["weights"].tolist() == setup.federation.counts().tolist()


@pytest.mark.parametrize(
    "clients",
    [
        {"kind": "gradient"},
        {"kind": "gradient", "method": "loop"},
        {"kind": "gradient", "batch_size": 3},
        {"kind": "local"},
        {"kind": "local", "epochs": 2, "batch_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("attack", ["none", "sign-flip", "label-flip"])
def test_every_regime_hands_over_layout_ids_and_weights(clients: Any, momentum: float, attack: str) -> None:
    pipeline = [{"kind": "clip", "radius": 1.0}, "test-rooted"]
    run(silo(clients={**clients, "momentum": momentum}, attack=attack, rounds=2, defence__pipeline=pipeline))
    assert len(Plain.seen) == 2
    for seen in Plain.seen:
        assert [segment.name for segment in seen["layout"]] == ["1.weight", "1.bias", "3.weight", "3.bias"]
        assert seen["clients"].tolist() == list(range(12))
        assert torch.isfinite(seen["root"]).all()
        assert float(seen["root"].norm()) > 0


def test_weights_follow_the_rows_of_a_drawn_cohort() -> None:
    experiment = silo(sampling__cohort=5, attack="sign-flip", rounds=6)
    setup = prepare(experiment, None, CPU)
    run(experiment)
    for seen in Plain.seen:
        ids = seen["clients"]
        assert len(ids) == 5
        assert torch.equal(ids, ids.sort().values)
        assert seen["weights"].tolist() == setup.federation.counts()[ids.numpy()].tolist()
    assert len({tuple(seen["clients"].tolist()) for seen in Plain.seen}) > 1


def test_the_server_trains_as_clients_do() -> None:
    """With local training the root update is global minus local model after the same number of epochs."""
    experiment = silo("test-rooted", clients={"kind": "local", "epochs": 3}, rounds=1, defence__root_samples=7)
    setup = prepare(experiment, None, CPU)
    run(experiment)
    (seen,) = Plain.seen
    local = seen["model"].double()
    assert len(set(setup.root.tolist())) == 7
    for _ in range(3):
        local = local - 0.1 * torch.from_numpy(gradient(setup, local, setup.root))
    assert close(seen["root"], (seen["model"].double() - local).numpy())


def test_root_samples_come_from_the_seed_and_only_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    one, again = (prepare(silo("test-rooted"), None, CPU).root for _ in range(2))
    other = prepare(silo("test-rooted", seed=4), None, CPU).root
    assert one.tolist() == again.tolist() != other.tolist()
    assert len(one) == 100
    assert len(prepare(silo(), None, CPU).root) == 0
    run(silo())
    assert all(seen["root"] is None for seen in Plain.seen)
    with pytest.raises(ConfigError, match=r"defence.root_samples: 5000 of 1438 training samples: at most 1438"):
        prepare(silo("test-rooted", defence__root_samples=5000), None, CPU)
    with pytest.raises(ConfigError, match="root_samples must be a whole number >= 1, got 0"):
        silo("test-rooted", defence__root_samples=0)


def test_root_samples_are_part_of_the_hash_where_they_decide_something() -> None:
    assert "root_samples" not in silo().table()["defence"]
    assert silo("test-rooted").table()["defence"]["root_samples"] == 100
    assert silo("test-rooted", defence__root_samples=50).hash() != silo("test-rooted").hash()
    for experiment in (silo(defence__root_samples=50), silo("test-rooted", defence__root_samples=50)):
        assert Experiment.from_table(experiment.table()) == experiment


def test_last_aggregate_is_the_answer_of_the_rule_alone() -> None:
    noise = [{"kind": "gaussian-noise", "std": 1.0}]
    run(silo(defence__post=noise, attack="sign-flip"))
    assert Plain.seen[0]["last"] is None
    for before, after in zip(Plain.seen, Plain.seen[1:], strict=False):
        assert torch.equal(after["last"], before["vector"])


def test_a_skipped_round_keeps_the_rules_memory_and_moves_the_clients() -> None:
    experiment = silo(
        "test-rooted",
        clients={"kind": "gradient", "momentum": 0.5},
        attack={"kind": "pgd", "aux": 10, "lr": 1e30},
        adversary={"count": 3, "start": 2, "stop": 2},
    )
    setup = prepare(experiment, None, CPU)
    one, record, _ = play(setup, State())
    assert record["skipped"] is None
    weights = setup.weights.clone()
    two, record, _ = play(setup, one)
    assert "3 of 12 updates are not finite" in record["skipped"]
    assert torch.equal(setup.weights, weights)
    assert two.rule is one.rule
    assert two.last is one.last
    assert two.server is one.server
    good = np.setdiff1d(np.arange(12), setup.malicious)
    moved = (two.clients["momentum"] != one.clients["momentum"]).any(1)
    assert moved.nonzero().flatten().tolist() == good.tolist()
    assert not torch.equal(two.clients["root"], one.clients["root"])
    three, record, _ = play(setup, two)
    assert record["skipped"] is None
    assert int(three.rule["rounds"]) == 2
    assert torch.equal(Plain.seen[-1]["last"], Plain.seen[0]["vector"])


def test_memory_of_every_kind_goes_through_checkpoints(tmp_path: Path) -> None:
    """Stop after a round between checkpoints, resume: the same bits as without a stop."""
    experiment = silo(
        "test-remembering", clients={"kind": "gradient", "momentum": 0.9, "batch_size": 2}, attack="alie", rounds=8
    )

    def stop(record: Any) -> None:
        if record["kind"] == "round" and record["round"] in (2, 5):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    for _ in range(2):
        with pytest.raises(Interrupted):
            run(experiment, tmp_path / "run", progress=stop, resume=True)
    resumed, whole = run(experiment, tmp_path / "run", resume=True), run(experiment)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert resumed.rounds == whole.rounds


@pytest.mark.parametrize("rule", ["fltrust", "centered-clipping", "foolsgold", "flame", "dnc"])
def test_rules_with_memory_or_draws_resume_with_the_same_bits(rule: str, tmp_path: Path) -> None:
    part = {"kind": rule, **({"f": 3} if rule == "dnc" else {})}
    clients = {"kind": "gradient", "momentum": 0.5, "batch_size": 4}
    experiment = silo(part, clients=clients, attack="ipm", rounds=7)

    def stop(record: Any) -> None:
        if record["kind"] == "round" and record["round"] == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", progress=stop)
    resumed, whole = run(experiment, tmp_path / "run", resume=True), run(experiment)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert all(record["skipped"] is None for record in whole.rounds)


def test_tensors_come_back_as_they_were() -> None:
    setup = prepare(silo(), None, CPU)
    state = State(
        7,
        server={"momentum": torch.ones(3)},
        rule={"a.b": torch.arange(3), "empty": torch.empty(0, 5, dtype=torch.float64), "flag": torch.tensor(True)},
        clients={"momentum": torch.randn(2, 3).half()},
        last={"aggregate": torch.randn(3)},
    )
    restored = _restore(setup, 7, _tensors(setup, state))
    assert restored.round == 7
    for part in ("server", "rule", "clients", "last"):
        before, after = getattr(state, part), getattr(restored, part)
        assert before.keys() == after.keys()
        for name in before:
            assert torch.equal(before[name], after[name])
            assert before[name].dtype == after[name].dtype


def test_client_ids_stay_on_the_cpu_when_the_run_is_elsewhere() -> None:
    setup = dataclasses.replace(prepare(silo(), None, CPU), device=torch.device("meta"))
    state = State(1, rule={"clients": torch.arange(3), "sum": torch.ones(2, device="meta")})
    assert set(_tensors(setup, state)) >= {"rule@cpu.clients", "rule.sum"}
    restored = _restore(setup, 1, {"rule@cpu.clients": torch.arange(3), "rule.sum": torch.ones(2)})
    assert restored.rule["clients"].device.type == "cpu"
    assert restored.rule["sum"].device.type == "meta"


def test_momentum_needs_every_client_in_every_round_and_memory() -> None:
    momentum = {"kind": "gradient", "momentum": 0.9}
    with pytest.raises(ConfigError, match=r"clients.momentum: .*sampling.cohort=20 of 600.*set sampling.cohort = 600"):
        prepare(tiny(clients=momentum), None, CPU)
    for sampling in ({"kind": "uniform", "cohort": 12}, {"kind": "epoch", "cohort": 12}):
        prepare(silo(clients=momentum, sampling=sampling), None, CPU)
    with pytest.raises(ConfigError, match=r"clients.momentum: .*12 clients x 1210 parameters takes 58,080 bytes.*more"):
        prepare(silo(clients={**momentum, "max_bytes": 58_079}), None, CPU)
    prepare(silo(clients={**momentum, "max_bytes": 58_080}), None, CPU)


def test_momentum_zero_is_no_momentum_to_the_bit() -> None:
    with_key, without = silo(clients={"kind": "gradient", "momentum": 0.0}), silo()
    assert with_key.hash() == without.hash()
    assert "momentum" not in without.table()["clients"]
    assert silo(clients={"kind": "gradient", "momentum": 0.1}).hash() != without.hash()


def test_a_server_whose_own_update_is_not_finite_ends_the_run() -> None:
    setup = prepare(silo("test-rooted"), None, CPU)
    setup.weights.fill_(torch.nan)
    with pytest.raises(DivergedError, match="the server's own update is not finite in round 1"):
        play(setup, State())
    result = run(silo("test-rooted", learning_rate={"kind": "constant", "lr": 1e30}))
    assert result.summary["converged"] is False


def buildable() -> list[str]:
    names = []
    for name in RULES:
        fields = {f.name for f in dataclasses.fields(RULES[name]) if f.default is dataclasses.MISSING}  # type: ignore[arg-type]
        if fields <= {"f", "radius"}:
            names.append(name)
    return names


def table(name: str, f: int) -> list[Any]:
    known = {spec.name for spec in dataclasses.fields(RULES[name])}  # type: ignore[arg-type]
    part = {"kind": name, **({"f": f} if "f" in known else {}), **({"radius": 1.0} if name == "clip" else {})}
    if "prior" in known:
        part["prior"] = {"kind": "independent", "p": 0.01}
    return [part, "mean"] if issubclass(RULES[name], Mixing) else [part]


@pytest.mark.parametrize("name", buildable())
def test_every_rule_is_checked_against_the_cohort_before_the_first_round(name: str, tmp_path: Path) -> None:
    if "f" not in {spec.name for spec in dataclasses.fields(RULES[name])}:  # type: ignore[arg-type]
        pytest.skip("declares no number of bad clients")
    with pytest.raises(ConfigError, match=r"^defence.pipeline: .*(n=12|12 rows)"):
        run(silo(defence={"pipeline": table(name, 1000)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", buildable())
def test_every_rule_is_checked_against_what_clients_keep(name: str, tmp_path: Path) -> None:
    clients = {"kind": "local", "epochs": 2, "max_bytes": 1}
    experiment = silo(clients=clients, defence={"pipeline": table(name, 1)}, rounds=1)
    needs = experiment.defence.pipeline.needs
    if needs & ~(Needs.NORMS | Needs.DOT):
        message = r"^defence.pipeline: .* needs .* of 12 updates x 1210 parameters.*'local'.*raise clients.max_bytes"
        with pytest.raises(ConfigError, match=message):
            run(experiment, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        # Momentum keeps the rows itself, and is refused for the same reason under its own name.
        with pytest.raises(ConfigError, match=r"^clients.momentum: "):
            prepare(silo(clients={**clients, "momentum": 0.5}, defence={"pipeline": table(name, 1)}), None, CPU)
    else:
        assert run(experiment).summary["rounds"] == 1


def test_attacks_are_checked_against_what_clients_keep() -> None:
    clients = {"kind": "local", "epochs": 2, "max_bytes": 1}
    with pytest.raises(ConfigError, match=r"^attack: ALIE needs blocks of 12 updates.*raise clients.max_bytes"):
        prepare(silo("mean", clients=clients, attack="alie"), None, CPU)
    assert run(silo("mean", clients=clients, attack="ipm", rounds=1)).summary["rounds"] == 1


def test_the_short_cohort_that_ends_an_epoch_is_checked_only_if_it_comes() -> None:
    krum = {"pipeline": [{"kind": "krum", "f": 1}]}
    epoch = {"kind": "epoch", "cohort": 10}
    prepare(silo(defence=krum, sampling=epoch, rounds=1), None, CPU)
    with pytest.raises(ConfigError, match=r"defence.pipeline: Krum.*n=2"):
        prepare(silo(defence=krum, sampling=epoch, rounds=2), None, CPU)


@pytest.mark.parametrize("attack", ["sign-flip", "ipm", "alie"])
def test_attacks_on_statistics_run_with_momentum_in_every_regime(attack: str) -> None:
    for clients in ({"kind": "gradient"}, {"kind": "local", "batch_size": 8}):
        result = run(silo("median", clients={**clients, "momentum": 0.9}, attack=attack, rounds=2))
        assert [r["attackers"] for r in result.rounds] == [3, 3]
        assert all(r["skipped"] is None for r in result.rounds)
