"""What one run of expected robustness says of a rule under an attack: its trainings, reduced over the honest sets.

A run holds one line for each (rule, attack, honest set). Everything that tables and verdicts need is a function of
these, taken over the sets: a :class:`Score`. A folder of runs can be kept as one ``scores.csv``.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bezoar.reports.records import RecordsError

#: The attack that is none: a column of its own, and no part of the mean over attacks or of the worst.
NONE = "none"

#: What is compared: loss above its minimum over the honest clients, or their loss where no minimum is known.
MEASURES = ("excess", "loss")


@dataclass(frozen=True)
class Score:
    """One rule under one attack in one run.

    ``labels`` say which run it is, the seed aside; ``measure`` what ``expected`` and ``worst`` are of (an element of
    :data:`MEASURES`). A training that diverged is infinite, so is every expectation over it.

    Over the honest sets, weighted by their probability: ``expected`` of the measure, ``worst`` of all sets,
    ``diverged``, ``broken`` (the probability that the rule promises nothing), and, of the sets where it does promise
    something, ``holding`` (the measure) beside its ``bound``. Where kappa is known, ``error`` is the squared distance
    of the aggregate from the honest mean, ``variance`` that of the honest rows and ``allowed`` kappa times it, means
    over rounds; ``tight`` is the greatest share, over sets and rounds, of what kappa allows that was reached.
    ``accuracy`` is on test data. None does not apply. ``mass`` is the probability of the sets that were run, NaN for
    draws.
    """

    labels: Mapping[str, str]
    seed: int
    reading: str
    measure: str
    rule: str
    attack: str
    expected: float
    worst: float
    diverged: float
    broken: float
    holding: float | None
    bound: float | None
    error: float | None
    variance: float | None
    allowed: float | None
    tight: float | None
    accuracy: float | None
    sets: int
    mass: float
    seconds: float

    @property
    def ratio(self) -> float | None:
        """What was measured, as a share of its bound."""
        if self.bound is None or self.holding is None or not self.bound > 0:
            return None
        return self.holding / self.bound


def reduced(
    cells: Iterable[Mapping[str, Any]], labels: Mapping[str, str], seed: int, reading: str, where: str
) -> list[Score]:
    """The scores of one run from its lines of kind ``cell``, in their order.

    Raises:
        RecordsError: sets with probabilities are mixed with draws, a line is damaged or there twice, or rules were
            trained on different sets.
    """
    groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        try:
            key, index = (str(cell["rule"]), str(cell["attack"])), int(cell["set"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordsError(f"{where}: a cell without rule, attack and set ({error})") from None
        if index in groups.setdefault(key, {}):
            raise RecordsError(f"{where}: {key[0]} under {key[1]} on set {index} is there twice")
        groups[key][index] = cell
    if not groups:
        raise RecordsError(f"{where}: no cells; expected lines of kind 'cell' in metrics.jsonl")
    wanted = set(next(iter(groups.values())))
    scores = []
    losses = [cell.get("excess") is None and not cell.get("diverged") for g in groups.values() for cell in g.values()]
    measure = "loss" if any(losses) else "excess"
    for (rule, attack), found in groups.items():
        if set(found) != wanted:
            raise RecordsError(f"{where}: {rule} under {attack} has {len(found)} of {len(wanted)} honest sets")
        scores.append(_score(list(found.values()), labels, seed, reading, measure, rule, attack, where))
    return scores


def _score(
    cells: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    seed: int,
    reading: str,
    measure: str,
    rule: str,
    attack: str,
    where: str,
) -> Score:
    exact = [cell.get("log_prob") is not None for cell in cells]
    if any(exact) != all(exact):
        raise RecordsError(f"{where}: {rule} under {attack}: sets with a probability and draws can not be mixed")
    logs = [float(cell["log_prob"]) for cell in cells] if all(exact) else [0.0] * len(cells)
    if any(math.isnan(value) for value in logs):
        raise RecordsError(f"{where}: {rule} under {attack}: a log_prob is not a number")
    top = max(logs)
    raw = [math.exp(value - top) for value in logs]
    total = math.fsum(raw)
    weights = [value / total for value in raw]
    mass = total * math.exp(top) if all(exact) else math.nan
    values = [math.inf if cell.get("diverged") else _number(cell, measure, where) for cell in cells]
    broke = [bool(cell.get("broke")) for cell in cells]
    held = [not b and _maybe(cell, "bound") is not None for b, cell in zip(broke, cells, strict=True)]
    kept = [not b and _maybe(cell, "kappa") is not None for b, cell in zip(broke, cells, strict=True)]
    reach = [
        ratio / kappa
        for cell, keep in zip(cells, kept, strict=True)
        if keep and (ratio := _maybe(cell, "worst_ratio")) is not None and (kappa := _maybe(cell, "kappa"))
    ]

    def over(key: str, where_: Sequence[bool]) -> float | None:
        return _given([_maybe(cell, key) for cell in cells], weights, where_)

    allowed = [
        None if (k := _maybe(cell, "kappa")) is None or (v := _maybe(cell, "variance")) is None else k * v
        for cell in cells
    ]
    return Score(
        labels=dict(labels),
        seed=seed,
        reading=reading,
        measure=measure,
        rule=rule,
        attack=attack,
        expected=expectation(values, weights),
        worst=max(values),
        diverged=math.fsum(w for w, cell in zip(weights, cells, strict=True) if cell.get("diverged")),
        broken=math.fsum(w for w, b in zip(weights, broke, strict=True) if b),
        holding=_given(values, weights, held),
        bound=_given([_promised(cell) for cell in cells], weights, held),
        error=over("error", kept),
        variance=over("variance", kept),
        allowed=_given(allowed, weights, kept),
        tight=max(reach, default=None),
        accuracy=over("accuracy", [True] * len(cells)),
        sets=len(cells),
        mass=mass,
        seconds=math.fsum(_maybe(cell, "seconds") or 0.0 for cell in cells),
    )


def expectation(values: Iterable[float], weights: Iterable[float]) -> float:
    """The weighted sum; what has weight 0 does not count, not even where it is infinite.

    >>> expectation([1.0, math.inf], [1.0, 0.0])
    1.0
    """
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
    if any(value == math.inf for value, _ in pairs):
        return math.inf
    return math.fsum(value * weight for value, weight in pairs)


def _given(values: Sequence[float | None], weights: Sequence[float], where: Sequence[bool]) -> float | None:
    """The expectation over the sets ``where``, of those that have a value; None if there are none."""
    found = [(v, w) for v, w, keep in zip(values, weights, where, strict=True) if keep and v is not None and w > 0]
    total = math.fsum(w for _, w in found)
    return expectation([v for v, _ in found], [w / total for _, w in found]) if found else None


def _promised(cell: Mapping[str, Any]) -> float | None:
    """The whole bound of a training: what is left in the end, and what so many rounds leave of the start."""
    found = _maybe(cell, "bound")
    return None if found is None else found + (_maybe(cell, "optimisation") or 0.0)


def _number(cell: Mapping[str, Any], key: str, where: str) -> float:
    found = _maybe(cell, key)
    if found is None:
        raise RecordsError(f"{where}: {cell.get('rule')} under {cell.get('attack')}: no {key}, and it did not diverge")
    return found


def _maybe(cell: Mapping[str, Any], key: str) -> float | None:
    """A number of a line. What is not finite counts as infinite: JSON has no word for it."""
    value = cell.get(key)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else math.inf


# One file for many runs ----------------------------------------------------------------------------------------------

_TEXTS = ("reading", "measure", "rule", "attack")
_NUMBERS = ("expected", "worst", "diverged", "broken", "holding", "bound", "error", "variance", "allowed", "tight",
            "accuracy", "mass", "seconds")  # fmt: skip
_WHOLE = ("seed", "sets")


def write_scores(path: str | Path, scores: Sequence[Score]) -> None:
    """One line for each score, six digits a number: enough for every table, and a page that is held to it."""
    axes = list(dict.fromkeys(axis for score in scores for axis in score.labels))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(f"axis:{axis}" for axis in axes), *_WHOLE, *_TEXTS, *_NUMBERS])
    for score in scores:
        numbers = ["" if (v := getattr(score, key)) is None else f"{v:.6g}" for key in _NUMBERS]
        wholes = [getattr(score, key) for key in _WHOLE]
        texts = [getattr(score, key) for key in _TEXTS]
        writer.writerow([*(score.labels.get(axis, "") for axis in axes), *wholes, *texts, *numbers])
    Path(path).write_text(out.getvalue(), encoding="utf-8", newline="")


def read_scores(path: str | Path) -> list[Score]:
    """What :func:`write_scores` wrote. Raises RecordsError naming file and line."""
    path = Path(path)
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(f"{path}: can not be read ({error})") from None
    if not rows:
        raise RecordsError(f"{path}: empty; expected a line of column names")
    head = rows[0]
    axes = [name.removeprefix("axis:") for name in head if name.startswith("axis:")]
    missing = [name for name in (*_WHOLE, *_TEXTS, *_NUMBERS) if name not in head]
    if missing:
        raise RecordsError(f"{path}, line 1: no column {missing[0]!r}")
    scores = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(head):
            raise RecordsError(f"{path}, line {number}: {len(row)} fields, expected {len(head)}")
        found = dict(zip(head, row, strict=True))
        try:
            numbers: dict[str, Any] = {key: float(found[key]) if found[key] else None for key in _NUMBERS}
            wholes: dict[str, Any] = {key: int(found[key]) for key in _WHOLE}
        except ValueError as error:
            raise RecordsError(f"{path}, line {number}: {error}") from None
        texts: dict[str, Any] = {key: found[key] for key in _TEXTS}
        labels = {axis: found[f"axis:{axis}"] for axis in axes if found[f"axis:{axis}"]}
        scores.append(Score(labels=labels, **wholes, **texts, **numbers))
    return scores


def checked(scores: Sequence[Score], where: str) -> Sequence[Score]:
    """The scores, if they may stand in one table.

    Raises:
        RecordsError: two readings or two measures are mixed, or a score is there twice.
    """
    for what, values in (
        ("readings", {score.reading for score in scores}),
        ("measures", {score.measure for score in scores}),
    ):
        if len(values) > 1:
            raise RecordsError(
                f"{where}: {what} {' and '.join(sorted(values))} can not stand in one table; report them apart"
            )
    keys = sorted((tuple(sorted(s.labels.items())), s.seed, s.rule, s.attack) for s in scores)
    for one, other in itertools.pairwise(keys):
        if one == other:
            raise RecordsError(f"{where}: {one[2]} under {one[3]}, seed {one[1]}, is there twice")
    return scores
