"""docs/expected-results.md is what its records say, and its rules say what is known of made-up ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests.reports.expected.fakes import write_grid
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[1]

ATTACKS = ("none", "sign flip", "ALIE", "optimised ALIE", "mimic")
SKEWS = ("0.1", "0.3", "1", "iid")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("docs/make_expected.py")


def test_the_page_is_what_recipes_and_records_say(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/make_expected.py"


#: The order in which rules are better in the made-up records; "guarded SIP" is second.
ORDER = (
    "SIP(geometric median)",
    "guarded SIP",
    "SIP(posterior mean)",
    "geometric median",
    "posterior mean",
    "temporal posterior mean",
    "SIP(NNM, trimmed mean)",
    "SIP(prior mean)",
    "prior-trimmed mean",
    "NNM, trimmed mean, f by quantile",
    "trimmed mean, f by quantile",
    "ARC, NNM, trimmed mean, f by quantile",
    "Bayes mean",
    "prior mean",
    "mean",
)


def loss(labels: Mapping[str, str], seed: int, rule: str, attack: str, index: int) -> float:
    if rule == "mean":
        return 300.0 if attack == "sign flip" else 0.001 if attack != "optimised ALIE" else math.inf
    if labels.get("assumed") == "wrong groups" and rule.startswith("SIP("):
        return 100.0 + seed
    return (1 + ORDER.index(rule)) * (1 + 0.01 * seed) * (0.5 if attack == "none" else 1)


@pytest.fixture(scope="module")
def results(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("expected")
    grids = {
        "expected-verdict": {"task": ["synthetic regression", "Digits"], "skew": list(SKEWS)},
        "expected-verdict-misspecified": {"assumed": ["correct", "wrong groups"], "skew": ["0.3"]},
    }
    for name, axes in grids.items():
        folder = write_grid(root / "runs" / name, axes, ORDER, ATTACKS, loss, range(10), name=name)
        script.take(folder, root / "results")
    tight = write_grid(root / "runs" / "tight", {"skew": ["1"]}, ["Krum"], ["ALIE"], lambda *_: 1.0, [0, 1],
                       name="expected-tightness")  # fmt: skip
    script.take(tight, root / "results")
    return root / "results"


def test_verdicts_follow_from_records(script: ModuleType, results: Path) -> None:
    text = script.page(results)
    winners = "SIP(geometric median) 8, SIP(posterior mean) 8, guarded SIP 8; that lose: posterior mean 8"
    assert f"With the right prior, on the worst attack, 8 regimes: new rules that win: {winners}" in text
    for words in (
        "| the prior is right; any skew | mean | SIP(geometric median) (x 1) |",
        "of the new rules it has the least regret on the worst attack where the prior may be right or wrong",
        "SIP improves the geometric median: on the worst attack, SIP(geometric median) has the smaller loss. "
        "| **confirmed** | holds in 2 of 2 |",
        "Under sign flip the mean is better than the geometric median. | **refuted** |",
        "Under mimic the mean is better than the geometric median. | **confirmed** |",
        "diverged in 10 of 10",
        "of every rule that needs a majority. | **not run** |",
        "Without an attack the least is 0.001 (mean): what training for so few rounds leaves.",
        "the median reaches 24.8% of it",
        "None exceeds it.",
    ):
        assert words in text, words


def test_a_default_that_is_not_the_best_is_said_to_be_so(script: ModuleType, tmp_path: Path) -> None:
    def bad(labels: Mapping[str, str], seed: int, rule: str, attack: str, index: int) -> float:
        return 50.0 if rule == "guarded SIP" else loss(labels, seed, rule, attack, index)

    name = "expected-verdict-misspecified"
    axes = {"assumed": ["correct", "wrong groups"], "skew": ["0.3"]}
    script.take(write_grid(tmp_path / "runs", axes, ORDER, ATTACKS, bad, range(8), name=name), tmp_path / "results")
    text = script.page(tmp_path / "results")
    assert "**Guarded SIP, as it is set by default, is not the best choice**" in text
    assert "that of posterior mean is x" in text
    assert "of the new rules it has the least regret" not in text
    assert "**8 seeds can not show a loss**" in text
    assert "that lose: too few seeds to say" in text
    assert "too few seeds to tell rules apart" in text


def test_without_records_the_page_says_so(script: ModuleType, tmp_path: Path) -> None:
    text = script.page(tmp_path)
    assert text.count("Not run yet.") == 1 + len(script.RECIPES)
    assert "What to use when" not in text


def test_runs_of_another_recipe_are_not_taken(script: ModuleType, tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "other", {"skew": ["1"]}, ["Krum"], ["ALIE"], lambda *_: 1.0, [0], name="other")
    with pytest.raises(SystemExit, match="none of expected-verdict"):
        script.take(folder, tmp_path)
