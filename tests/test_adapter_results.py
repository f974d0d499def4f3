"""The page of adapters quotes the committed records of lora-backdoor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
SEEDS = 3


def means(folder: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(training, attack, defence) -> means over seeds of accuracies in per cent, and of the test loss."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    path = ROOT / "results" / folder
    for cell in json.loads((path / "comparison.json").read_text())["cells"]:
        labels = cell["labels"]
        summary = json.loads((path / cell["dir"] / "summary.json").read_text())
        found.setdefault((labels["training"], labels["attack"], labels["defence"]), []).append(summary)
    out = {}
    for key, group in found.items():
        assert len(group) == SEEDS
        out[key] = {
            name: None if group[0][name] is None else factor * sum(one[name] for one in group) / SEEDS
            for name, factor in (("test_accuracy", 100), ("attack_accuracy", 100), ("test_loss", 1), ("detected", 100))
        }
    return out


def rows() -> Iterator[str]:
    """The table of both trainings: test accuracy and attack accuracy, full and LoRA."""
    found = means("lora-backdoor")
    trainings, attacks, defences = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))
    assert trainings == ["full", "LoRA"]
    for attack in attacks:
        for defence in defences:
            cells = [found[training, attack, defence] for training in trainings]
            shown = [f"{cell['test_accuracy']:.1f}" for cell in cells]
            if cells[0]["attack_accuracy"] is not None:
                shown += [f"{cell['attack_accuracy']:.0f}" for cell in cells]
            else:
                shown += ["", ""]
            yield f"| {attack} | {defence} | {' | '.join(shown)} |"


def rate_rows() -> Iterator[str]:
    """The table of learning rates under the mean: honest test loss and accuracy, attacked test and attack accuracy."""
    found = means("lora-backdoor-rates")
    for training in dict.fromkeys(key[0] for key in found):
        honest, attacked = (found[training, attack, "mean"] for attack in ("nobody", "backdoor"))
        shown = [f"{honest['test_loss']:.3f}", f"{honest['test_accuracy']:.1f}", f"{attacked['test_accuracy']:.1f}"]
        yield f"| {training} | {' | '.join(shown)} | {attacked['attack_accuracy']:.0f} |"


@pytest.mark.parametrize("table", [rows, rate_rows], ids=["rules", "rates"])
def test_the_page_quotes_the_records(table: Any) -> None:
    lines = [line.replace(" |  |", " | |").replace(" |  |", " | |") for line in table()]
    assert len(lines) == {rows: 48 // 2, rate_rows: 6}[table]
    for line in lines:
        assert line in TEXT, line


def test_the_page_says_in_which_order_the_backdoor_enters() -> None:
    found = {**means("lora-backdoor"), **means("lora-backdoor-rates")}
    start = found["base, unchanged", "nobody", "mean"]["test_loss"]
    pairs = [
        (found[training, "nobody", "mean"]["test_loss"] - start, found[training, "backdoor", "mean"]["attack_accuracy"])
        for training in dict.fromkeys(key[0] for key in found)
        if training != "base, unchanged"
    ]
    words = " ".join(TEXT.split())
    assert f"({', '.join(f'{cost:.3f}' for cost, _ in sorted(pairs))};" in words
    assert f"reaches {', '.join(f'{reached:.0f}' for _, reached in sorted(pairs))}%" in words


def test_the_page_says_whom_multi_krum_leaves_out() -> None:
    found = means("lora-backdoor")
    full, lora = (found[training, "backdoor", "multi-Krum"]["detected"] for training in ("full", "LoRA"))
    assert f"leaves out {full:.0f}% of the attackers ({lora:.0f}% with LoRA)" in " ".join(TEXT.split())


def test_the_page_quotes_the_base() -> None:
    summary = json.loads((ROOT / "results" / "lora-base" / "summary.json").read_text())
    assert f"{100 * summary['test_accuracy']:.1f}%" in TEXT
    assert summary["weights_sha256"][:12] in TEXT
    for folder in ("lora-backdoor", "lora-backdoor-rates"):
        for path in (ROOT / "results" / folder).glob("cells/*/summary.json"):
            (digest,) = json.loads(path.read_text())["model"]["weights"].values()
            assert digest == summary["weights_sha256"]
