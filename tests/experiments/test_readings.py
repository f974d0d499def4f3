"""Readings of the SparseFed paper: one key of an experiment that sets every row of their table."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import pytest
import torch

from bezoar.aggregation import RULES, Bulyan, Clip, Krum, Mean, Median, TrimmedMean
from bezoar.attacks import ATTACKS, PGD
from bezoar.clients import CLIENTS, Gradient, LocalSGD
from bezoar.data import SAMPLINGS
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.experiments.config import Adversary
from bezoar.experiments.defence import PRESETS, defence
from bezoar.experiments.grid import Grid
from bezoar.experiments.readings import READINGS, ROWS, entries
from bezoar.experiments.run import distances
from bezoar.servers import SERVERS, SGD, FetchSGD, SparseFed
from bezoar.servers.schedules import SCHEDULES
from tests.experiments.tiny import TABLE, tiny

NAMES = list(READINGS)

DEFENCES: dict[str, Any] = {
    "none": "none",
    "clip": {"preset": "clip", "radius": 2.0},
    "krum": {"preset": "krum", "f": 2},
    "median": {"preset": "median", "radius": 2.0},
    "trimmed-mean": {"preset": "trimmed-mean", "f": 2, "radius": 2.0},
    "bulyan": {"preset": "bulyan", "f": 2, "radius": 2.0},
    "sparsefed": {"preset": "sparsefed", "radius": 2.0, "k": "5%"},
    "fetchsgd": {"preset": "fetchsgd", "radius": 2.0, "k": "5%"},
}


def test_every_choice_is_a_key_that_exists_and_takes_its_value() -> None:
    registries = {
        "clients": CLIENTS, "attack": ATTACKS, "sampling": SAMPLINGS, "learning_rate": SCHEDULES,
        "defence.server": SERVERS, "defence.rule": RULES,
    }  # fmt: skip
    for reading in READINGS.values():
        for choice in reading.choices:
            assert choice.row in ROWS
            if choice.section == "adversary":
                assert choice.field in Adversary.model_fields
                continue
            if choice.section == "defence":
                assert choice.field == "adaptive_clip"
                continue
            registry: Any = registries[choice.section]
            alone = choice.clients and choice.section == "clients"
            kinds = choice.kinds or ([choice.clients] if alone else list(registry))
            for kind in kinds:
                assert choice.field in {spec.name for spec in fields(registry[kind])}, str(choice)
        keys = [(choice.key, kind, choice.clients) for choice in reading.choices for kind in choice.kinds or ("",)]
        assert len(set(keys)) == len(keys)


def test_what_each_reading_makes_of_sparsefed_and_its_attackers() -> None:
    paper, first, second, third = (tiny(reading=name) for name in NAMES)
    assert paper.defence.server == SparseFed(k="5%", error_input="update", masking="subtract")
    assert first.defence.server == SparseFed(k="5%", lr_placement="inside-momentum")
    assert second.defence.server == third.defence.server == SparseFed(k="5%")
    assert isinstance(paper.attack, PGD)
    assert (paper.attack.project, paper.attack.rescale, paper.attack.boost_on) == ("epoch", False, "update")
    for experiment, single, stretched in ((first, True, False), (second, False, True), (third, False, True)):
        attack = experiment.attack
        assert isinstance(attack, PGD)
        assert (attack.single, attack.rescale, attack.boost_on) == (single, stretched, "loss")
        assert (attack.aux_from, attack.replacement, attack.augment) == ("first", True, True)
        assert (attack.aux, attack.epochs, attack.batch_size) == (10, 2, 5)
        assert experiment.clients == Gradient(weight_decay=5e-4, split_decay=True)
        assert experiment.adversary.which == "last"
    assert second.attack.rescale_above == 1e-3  # type: ignore[union-attr]
    assert [e.learning_rate.offset for e in (paper, first, second, third)] == [0.5, 1.0, 0.0, 0.0]
    assert paper.clients == Gradient()
    assert paper.adversary.which == "drawn"


def test_clipping_under_fedavg() -> None:
    paper, first, second, third = (tiny(reading=name, clients="local") for name in NAMES)
    assert [e.defence.adaptive_clip for e in (paper, first, second, third)] == [True, False, False, True]
    assert first.clients == LocalSGD(step_radius=2.0, lr_decay=0.9, weight_decay=5e-4, split_decay=True)
    assert second.clients == third.clients == LocalSGD(lr_decay=0.9, weight_decay=5e-4, split_decay=True)
    # Clients get the rate that the server has set after the last round.
    assert [e.learning_rate.offset for e in (paper, first, second, third)] == [0.5, 1.0, 1.0, 1.0]
    # The rate is the clients' there, and PGD exists.
    assert first.defence.server == SparseFed(k="5%")
    assert first.attack.single is False  # type: ignore[union-attr]
    assert first.attack.rescale is False  # type: ignore[union-attr]
    # Nothing to clip by.
    assert tiny(reading="code-2021-05", clients="local", defence="none").clients.step_radius == 0  # type: ignore[union-attr]


def test_rules() -> None:
    def rule(reading: str, name: str) -> Any:
        pipeline = tiny(reading=reading, defence=DEFENCES[name]).defence.pipeline
        return getattr(pipeline, "rule", pipeline)

    assert [rule(name, "median") for name in NAMES] == [Median(), *[Median(variant="lower")] * 3]
    assert [rule(name, "krum").variant for name in NAMES] == ["sparsefed", *["code-2021-05"] * 3]
    assert [rule(n, "trimmed-mean").variant for n in NAMES] == ["yin", "code-2021-05", "code-2021-05", "yin"]
    bulyan = ["sparsefed", "code-2021-05", "code-2021-06", "sparsefed"]
    assert [rule(name, "bulyan").variant for name in NAMES] == bulyan
    assert rule("code-2021-05", "clip") == Mean()


def test_fetchsgd() -> None:
    def server(**settings: Any) -> FetchSGD:
        found = tiny(defence={"preset": "fetchsgd", "k": 50, **settings.pop("defence", {})}, **settings).defence.server
        assert isinstance(found, FetchSGD)
        return found

    assert server() == FetchSGD(k=50)
    assert server(reading="paper") == FetchSGD(k=50, error_masking="subtract", masking="none")
    coded = FetchSGD(k=50, rows=1, lr_placement="inside-momentum")
    assert server(reading="code-2021-05") == server(reading="code-2021-08") == coded
    # What the preset fills in is open, what the experiment says is not.
    assert server(reading="code-2021-08", defence={"rows": 5}).rows == 5
    assert server(reading="code-2021-08", defence={"server": {"rows": 3}}).rows == 3
    again = tiny(reading="code-2021-08", defence={"preset": "fetchsgd", "k": 50, "rows": 5})
    assert Experiment.from_table(again.table()) == again


def test_what_the_experiment_says_wins() -> None:
    experiment = tiny(
        reading="code-2021-05",
        attack__single=False,
        attack__aux_from="random",
        clients={"kind": "gradient", "weight_decay": 0.0},
        learning_rate__offset=0.5,
        adversary__which="drawn",
        defence={"preset": "sparsefed", "radius": 2.0, "k": "5%", "server": {"lr_placement": "outside"}},
    )
    assert experiment.attack.single is False  # type: ignore[union-attr]
    assert experiment.attack.aux_from == "random"  # type: ignore[union-attr]
    assert experiment.clients == Gradient(split_decay=True)
    assert experiment.learning_rate.offset == 0.5
    assert experiment.adversary.which == "drawn"
    assert experiment.defence.server == SparseFed(k="5%")
    # And it still does when the record of the run is read again, though these are defaults.
    again = Experiment.from_table(experiment.table())
    assert again == experiment
    assert again.hash() == experiment.hash()
    assert experiment.table()["attack"]["single"] is False


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clients", ["gradient", "local"])
def test_records_are_resolved_and_round_trip(name: str, clients: str, tmp_path: Any) -> None:
    attacks = ("none", {"kind": "pgd", "aux": 5}, {"kind": "adaptive-pgd", "aux": 5}, {"kind": "min-max"})
    for choice, attack in zip(DEFENCES.values(), itertools.cycle(attacks), strict=False):
        experiment = tiny(
            reading=name, clients=clients, defence=choice, attack=attack,
            sampling={"kind": "epoch", "cohort": 20}, learning_rate={"kind": "triangular", "peak": 0.1},
        )  # fmt: skip
        experiment.dump(tmp_path / "e.toml")
        again = Experiment.load(tmp_path / "e.toml")
        table = again.table()
        assert again == experiment
        assert table == experiment.table()
        assert table.pop("reading") == name
        # The same keys without the reading are the same experiment by another name.
        assert Experiment.from_table(table).model_copy(update={"reading": name}) == experiment


def test_without_a_reading_nothing_changes() -> None:
    assert tiny().reading is None
    assert "reading" not in tiny().table()
    assert tiny(reading="paper").hash() != tiny().hash()
    assert tiny(reading="paper").without_attack().table()["attack"] == {"kind": "none"}


def test_a_reading_is_an_axis_of_a_grid() -> None:
    base = {key: value for key, value in TABLE.items() if key != "defence"}
    axes = {"reading": NAMES, "defence": [{"preset": "sparsefed", "radius": 2.0, "k": "5%"}, "none"]}
    grid = Grid.from_table({**base, "grid": axes}, settings={"attack.single": True})
    assert len(grid.cells) == 8
    assert [cell.labels["reading"] for cell in grid.cells[::2]] == NAMES
    assert grid.cells[0].experiment.defence.server != grid.cells[2].experiment.defence.server
    assert all(cell.experiment.attack.single for cell in grid.cells)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reading": "code-2021-5"}, r"reading: unknown reading 'code-2021-5'; did you mean 'code-2021-05'\?"),
        ({"reading": 5}, r"reading: input should be a valid string, got 5"),
        ({"reading": "paper", "defence": "sparsfed"}, r"defence: unknown preset 'sparsfed'; did you mean 'sparsefed'"),
        ({"reading": "paper", "defence": 3}, r"defence: a defence is a preset's name"),
        ({"reading": "paper", "defence": {"pipeline": [3]}}, r"defence: a rule is a name or a table"),
        ({"reading": "paper", "attack": {"kind": "pdg"}}, r"attack: unknown attack 'pdg'"),
        ({"reading": "paper", "clients": [1]}, r"clients: a clients' regime is a name or a table"),
        ({"reading": "code-2021-05", "defence": {"preset": "trimmed-mean", "f": 0}}, r"divides by nothing for f=0"),
        ({"reading": "paper", "attack": PGD()}, r"attack: a finished PGD leaves nothing open for a reading"),
        ({"reading": "paper", "defence": defence("none")}, r"defence: a finished Defence leaves nothing open"),
        ({"reading": "paper", "defence": {"pipeline": [Mean()]}}, r"defence.pipeline: a finished Mean leaves nothing"),
        ({"adversary": {"clients": [1], "which": "last"}}, r"which = 'last' says which clients a count or a share"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.from_table({**TABLE, **settings})


def test_missing_sections_are_still_missing() -> None:
    for section in ("defence", "sampling", "learning_rate"):
        table = {key: value for key, value in TABLE.items() if key != section}
        with pytest.raises(ConfigError, match=f"the key '{section}' is missing"):
            Experiment.from_table({**table, "reading": "code-2021-05"})


def test_readings_give_materially_different_iterates() -> None:
    """Fifty coordinates, thirty rounds, the same updates for all: the servers' readings end far from each other."""
    draws = torch.Generator().manual_seed(0)
    updates = torch.randn(30, 50, generator=draws, dtype=torch.float64)
    ends = {}
    for name in NAMES[:3]:
        experiment = tiny(reading=name, defence__k=5, rounds=30, learning_rate={"kind": "triangular", "peak": 0.2})
        model, state = torch.zeros(50, dtype=torch.float64), {}
        for t, update in enumerate(updates, start=1):
            step = experiment.defence.server.step(update, experiment.learning_rate.at(t, 30), state)
            state = dict(step.state)
            step.apply_(model)
        ends[name] = model
    for a in ends:
        for b in ends:
            if a != b:
                assert (ends[a] - ends[b]).norm() > 0.4 * ends[b].norm(), (a, b)


