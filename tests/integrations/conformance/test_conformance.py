from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flwr
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, Krum, Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bezoar.aggregation import Mean, TrimmedMean
from bezoar.cli import app
from bezoar.errors import ConfigError
from bezoar.integrations.conformance import CASES, Setting, check, results, target
from bezoar.integrations.conformance.lies import Trap
from bezoar.integrations.conformance.stage import exact, honest, start
from bezoar.integrations.flower import RobustStrategy
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[3]

#: One for every kind of rule: of distances, of coordinates, of norms; and of servers.
OURS = ["nnm > trimmed-mean", "bulyan", "krum", "median", "centered-clipping", "sparsefed"]


def faults(strategy: Any, *cases: str, **options: Any) -> dict[str, str]:
    return {result.case: result.fault for result in check(strategy, cases=cases or None, **options)}


@pytest.mark.parametrize("name", OURS)
def test_ours_pass_everything(name: str) -> None:
    setting = Setting()
    failed = [r for r in results(target(f"bezoar:{name}", setting), setting, list(CASES.values())) if not r.passed]
    assert failed == []


@pytest.mark.parametrize(("clients", "dimension", "f"), [(5, 10, 1)])
def test_ours_pass_in_other_federations(clients: int, dimension: int, f: int) -> None:
    found = faults(lambda: RobustStrategy(TrimmedMean(f=f)), clients=clients, dimension=dimension, f=f)
    assert [name for name, fault in found.items() if fault] == []


def test_a_mean_behind_the_gate_fails_where_a_mean_must() -> None:
    """The suite does not merely look for our gate: a rule without robustness passes form, and fails substance."""
    found = faults(lambda: RobustStrategy(Mean()))
    failed = {name for name, fault in found.items() if fault}
    assert failed >= {"overflow", "large", "against", "few"}
    assert not failed & {"honest", "claim-huge", "order", "key-order", "metrics", "unchanged", "integers"}


@pytest.fixture(scope="module")
def page() -> Any:
    """The module that writes the page; its ``written`` are the page's columns."""
    module: Any = load("docs/make_conformance.py")
    text = module.PAGE.read_text(encoding="utf-8")
    if f"Flower {flwr.__version__}," not in text:
        pytest.skip(f"docs/conformance.md is of another version of Flower than {flwr.__version__}")
    rows = [line.split("|")[2:-1] for line in text.splitlines() if line.split("|")[1:2] and _case(line) in CASES]
    module.written = {name: [row[i].strip() for row in rows[: len(CASES)]] for i, name in enumerate(module.TARGETS)}
    return module


def _case(line: str) -> str:
    return line.split("|")[1].strip()


def test_the_page_is_made_of_its_columns(page: Any) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.written), "run python docs/make_conformance.py"


@pytest.mark.parametrize("name", ["FedMedian", "Krum", "Bulyan", "DP fixed"])
def test_the_page_is_what_flower_does(page: Any, name: str) -> None:
    assert page.written[name] == page.column(name), "run python docs/make_conformance.py"


class Broken(FedAvg):
    """FedAvg that does one thing wrong."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        kept = list(replies)
        arrays, metrics = super().aggregate_train(server_round, kept)
        if arrays is None:
            return arrays, metrics
        if self.what == "nothing":
            return None, metrics
        if self.what == "exit":
            raise SystemExit(1)
        if self.what == "pair":
            return arrays  # type: ignore[return-value]
        numbers = {name: array.numpy() for name, array in arrays.items()}
        first = next(iter(numbers))
        if self.what == "names":
            numbers["other"] = numbers.pop(first)
        elif self.what == "shape":
            numbers[first] = numbers[first].reshape(-1)
        elif self.what == "far":
            numbers[first] = numbers[first] + 100
        elif self.what == "later" and server_round == 2:
            numbers[first] = numbers[first] * np.float32(np.nan)
        elif self.what == "random":
            generator = np.random.default_rng()
            numbers[first] = numbers[first] + generator.normal(size=numbers[first].shape).astype(np.float32) * 1e-6
        elif self.what == "unpickles":
            Trap().__reduce__()[0]()
        elif self.what == "names honest":
            assert metrics is not None
            metrics["nodes"] = [message.metadata.src_node_id for message in kept]
        return ArrayRecord({name: Array(value.astype(np.float32)) for name, value in numbers.items()}), metrics


@pytest.mark.parametrize(
    ("what", "case", "fault"),
    [
        ("nothing", "honest", "round lost"),
        ("exit", "honest", "raises SystemExit"),
        ("pair", "honest", "returns no pair"),
        ("names", "honest", "other names"),
        ("shape", "honest", "other shape"),
        ("far", "honest", "moved away"),
        ("later", "honest", "not finite"),
        ("random", "repeat", "other bits"),
        ("random", "order", "depends on order"),
        ("unpickles", "honest", ""),
        ("names honest", "accountable", "says nothing"),
        ("fine", "honest", ""),
        ("fine", "repeat", ""),
    ],
)
def test_every_demand_can_fail(what: str, case: str, fault: str) -> None:
    assert faults(lambda: Broken(what), case) == {case: fault}


class Reads(Broken):
    """Unpickles what clients send."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        for message in replies:
            for record in message.content.array_records.values():
                for array in record.values():
                    np.load(__import__("io").BytesIO(array.data), allow_pickle=True)
        return None, None


