"""Certificates of experiments: runs stay within them, whatever is attacked and however; what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.certify.radius import linear, log_radius, poison_bound
from bezoar.errors import BezoarError, ConfigError, UnsupportedError
from bezoar.experiments import Experiment
from bezoar.experiments.certificates import METHODS, Outcome, Request, method, write
from bezoar.experiments.certificates._bounds import _noise, convex, march, reach
from bezoar.experiments.certificates._cell import Cell
from bezoar.experiments.certificates._covered import describe
from bezoar.experiments.certificates._facts import Facts, is_softmax_regression, round_of, rounds
from bezoar.experiments.certificates._record import LOG10
from bezoar.experiments.certificates._search import Push
from bezoar.experiments.certificates._words import amount, table, vacuous
from bezoar.experiments.config import override
from bezoar.experiments.setup import Setup, prepare
from bezoar.experiments.work import samples, updates_of
from bezoar.models import make_model
from bezoar.recipes import recipes

#: Softmax regression of digits, 120 clients with 3 samples each, all in every round, 2 of them malicious.
TABLE: dict[str, Any] = {
    "name": "small",
    "rounds": 6,
    "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 120, "samples": 3}, "normalise": False},
    "model": {"name": "linear", "zero": True},
    "learning_rate": {"kind": "constant", "lr": 0.02},
    "sampling": {"kind": "uniform", "cohort": 120},
    "adversary": {"count": 2},
    "attack": {"kind": "sign-flip", "scale": 1000.0},
    "defence": {"preset": "sparsefed", "radius": 4.0, "k": "100%", "momentum": 0.0},
}


def small(**settings: Any) -> Experiment:
    """The small experiment with dotted keys (dots written as __) replaced."""
    return Experiment.from_table(override(TABLE, {key.replace("__", "."): value for key, value in settings.items()}))


def certify(experiment: Experiment, **options: Any) -> Outcome:
    return METHODS["radius"](Request(experiment, **options))


def cell(outcome: Outcome, i: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = outcome.record["cells"][i]
    return found


def setup_of(experiment: Experiment) -> Setup:
    return prepare(experiment.without_attack(), None, torch.device("cpu"))


HARD = {"kind": "random-direction", "collude": True}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"defence__k": "20%"},
        {"defence__k": 1, "learning_rate": {"kind": "triangular", "peak": 0.5}},
        {"defence": {"preset": "clip", "radius": 4.0, "momentum": 0.0}, "attack": HARD},
        {"defence": {"preset": "clip", "radius": 4.0, "momentum": 0.9}, "attack": HARD},
        {"defence__momentum": 0.9, "defence__k": "10%"},
        {"defence__radius": 0.5, "learning_rate__lr": 0.5},
        {"defence__radius": 1.5, "defence__k": "50%", "defence__adaptive_clip": False},
        {"learning_rate__lr": 3.0, "data__normalise": True, "defence__radius": 50.0},
        {"sampling__cohort": 20, "adversary__count": 30, "clients": {"kind": "gradient", "batch_size": 1}},
        {"attack": {"kind": "non-finite"}, "adversary__count": 5},
        {"attack": {"kind": "label-flip"}, "adversary__start": 3, "adversary__every": 2},
        # The rate times the decay is 5: runs are driven apart four times further each round.
        {"clients": {"kind": "gradient", "weight_decay": 100.0}, "learning_rate__lr": 0.05, "defence__radius": 1e4},
        {
            "clients": {"kind": "gradient", "weight_decay": 120.0, "split_decay": True},
            "model__zero": False,
            "defence__radius": 4.5,
            "defence__k": "30%",
        },
        {
            "sampling": {"kind": "epoch", "cohort": 20, "batch_size": 1},
            "attack": {"kind": "pgd", "aux": 50, "lr": 1.0},
            "rounds": 12,
        },
    ],
    ids=str,
)
def test_runs_stay_within_what_is_certified(settings: dict[str, Any]) -> None:
    outcome = certify(small(**settings), attacks=10 if not settings else 5)
    last = cell(outcome)["end"]
    for entry in outcome.rounds:
        bounds = [entry["log10_bound_l1"], entry["log10_reach_l1"], entry["log10_recurrence_l1"]]
        for bound in bounds:
            if bound is not None and math.isfinite(bound):
                assert entry["distance_l1"] <= 10**bound * (1 + 1e-5)
            elif bound is not None:
                assert entry["distance_l1"] == 0
        if entry["log10_bound_l2"] is not None and math.isfinite(entry["log10_bound_l2"]):
            assert entry["distance_l2"] <= 10 ** entry["log10_bound_l2"] * (1 + 1e-5)
        assert entry["loss_rate_clean"] <= cell(outcome)["loss_rate_guaranteed"] + 1e-6
        assert entry["loss_rate_poisoned"] <= cell(outcome)["loss_rate_guaranteed"] + 1e-6
    assert last["distance_l1"] > 0
    search = cell(outcome)["search"]
    assert search["attacks"] == (10 if not settings else 5)
    assert search["beyond_radius"] == 0
    assert search["certified_but_flipped"] == 0
    assert cell(outcome)["predictions"]["certified_but_flipped"] == 0
    assert not any("REFUTES" in sentence for sentence in outcome.words)


@pytest.mark.parametrize("lr", [0.02, 2e-5, 1e-6])
def test_rounding_is_counted(lr: float) -> None:
    """One attacker of 1,437 reverses the longest update; from a start of size 2, float32 rounds off much of a step."""
    cohort = {"data__partition": {"kind": "iid", "clients": 1437}, "sampling__cohort": 1437, "adversary__count": 1}
    experiment = small(**cohort, rounds=3, learning_rate__lr=lr, defence__radius=4.7, model__zero=False)
    clean = setup_of(experiment)
    start, path, facts = clean.weights.clone(), [clean.weights.clone()], []
    at, _ = round_of(clean, 1)
    updates = updates_of(at, samples(at)[0], {})[0]
    longest = int(updates.squared_norms().argmax())
    push = updates.select(torch.tensor([longest])).combine(torch.ones(1, dtype=torch.float64))
    plan, run = Facts(clean, lengths=True), rounds(clean)
    for t in range(1, 4):
        fact, mine = plan.at(t), next(run)
        length = float(mine.weights.double().norm())
        facts.append(dataclasses.replace(fact, attackers=1, update=mine.update, memory=mine.memory, length=length))
        path.append(clean.weights.clone())
    found = convex(facts, describe(experiment, len(start)))
    assert found is not None
    clean.weights.copy_(start)
    attacked = experiment.model_copy(update={"attack": Push(path, push, "steady")})
    setup = dataclasses.replace(clean, experiment=attacked, malicious=np.array([longest]))
    exact = 0.0
    for t, theirs in enumerate(rounds(setup)):
        distance = float((theirs.weights.double() - path[t + 1].double()).norm())
        exact += lr * poison_bound(1, 1437, 4.7, 1, facts[t].honest)
        assert distance <= linear(found.log_radius[t])
        # The radius without rounding is not enough where steps are small.
        assert lr > 1e-4 or distance > exact
        assert linear(found.log_radius[t]) < 1.02 * exact or lr < 1e-4


@pytest.mark.parametrize("zero", [True, False])
def test_the_mean_update_errs_by_less_than_is_counted(zero: bool) -> None:
    """Against float64, clipped clients among them."""
    experiment = small(data__partition__clients=240, sampling__cohort=240, defence__radius=3.5, model__zero=zero)
    clean = setup_of(experiment)
    at, _ = round_of(clean, 1)
    batch, fact = samples(at)[0], Facts(clean, lengths=True).at(1)
    computed = at.rule.aggregate(updates_of(at, batch, {})[0]).vector
    wide = make_model("linear", (1, 8, 8), 10, seed=0).double()
    torch.nn.utils.vector_to_parameters(clean.weights.double(), wide.parameters())
    exact = torch.zeros(650, dtype=torch.float64)
    clipped = 0
    for client in at.cohort.tolist():
        mine = batch.owners == client
        loss = torch.nn.functional.cross_entropy(wide(batch.inputs[mine].double()), batch.targets[mine])
        gradients = torch.autograd.grad(loss, list(wide.parameters()))
        row = torch.cat([gradient.reshape(-1) for gradient in gradients])
        clipped += int(row.norm() > 3.5)
        exact += row * min(1.0, 3.5 / float(row.norm())) / 240
    assert 0 < clipped < 240
    assert fact.regression is not None
    assert fact.regression.samples == 720
    counted = _noise(fact, fact.start)[0] / 2
    assert 0 < float((computed.double() - exact).norm()) < counted / 5
    assert counted < (math.sqrt(720) + 20) * fact.unit * 3.5 * (1.001 if zero else 20)


def test_the_twins_have_the_same_cohorts() -> None:
    """Where clients are drawn by what they hold, attackers hold what they train on: in both runs."""
    sampling = {"kind": "epoch", "cohort": 20, "batch_size": 1}
    settings = {"sampling": sampling, "attack": {"kind": "pgd", "aux": 50, "lr": 1.0}, "rounds": 12}
    attacked = prepare(small(**settings), None, torch.device("cpu"))
    clean = setup_of(small(**settings))
    cohorts = [attacked.draw(t) for t in range(1, 13)]
    assert any((cohort != clean.draw(t)).any() for t, cohort in enumerate(cohorts, 1))
    expected = [len(np.intersect1d(cohort, attacked.malicious)) for cohort in cohorts]
    for measure in (True, False):
        outcome = certify(small(**settings), measure=measure)
        assert [entry["attackers"] for entry in outcome.rounds] == expected


def test_further_attacks_know_everything() -> None:
    """What the experiment's own attack knows is no limit to those that the certificate is held against."""
    found = [cell(certify(small(adversary__knowledge=level), attacks=4))["search"] for level in ("own-data", "defence")]
    assert found[0] == found[1]
    assert found[0]["kinds"]["one direction"]["largest_distance_l2"] > 0


