from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from bezoar.aggregation import Clip, Mean, TrimmedMean
from bezoar.attacks import PGD
from bezoar.data import Iid, UniformSampling
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment
from bezoar.experiments.config import Data, Model, override, parse_value
from bezoar.experiments.defence import Defence, defence
from bezoar.servers import SGD, SparseFed
from bezoar.servers.schedules import Constant
from tests.experiments.tiny import TABLE, tiny


def test_toml_round_trips(tmp_path: Path) -> None:
    experiment = tiny()
    experiment.dump(tmp_path / "e.toml")
    assert Experiment.load(tmp_path / "e.toml") == experiment
    assert Experiment.load(tmp_path / "e.toml").hash() == experiment.hash()


def test_python_objects_are_the_same_description() -> None:
    experiment = Experiment(
        name="tiny",
        seed=3,
        rounds=12,
        data=Data(dataset="digits", partition=Iid(clients=100)),
        model=Model(name="mlp", hidden=[16]),
        learning_rate=Constant(0.1),
        sampling=UniformSampling(20),
        defence=Defence(Clip(2.0) >> Mean(), SGD()),
    )
    table = {**TABLE, "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 100}}}
    for key in ("attack", "adversary", "evaluation", "checkpoint_every"):
        table.pop(key)
    table["defence"] = {"preset": "clip", "radius": 2.0}
    assert Experiment.from_table(table) == experiment


def test_the_hash_covers_everything_that_decides_the_result() -> None:
    same = tiny()
    assert tiny(name="other", description="words", checkpoint_every=7).hash() == same.hash()
    different = [
        tiny(seed=4),
        tiny(rounds=13),
        tiny(model__hidden=[17]),
        tiny(defence__radius=2.5),
        tiny(attack__epochs=3),
        tiny(adversary__share=0.2),
        tiny(data__partition={"kind": "iid", "clients": 600}),
        tiny(evaluation__every=5),
    ]
    assert len({same.hash(), *(experiment.hash() for experiment in different)}) == len(different) + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rouns": 3}, r"unknown key 'rouns'; did you mean 'rounds'\?"),
        ({"evaluation.evry": 3}, r"unknown key 'evaluation.evry'; did you mean 'every'\?"),
        ({"rounds": "ten"}, r"rounds: input should be a valid integer.*got 'ten'"),
        ({"rounds": 0}, r"rounds: .*greater than or equal to 1"),
        ({"data.dataset": "digit"}, r"data.dataset: unknown data set 'digit'; did you mean 'digits'\?"),
        ({"data.partition": {"kind": "iid"}}, r"data.partition: partition 'iid' needs the parameter 'clients'"),
        ({"model.name": "cnnn"}, r"model.name: unknown model 'cnnn'; did you mean 'cnn'\?"),
        ({"defence": "sparsfed"}, r"defence: unknown preset 'sparsfed'; did you mean 'sparsefed'\?"),
        ({"defence.raduis": 1.0}, r"defence: preset 'sparsefed' has no parameter 'raduis'; did you mean 'radius'\?"),
        ({"defence.radius": -1.0}, r"defence: rule 'clip': Clip: radius must be a positive number, got -1"),
        ({"defence": {"preset": "krum"}}, r"defence: preset 'krum' needs the parameter 'f'"),
        ({"defence": {"pipeline": ["clip"]}}, r"defence: rule 'clip' needs the parameter 'radius'"),
        ({"defence": {"pipline": ["mean"]}}, r"defence: a defence has no key 'pipline'; did you mean 'pipeline'\?"),
        ({"attack": {"kind": "pdg"}}, r"attack: unknown attack 'pdg'; did you mean 'pgd'\?"),
        ({"attack.lr": -0.1}, r"attack: attack 'pgd': pgd: lr must be a positive number"),
        ({"adversary": {}}, r"nobody is malicious: set adversary.count or adversary.share"),
        (
            {"adversary": {"share": 0.1, "count": 3}},
            r"one of count, share, clients and prior .* not count and share",
        ),
        ({"adversary.share": 1.5}, r"adversary.share: .*less than or equal to 1"),
        ({"adversary.per_round": 20}, r"leaves no honest client in a cohort of 20"),
        ({"adversary.stop": 1, "adversary.start": 2}, r"stop=1 is before start=2"),
        ({"learning_rate": {"kind": "triangle", "peak": 1.0}}, r"unknown schedule 'triangle'; did you mean 'triang"),
        ({"learning_rate.lr": 0.0}, r"learning_rate: schedule 'constant': constant: lr must be a positive number"),
        ({"defence": {"preset": ["clip"]}}, r"defence: unknown preset \['clip'\]"),
        ({"defence": {"pipeline": ["mean"], "post": 5}}, r"defence: post must be a list"),
        ({"attack.lr": 1e300}, r"lr must be a positive number of at most 1e30"),
        ({"name": "a/b"}, r"name must be usable as a folder name"),
        ({"seed": -1}, r"seed: "),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_word(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Experiment.from_table(override(TABLE, settings), source="my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    table = {key: value for key, value in TABLE.items() if key != "rounds"}
    with pytest.raises(ConfigError, match=r"my.toml: the key 'rounds' is missing"):
        Experiment.from_table(table, source="my.toml")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.toml: can not be read: No such file"):
        Experiment.load(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("rounds = = 3")
    with pytest.raises(ConfigError, match=r"broken.toml: not valid TOML"):
        Experiment.load(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml: can not be read"):
        Experiment.load(tmp_path / "binary.toml")


def test_overrides_on_the_way_in(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(tomlkit.dumps(TABLE))
    experiment = Experiment.load(tmp_path / "e.toml", {"rounds": 5, "defence.k": 7})
    assert experiment.rounds == 5
    assert experiment.defence.server == SparseFed(k=7)
    with pytest.raises(ConfigError, match="'rounds' is 12, not a table"):
        override(TABLE, {"rounds.x": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("1%", "1%"), ("a b", "a b"), ('{kind="sgd"}', {"kind": "sgd"})],
)
def test_values_from_the_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_presets_are_triples() -> None:
    assert defence("none") == Defence(Mean(), SGD())
    assert defence({"preset": "trimmed-mean", "f": 2}) == Defence(TrimmedMean(f=2), SGD())
    assert defence({"preset": "trimmed-mean", "f": 2, "radius": 5.0}).pipeline == Clip(5.0) >> TrimmedMean(f=2)
    named = defence({"preset": "sparsefed", "k": 10, "server": {"masking": "none"}})
    assert named.server == SparseFed(k=10, masking="none")
    assert defence(named.table()) == named


def test_adaptive_clipping_follows_the_learning_rate() -> None:
    adaptive = defence({"preset": "clip", "radius": 4.0, "adaptive_clip": True})
    assert adaptive.radius(0.5) == 2.0
    assert adaptive.rule(0.5) == Clip(2.0) >> Mean()
    assert defence({"preset": "clip", "radius": 4.0}).radius(0.5) == 4.0
    assert defence("none").radius(1.0) == float("inf")


def test_an_unregistered_rule_says_how_to_register_it() -> None:
    @dataclass(frozen=True)
    class Mine(Mean):
        """Mine."""

    own = tiny().model_copy(update={"defence": Defence(Mine(), SGD())})
    with pytest.raises(ConfigError, match=r"Mine has no name as a rule: register it first, add\('my-name', Mine\)"):
        own.table()


def test_attack_none_in_all_spellings() -> None:
    for spelling in ("none", {"kind": "none"}):
        assert tiny(attack=spelling).attack is None
    assert tiny().attack == PGD(aux=10, epochs=2, batch_size=5)
    assert tiny().without_attack() == tiny(attack="none")
