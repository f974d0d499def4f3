"""What a run or a comparison left on disk, read into frozen dataclasses.

A *run directory* holds ``experiment.toml``, ``metrics.jsonl``, ``timings.jsonl`` and, once finished,
``summary.json``. A *comparison directory* holds ``comparison.json``, which names one run directory per cell.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bezoar.errors import BezoarError, ConfigError
from bezoar.recipes.paper import Claim, claim
from bezoar.regime import regime

T = TypeVar("T")

PHASES = ("clients", "attack", "aggregation", "server", "evaluation")
"""The parts of a round whose seconds are measured, in the order in which they run."""


class RecordsError(BezoarError):
    """The records of a run or a comparison are missing or damaged."""


@dataclass(frozen=True)
class Round:
    """One training round; ``skipped`` holds the reason if the server kept its model.

    ``bytes_up`` and ``bytes_down`` are what all clients of the round sent and fetched, None where it is not known.
    ``verdicts`` says what became of clients that a federation's server did not simply keep: "flagged", or "excluded"
    and after a colon why.
    """

    round: int
    lr: float
    attackers: int
    cohort: int
    clipped: float
    aggregate_norm: float
    update_norm: float
    excluded: int
    skipped: str | None
    bytes_up: float | None = None
    bytes_down: float | None = None
    verdicts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The model after a round. Accuracies lie in [0, 1]; ``attack_accuracy`` is None without a targeted attack."""

    round: int
    test_accuracy: float
    test_accuracy_clean: float
    test_loss: float
    attack_accuracy: float | None
    per_class_accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Timing:
    """Seconds that each phase of one round took."""

    round: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """A finished run at its last round; None marks what does not apply.

    ``detected`` and ``false_alarms`` are shares of attackers and of others that the rule flagged, ``variance``,
    ``deviation`` and ``floor`` say how far honest updates lay apart, how far the aggregate was from their mean
    (squared), and what no rule can promise for that; all are means over the rounds with an attack. So many of those
    as ``deviation_infinite`` and ``floor_infinite`` say are left out of their means. ``bytes_up`` and ``bytes_down``
    are totals of the run, ``..._per_client`` the mean of one client in one round.
    """

    name: str
    seed: int | None
    rounds: int
    parameters: int | None
    test_accuracy: float
    test_accuracy_clean: float
    attack_accuracy: float | None
    outsized_impact: float | None
    distance_l1: float | None
    distance_l2: float | None
    per_class_accuracy: tuple[float, ...]
    attackers_per_round_mean: float | None
    detected: float | None
    false_alarms: float | None
    variance: float | None
    deviation: float | None
    floor: float | None
    deviation_infinite: int
    floor_infinite: int
    bytes_up: float | None
    bytes_down: float | None
    bytes_up_per_client: float | None
    bytes_down_per_client: float | None
    converged: bool
    convergence_note: str
    seconds: Mapping[str, float]
    command: str
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    commit: str | None
    hash: str

    @property
    def seconds_per_round(self) -> float | None:
        """The sum of the five phases' means, None if no phase was timed."""
        timed = [self.seconds[phase] for phase in PHASES if phase in self.seconds]
        return math.fsum(timed) if timed else None


@dataclass(frozen=True)
class Run:
    """One run directory. ``summary`` is None while the run is unfinished."""

    path: Path
    settings_text: str
    rounds: tuple[Round, ...]
    evaluations: tuple[Evaluation, ...]
    timings: tuple[Timing, ...]
    summary: Summary | None

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The resolved configuration, with dotted keys: ``{"server.momentum": 0.9}``."""
        return _flatten(tomllib.loads(self.settings_text))

    @cached_property
    def regime(self) -> str:
        """What the run's regime is called; empty if its configuration does not say."""
        return regime(tomllib.loads(self.settings_text))

    @property
    def name(self) -> str:
        """The name in the summary, else in the configuration, else that of the directory."""
        if self.summary is not None:
            return self.summary.name
        return str(self.settings.get("name", self.settings.get("experiment.name", self.path.resolve().name)))

    @property
    def last_round(self) -> int:
        """The last round on record, 0 if there is none."""
        return max([*(r.round for r in self.rounds), *(e.round for e in self.evaluations)], default=0)


@dataclass(frozen=True)
class Cell:
    """One place of a comparison's grid; ``run`` is None where its directory is missing or still empty."""

    labels: Mapping[str, str]
    dir: str
    run: Run | None

    @property
    def state(self) -> str:
        """``finished``, ``unfinished`` or ``missing``."""
        if self.run is None:
            return "missing"
        return "unfinished" if self.run.summary is None else "finished"


