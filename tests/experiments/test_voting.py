"""Certified experiments on digits: what is promised holds for models that were really poisoned."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bezoar.certify import ABSTAINED, count_votes, disjoint_groups, random_subsets
from bezoar.certify.crfl import mean_shift
from bezoar.certify.votes import majority
from bezoar.cli import app
from bezoar.data import load
from bezoar.data.federation import Federation
from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments.certificates import METHODS, Request, crfl, ensemble, flcert
from bezoar.experiments.certificates.members import Member, Trainer, collect
from bezoar.experiments.config import override

TABLE: dict[str, Any] = {
    "name": "voting",
    "seed": 1,
    "rounds": 8,
    "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 60}},
    "model": {"name": "linear"},
    "learning_rate": {"kind": "constant", "lr": 0.2},
    "sampling": {"kind": "uniform", "cohort": 60},
    "adversary": {"count": 3},
    "attack": {"kind": "sign-flip", "scale": 100.0},
    "defence": {"preset": "none"},
}
CRFL = {"preset": "crfl", "radius": 1.0, "std": 0.25}


def small(**settings: Any) -> Experiment:
    return Experiment.from_table(override(TABLE, {key.replace("__", "."): value for key, value in settings.items()}))


def noisy(**settings: Any) -> Experiment:
    fast = {"rounds": 4, "defence": CRFL, "learning_rate__lr": 2.0, "attack": "none", "adversary": {"count": 0}}
    return small(**{**fast, **settings})


def test_a_subset_of_a_federation_is_these_clients_alone() -> None:
    dataset = load("digits")
    whole = Federation(dataset, np.array([0, 2, 3, 7]), np.arange(7, dtype=np.int64))
    part = whole.subset([2, 0])
    assert part.n == 2
    assert part.dataset is dataset
    assert part.client(0).tolist() == [3, 4, 5, 6]
    assert part.client(1).tolist() == [0, 1]
    for wrong in ([], [0, 0], [3], [-1]):
        with pytest.raises(ConfigError):
            whole.subset(wrong)


def test_flcert_d_on_digits_keeps_its_promise() -> None:
    found = flcert.certify(small(), groups=12)
    assert found.models == 12
    assert found.plain_accuracy > 0.8
    curve = found.curves[0].accuracy
    assert curve[0] == found.plain_accuracy
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] == 0
    assert found.attacked is not None
    assert found.attacked.malicious == 3
    assert found.broken == 0
    assert (found.attacked.labels != found.certified.labels).any(), "the attack should change something"
    assert found.attacked_accuracy is not None
    assert found.attacked_accuracy >= curve[3] > 0.5


def test_models_without_a_malicious_client_are_the_same_bits() -> None:
    experiment = small()
    clean, poisoned = Trainer(experiment.without_attack(), None, "cpu"), Trainer(experiment, None, "cpu")
    members = [Member.of(group, 1) for group in disjoint_groups(60, 12, 1)]
    kinds = set()
    for member in members:
        same = torch.equal(clean.train(member).weights, poisoned.train(member).weights)
        assert same == (len(poisoned.malicious_in(member)) == 0)
        kinds.add(same)
    assert kinds == {True, False}


def test_malicious_clients_are_those_of_the_whole_federation() -> None:
    trainer = Trainer(small(), None, "cpu")
    bad = set(trainer.setup.malicious.tolist())
    assert len(bad) == 3
    groups = disjoint_groups(60, 12, 1)
    found = {int(group[i]) for group in groups for i in trainer.malicious_in(Member.of(group, 1))}
    assert found == bad


def test_a_model_is_a_function_of_its_clients_alone() -> None:
    """Not of its place in the ensemble, nor of who else is there: the proofs rest on that."""
    trainer = Trainer(small(attack="none", adversary={"count": 0}), None, "cpu")
    group = np.array([3, 7, 8])
    first = trainer.vote(Member.of(group, 1))
    trainer.vote(Member.of(np.array([0, 1]), 1))
    assert torch.equal(first, trainer.vote(Member.of(group, 1)))
    assert trainer.train(Member.of(group, 1)).federation.n == 3


def test_all_subsets_and_drawn_ones() -> None:
    tiny = small(data__partition={"kind": "iid", "clients": 6}, sampling__cohort=6, adversary={"count": 1}, rounds=4)
    exact = ensemble.certify(tiny, k=1, models=None)
    assert exact.models == 6
    assert exact.certified.confidence == 1.0
    assert exact.broken == 0
    drawn = ensemble.certify(tiny, k=1, models=120, alpha=0.01, joint=False)
    told = drawn.certified.labels != ABSTAINED
    assert told.any()
    assert (drawn.certified.malicious <= exact.certified.malicious).all()
    assert (drawn.certified.labels[told] == exact.certified.labels[told]).all()
    assert set(drawn.further) == {"groups known"}
    # Whoever knows that every client is in a fifth of 120 groups can do no more than whoever does not, here.
    assert drawn.further["groups known"].confidence == 1.0


def test_votes_are_kept_and_only_missing_ones_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(rounds=2)
    whole = flcert.certify(experiment, groups=6, out=tmp_path)
    files = sorted((tmp_path / "votes").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.safetensors" for i in range(6)]
    files[2].unlink()
    trained = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, member: trained.append(member) or train(self, member))
    heard: list[tuple[int, int]] = []
    again = flcert.certify(experiment, groups=6, out=tmp_path, progress=lambda done, of: heard.append((done, of)))
    assert len(trained) == 1
    assert heard == [(6, 6)]
    assert again.record() == whole.record()
    with pytest.raises(ConfigError, match="another experiment or group"):
        flcert.certify(small(rounds=3), groups=6, out=tmp_path)
    with pytest.raises(ConfigError, match="another experiment or group"):
        flcert.certify(experiment, groups=5, out=tmp_path)
    files[0].write_bytes(b"nothing")
    with pytest.raises(BezoarError, match="can not be read"):
        flcert.certify(experiment, groups=6, out=tmp_path)


def test_processes_change_nothing() -> None:
    trainer = Trainer(small(rounds=2, attack="none", adversary={"count": 0}), None, "cpu")
    members = [Member.of(group, 1) for group in disjoint_groups(60, 4, 1)]
    assert np.array_equal(collect(trainer, members, None), collect(trainer, members, None, jobs=2))


_ABANDONED = """
import multiprocessing, os, signal, threading, time
import numpy as np
from bezoar.experiments import Experiment
from bezoar.experiments.certificates.members import Member, Trainer, collect

