"""The figures in README and results/README.md are those of the committed records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bezoar.reports import comparison_table, load, matrix_table
from bezoar.reports.records import as_comparison
from bezoar.reports.rows import grid

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("results/*/comparison.json"))
#: results/sparsefed/SCALE/RECIPE, which share the cells of their scale.
REPRODUCED = sorted(path.parent for path in ROOT.glob("results/sparsefed/*/*/comparison.json"))


def test_there_are_results() -> None:
    names = ["adaptive-vs-sparsefed", "attack-matrix", "fashion-mnist-cross-device", "fashion-mnist-long-run"]
    names += ["hospital-mistakes", "lora-backdoor", "lora-backdoor-rates", "rules-vs-attacks", "sybil-virtual-data"]
    assert [folder.name for folder in FOLDERS] == names


@pytest.mark.parametrize("folder", FOLDERS + REPRODUCED, ids=lambda folder: folder.name)
def test_records_are_complete_and_say_how_they_were_made(folder: Path) -> None:
    index = json.loads((folder / "comparison.json").read_text())
    assert index["command"].startswith("bezoar compare ")
    for cell in index["cells"]:
        summary = json.loads((folder / cell["dir"] / "summary.json").read_text())
        assert summary["commit"]
        assert not summary["commit"].endswith("dirty")
        assert summary["versions"]["torch"]
        assert summary["hardware"]["cpu"]


@pytest.mark.parametrize(
    ("page", "folder"),
    [("README.md", "fashion-mnist-cross-device")]
    + [("results/README.md", name) for name in ("fashion-mnist-cross-device", "fashion-mnist-long-run")],
)
def test_pages_quote_the_records(page: str, folder: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    table = comparison_table(load(ROOT / "results" / folder))
    keys = [column.key for column in table.columns]
    checked = 0
    for row in table.shown():
        entry = dict(zip(keys, row, strict=True))
        if entry["attack"] == "none":
            assert entry["test_accuracy"] in text
        else:
            accuracy, attack = (entry[key].removesuffix(".0") for key in ("test_accuracy", "attack_accuracy"))
            assert f"{accuracy} | {attack}" in text, f"{entry['defence']}: {accuracy} | {attack}"
        checked += 1
    assert checked == len(table.rows) >= 2


def test_benchmark_page_quotes_the_records() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in ("cnn", "resnet9"):
        (record,) = json.loads((ROOT / "benchmarks" / "results" / f"round-{name}-cpu.json").read_text())
        for subject in ("clip+mean", "sparsefed"):
            assert f"**{record['subjects'][subject]['ratio']:.3f}**" in text


def test_the_guide_quotes_the_matrix() -> None:
    text = (ROOT / "docs" / "which-rule.md").read_text(encoding="utf-8")
    table = matrix_table(load(ROOT / "results" / "rules-vs-attacks"))
    assert table is not None
    rows = list(table.shown())
    assert len(rows) == 19
    for row in rows:
        assert f"| {' | '.join(row)} |" in text


def test_the_page_of_algorithms_quotes_the_adaptive_attack() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    found = grid(as_comparison(load(ROOT / "results" / "adaptive-vs-sparsefed")))
    rows = {(row.labels["attack"], row.labels["defence"]): row.attack_accuracy for row in found.rows}
    for defence in found.values["defence"]:
        reached = [rows[attack, defence] for attack in ("PGD", "honest", "iterate", "greedy")]
        shown = [f"{100 * e.mean:.1f}" if e.mean else "0" for e in reached if e]
        assert f"| {defence.removeprefix('k = ')} | {' | '.join(shown)} |" in text


@pytest.mark.parametrize(("folder", "size"), [("attack-matrix", (25, 8)), ("hospital-mistakes", (7, 7))])
def test_the_results_page_quotes_the_matrices(folder: str, size: tuple[int, int]) -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    found = grid(as_comparison(load(ROOT / "results" / folder)))
    rows = {(row.labels["attack"], row.labels["defence"]): row for row in found.rows}
    attacks, defences = found.values["attack"], found.values["defence"]
    assert (len(attacks), len(defences)) == size
    for attack in attacks:
        means = [rows[attack, defence].test_accuracy_clean for defence in defences]
        shown = ["NaN" if e is None or math.isnan(e.mean) else f"{100 * e.mean:.1f}" for e in means]
        assert f"| {attack} | {' | '.join(shown)} |" in text
        goals = [rows[attack, defence].attack_accuracy for defence in defences]
        if goals[0] is not None:
            assert f"| {attack} | {' | '.join(f'{100 * e.mean:.1f}' for e in goals if e)} |" in text
    for entry in found.over_attacks:
        assert entry.worst_test_by in text


def test_benchmark_page_quotes_the_records_of_the_rules() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks" / "results"
    figures = json.loads((folder / "aggregation-cpu.json").read_text())["figures"]
    memory = json.loads((folder / "aggregation-memory-cpu.json").read_text())["figures"]
    for name, figure in figures.items():
        if name != "references":
            assert f"**{figure['ratio']:.2f}**" in text
            assert memory[name] <= 64
    for peer in json.loads((folder / "aggregation-peers-cpu.json").read_text())["figures"].values():
        assert f"| {peer['bezoar']:.1f} |" in text


def test_the_page_of_sybils_quotes_the_records() -> None:
    text = (ROOT / "docs" / "sybils.md").read_text(encoding="utf-8")
    folder = ROOT / "results" / "sybil-virtual-data"
    found: dict[tuple[object, ...], list[float]] = {}
    for cell in json.loads((folder / "comparison.json").read_text())["cells"]:
        labels = cell["labels"]
        accuracy = json.loads((folder / cell["dir"] / "summary.json").read_text())["attack_accuracy"]
        if accuracy is not None:
            key = (labels["adversary.sybils"], labels["attack"], labels["defence"], labels["data.partition"])
            found.setdefault(key, []).append(accuracy)
    defences = list(dict.fromkeys(key[2] for key in found))
    rows = list(dict.fromkeys(key[:2] for key in found))
    assert (len(rows), len(defences)) == (10, 6)
    for sybils, attack in rows:
        seeds = [[found[sybils, attack, rule, part] for part in ("iid", "Dirichlet 0.3")] for rule in defences]
        shown = [" / ".join(f"{100 * sum(pair) / len(pair):.0f}" for pair in parts) for parts in seeds]
        assert f"| {attack} | {' | '.join(shown)} |" in text, (sybils, attack)


def test_the_readme_counts_the_verdicts_that_the_page_gives() -> None:
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    # The readings are a claim of ours, not of the paper's.
    lines = [line for line in page.splitlines() if line.startswith("| ") and "`sparsefed/readings`" not in line]
    agrees, partly, differs = (
        sum(f"| small: **{word}** |" in line for line in lines) for word in ("agrees", "partly", "differs")
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{agrees + partly + differs} of its claims by stated rules" in readme
    assert f"{agrees} are confirmed, {partly} in part, {differs} not" in readme