@dataclass(frozen=True)
class Comparison:
    """A grid of runs over named axes; ``seed`` is the axis that is averaged over.

    ``scale`` is that of its recipe, empty if it has none; ``claims`` are what a paper says of the grid.
    """

    path: Path
    name: str
    description: str
    command: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    single: bool = field(default=False)
    scale: str = ""
    claims: tuple[Claim, ...] = ()


def load(path: str | Path) -> Comparison | Run:
    """Reads a run directory or a comparison directory, whichever ``path`` is.

    Raises :class:`RecordsError` if it holds no records, or damaged ones (naming file and line). A line
    that was cut off when a run was killed is left out, if it is the last one.
    """
    path = Path(path)
    if not path.is_dir():
        raise RecordsError(f"{path}: no such directory; expected a run or comparison directory")
    if (path / "comparison.json").is_file():
        return _load_comparison(path)
    run = load_run(path)
    if run is None:
        raise RecordsError(
            f"{path}: no records here; expected comparison.json (a comparison) or "
            "experiment.toml and metrics.jsonl (a run)"
        )
    return run


def as_comparison(records: Comparison | Run) -> Comparison:
    """A single run seen as a grid of one cell, so that tables and plots know one kind of input."""
    if isinstance(records, Comparison):
        return records
    labels = {"run": records.name}
    seed = records.summary.seed if records.summary is not None else records.settings.get("seed")
    if seed is not None:
        labels["seed"] = str(seed)
    command = records.summary.command if records.summary is not None else ""
    cell = Cell(labels, ".", records)
    return Comparison(records.path, records.name, "", command, tuple(labels), (cell,), single=True)


def load_run(path: Path) -> Run | None:
    """Reads one run directory; None if it holds none of a run's files."""
    names = ("experiment.toml", "metrics.jsonl", "summary.json")
    if not any((path / name).is_file() for name in names):
        return None
    text = _settings_text(path / "experiment.toml")
    if tomllib.loads(text).get("kind") == "personalized":
        raise RecordsError(f"{path}: a personalised run has no page; its figures are in summary.json")
    metrics = _json_lines(path / "metrics.jsonl")
    # A run that was resumed may have written a round twice; the later line is the one that counts.
    rounds = {o["round"]: _round(o) for o in metrics if o.get("kind") == "round"}
    evaluations = {o["round"]: _evaluation(o) for o in metrics if o.get("kind") == "evaluation"}
    timings = {o["round"]: _timing(o) for o in _json_lines(path / "timings.jsonl")}
    return Run(
        path=path,
        settings_text=text,
        rounds=tuple(rounds[key] for key in sorted(rounds)),
        evaluations=tuple(evaluations[key] for key in sorted(evaluations)),
        timings=tuple(timings[key] for key in sorted(timings)),
        summary=_summary(path / "summary.json"),
    )


def _load_comparison(path: Path) -> Comparison:
    file = path / "comparison.json"
    found = _json_object(file)
    axes = tuple(_text(axis) for axis in _fetch(found, "axes", file, list))
    cells = []
    for index, cell in enumerate(_fetch(found, "cells", file, list)):
        where = f"{file}, cells[{index}]"
        if not isinstance(cell, dict):
            raise RecordsError(f"{where}: expected an object with 'labels' and 'dir'")
        labels = _fetch(cell, "labels", where, dict)
        missing = [axis for axis in axes if axis not in labels]
        if missing:
            raise RecordsError(f"{where}: no label for the axis {missing[0]!r}")
        directory = _fetch(cell, "dir", where, str)
        cells.append(Cell({axis: _text(labels[axis]) for axis in axes}, directory, load_run(path / directory)))
    if not cells:
        raise RecordsError(f"{file}: a comparison without cells")
    name, description, command = (_text(found.get(key)) for key in ("name", "description", "command"))
    found_claims = found.get("paper", [])
    if not isinstance(found_claims, list):
        raise RecordsError(f"{file}: 'paper' is not a list of claims")
    try:
        claims = tuple(claim(entry, f"{file}, paper[{i}]") for i, entry in enumerate(found_claims))
    except ConfigError as error:
        raise RecordsError(str(error)) from None
    scale = _text(found.get("scale"))
    return Comparison(
        path, name or path.resolve().name, description, command, axes, tuple(cells), scale=scale, claims=claims
    )


