"""The grid seen row by row: one row per combination of the axes that are not ``seed``, its seeds averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from bezoar.reports.estimates import Estimate
from bezoar.reports.records import PHASES, Cell, Comparison, Run, Summary

SEED = "seed"
_DEFENCE_AXES = ("defence", "defense", "rule", "aggregation", "pipeline")
_NO_DEFENCE = ("none", "no defence", "no defense", "undefended", "without defence", "mean", "average", "fedavg")
_NO_ATTACK = ("none", "no attack", "unattacked", "without attack", "benign", "clean")


@dataclass(frozen=True)
class Row:
    """All seeds of one combination of labels. ``number`` counts rows from 1, in the order of the records."""

    number: int
    labels: Mapping[str, str]
    cells: tuple[Cell, ...]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The finished runs; only these enter a table."""
        return tuple(cell.run for cell in self.cells if cell.run is not None and cell.run.summary is not None)

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """The summaries of the finished runs."""
        return tuple(run.summary for run in self.runs if run.summary is not None)

    @property
    def n(self) -> int:
        """Finished seeds."""
        return len(self.runs)

    @property
    def converged(self) -> int:
        """Finished seeds whose training converged."""
        return sum(summary.converged for summary in self.summaries)

    def of(self, value: Callable[[Summary], float | None]) -> Estimate | None:
        """A number of the summary, averaged over the seeds."""
        return Estimate.of(value(summary) for summary in self.summaries)

    @cached_property
    def test_accuracy(self) -> Estimate | None:
        """Accuracy on the whole test set at the final round."""
        return self.of(lambda s: s.test_accuracy)

    @cached_property
    def test_accuracy_clean(self) -> Estimate | None:
        """Accuracy on the test set without the attacker's aux points at the final round."""
        return self.of(lambda s: s.test_accuracy_clean)

    @cached_property
    def attack_accuracy(self) -> Estimate | None:
        """Share of the attacker's aux points that are classified as it wishes at the final round."""
        return self.of(lambda s: s.attack_accuracy)

    @cached_property
    def outsized_impact(self) -> Estimate | None:
        """Aux points won, per training sample's worth of attacker share."""
        return self.of(lambda s: s.outsized_impact)

    @cached_property
    def distance_l1(self) -> Estimate | None:
        """L1 distance of the final model to that of the unattacked twin."""
        return self.of(lambda s: s.distance_l1)

    @cached_property
    def distance_l2(self) -> Estimate | None:
        """L2 distance of the final model to that of the unattacked twin."""
        return self.of(lambda s: s.distance_l2)

    @cached_property
    def seconds_per_round(self) -> Estimate | None:
        """Sum of the phases' mean seconds per round."""
        return self.of(lambda s: s.seconds_per_round)

    @cached_property
    def seconds(self) -> Mapping[str, Estimate | None]:
        """Mean seconds per round of each phase."""
        return {phase: self.of(lambda s, phase=phase: s.seconds.get(phase)) for phase in PHASES}  # type: ignore[misc]

    @cached_property
    def per_class(self) -> tuple[Estimate | None, ...]:
        """Accuracy of each class at the final round."""
        classes = max((len(s.per_class_accuracy) for s in self.summaries), default=0)
        return tuple(
            Estimate.of(s.per_class_accuracy[c] for s in self.summaries if c < len(s.per_class_accuracy))
            for c in range(classes)
        )


