"""What a certificate of the radius says: one table, and in words what it is worth and rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from bezoar.certify.radius import error_feedback_bound, guaranteed_loss_rate, update_bound
from bezoar.experiments.certificates._cell import Cell
from bezoar.experiments.certificates._search import NORMS
from bezoar.reports import Column, Table

_LOG10 = math.log(10)


def share(mask: Tensor) -> float:
    """Share of true entries."""
    return float(mask.double().mean())


def amount(log: float) -> str:
    """A radius from its natural logarithm: a number while it is one that people read, else a power of ten.

    >>> amount(math.log(0.25)), amount(-math.inf), amount(8787.0)
    ('0.25', '0', '10^3816')
    """
    if log == -math.inf:
        return "0"
    ten = log / _LOG10
    return f"{math.exp(log):.3g}" if abs(ten) < 5 else f"10^{ten:.0f}"


def vacuous(cell: Cell) -> bool:
    """Whether the certificate says nothing of use.

    Softmax regression: it certifies no prediction. Other models: its radius is no less than the way that the clean
    model went, so that the poisoned model might be where training began; without a measurement, no less than what
    clipped steps can reach anyway.
    """
    if cell.predictions is not None:
        return not cell.predictions.any.any()
    if cell.moved is not None:
        return cell.bound[-1] >= _log(cell.moved)
    return cell.always is None or cell.always.last >= cell.reach[-1]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def table(cells: Sequence[Cell]) -> Table:
    """Quantities down, values of k across."""
    rows: list[tuple[str, Callable[[Cell], str | None]]] = [
        ("largest growth g", lambda c: None if c.always is None else f"{max(c.always.growth):.3g}"),
        ("largest push of attackers rho, ℓ1", lambda c: None if c.always is None else f"{max(c.always.rho):.3g}"),
        ("omega guaranteed / measured", _rates),
        ("gamma guaranteed / measured", _gammas),
        ("certified radius, ℓ1", lambda c: amount(c.bound[-1])),
        ("  by the recurrence", lambda c: None if c.always is None else amount(c.always.last)),
        ("  by what clipped steps reach", lambda c: amount(c.reach[-1])),
        ("recurrence if omega is as measured", lambda c: None if c.if_measured is None else amount(c.if_measured.last)),
        ("measured distance, ℓ1", lambda c: f"{c.distances[0][-1]:.3g}" if c.distances[0] else None),
        ("way of the clean model, ℓ1", lambda c: None if c.moved is None else f"{c.moved:.3g}"),
        ("certified radius, ℓ2 (convex loss)", lambda c: None if c.convex is None else amount(c.convex.last)),
        ("measured distance, ℓ2", lambda c: f"{c.distances[1][-1]:.3g}" if c.distances[1] and c.convex else None),
        ("predictions certified by ℓ1 (%)", lambda c: _percent(c, "l1")),
        ("predictions certified by ℓ2 (%)", lambda c: _percent(c, "l2") if c.convex else None),
        ("predictions the attack changed (%)", lambda c: _percent(c, "flipped")),
        ("clean test accuracy (%)", lambda c: _percent(c, "right")),
        ("vacuous", lambda c: "yes" if vacuous(c) else "no"),
    ]
    if len(cells) > 1:
        first = cells[0]
        ratio = (
            f"recurrence relative to k = {first.server.k}",
            lambda c: None if c.always is None or first.always is None else amount(c.always.last - first.always.last),
        )
        rows.insert(6, ratio)
    found = [(name, *map(show, cells)) for name, show in rows]
    kept = tuple(row for row in found if any(entry is not None for entry in row[1:]))
    titles = [f"k = {cell.server.k:,}" for cell in cells]
    columns = (
        Column("quantity", "", numeric=False),
        *(Column(f"k{i}", title) for i, title in enumerate(titles)),
    )
    return Table("certificate", f"Certified radius, {cells[0].server.d:,} parameters", columns, kept)


def _percent(cell: Cell, name: str) -> str | None:
    return None if cell.predictions is None else f"{100 * share(getattr(cell.predictions, name)):.1f}"


def _rates(cell: Cell) -> str:
    always = guaranteed_loss_rate(cell.server.k, cell.server.d) if cell.server.sparse else 0.0
    measured = max([*cell.loss_rates[0], *cell.loss_rates[1]], default=None)
    return f"{always:.3g} / " + ("–" if measured is None else f"{measured:.3g}")


def _gammas(cell: Cell) -> str:
    update = update_bound(max(fact.radius for fact in cell.facts), cell.server.d, cell.server.momentum)
    always = guaranteed_loss_rate(cell.server.k, cell.server.d) if cell.server.sparse else 0.0
    measured = max([*cell.loss_rates[0], *cell.loss_rates[1]], default=None)
    shown = "–" if measured is None else f"{error_feedback_bound(min(measured, always), update):.3g}"
    return f"{error_feedback_bound(always, update):.3g} / {shown}"


def search_table(cell: Cell) -> Table | None:
    """Kinds of attacks down: how near each came to the radii."""
    found = cell.search
    if found is None:
        return None
    columns = (
        Column("attack", "attack", numeric=False),
        Column("attacks", "tried"),
        Column("l1", "of ℓ1 radius", "%"),
        Column("l2", "of ℓ2 radius", "%"),
        Column("flipped", "most labels changed"),
    )
    rows = []
    for name, trials in found.kinds().items():
        shares = [trial.l2 for trial in trials if trial.l2 is not None]
        labels = [int(trial.flipped.sum()) for trial in trials if trial.flipped is not None]
        near = f"{100 * max(trial.l1 for trial in trials):.3g}", f"{100 * max(shares):.3g}" if shares else None
        rows.append((name, len(trials), *near, max(labels, default=None)))
    title = f"{len(found.trials)} attacks, k = {cell.server.k:,}: the largest share of the radius that each reached"
    return Table(f"attacks-k{cell.server.k}", title, columns, tuple(rows))


def words(cells: Sequence[Cell], assumed: bool) -> tuple[str, ...]:
    """What the certificate is worth for every k, then what it rests on. ``assumed``: whether c was given."""
    said = [sentence for cell in cells for sentence in _verdict(cell)]
    said += [sentence for cell in cells for sentence in _searched(cell)]
    return (*said, *_rests(cells, assumed))


def _verdict(cell: Cell) -> list[str]:
    name, bound = f"k = {cell.server.k:,}", cell.bound[-1]
    size = f"the certified ℓ1 radius is {amount(bound)} (log10 {bound / _LOG10:.2f})"
    if cell.convex is not None:
        size += f", the ℓ2 radius {amount(cell.convex.last)}"
    found = cell.predictions
    if found is not None:
        n = len(found.right)
        sure, right = int(found.any.sum()), int((found.any & found.right).sum())
        if sure:
            return [
                f"{name}: not vacuous. {sure} of {n} predictions ({sure / n:.1%}) can not be changed, whatever the "
                f"malicious clients send in their rounds, {right} of them right; {size}."
            ]
        return [f"{name}: VACUOUS. No prediction is certified; {size}."]
    if cell.moved is not None:
        way = f"the clean model's whole way of {cell.moved:.3g}"
        if vacuous(cell):
            return [f"{name}: VACUOUS. {size[:1].upper()}{size[1:]}, no less than {way}{_ratio(cell)}."]
        return [f"{name}: not vacuous. {size[:1].upper()}{size[1:]}, less than {way}{_ratio(cell)}."]
    if cell.always is None:
        return [
            f"{name}: VACUOUS. No recurrence holds with this momentum; clipped steps reach {amount(cell.reach[-1])}."
        ]
    compared = f"the recurrence gives {amount(cell.always.last)}, clipped steps reach {amount(cell.reach[-1])} anyway"
    return [f"{name}: {'VACUOUS' if vacuous(cell) else 'less than what clipping alone says'}: {compared}."]


def _ratio(cell: Cell) -> str:
    gap = cell.distances[0][-1] if cell.distances[0] else 0.0
    return f"; the measured attack moved it by {gap:.3g}" if gap else ""


def _searched(cell: Cell) -> list[str]:
    found = cell.search
    if found is None:
        return []
    said = []
    for norm in NORMS:
        best = found.nearest(norm)
        if best is not None:
            said.append(f"{norm.replace('l', 'ℓ')} {100 * getattr(best, norm):.3g}% ({best.name})")
    flipped = found.flipped
    end = (
        ""
        if flipped is None
        else (
            f"; {int(flipped.sum())} of {len(flipped)} predictions changed under at least one, of the certified ones "
            f"{found.broken()}"
        )
    )
    near = f"{', '.join(said)}{end}"
    name = f"k = {cell.server.k:,}"
    if found.beyond() or found.broken():
        return [f"{name}: AN ATTACK REFUTES THE CERTIFICATE, which is an error of this library: {near}."]
    return [f"{name}: of {len(found.trials)} attacks none got out of the radius; the nearest: {near}."]


def _rests(cells: Sequence[Cell], assumed: bool) -> list[str]:
    cell = cells[0]
    said = [
        "By construction: both runs have the same start, cohorts and rates; every update is clipped by the server; the "
        "round's realised number of attackers"
        + ("; k of d entries keep k/d of their ℓ1 norm (omega guaranteed)." if cell.server.sparse else ".")
    ]
    proved = cell.facts[0].regression is not None and not assumed
    if proved:
        said.append(
            "Proved from the data: growth and smoothness of softmax regression, with those clients counted apart that "
            "clipping may reach."
        )
        if cell.facts[0].norms is not None:
            said.append(
                "Measured on the clean run, on which alone these figures depend: the lengths of honest updates, of "
                "their mean and of the error memory."
            )
    elif assumed:
        said.append(f"Assumed: the mean of clipped updates is coordinate-Lipschitz with c = {cell.c:g}, as --c says.")
    elif cell.c is not None:
        said.append(
            f"Estimated: c >= {cell.c:.3g}, a LOWER estimate near the clean model. The true constant may be far "
            "larger: the recurrence is then no certificate, and the certified radius is what clipped steps reach."
        )
    said.append("Rounding of the numbers that both runs compute with is counted; see docs/certificates.md.")
    if cell.if_measured is not None and cell.server.sparse and cell.server.k < cell.server.d:
        said.append(
            "Measured on these two runs only: omega. The row that uses it holds if no attack makes top-k leave more "
            "behind; the other radii do not need it."
        )
    if any(not c.server.recurrent for c in cells):
        said.append("Momentum before top-k is outside of the theory: the radius is what clipped steps reach.")
    return said