def test_a_certificate_that_is_too_small_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks can fail: if attackers were allowed a tenth of what they can do, they got out, and it is said."""
    from bezoar.experiments.certificates import _bounds

    monkeypatch.setattr(_bounds, "poison_bound", lambda *numbers: poison_bound(*numbers) / 10)
    outcome = certify(small(), attacks=5)
    search = cell(outcome)["search"]
    assert search["beyond_radius"] == 5
    assert search["nearest"]["l2"]["share"] > 1
    assert any("AN ATTACK REFUTES THE CERTIFICATE" in sentence for sentence in outcome.words)


def test_figures_of_the_recurrence_are_those_of_the_mathematics() -> None:
    experiment = small(rounds=4)
    entries = certify(experiment).rounds
    growth, rho = [e["growth_l1"] for e in entries], [e["rho_l1"] for e in entries]
    expected = log_radius([e["lr"] for e in entries], growth, rho)
    # Rounding is counted beside it.
    assert [e["log10_recurrence_l1"] * LOG10 for e in entries] == pytest.approx(list(expected), abs=1e-2)
    for e in entries:
        assert e["rho_l1"] == pytest.approx(poison_bound(2, 120, 4.0, 650, e["longest_honest_update"]))
        assert (e["attackers"], e["cohort"], e["radius"]) == (2, 120, 4.0)
        assert 0 < e["longest_honest_update"] < 4.0


def test_honest_lengths_are_those_of_the_clients() -> None:
    """Against a loop over clients, at a model that is not zero."""
    experiment = small(model__zero=False)
    clean = setup_of(experiment)
    fact = Facts(clean, lengths=True).at(1)
    federation = clean.federation
    dataset, lengths = federation.dataset, []
    for i in range(federation.n):
        rows = federation.client(i)
        loss = torch.nn.functional.cross_entropy(
            clean.model(dataset.batch(dataset.train, rows)), dataset.train.targets[torch.from_numpy(rows)]
        )
        gradients = torch.autograd.grad(loss, list(clean.model.parameters()))
        lengths.append(float(torch.cat([g.reshape(-1) for g in gradients]).norm()))
    assert fact.norms is not None
    np.testing.assert_allclose(fact.norms.numpy(), lengths, rtol=1e-4)
    assert fact.regression is not None
    assert (fact.norms <= fact.regression.ceiling).all()
    assert fact.honest == pytest.approx(max(lengths), rel=1e-4)


def test_more_is_worse() -> None:
    """More attackers, more rounds, larger rates and radii certify less; so does knowing less of the clean run."""

    def end(experiment: Experiment, **options: Any) -> tuple[float, float]:
        last = cell(certify(experiment, **options))["end"]
        return last["log10_recurrence_l1"], last["log10_bound_l2"]

    plain = end(small())
    for settings in (
        {"adversary__count": 4},
        {"rounds": 9},
        {"learning_rate__lr": 0.03},
        {"defence__radius": 8.0},
        {"defence__k": "90%"},
    ):
        assert all(a > b for a, b in zip(end(small(**settings)), plain, strict=True)), settings
    assert all(a >= b for a, b in zip(end(small(), measure=False), plain, strict=True))


def test_nothing_runs_without_measuring() -> None:
    outcome = certify(small(), measure=False)
    found = cell(outcome)
    assert found["predictions"] is None
    assert found["moved_l1"] is None
    assert found["end"]["distance_l1"] is None
    assert found["end"]["longest_honest_update"] is None
    assert found["loss_rate_measured"] is None
    # Without an attack as well: only who is malicious counts.
    quiet = certify(small(attack="none"), measure=False)
    assert cell(quiet)["end"] == found["end"]


def test_several_k() -> None:
    outcome = certify(small(), ks=(650, "50%", 10))
    assert [found["k"] for found in outcome.record["cells"]] == [650, 325, 10]
    assert [found["width"] for found in outcome.record["cells"]] == [650, 650, 20]
    text = outcome.tables[0].text()
    assert "recurrence relative to k = 650" in text
    assert [row[0] for row in outcome.tables[0].rows].count("vacuous") == 1
    (plot,) = outcome.plots
    assert len(plot.panels) == 3


def test_verdicts() -> None:
    sure = certify(small(rounds=4, adversary__count=1, learning_rate__lr=0.001))
    assert cell(sure)["predictions"]["certified"] > 0
    assert not cell(sure)["vacuous"]
    assert "not vacuous" in sure.words[0]
    unsure = certify(small(adversary__count=60))
    assert cell(unsure)["vacuous"]
    assert unsure.words[0].startswith("k = 650: VACUOUS. No prediction is certified")


def test_other_models_get_an_estimate_and_what_clipped_steps_reach() -> None:
    outcome = certify(small(model={"name": "mlp", "hidden": [4]}, rounds=3))
    found = cell(outcome)
    assert found["c_is_a_lower_estimate"]
    assert found["c"] > 0
    assert found["predictions"] is None
    assert found["end"]["log10_bound_l1"] == found["end"]["log10_reach_l1"]
    assert any("LOWER estimate" in sentence for sentence in outcome.words)
    assert found["vacuous"]
    assumed = certify(small(model={"name": "mlp", "hidden": [4]}, rounds=3), c=0.1)
    assert not cell(assumed)["c_is_a_lower_estimate"]
    assert cell(assumed)["end"]["growth_l1"] == pytest.approx(0.1 * cell(assumed)["width"])
    assert any("as --c says" in sentence for sentence in assumed.words)


def test_momentum() -> None:
    """Before top-k there is no recurrence; without top-k it is the one with momentum."""
    sparse = certify(small(defence__momentum=0.9, defence__k="50%"))
    assert cell(sparse)["end"]["log10_recurrence_l1"] is None
    assert cell(sparse)["end"]["log10_bound_l2"] is None
    assert any("outside of the theory" in sentence for sentence in sparse.words)
    plain = certify(small(defence={"preset": "clip", "radius": 4.0, "momentum": 0.9}))
    entries = plain.rounds
    expected = log_radius(
        [e["lr"] for e in entries], [e["growth_l1"] for e in entries], [e["rho_l1"] for e in entries], momentum=0.9
    )
    # Rounding is counted beside it.
    assert [e["log10_recurrence_l1"] * LOG10 for e in entries] == pytest.approx(list(expected), abs=1e-2)
    # Where error feedback takes the bare update, momentum is not used.
    server = {"kind": "sparsefed", "k": 300, "momentum": 0.9, "error_input": "update"}
    assert cell(certify(small(defence={"pipeline": TABLE_CLIP, "server": server})))["momentum"] == 0


TABLE_CLIP = [{"kind": "clip", "radius": 4.0}, "mean"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adversary": {}, "attack": "none"}, "nobody is malicious"),
        ({"attack": "none"}, "no attack whose distance"),
        ({"clients": {"kind": "local", "epochs": 2}}, "clients that send one gradient, not for 'local'"),
        ({"clients": {"kind": "gradient", "momentum": 0.5}}, "'gradient with momentum'"),
        ({"adversary__sybils": 2}, "sybils"),
        ({"defence": "none"}, "clipped"),
        ({"defence": {"pipeline": ["mean"]}}, "clipped"),
        ({"defence": {"pipeline": [{"kind": "clip", "radius": math.inf}, "mean"]}}, "clipped"),
        ({"defence": {"preset": "trimmed-mean", "f": 2, "radius": 1.0}}, "plain mean"),
        ({"defence": {"pipeline": [*TABLE_CLIP[:1], {"kind": "nnm", "f": 2}, "mean"]}}, "clipped"),
        ({"defence": {"pipeline": TABLE_CLIP, "post": [{"kind": "gaussian-noise", "std": 0.1}]}}, "noise"),
        (
            {"defence": {"pipeline": TABLE_CLIP, "server": {"kind": "sparsefed", "k": 9, "lr_placement": "inside"}}},
            "not 'inside'",
        ),
        (
            {"defence": {"pipeline": TABLE_CLIP, "server": {"kind": "sparsefed", "k": 9, "masking": "subtract"}}},
            "subtract",
        ),
        (
            {"defence": {"pipeline": TABLE_CLIP, "server": {"kind": "sgd", "lr_placement": "inside-momentum"}}},
            "outside of momentum .*, not 'inside-momentum'",
        ),
        ({"adversary": {"count": 2, "start": 50}}, "no malicious client took part"),
    ],
    ids=str,
)
def test_what_the_theory_does_not_cover_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as error:
        certify(small(**settings))
    assert "\n" not in str(error.value)


def test_wrong_requests() -> None:
    with pytest.raises(ConfigError, match="more than the model's 650"):
        certify(small(), ks=(651,))
    with pytest.raises(ConfigError, match="k must be"):
        certify(small(), ks=("0%",))
    with pytest.raises(UnsupportedError, match="no k that --k could set"):
        certify(small(defence={"preset": "clip", "radius": 4.0}), ks=(3,))
    with pytest.raises(ConfigError, match="c must be a positive number"):
        certify(small(), c=math.nan)
    with pytest.raises(ConfigError, match="--no-measure does not"):
        certify(small(), attacks=3, measure=False)
    with pytest.raises(ConfigError, match="unknown method 'radus'; did you mean 'radius'"):
        method("radus")


def test_a_skipped_round_is_not_certified() -> None:
    everybody = {"count": 60, "per_round": 20}
    settings = {"sampling__cohort": 20, "adversary": everybody, "attack": {"kind": "label-flip"}}
    assert certify(small(**settings)).words
    clean = setup_of(small())
    broken = dataclasses.replace(clean, experiment=small(attack={"kind": "sign-flip"}), malicious=np.arange(120))
    with pytest.raises(BezoarError, match="round 1 was skipped"):
        next(rounds(broken))


def test_same_seed_same_certificate() -> None:
    first, second = (certify(small(defence__k="30%"), attacks=3) for _ in range(2))
    assert first.record == second.record
    assert first.rounds == second.rounds
    other = certify(small(defence__k="30%", seed=1), attacks=3)
    assert other.rounds != first.rounds


def test_bounds_of_runs_that_explode_are_logarithms() -> None:
    experiment = small(learning_rate__lr=50.0, rounds=300, defence__k=5)
    clean = setup_of(experiment)
    plan = Facts(clean, lengths=False)
    facts = [plan.at(t) for t in range(1, 301)]
    server = describe(experiment, 650)
    grown = march(facts, server, 0.9, None)
    assert grown is not None
    assert 700 < grown.last < math.inf
    apart = convex(facts, server)
    assert apart is not None
    assert 700 < apart.last < math.inf
    assert linear(grown.last) == math.inf
    found = Cell(server, tuple(facts), None, grown, None, apart, reach(facts, server), None)
    assert vacuous(found)
    assert "10^" in table([found]).text()


def test_amounts() -> None:
    assert [amount(math.log(x)) for x in (0.5, 12345.6)] == ["0.5", "1.23e+04"]
    assert amount(1000.0) == "10^434"


def test_softmax_regression_is_told_from_other_models() -> None:
    assert is_softmax_regression(make_model("linear", (1, 8, 8), 10, seed=0))
    assert is_softmax_regression(make_model("mlp", (1, 8, 8), 10, seed=0, hidden=[]))
    assert not is_softmax_regression(make_model("mlp", (1, 8, 8), 10, seed=0, hidden=[3]))
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
    assert not is_softmax_regression(bare)


def test_records(tmp_path: Path) -> None:
    request = Request(small(), attacks=2)
    outcome = METHODS["radius"](request)
    folder = tmp_path / "certificate"
    write(outcome, request, folder, "bezoar certify x", 1.0)
    record = json.loads((folder / "certificate.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert record["hash"] == request.experiment.hash()
    assert record["command"] == "bezoar certify x"
    assert record["hardware"]["cpu"]
    assert record["versions"]["torch"]
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 7))
    assert lines[-1] == record["cells"][0]["end"]
    assert Experiment.load(folder / "experiment.toml").hash() == record["hash"]
    names = {path.name for path in folder.iterdir()}
    assert {"certificate.csv", "attacks-k650.csv", "certificate.png", "certificate.pdf"} <= names
    write(outcome, request, folder, None, 1.0)
    other = Request(small(rounds=2))
    with pytest.raises(ConfigError, match="another experiment"):
        write(outcome, other, folder, None, 1.0)
    (folder / "certificate.json").write_text("{")
    with pytest.raises(BezoarError, match="damaged"):
        write(outcome, request, folder, None, 1.0)
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.toml").write_text(small().dumps())
    with pytest.raises(ConfigError, match="already holds a run"):
        write(outcome, request, run, None, 1.0)


def test_zero_start_and_raw_features_keep_old_hashes() -> None:
    table = small().table()
    assert table["data"]["normalise"] is False
    assert "normalise" not in small(data__normalise=True).table()["data"]
    weights = setup_of(small()).weights
    assert not weights.any()
    assert setup_of(small(model__zero=False)).weights.any()
    clean = setup_of(small())
    batch = clean.federation.dataset.batch(clean.federation.dataset.train, slice(None))
    assert (float(batch.min()), float(batch.max())) == (0.0, 1.0)


def test_the_recipe_is_covered() -> None:
    experiment = Experiment.load(recipes()["certificate-tight"], {"rounds": 2})
    found = cell(certify(experiment, ks=("100%",)))
    assert found["predictions"]["certified"] > 0.5
