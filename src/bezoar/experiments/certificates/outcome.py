"""What counting votes certifies: a table, a record, a plot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bezoar.certify.votes import ABSTAINED, Certified
from bezoar.experiments.certificates.base import Outcome
from bezoar.experiments.config import Experiment
from bezoar.experiments.setup import Setup
from bezoar.reports.style import INK, MUTED, SERIES, Panel, Plot, looks
from bezoar.reports.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@dataclass(frozen=True, eq=False)
class Attacked:
    """The same models trained with the experiment's attack: what it achieved, and that it broke no promise.

    Attributes:
        malicious: how many clients attacked.
        labels: the labels that were given [N].
    """

    malicious: int
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Certified accuracy for m = 0, 1, 2, ... malicious clients."""

    name: str
    accuracy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Certificate:
    """A certified experiment.

    Attributes:
        method: ``"ensemble"``, ``"flcert-d"``, ``"crfl"``.
        claim: in words, what holds against whom.
        options: the method's settings.
        models: how many models were trained.
        certified: what is promised of every test point.
        targets: true labels [N].
        plain_accuracy: test accuracy of the labels without abstaining.
        attacked: the same under the experiment's attack, if it has one.
        further: certified accuracy under other readings, by name.
        facts: further numbers for the record.
    """

    method: str
    claim: str
    experiment: Experiment
    options: Mapping[str, Any]
    models: int
    certified: Certified
    targets: NDArray[np.int64]
    plain_accuracy: float
    setup: Setup = field(repr=False)
    attacked: Attacked | None = None
    further: Mapping[str, Certified] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def curves(self) -> list[Curve]:
        """Certified accuracy of the certificate, then of the further ones."""
        all_of_them = {self.method: self.certified, **self.further}
        return [Curve(name, certified.accuracy(self.targets)) for name, certified in all_of_them.items()]

    @property
    def attacked_accuracy(self) -> float | None:
        """Test accuracy under the experiment's attack, None without one."""
        return None if self.attacked is None else float((self.attacked.labels == self.targets).mean())

    @property
    def broken(self) -> int | None:
        """Points certified for as many malicious clients as attacked, whose label changed nevertheless. None without
        an attack.

        0, or the certificate is wrong, where it is a proof without chance. Else what is certified is the label of more
        models than those that were trained (all subsets, all noise), and a narrow vote of these may differ from it.
        """
        if self.attacked is None:
            return None
        held = self.certified.malicious >= self.attacked.malicious
        return int((held & (self.attacked.labels != self.certified.labels)).sum())

    def outcome(self) -> Outcome:
        """What the command line prints and records."""
        return Outcome(self.record(), (self.table(),), self.words(), (self.plot(),))

    def table(self) -> Table:
        """Certified accuracy by number of malicious clients, in steps that grow."""
        curves = self.curves
        longest = max(len(curve.accuracy) for curve in curves)
        rows = tuple(
            (m, *(float(curve.accuracy[m]) if m < len(curve.accuracy) else 0.0 for curve in curves))
            for m in steps(longest - 1)
        )
        columns = (Column("malicious", "malicious clients"), *(_percent(curve.name) for curve in curves))
        return Table("certificate", f"Certified accuracy: {self.experiment.name}", columns, rows)

    def words(self) -> tuple[str, ...]:
        """What is promised, and what was measured beside it."""
        abstained = float((self.certified.labels == ABSTAINED).mean())
        notes = [
            self.claim,
            f"{self.models} models; test accuracy {self.plain_accuracy:.1%}, abstained {abstained:.1%}.",
        ]
        if self.attacked is not None:
            notes.append(
                f"Under the experiment's attack by {self.attacked.malicious} clients: test accuracy "
                f"{self.attacked_accuracy:.1%}; {self.broken} certified labels changed."
            )
        return tuple(notes)

    def record(self) -> dict[str, Any]:
        """Everything but how it was made, ready for JSON."""
        first, *others = self.curves
        found: dict[str, Any] = {
            "method": self.method,
            "claim": self.claim,
            "options": dict(self.options),
            "clients": self.setup.federation.n,
            "parameters": self.setup.weights.numel(),
            "models": self.models,
            "points": len(self.targets),
            "confidence": self.certified.confidence,
            "test_accuracy": self.plain_accuracy,
            "abstained": float((self.certified.labels == ABSTAINED).mean()),
            "certified_accuracy": first.accuracy.tolist(),
            "further": {curve.name: curve.accuracy.tolist() for curve in others},
            "attack": None,
            "facts": dict(self.facts),
        }
        if self.attacked is not None:
            found["attack"] = {
                "malicious": self.attacked.malicious,
                "test_accuracy": self.attacked_accuracy,
                "certified_labels_changed": self.broken,
            }
        return found

    def plot(self) -> Plot:
        """Certified accuracy against the number of malicious clients."""
        points = []
        if self.attacked is not None and self.attacked_accuracy is not None:
            points.append((self.attacked.malicious, self.attacked_accuracy, "measured under the attack"))
        return accuracy_plot(self.curves, points, f"Certified accuracy: {self.experiment.name}", self.claim)


def steps(last: int) -> list[int]:
    """0..10, then ever larger steps, up to ``last``.

    >>> steps(37)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 25, 30, 35, 37]
    """
    found, m = [], 0
    while m < last:
        found.append(m)
        scale = 10 ** max(0, len(str(m)) - 2)
        m += scale * (1 if m < 10 * scale else 2 if m < 20 * scale else 5)
    return [*found, last]


def _percent(name: str) -> Column:
    return Column(name, name, "%", 100, 1)


def accuracy_plot(curves: Sequence[Curve], points: Sequence[tuple[int, float, str]], title: str, caption: str) -> Plot:
    """Steps of certified accuracy over the number of malicious clients; ``points`` (m, accuracy, text) are measured."""
    panel = Panel("", partial(_draw, curves=tuple(curves), points=tuple(points)))
    return Plot("certified-accuracy", title, caption, (panel,), height=2.6)


def _draw(figure: FigureBase, curves: Sequence[Curve], points: Sequence[tuple[int, float, str]]) -> None:
    axes = figure.add_axes((0.12, 0.36, 0.84, 0.55))
    last = max([len(curve.accuracy) - 1 for curve in curves] + [m + 1 for m, _, _ in points] + [1])
    looked = looks([curve.name for curve in curves], None)
    for curve in curves:
        values = np.zeros(last + 2)
        values[: len(curve.accuracy)] = curve.accuracy
        look = looked[curve.name]
        edges = np.arange(last + 2) - 0.5
        axes.step(edges, 100 * values, where="post", color=look.color, ls=look.dashes, label=curve.name)
    for (m, accuracy, text), marker in zip(points, itertools.cycle("xo^sD")):
        axes.plot([m], [100 * accuracy], marker, color=SERIES[0], ms=4.5, ls="none", label=text)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_ylim(0, 102)
    axes.grid(axis="y")
    axes.locator_params(axis="x", integer=True)
    axes.set_title("certified accuracy (%)", color=MUTED, fontsize=7)
    axes.set_xlabel("malicious clients", labelpad=1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.46, -0.24), ncol=2, fontsize=6.5, frameon=False, labelcolor=INK)