def killed():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.05)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    threading.Thread(target=killed).start()
    trainer = Trainer(Experiment.load(r"FILE"), None, "cpu")
    collect(trainer, [Member(None, seed) for seed in range(1000)], None, jobs=2)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    small(rounds=20, attack="none", adversary={"count": 0}).dump(tmp_path / "x.toml")
    script = tmp_path / "abandoned.py"
    script.write_text(_ABANDONED.replace("FILE", str(tmp_path / "x.toml")))
    # Its workers hold the pipe open: this returns when the last of them has ended.
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 2


def test_crfl_on_digits_keeps_its_promise() -> None:
    attacked = noisy(
        data__partition={"kind": "iid", "clients": 600},
        sampling__cohort=600,
        adversary={"count": 4},
        attack={"kind": "sign-flip", "scale": 1000.0},
        defence__std=0.1,
    )
    found = crfl.certify(attacked, models=60, alpha=0.05, joint=False, copies=200)
    assert found.broken == 0
    held = found.certified.malicious >= 4
    assert held.mean() > 0.1, "the certificate should not be vacuous here"
    shift = found.facts["total_shift"]
    assert shift[1] == pytest.approx(np.sqrt(4) * mean_shift(1.0, 2.0, 1, 600) / 0.1)
    assert found.facts["of_them_changed"] == 0
    assert 0 < found.facts["distance_under_attack"] <= sum(mean_shift(1.0, 2.0, 4, 600) for _ in range(4)) * 10