def test_readings_run_and_differ() -> None:
    ends = {}
    for name in NAMES:
        for clients in ("gradient", "local"):
            experiment = tiny(
                reading=name, clients=clients, rounds=6, attack__boost=3.0, evaluation__every=6,
                learning_rate={"kind": "triangular", "peak": 0.5}, sampling={"kind": "epoch", "cohort": 20},
            )  # fmt: skip
            result = run(experiment)
            assert all(torch.isfinite(value).all() for value in result.weights.values())
            ends[name, clients] = result.weights
    for clients in ("gradient", "local"):
        for i, a in enumerate(NAMES):
            for b in NAMES[:i]:
                gap = distances(ends[a, clients], ends[b, clients])["distance_l2"]
                if (a, b, clients) == ("code-2021-08", "code-2021-06", "gradient"):
                    # These two differ in rules and under FedAvg, not for SparseFed with gradients.
                    assert gap == 0
                else:
                    assert gap > 1e-3, (a, b, clients)


def test_the_broken_rules_move_all_coordinates_alike() -> None:
    """With the trimmed mean of the first two revisions every parameter moves by the same number in every round."""
    settings: dict[str, Any] = {"defence": DEFENCES["trimmed-mean"], "attack": "none", "rounds": 3}
    start = run(tiny(**{**settings, "rounds": 1, "learning_rate": {"kind": "constant", "lr": 1e-30}})).weights
    broken = run(tiny(reading="code-2021-06", **settings)).weights
    moved = torch.cat([(broken[name] - start[name]).flatten() for name in start])
    assert float(moved.abs().max()) > 0
    torch.testing.assert_close(moved, moved.mean().expand_as(moved), atol=1e-6, rtol=1e-3)
    whole = run(tiny(reading="code-2021-08", **settings)).weights
    moved = torch.cat([(whole[name] - start[name]).flatten() for name in start])
    assert float(moved.std()) > 5 * float(moved.mean().abs())