@dataclass(frozen=True)
class OverAttacks:
    """One defence (and whatever else is not the attack) over the attacks: ``attacks`` have results, of ``planned``.

    ``worst_*_by`` names the attack whose mean over seeds is the worst: least accuracy, most attack accuracy;
    ``worst_*_run`` is the worst single run under any attack. ``rows`` holds all results by the name of the attack,
    that without one as well.
    """

    labels: Mapping[str, str]
    attacks: tuple[str, ...]
    planned: int
    unattacked: Estimate | None
    mean_test: Estimate | None
    worst_test: Estimate | None
    worst_test_by: str
    mean_attack: Estimate | None
    worst_attack: Estimate | None
    worst_attack_by: str
    converged: bool
    worst_test_run: float | None
    worst_attack_run: float | None
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Grid:
    """A comparison with its seeds averaged, and the roles of its axes made out."""

    comparison: Comparison
    rows: tuple[Row, ...]

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes that are not averaged over."""
        return tuple(axis for axis in self.comparison.axes if axis != SEED)

    @cached_property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """The labels on each axis, in the order of the records."""
        return {axis: tuple(dict.fromkeys(row.labels[axis] for row in self.rows)) for axis in self.axes}

    @cached_property
    def series_axis(self) -> str | None:
        """The axis that gets colours: the defence, else the first one that varies."""
        varying = [axis for axis in self.axes if len(self.values[axis]) > 1]
        named = [axis for axis in self.axes if axis.lower() in _DEFENCE_AXES]
        for choice in (*(axis for axis in named if axis in varying), *(a for a in varying if a != "attack")):
            return choice
        return next(iter((*named, *self.axes)), None)

    @cached_property
    def attack_axis(self) -> str | None:
        """The axis called ``attack``, if there is one."""
        return next((axis for axis in self.axes if axis.lower() == "attack"), None)

    @cached_property
    def baseline(self) -> str | None:
        """The label on the series axis that means "no defence", if there is one."""
        if self.series_axis is None:
            return None
        plain = {_plain(label): label for label in reversed(self.values[self.series_axis])}
        return next((plain[name] for name in _NO_DEFENCE if name in plain), None)

    def series(self, row: Row) -> str:
        """The label that gives the row its colour."""
        return row.labels[self.series_axis] if self.series_axis is not None else self.comparison.name

    def setting(self, row: Row) -> tuple[str, ...]:
        """The row's labels on all axes but the series axis: rows that agree here can be compared."""
        return tuple(row.labels[axis] for axis in self.axes if axis != self.series_axis)

    @cached_property
    def settings(self) -> Mapping[tuple[str, ...], tuple[Row, ...]]:
        """The rows by setting."""
        found: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(self.setting(row), []).append(row)
        return {key: tuple(rows) for key, rows in found.items()}

    def describe(self, setting: tuple[str, ...]) -> str:
        """A setting in words, leaving out the axes with one value only."""
        axes = [axis for axis in self.axes if axis != self.series_axis]
        parts = [
            value if axis == self.attack_axis and _plain(value) not in _NO_ATTACK else f"{axis} {value}"
            for axis, value in zip(axes, setting, strict=True)
            if len(self.values[axis]) > 1
        ]
        return ", ".join(parts)

    def attacked(self, row: Row) -> bool:
        """Whether anybody attacks in this row, by the attackers counted, else by the name of the attack."""
        counts = [s.attackers_per_round_mean for s in row.summaries if s.attackers_per_round_mean is not None]
        if counts:
            return any(count > 0 for count in counts)
        return self.attack_axis is None or _plain(row.labels[self.attack_axis]) not in _NO_ATTACK

    @cached_property
    def regimes(self) -> Mapping[str, str]:
        """The regimes of the runs, and in words where each applies: by the first axis that decides it, else by rows."""
        runs = [(row, cell, cell.run.regime) for row in self.rows for cell in row.cells if cell.run is not None]
        known = [(row, cell, name) for row, cell, name in runs if name]
        names = tuple(dict.fromkeys(name for _, _, name in known))
        if len(names) < 2:
            return dict.fromkeys(names, "")
        for axis in self.axes:
            found: dict[str, set[str]] = {}
            for _, cell, name in known:
                found.setdefault(cell.labels[axis], set()).add(name)
            if all(len(several) == 1 for several in found.values()):
                return {
                    name: f"{axis} " + ", ".join(label for label, one in found.items() if name in one) for name in names
                }
        numbers = {name: sorted({row.number for row, _, other in known if other == name}) for name in names}
        return {name: f"settings {', '.join(map(str, rows))}" for name, rows in numbers.items()}

    @property
    def regime_note(self) -> str:
        """A sentence that names the regime, or the regimes and where each applies; empty if the records do not say."""
        found = [name + (f" ({where})" if where else "") for name, where in self.regimes.items()]
        return f"Regime: {'; '.join(found)}." if found else ""

    @cached_property
    def missing(self) -> tuple[Cell, ...]:
        """The cells without a finished run."""
        return tuple(cell for cell in self.comparison.cells if cell.state != "finished")

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        """All finished runs."""
        return tuple(run for row in self.rows for run in row.runs)

    @cached_property
    def over_attacks(self) -> tuple[OverAttacks, ...]:
        """Mean and worst over attacks, empty unless there are at least two."""
        axis = self.attack_axis
        if axis is None:
            return ()
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row.labels[a] for a in self.axes if a != axis), []).append(row)
        found = tuple(self._over(group, axis) for group in groups.values())
        return found if any(len(entry.attacks) > 1 for entry in found) else ()

    def _over(self, group: list[Row], axis: str) -> OverAttacks:
        rows = [row for row in group if self.attacked(row) and row.n]
        calm = [row for row in group if not self.attacked(row) and row.n]
        worst_test = _extreme(rows, lambda row: row.test_accuracy_clean, sign=-1)
        worst_attack = _extreme(rows, lambda row: row.attack_accuracy, sign=1)
        return OverAttacks(
            labels={a: group[0].labels[a] for a in self.axes if a != axis},
            attacks=tuple(row.labels[axis] for row in rows),
            planned=sum(self.attacked(row) for row in group),
            unattacked=calm[0].test_accuracy_clean if calm else None,
            mean_test=_mean_over(rows, lambda s: s.test_accuracy_clean),
            worst_test=worst_test.test_accuracy_clean if worst_test else None,
            worst_test_by=worst_test.labels[axis] if worst_test else "",
            mean_attack=_mean_over(rows, lambda s: s.attack_accuracy),
            worst_attack=worst_attack.attack_accuracy if worst_attack else None,
            worst_attack_by=worst_attack.labels[axis] if worst_attack else "",
            converged=all(row.converged == row.n for row in rows),
            worst_test_run=_worst_run(rows, lambda s: s.test_accuracy_clean, sign=-1),
            worst_attack_run=_worst_run(rows, lambda s: s.attack_accuracy, sign=1),
            rows={row.labels[axis]: row for row in group},
        )