def test_smoothed_labels_survive_the_worst_move_within_their_distance() -> None:
    trainer = Trainer(noisy(), None, "cpu")
    setup, std = crfl.clipped_model(trainer, Member(None, 5))
    center = setup.weights.clone()
    counts = crfl.smoothed(trainer, setup, std, 400, seed=0)
    labels, radii = majority(counts), crfl.distances(counts, std, 0.001, joint=True)
    assert torch.equal(setup.weights, center)
    assert (radii > 0).mean() > 0.3
    second = np.where(np.arange(10) == labels[:, None], -1, counts).argmax(axis=1)
    inputs = trainer._inputs.reshape(len(labels), -1)
    names = [tuple(p.shape) for p in setup.model.parameters()]
    assert names == [(10, 64), (10,)]
    for i in np.argsort(-radii)[:12].tolist() + np.flatnonzero(radii > 0)[:8].tolist():
        # Worst for a linear model: against the label's row and along the rival's, in the direction of the sample.
        push = torch.zeros(10, 65)
        row = torch.cat([inputs[i], torch.ones(1)])
        push[labels[i]], push[second[i]] = -row, row
        push *= float(radii[i]) * 0.999 / float(push.norm())
        setup.weights.copy_(center + torch.cat([push[:, :64].reshape(-1), push[:, 64]]))
        moved = crfl.smoothed(trainer, setup, std, 300, seed=1)
        assert majority(moved)[i] == labels[i]
    # Far beyond it the same push does change labels.
    setup.weights.copy_(center + 20 * (setup.weights - center))
    assert majority(crfl.smoothed(trainer, setup, std, 100, seed=1))[i] != labels[i]


def test_the_clipped_model_and_its_noise_are_the_trained_one() -> None:
    trainer = Trainer(noisy(rounds=3), None, "cpu")
    member = Member(None, 9)
    setup, std = crfl.clipped_model(trainer, member)
    whole = trainer.train(member)
    assert float((whole.weights - setup.weights).std()) == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"defence": "none"}, "clipped updates"),
        ({"defence": {**CRFL, "momentum": 0.9}}, "momentum"),
        ({"defence": {"preset": "clip", "radius": 1.0, "momentum": 0.0}}, "model_post"),
        ({"defence": {**CRFL, "pipeline": [{"kind": "clip", "radius": 1.0}, "median"]}}, "plain mean"),
        (
            {"defence": {**CRFL, "pipeline": [{"kind": "clip", "radius": 1.0}, {"kind": "nnm", "f": 2}, "mean"]}},
            "clipped",
        ),
        ({"defence": {**CRFL, "model_post": [{"kind": "gaussian-noise", "std": 0.1}]}}, "clip, then gaussian-noise"),
        ({"defence": {**CRFL, "server": {"kind": "sparsefed", "k": 10}}}, "SGD without momentum"),
        ({"clients": {"kind": "gradient", "momentum": 0.9}}, "momentum"),
        ({"sampling": {"kind": "epoch", "cohort": 20, "batch_size": 5}}, "sampling.batch_size"),
    ],
)
def test_crfl_refuses_what_the_theory_does_not_cover(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        crfl.check(noisy(**change))


def test_rest_after_the_attack_is_counted() -> None:
    early = noisy(rounds=6, adversary={"count": 2, "stop": 1}, attack={"kind": "sign-flip"}, defence__model_radius=0.3)
    rounds = crfl.attacked_rounds(early, 60)[2]
    assert [one.shift > 0 for one in rounds] == [True] + [False] * 5
    assert rounds[0].radius == 0.3
    # The last cohort of an epoch is smaller, and a client's share of it larger.
    epochs = noisy(rounds=2, sampling={"kind": "epoch", "cohort": 40})
    shares = [one.shift for one in crfl.attacked_rounds(epochs, 60)[1]]
    assert shares == [mean_shift(1.0, 2.0, 1, 40), mean_shift(1.0, 2.0, 1, 20)]
    # Nobody sends anything in a round that does not take place; the noise that it counts on is there (model_post).
    tails = noisy(rounds=2, sampling={"kind": "epoch", "cohort": 40, "skip_tail": True})
    assert [one.shift for one in crfl.attacked_rounds(tails, 60)[1]] == [mean_shift(1.0, 2.0, 1, 40), 0.0]
    boundless = noisy(rounds=1, defence__pipeline=[{"kind": "clip", "radius": float("inf")}, "mean"])
    assert [one[0].ratio for one in crfl.attacked_rounds(boundless, 60)] == [0.0, 2 * 15.0 / 0.25]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"adversary": {"count": 3, "sybils": 2}}, "sybils"), ({"adversary": {"count": 3, "per_round": 1}}, "per_round")],
)
def test_adversaries_that_groups_can_not_have(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        flcert.certify(small(**change), groups=6)


def test_options_out_of_range() -> None:
    for groups in (0, 61):
        with pytest.raises(ConfigError, match=r"1\.\.60"):
            flcert.certify(small(), groups=groups)
    with pytest.raises(ConfigError, match="jobs"):
        flcert.certify(small(), groups=6, jobs=0)
    with pytest.raises(ConfigError, match="sample them"):
        ensemble.certify(small(), k=10, models=None)
    with pytest.raises(ConfigError, match="models"):
        crfl.certify(noisy(), models=0)


def test_what_can_not_work_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: Trainer, member: Member) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(Trainer, "train", train)
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="alpha"):
            ensemble.certify(small(), k=5, models=3, alpha=alpha)
        with pytest.raises(ConfigError, match="alpha"):
            crfl.certify(noisy(), models=3, alpha=alpha)
    # 60 clients in 13 groups: the first have 5, the last 4.
    with pytest.raises(ConfigError, match="out of range for n=4"):
        flcert.certify(small(defence={"preset": "trimmed-mean", "f": 2}), groups=13)


