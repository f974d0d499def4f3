from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from bezoar.aggregation import CVA, RULES, Clip, Krum, Mean, Median
from bezoar.aggregation.base import Rule
from bezoar.errors import ConfigError
from bezoar.registry import LABELS, Registry, card

PLUGIN = '''
from dataclasses import dataclass

from bezoar.aggregation import Mean


@dataclass(frozen=True)
class Gentle(Mean):
    """A mean of somebody else.

    Cost: nothing.
    """


def no_part():
    pass
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an entry point, as pip leaves it."""
    (tmp_path / "gentle_rules.py").write_text(PLUGIN)
    info = tmp_path / "gentle_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gentle-rules\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield info / "entry_points.txt"
    sys.modules.pop("gentle_rules", None)


def test_parts_of_installed_packages_are_found_by_name(plugin: Path) -> None:
    plugin.write_text("[bezoar.rules]\ngentle = gentle_rules:Gentle\n")
    registry: Registry[Rule] = Registry("rule", {"mean": Mean}, group="bezoar.rules")
    assert type(registry.build("gentle")).__name__ == "Gentle"
    assert [entry.name for entry in registry.entries()] == ["mean", "gentle"]
    assert registry.entries()[1].card == {"Cost": "nothing."}
    fresh: Registry[Rule] = Registry("rule", {"mean": Mean}, group="bezoar.rules")
    assert list(fresh) == ["mean", "gentle"]
    assert fresh.build({"kind": "mean"}) == Mean()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("broken = gentle_rules:Missing", "can not be used as a rule: .*Missing"),
        ("broken = no_such_module:Rule", "can not be used as a rule: .*no_such_module"),
        ("broken = gentle_rules:no_part", "is no dataclass"),
    ],
)
def test_broken_entry_points_are_named_and_spoil_no_others(plugin: Path, line: str, message: str) -> None:
    plugin.write_text(f"[bezoar.rules]\n{line}\ngentle = gentle_rules:Gentle\n")
    registry: Registry[Rule] = Registry("rule", {"mean": Mean}, group="bezoar.rules")
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            registry.build("broken")
        assert list(registry) == ["mean", "gentle"]
    assert [entry.name for entry in registry.entries()] == ["mean", "gentle", "broken"]


def test_names_that_are_taken_stay(plugin: Path) -> None:
    plugin.write_text("[bezoar.rules]\nmean = gentle_rules:Gentle\n")
    registry: Registry[Rule] = Registry("rule", {"mean": Mean}, group="bezoar.rules")
    assert list(registry) == ["mean"]
    assert registry["mean"] is Mean


def test_finished_parts_of_installed_packages_have_their_name(plugin: Path) -> None:
    plugin.write_text("[bezoar.rules]\ngentle = gentle_rules:Gentle\n")
    gentle = importlib.import_module("gentle_rules").Gentle()
    for use in (lambda r: r.name(gentle), lambda r: r.build(gentle)):
        registry: Registry[Rule] = Registry("rule", {"mean": Mean}, group="bezoar.rules")
        assert use(registry) in ("gentle", gentle)


def test_unknown_names_still_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        Registry("rule", {"mean": Mean}, group="bezoar.rules")["meen"]


def test_cards_read_labelled_lines() -> None:
    class Documented:
        r"""Summary.

        .. math:: a = b,
            c = d

        Text: no label.

        Cost: one line
            and a second.
        Reference: somebody.
        """

    assert card(Documented) == {"Formula": "a = b, c = d", "Cost": "one line and a second.", "Reference": "somebody."}
    assert set(LABELS) >= {"Cost", "Reference"}


def test_parts_within_parts() -> None:
    rule = RULES.build({"kind": "cva", "f": 2, "pivot": {"kind": "krum", "f": 2}})
    assert rule == CVA(f=2, pivot=Krum(f=2))
    assert RULES.table(rule) == {"kind": "cva", "f": 2, "pivot": {"kind": "krum", "f": 2, "variant": "blanchard"}}
    assert RULES.build({"kind": "cva", "f": 1, "pivot": "median"}) == CVA(f=1, pivot=Median())
    assert RULES.build(RULES.table(CVA(f=1))) == CVA(f=1)
    mixed = CVA(f=1, pivot=Clip(5.0) >> Median())
    assert RULES.table(mixed)["pivot"] == [{"kind": "clip", "radius": 5.0}, {"kind": "median"}]
    assert RULES.build(RULES.table(mixed)) == mixed
    with pytest.raises(ConfigError, match="unknown rule 'krumm'"):
        RULES.build({"kind": "cva", "f": 1, "pivot": "krumm"})
    with pytest.raises(ConfigError, match="ends in a rule"):
        RULES.build({"kind": "cva", "f": 1, "pivot": {"kind": "nnm", "f": 1}})