def test_tail_rounds_are_skipped_while_the_rate_goes_on() -> None:
    settings: dict[str, Any] = {
        "data__partition": {"kind": "iid", "clients": 10}, "attack": "none", "rounds": 6, "evaluation__every": 6,
        "defence": "none", "learning_rate": {"kind": "triangular", "peak": 0.2},
    }  # fmt: skip
    skipping = run(tiny(sampling={"kind": "epoch", "cohort": 4, "skip_tail": True}, **settings))
    playing = run(tiny(sampling={"kind": "epoch", "cohort": 4}, **settings))
    tail = "tail of an epoch: only 2 clients left"
    assert [r["skipped"] for r in skipping.rounds] == [None, None, tail] * 2
    assert [r["skipped"] for r in playing.rounds] == [None] * 6
    assert [r["lr"] for r in skipping.rounds] == [r["lr"] for r in playing.rounds]
    assert skipping.summary["rounds_skipped"] == 2
    # A cohort that no rule could take is no obstacle if it is never played.
    strict: dict[str, Any] = {
        **settings,
        "defence": {"preset": "krum", "f": 0},
        "data__partition": {"kind": "iid", "clients": 9},
    }
    run(tiny(sampling={"kind": "epoch", "cohort": 4, "skip_tail": True}, **strict))
    with pytest.raises(ConfigError, match="can not work with n=1"):
        run(tiny(sampling={"kind": "epoch", "cohort": 4}, **strict))