def _fetch(found: Mapping[str, Any], key: str, where: object, kind: type) -> Any:
    if not isinstance(found.get(key), kind):
        raise RecordsError(f"{where}: {key!r} is missing or not of type {kind.__name__}")
    return found[key]


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecordsError(f"{file}, line {error.lineno}: damaged JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(f"{file}: can not be read ({error})") from error
    if not isinstance(found, dict):
        raise RecordsError(f"{file}, line 1: expected a JSON object")
    return found


def _json_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
            problem = "" if isinstance(parsed, dict) and "round" in parsed else "expected an object with a 'round'"
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = f"damaged JSON ({error.msg if isinstance(error, json.JSONDecodeError) else error.reason})"
        if not problem:
            found.append(parsed)
        elif number < len(lines):  # only a last line without its newline can be one that a kill cut off
            raise RecordsError(f"{file}, line {number}: {problem}")
    return found


def _settings_text(file: Path) -> str:
    if not file.is_file():
        return ""
    try:
        text = file.read_text(encoding="utf-8")
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecordsError(f"{file}: damaged TOML ({error})") from error
    return text


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _float(value: object) -> float:
    """JSON's null, and anything that is no number, is NaN: unknown, never 0."""
    return float(value) if isinstance(value, int | float) else math.nan


def _maybe(value: object) -> float | None:
    return None if value is None else _float(value)


def _int(value: object) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _floats(value: object) -> tuple[float, ...]:
    return tuple(_float(item) for item in value) if isinstance(value, list) else ()


def _mapping(value: object, convert: Callable[[object], T]) -> dict[str, T]:
    return {str(key): convert(item) for key, item in value.items()} if isinstance(value, dict) else {}


def _round(o: Mapping[str, Any]) -> Round:
    return Round(
        round=_int(o["round"]),
        lr=_float(o.get("lr")),
        attackers=_int(o.get("attackers")),
        cohort=_int(o.get("cohort")),
        clipped=_float(o.get("clipped")),
        aggregate_norm=_float(o.get("aggregate_norm")),
        update_norm=_float(o.get("update_norm")),
        excluded=_int(o.get("excluded")),
        skipped=None if not o.get("skipped") else str(o["skipped"]),
        bytes_up=_maybe(o.get("bytes_up")),
        bytes_down=_maybe(o.get("bytes_down")),
        verdicts=_mapping(o.get("verdicts"), _text),
    )


def _evaluation(o: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        round=_int(o["round"]),
        test_accuracy=_float(o.get("test_accuracy")),
        test_accuracy_clean=_float(o.get("test_accuracy_clean", o.get("test_accuracy"))),
        test_loss=_float(o.get("test_loss")),
        attack_accuracy=_maybe(o.get("attack_accuracy")),
        per_class_accuracy=_floats(o.get("per_class_accuracy")),
    )


def _timing(o: Mapping[str, Any]) -> Timing:
    return Timing(_int(o["round"]), {phase: _float(o[phase]) for phase in PHASES if phase in o})


def _summary(file: Path) -> Summary | None:
    if not file.is_file():
        return None
    o = _json_object(file)
    for key in ("name", "rounds", "test_accuracy", "converged"):
        if key not in o:
            raise RecordsError(f"{file}: no {key!r}")
    return Summary(
        name=_text(o["name"]),
        seed=_int(o["seed"]) if o.get("seed") is not None else None,
        rounds=_int(o["rounds"]),
        parameters=_int(o["parameters"]) if o.get("parameters") is not None else None,
        test_accuracy=_float(o["test_accuracy"]),
        test_accuracy_clean=_float(o.get("test_accuracy_clean", o["test_accuracy"])),
        attack_accuracy=_maybe(o.get("attack_accuracy")),
        outsized_impact=_maybe(o.get("outsized_impact")),
        distance_l1=_maybe(o.get("distance_l1")),
        distance_l2=_maybe(o.get("distance_l2")),
        per_class_accuracy=_floats(o.get("per_class_accuracy")),
        attackers_per_round_mean=_maybe(o.get("attackers_per_round_mean")),
        detected=_maybe(o.get("detected")),
        false_alarms=_maybe(o.get("false_alarms")),
        variance=_maybe(o.get("variance")),
        deviation=_maybe(o.get("deviation")),
        floor=_maybe(o.get("floor")),
        deviation_infinite=_int(o.get("deviation_infinite")),
        floor_infinite=_int(o.get("floor_infinite")),
        bytes_up=_maybe(o.get("bytes_up")),
        bytes_down=_maybe(o.get("bytes_down")),
        bytes_up_per_client=_maybe(o.get("bytes_up_per_client")),
        bytes_down_per_client=_maybe(o.get("bytes_down_per_client")),
        converged=bool(o["converged"]),
        convergence_note=_text(o.get("convergence_note")),
        seconds=_mapping(o.get("seconds"), _float),
        command=_text(o.get("command")),
        versions=_mapping(o.get("versions"), _text),
        hardware=_mapping(o.get("hardware"), _text),
        commit=_text(o["commit"]) if o.get("commit") is not None else None,
        hash=_text(o.get("hash")),
    )
