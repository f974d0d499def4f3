"""Claims of a paper: what their tables must be, and when a check holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar.errors import ConfigError
from bezoar.recipes.paper import Check, Claim, Labels, Verdict, claim, claims

AXES = {"defence": ["clip", "sf"], "attack": ["none", "PGD"], "n": ["1", "2", "3"], "seed": ["0", "1"]}
ROWS = [{"defence": d, "attack": a, "n": n} for d in AXES["defence"] for a in AXES["attack"] for n in AXES["n"]]
CLAIM: dict[str, Any] = {
    "of": "Table 1",
    "says": "clip breaks",
    "published": [{"at": {"defence": "clip", "attack": "PGD", "n": 1}, "attack": 100.0, "test": "DNC"}],
    "checks": [{"metric": "attack", "at": {"defence": "clip", "attack": "PGD"}, "above": 50}],
    "why": {"small": "because"},
}


def paper(**changes: Any) -> tuple[Claim, ...]:
    return claims({"title": "t", "claims": [{**CLAIM, **changes}]}, AXES, "f: paper")


def values(**by_defence: float | None) -> Any:
    """A lookup by defence; with several values of n the metric is that times n."""

    def value(row: Labels, metric: str) -> float | None:
        found = by_defence.get(row["defence"])
        return None if found is None else found * int(row["n"])

    return value


def test_a_claim_comes_back_from_its_table() -> None:
    (one,) = paper(where={"attack": "PGD"}, regime="r")
    assert claim(one.table(), "records") == one
    assert one.metrics == ("attack", "test")
    assert len(one.rows(ROWS)) == 6
    assert one.number({"defence": "clip", "attack": "PGD", "n": "1"}, "attack") == 100.0
    assert one.number({"defence": "clip", "attack": "PGD", "n": "1"}, "test") == "DNC"
    assert one.number({"defence": "clip", "attack": "PGD", "n": "2"}, "attack") is None
    assert one.number({"defence": "sf", "attack": "PGD", "n": "1"}, "attack") is None
    assert claims(None, AXES, "f") == ()


def test_bounds_are_about_every_row_that_fits() -> None:
    check = Check("attack", {"defence": "clip"}, above=10, below=50)
    assert check.holds(ROWS, values(clip=11, sf=0)) is True
    assert check.holds(ROWS, values(clip=10, sf=0)) is False
    assert check.holds(ROWS, values(clip=17, sf=0)) is False  # 51 at n = 3
    assert check.holds(ROWS, values(sf=0)) is None
    assert check.holds([], values(clip=11)) is None


def test_a_run_that_diverged_holds_nothing() -> None:
    """Whatever the order of the rows: the least of a number and NaN is the one that comes first."""
    at = {"defence": "clip", "attack": "PGD"}
    for where in ("1", "2", "3"):

        def value(row: Labels, metric: str, where: str = where) -> float:
            return math.nan if row["n"] == where else 60.0 + float(row["n"])

        assert Check("attack", at, above=50).holds(ROWS, value) is False
        assert Check("attack", at, below=90).holds(ROWS, value) is False
        assert Check("attack", at, along="n").holds(ROWS, value) is False
        assert Check("attack", {**at, "n": where}, than={**at, "n": "1"}, by=-99.0).holds(ROWS, value) is False


def test_differences_need_one_row_each() -> None:
    left, right = ({"defence": d, "attack": "PGD", "n": "1"} for d in ("clip", "sf"))
    check = Check("attack", left, than=right, by=5)
    assert check.holds(ROWS, values(clip=15, sf=10)) is True
    assert check.holds(ROWS, values(clip=14.9, sf=10)) is False
    assert check.holds(ROWS, values(clip=15)) is None
    assert Check("attack", {"defence": "clip"}, than=right).holds(ROWS, values(clip=15, sf=1)) is None
    assert Check("attack", left, than=right, by=-5).holds(ROWS, values(clip=5, sf=10)) is True
    # What is equal does not exceed.
    assert Check("attack", left, than=right).holds(ROWS, values(clip=10, sf=10)) is False
    assert Check("attack", left, than=right).holds(ROWS, values(clip=10.1, sf=10)) is True


def test_trends_follow_the_axis() -> None:
    at = {"defence": "clip", "attack": "PGD"}
    assert Check("oif", at, along="n").holds(ROWS, values(clip=1)) is True
    assert Check("oif", at, along="n").holds(ROWS, values(clip=0)) is False
    assert Check("oif", at, along="n", trend="falls").holds(ROWS, values(clip=1)) is False
    assert Check("oif", at, along="n", trend="falls").holds(ROWS, values(clip=-1)) is True

    def bump(row: Labels, metric: str) -> float:
        return {"1": 0.0, "2": 3.0, "3": 2.0}[row["n"]]

    assert Check("oif", at, along="n").holds(ROWS, bump) is False
    assert Check("oif", at, along="n", slack=1.0).holds(ROWS, bump) is True
    assert Check("oif", {**at, "n": "1"}, along="n").holds(ROWS, bump) is None
    # Rows that differ in more than the axis are no trend.
    assert Check("oif", {"attack": "PGD"}, along="n", slack=99.0).holds(ROWS, values(clip=1, sf=5)) is None


@given(st.lists(st.sampled_from([True, False, None]), max_size=5))
def test_the_verdict_counts_checks(holds: list[bool | None]) -> None:
    word = Verdict(tuple(holds)).word
    assert (word == "agrees") == (bool(holds) and all(held is True for held in holds))
    assert (word == "differs") == (False in holds and True not in holds)
    assert (word == "not run") == (bool(holds) and all(held is None for held in holds))
    assert (word == "reported") == (not holds)


def test_words() -> None:
    assert Check("test", {"a": "x"}, than={"a": "y"}, by=-5.0).words() == (
        "test accuracy (%) of [x] is at most 5 below that of [y]"
    )
    assert Check("test", {"a": "x"}, than={"a": "y"}, by=5.0).words().endswith("exceeds that of [y] by at least 5")
    assert (
        Check("oif", along="n", slack=0.1).words() == "OIF of every row rises along n (no step back by more than 0.1)"
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"of": ""}, "the key 'of' is missing"),
        ({"sais": "x"}, "a claim has no key 'sais'; did you mean 'says'"),
        ({"published": [{"at": {"defence": "clp"}, "attack": 1.0}]}, "defence has no value 'clp'; did you mean 'clip'"),
        ({"published": [{"at": {"defense": "clip"}, "attack": 1.0}]}, "no axis 'defense'; did you mean 'defence'"),
        ({"published": [{"at": {"seed": "0"}, "attack": 1.0}]}, "no axis 'seed'"),
        ({"published": [{"at": {}, "atack": 1.0}]}, "no metric 'atack'; did you mean 'attack'"),
        ({"published": [{"at": {}, "attack": True}]}, "attack must be a number or a word"),
        ({"published": [{"at": {}}]}, "no number"),
        ({"published": [{"attack": 1.0}]}, "at gives labels of the grid"),
        ({"where": {"n": 4}}, "n has no value '4'"),
        ({"checks": [{"metric": "attack", "abov": 3}]}, "a check has no key 'abov'; did you mean 'above'"),
        ({"checks": [{"metric": "accuracy", "above": 3}]}, "metric must be one of test, error, attack"),
        ({"checks": [{"above": 3}]}, "metric must be one of"),
        ({"checks": [{"metric": "attack"}]}, "bounds .above, below., or than, or along"),
        ({"checks": [{"metric": "attack", "above": 3, "along": "n"}]}, "bounds .above, below., or than, or along"),
        ({"checks": [{"metric": "attack", "above": "3"}]}, "above must be a number, got '3'"),
        ({"checks": [{"metric": "attack", "along": "m"}]}, "no axis 'm'"),
        ({"checks": [{"metric": "attack", "along": "n", "trend": "up"}]}, "trend must be 'rises' or 'falls'"),
        ({"published": 3}, "published must be a list, got 3"),
        ({"checks": [3]}, r"checks.0.: must be a table, got 3"),
        ({"why": "because"}, "why must be a dict"),
        ({"metrics": [3]}, "no metric 3"),
        ({"metrics": ["oiff"]}, "no metric 'oiff'; did you mean 'oif'"),
    ],
)
def test_wrong_claims(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        paper(**changes)


@pytest.mark.parametrize(
    "table", [{}, {"claims": []}, {"claims": "x"}, {"claims": [3]}, 3, {"claims": [CLAIM], "titel": "t"}]
)
def test_wrong_papers(table: object) -> None:
    with pytest.raises(ConfigError, match=r"claims|a claim is a table|did you mean .title."):
        claims(table, AXES, "f: paper")