def test_attackers_with_aux_points_are_drawn_more_often() -> None:
    settings: dict[str, Any] = {
        "data__partition": {"kind": "one-class", "clients": 100, "samples": 2}, "rounds": 12, "evaluation__every": 12,
        "adversary": {"count": 4, "which": "last"}, "attack": {"kind": "pgd", "aux": 20, "epochs": 1},
    }  # fmt: skip
    plain = run(tiny(sampling={"kind": "epoch", "cohort": 10}, **settings))
    code = run(tiny(sampling={"kind": "epoch", "cohort": 10, "batch_size": 2, "epoch_rounds": 12}, **settings))
    # Four attackers once an epoch of ten rounds; here up to ten times each.
    assert sum(r["attackers"] for r in plain.rounds[:10]) == 4
    assert sum(r["attackers"] for r in code.rounds) > 12
    honest = [sum(r["attackers"] for r in code.rounds[i : i + 4]) for i in (0, 8)]
    assert honest[1] > honest[0]


def test_regimes_have_names() -> None:
    clipped = {"preset": "adaptive-clip", "radius": 2.0}
    assert tiny().regime == "uncompressed"
    assert tiny(clients="local").regime == "FedAvg"
    assert tiny(clients="local", defence=clipped).regime == "FedAvg + adaptive clipping"
    assert tiny(defence=clipped).regime == "uncompressed + adaptive clipping"
    # Without anything to clip there is no adaptive clipping.
    assert tiny(clients="local", defence={"pipeline": ["mean"], "adaptive_clip": True}).regime == "FedAvg"
    assert run(tiny(clients="local", attack="none", rounds=1)).summary["regime"] == "FedAvg"