def grid(comparison: Comparison) -> Grid:
    """Groups the cells of a comparison into rows."""
    axes = [axis for axis in comparison.axes if axis != SEED]
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in comparison.cells:
        groups.setdefault(tuple(cell.labels[axis] for axis in axes), []).append(cell)
    rows = (
        Row(number, dict(zip(axes, key, strict=True)), tuple(cells))
        for number, (key, cells) in enumerate(groups.items(), start=1)
    )
    return Grid(comparison, tuple(rows))


def _plain(label: str) -> str:
    return label.strip().lower().removesuffix("()").replace("_", " ").replace("-", " ")


def badness(value: float, sign: int) -> float:
    """A key by which the worst value is the greatest; what is no number is worst of all."""
    return math.inf if math.isnan(value) else sign * value


def _extreme(rows: Iterable[Row], value: Callable[[Row], Estimate | None], sign: int) -> Row | None:
    known = [(row, estimate) for row in rows if (estimate := value(row)) is not None]
    return max(known, key=lambda pair: badness(pair[1].mean, sign))[0] if known else None


def _worst_run(rows: Iterable[Row], value: Callable[[Summary], float | None], sign: int) -> float | None:
    known = [number for row in rows for s in row.summaries if (number := value(s)) is not None]
    return max(known, key=lambda number: badness(number, sign)) if known else None


def _mean_over(rows: list[Row], value: Callable[[Summary], float | None]) -> Estimate | None:
    """The mean over attacks, taken seed by seed, so that the interval is again one over seeds.

    Only seeds that finished under every attack count: otherwise seeds with another mix of attacks would be averaged.
    """
    by_seed: dict[str, list[float]] = {}
    counted = [row for row in rows if row.of(value) is not None]
    for row in counted:
        for index, cell in enumerate(row.cells):
            if cell.run is None or cell.run.summary is None:
                continue
            number = value(cell.run.summary)
            if number is not None:
                by_seed.setdefault(cell.labels.get(SEED, str(index)), []).append(number)
    complete = [math.fsum(numbers) / len(numbers) for numbers in by_seed.values() if len(numbers) == len(counted)]
    return Estimate.of(complete)