def test_a_method_checks_its_options() -> None:
    def asked(method: str, **options: Any) -> object:
        return METHODS[method](Request(small(rounds=1), options=options))

    with pytest.raises(ConfigError, match="needs the option 'groups'"):
        asked("flcert-d")
    with pytest.raises(ConfigError, match="no option 'group'; did you mean 'groups'"):
        asked("flcert-d", group=3)
    with pytest.raises(ConfigError, match="'k' of method 'ensemble' must be int, got '5%'"):
        asked("ensemble", k="5%")
    with pytest.raises(ConfigError, match="'models' of method 'ensemble' must be int or all"):
        asked("ensemble", k=3, models=2.5)
    with pytest.raises(ConfigError, match="belong to the method 'radius'"):
        METHODS["crfl"](Request(small(), measure=False))


def test_the_command_prints_and_records(tmp_path: Path) -> None:
    file = tmp_path / "voting.toml"
    small(rounds=3).dump(file)
    out = tmp_path / "out"
    arguments = ["certify", str(file), "--method", "flcert-d", "--option", "groups=10", "--out", str(out)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "Certified accuracy" in shown.output
    assert "Under the experiment's attack by 3 clients" in shown.output
    record = json.loads((out / "certificate.json").read_text())
    assert record["method"] == "flcert-d"
    assert record["options"] == {"groups": 10}
    assert record["attack"]["certified_labels_changed"] == 0
    assert record["certified_accuracy"][0] == record["test_accuracy"]
    assert record["hash"] == small(rounds=3).hash()
    assert (out / "certified-accuracy.png").stat().st_size > 5000
    again = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert json.loads(again.stdout)["certified_accuracy"] == record["certified_accuracy"]


def test_random_groups_of_the_experiment_follow_its_seed() -> None:
    votes = {}
    for seed in (1, 2):
        found = ensemble.certify(small(seed=seed, rounds=1, attack="none", adversary={"count": 0}), k=5, models=4)
        votes[seed] = found.facts["single_model_accuracy_mean"]
    assert votes[1] != votes[2]
    assert not np.array_equal(random_subsets(60, 5, 1, 1)[0], random_subsets(60, 5, 1, 2)[0])
    assert count_votes([[0, 1]], 2).shape == (2, 2)
