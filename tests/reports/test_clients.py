from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bezoar.reports import write_report
from bezoar.reports.clients import MOST, clients_table
from bezoar.reports.records import load


def run(folder: Path, *verdicts: Mapping[str, str], accuracy: float | None = 0.9) -> Path:
    """A federation's records, one round for every mapping of client to verdict."""
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text('kind = "flower"\nname = "ward"\nseed = 0\n')
    lines: list[dict[str, object]] = []
    for number, said in enumerate(verdicts, 1):
        lines.append({"kind": "round", "round": number, "cohort": 5, "skipped": None, "verdicts": said})
        if accuracy is not None:
            lines.append({"kind": "evaluation", "round": number, "test_accuracy": accuracy})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"name": "ward", "seed": 0, "rounds": len(verdicts), "test_accuracy": accuracy, "converged": True}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_clients_are_counted_by_verdict_the_worst_first(tmp_path: Path) -> None:
    folder = run(
        tmp_path / "run",
        {"3": "flagged: the rule gave it no weight", "10": "missing: no answer"},
        {"3": "flagged: the rule gave it no weight", "2": "excluded: 'w' has shape [1], expected [2]"},
        {"3": "failed: disk: full", "9": "missing: no answer"},
    )
    table = clients_table(load(folder))
    assert table is not None
    assert [column.key for column in table.columns] == ["client", "excluded", "flagged", "failed", "missing", "last"]
    assert table.rows == (
        ("2", 1, 0, 0, 0, "round 2, excluded: 'w' has shape [1], expected [2]"),
        ("3", 0, 2, 1, 0, "round 3, failed: disk: full"),
        ("9", 0, 0, 0, 1, "round 3, missing: no answer"),
        ("10", 0, 0, 0, 1, "round 1, missing: no answer"),
    )


def test_no_table_without_verdicts(tmp_path: Path) -> None:
    assert clients_table(load(run(tmp_path / "run", {}, {}))) is None


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    table = clients_table(load(run(tmp_path / "run", {str(c): "missing: no answer" for c in range(MOST + 7)})))
    assert table is not None
    assert [row[0] for row in table.rows] == [str(c) for c in range(MOST)]
    assert table.notes[0] == f"The first {MOST} of {MOST + 7} clients; all of them are in metrics.jsonl."


def test_the_page_shows_them_and_what_a_client_said_is_text(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", {"3": "failed: <script>alert(1)</script> \\input{x} 5 %"})
    page = write_report(folder)
    text = page.read_text(encoding="utf-8")
    assert "What became of the clients" in text
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "\\input{" not in (page.parent / "tables" / "clients.tex").read_text(encoding="utf-8")


def test_a_run_that_nobody_evaluated_says_so(tmp_path: Path) -> None:
    text = write_report(run(tmp_path / "run", {}, accuracy=None)).read_text(encoding="utf-8")
    assert "One run of 1 round, seed 0: nobody evaluated the model." in text