def test_who_unpickles_is_caught_and_the_trap_is_set_again() -> None:
    assert faults(lambda: Reads(""), "pickled") == {"pickled": "runs their code"}
    assert not Trap.sprung
    assert faults(lambda: RobustStrategy(TrimmedMean(f=2)), "pickled") == {"pickled": ""}


def test_known_faults_of_flower() -> None:
    """Those that the adapter exists for; should one of them vanish, Flower has improved and the docs must say so."""
    assert faults(FedMedian, "nan", "unchanged") == {"nan": "not finite", "unchanged": "replies changed"}
    assert faults(lambda: Krum(num_malicious_nodes=2), "wrong-key", "precision") == {
        "wrong-key": "raises InconsistentMessageReplies",
        "precision": "other choice",
    }


def test_strategies_that_can_not_be_tried() -> None:
    with pytest.raises(ConfigError, match="waits for more than 13 clients"):
        check(lambda: FedAvg(min_available_nodes=14), cases=["honest"])
    with pytest.raises(ConfigError, match="asks 6 of 13 clients"):
        check(lambda: FedAvg(fraction_train=0.5), cases=["honest"])
    with pytest.raises(ConfigError, match="f=6 is out of range"):
        check(lambda: RobustStrategy(target_rule(6)), cases=["honest"], clients=13)
    for options, message in (
        ({"f": 0}, "f must be"),
        ({"clients": 6}, "at least 2 f"),
        ({"dimension": 3}, "dimension"),
        ({"cases": ["nann"]}, "did you mean 'nan'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(FedAvg, **options)  # type: ignore[arg-type]


def target_rule(f: int) -> Any:
    from bezoar.aggregation import Krum as Ours

    return Ours(f=f)


@given(st.integers(10, 400), st.integers(0, 20), st.integers(0, 5))
@settings(max_examples=20)
def test_exact_updates_are_the_same_around_any_model(dimension: int, client: int, draw: int) -> None:
    setting = Setting(dimension=dimension)
    moves = []
    for scale in (1.0, 256.0):
        origin = exact(setting, scale)
        sent = honest(setting, origin, client, draw)
        moves.append({name: sent[name] - origin.arrays[name] for name in origin.parameters})
    for name, move in moves[0].items():
        assert move.any()
        np.testing.assert_array_equal(move, moves[1][name])
    assert sum(array.size for array in start(setting).arrays.values()) == dimension


# Targets and the command line

INSTANCE = RobustStrategy(TrimmedMean(f=2))


def make() -> Strategy:
    return RobustStrategy(TrimmedMean(f=2))


def needs_something(something: int) -> Strategy:
    raise AssertionError(something)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["conformance", *arguments])


@pytest.mark.parametrize("name", ["INSTANCE", "make"])
def test_objects_of_modules(name: str) -> None:
    answer = run(f"{__name__}:{name}", "--case", "nan", "--case", "honest")
    assert answer.exit_code == 0, answer.output
    assert "2 of 2 cases passed" in answer.output


def test_failures_exit_with_one_and_say_what_is_right() -> None:
    answer = run("flower:FedMedian", "--case", "nan", "--case", "missing")
    assert answer.exit_code == 1
    assert "not finite" in answer.output
    assert "right:" in answer.output
    listed = json.loads(run("flower:FedMedian", "--case", "nan", "--case", "missing", "--json").output)
    assert (listed["target"], listed["clients"], listed["f"]) == ("flower:FedMedian", 13, 2)
    assert [(r["case"], r["passed"]) for r in listed["results"]] == [("nan", False), ("missing", True)]


def test_the_list_of_cases() -> None:
    assert [entry["case"] for entry in json.loads(run("--list", "--json").output)] == list(CASES)
    assert "wrong-key" in run("--list").output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Krum", "TARGET is MODULE:OBJECT"),
        ("flower:Krm", "did you mean 'Krum'"),
        ("bezoar:medain", "did you mean 'median'"),
        ("bezoar:nnm", "ends in a rule"),
        ("no_such_module:x", "no_such_module can not be imported"),
        (f"{__name__}:mak", "did you mean 'make'"),
        (f"{__name__}:ROOT", "neither a strategy"),
        (f"{__name__}:needs_something", "makes no strategy: TypeError"),
        (f"{__name__}:target_rule", "makes no strategy: TypeError"),
        (f"{__name__}:run", "not a flwr"),
    ],
)
def test_targets_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(name, Setting())()
