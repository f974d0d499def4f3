"""Runs of expected robustness on disk, as what is reported of them: scores, and where they come from.

Reads a run, a comparison of runs, or their small form (``scores.csv`` and ``scores.json``, see :func:`keep`), which is
enough to make the report again.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bezoar.reports.expected.scores import Score, read_scores, reduced, write_scores
from bezoar.reports.records import RecordsError

KIND = "expected"

#: The axis that is averaged over.
SEED = "seed"

SCORES, ABOUT = "scores.csv", "scores.json"
_INDEX, _CONFIG, _METRICS, _SUMMARY = "comparison.json", "experiment.toml", "metrics.jsonl", "summary.json"


@dataclass(frozen=True)
class Records:
    """Everything that a report says: scores, the grid's name, and commands, commits and machines of its runs."""

    name: str
    description: str
    scores: tuple[Score, ...]
    missing: tuple[str, ...] = ()
    runs: int = 0
    commands: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    seconds: float = 0.0
    settings: str = field(default="", repr=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs."""
        return tuple(sorted({score.seed for score in self.scores}))


def is_expected(path: Path) -> bool:
    """Whether a folder holds runs of this kind, or their small form."""
    if (path / ABOUT).is_file() and (path / SCORES).is_file():
        return True
    folder = path
    if (path / _INDEX).is_file():
        cells = _json(path / _INDEX).get("cells")
        held = [path / str(c["dir"]) for c in cells if isinstance(c, dict) and "dir" in c] if cells else []
        folder = next((place for place in held if (place / _CONFIG).is_file()), path)
    return (folder / _CONFIG).is_file() and _toml(folder / _CONFIG).get("kind") == KIND


def load_records(path: str | Path) -> Records:
    """Raises RecordsError if there are none, or damaged ones."""
    path = Path(path)
    if (path / _INDEX).is_file():
        return _comparison(path)
    if (path / _CONFIG).is_file():
        return _gathered(path, "", "", [({"run": path.resolve().name}, path)])
    if (path / SCORES).is_file() and (path / ABOUT).is_file():
        return _kept(path)
    raise RecordsError(f"{path}: no records of expected robustness here")


def keep(records: Records, folder: Path) -> None:
    """Write the small form."""
    write_scores(folder / SCORES, records.scores)
    about = {
        "name": records.name,
        "description": records.description,
        "missing": list(records.missing),
        "runs": records.runs,
        "commands": list(records.commands),
        "commits": list(records.commits),
        "hardware": list(records.hardware),
        "versions": list(records.versions),
        "seconds": round(records.seconds, 1),
        "settings": records.settings,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _kept(path: Path) -> Records:
    about = _json(path / ABOUT)
    texts = {key: str(about.get(key, "")) for key in ("name", "description", "settings")}
    lists = {
        key: tuple(map(str, about.get(key, ()))) for key in ("missing", "commands", "commits", "hardware", "versions")
    }
    numbers = {"runs": int(about.get("runs", 0)), "seconds": float(about.get("seconds", 0.0))}
    return Records(scores=tuple(read_scores(path / SCORES)), **texts, **lists, **numbers)  # type: ignore[arg-type]


def _comparison(path: Path) -> Records:
    index = _json(path / _INDEX)
    axes, cells = index.get("axes"), index.get("cells")
    if not isinstance(axes, list) or not isinstance(cells, list) or not cells:
        raise RecordsError(f"{path / _INDEX}: no axes or no cells")
    places: list[tuple[dict[str, str], Path]] = []
    for i, cell in enumerate(cells):
        try:
            labels = {str(axis): str(cell["labels"][axis]) for axis in axes if axis != SEED}
            places.append((labels, path / str(cell["dir"])))
        except (KeyError, TypeError) as error:
            raise RecordsError(f"{path / _INDEX}, cells[{i}]: no label or no dir ({error})") from None
    name, description = str(index.get("name") or path.resolve().name), str(index.get("description") or "")
    found = _gathered(path, name, description, places)
    command = index.get("command")
    return replace(found, commands=(str(command),)) if command else found


def _gathered(path: Path, name: str, description: str, places: Sequence[tuple[Mapping[str, str], Path]]) -> Records:
    scores: list[Score] = []
    missing: list[str] = []
    summaries: list[Mapping[str, Any]] = []
    settings = ""
    for labels, folder in places:
        if not (folder / _SUMMARY).is_file():
            missing.append(", ".join(labels.values()) + f" ({folder.name})")
            continue
        table, summary = _toml(folder / _CONFIG), _json(folder / _SUMMARY)
        if table.get("kind") != KIND:
            raise RecordsError(f"{folder}: a run of kind {table.get('kind')!r}, expected {KIND!r}")
        settings = settings or (folder / _CONFIG).read_text(encoding="utf-8")
        name, description = name or str(table.get("name", "")), description or str(table.get("description", ""))
        summaries.append(summary)
        lines = _cells(folder / _METRICS)
        seed = int(table.get("seed", summary.get("seed", 0)))
        scores += reduced(lines, labels, seed, str(table.get("reading", "R1")), str(folder))
    if not scores:
        raise RecordsError(f"{path}: no run has finished")

    def unique(read: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(value) for summary in summaries if (value := read(summary))))

    return Records(
        name=name,
        description=description,
        scores=tuple(scores),
        missing=tuple(missing),
        runs=len(summaries),
        commands=unique(lambda s: s.get("command")),
        commits=unique(lambda s: s.get("commit")),
        hardware=unique(lambda s: _pairs(s.get("hardware"))),
        versions=unique(lambda s: _pairs(s.get("versions"))),
        seconds=sum(float((s.get("seconds") or {}).get("total", 0.0)) for s in summaries),
        settings=settings,
    )


def _pairs(found: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in found.items()) if isinstance(found, Mapping) else ""


def _cells(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(f"{file}: can not be read ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecordsError(f"{file}, line {number}: damaged JSON ({error.msg})") from None
        if isinstance(parsed, dict) and parsed.get("kind") == "cell":
            found.append(parsed)
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordsError(f"{file}: can not be read ({error})") from None
    if not isinstance(found, dict):
        raise RecordsError(f"{file}: expected a JSON object")
    return found


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecordsError(f"{file}: can not be read ({error})") from None