def test_presets_of_the_papers_defences() -> None:
    adaptive = defence("adaptive-clip")
    assert adaptive.rule(0.5) == Clip(2.5) >> Mean()
    assert adaptive.server == SGD()
    noisy = defence({"preset": "weak-dp", "std": 0.5, "radius": 3.0})
    assert noisy.pipeline == Clip(3.0) >> Mean()
    assert [part.std for part in noisy.post] == [0.5]  # type: ignore[attr-defined]
    assert defence("weak-dp").table()["post"] == [{"kind": "gaussian-noise", "std": 0.025}]
    assert defence({"preset": "bulyan", "f": 10}).pipeline == Bulyan(f=10)
    assert defence({"preset": "bulyan", "f": 2, "radius": 5.0}).pipeline == Clip(5.0) >> Bulyan(f=2)
    assert defence({"preset": "krum", "f": 2}).pipeline == Krum(f=2)
    assert defence({"preset": "trimmed-mean", "f": 5}).pipeline == TrimmedMean(f=5)
    for name in ("none", "clip", "sparsefed"):
        weighted = defence({"preset": name, "weighted": True}).pipeline
        assert getattr(weighted, "rule", weighted) == Mean(weighted=True)
    wanted = {"none", "clip", "adaptive-clip", "weak-dp", "krum", "median", "trimmed-mean", "bulyan", "sparsefed"}
    assert wanted <= set(PRESETS)


def test_noise_of_weak_dp_is_on_the_aggregate() -> None:
    noisy = defence({"preset": "weak-dp", "std": 0.5, "radius": 1.0, "momentum": 0.0})
    vector = torch.zeros(4000)
    draws = torch.Generator().manual_seed(0)
    assert float(noisy.post[0](vector, draws).std()) == pytest.approx(0.5, rel=0.05)


def test_the_list_of_readings_shows_all_rows() -> None:
    found = {entry.name: entry for entry in entries()}
    assert list(found) == NAMES
    card = found["code-2021-05"].card
    assert card["13 trimmed mean"] == 'defence.rule.variant = "code-2021-05" (trimmed-mean)'
    assert "the clipping radius of the pipeline" in card["6 clipping"]
    named = {label.split()[0] for label in card if label[0].isdigit()}
    left = {part.split()[0] for part in card["Left as it is"].split("; ")}
    assert {int(number) for number in named | left} == set(ROWS)
    assert not named & left
