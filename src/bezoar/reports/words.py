"""The summary of a report in words: what the numbers say, the worst case named, and nothing beyond them."""

from __future__ import annotations

import math
from collections.abc import Callable

from bezoar.reports.estimates import CONFIDENCE, Estimate
from bezoar.reports.rows import Grid, Row, badness

_COUNTED = ("defence", "defense", "attack", "model", "dataset", "rule")
_Reader = Callable[[Row], Estimate | None]


def summary(g: Grid) -> list[str]:
    """The sentences of the summary."""
    rows = [row for row in g.rows if row.n]
    if not rows:
        return [f"None of the {_count(len(g.comparison.cells), 'run')} has finished: there are no results yet."]
    if g.comparison.single:
        return [_single(g, rows[0]), *_regime(g), *_caveats(g)]
    attacked = [row for row in rows if g.attacked(row)]
    targeted = [row for row in attacked if row.attack_accuracy is not None]
    return [
        _size(g),
        *_regime(g),
        *_undefended(g, targeted, attacked),
        *_ranked(g, targeted, lambda row: row.attack_accuracy, 1, "lowest attack accuracy", "worst case"),
        *_ranked(
            g, attacked, lambda row: row.test_accuracy_clean, -1,
            "highest test accuracy without the aux points under attack" if targeted
            else "highest test accuracy under attack", "worst case",
        ),
        *_ranked(
            g, [row for row in rows if not g.attacked(row)], lambda row: row.test_accuracy_clean, -1,
            "highest test accuracy with no attacker", "least",
        ),
        *_caveats(g),
    ]  # fmt: skip


def percent(estimate: Estimate) -> str:
    """The estimate as in ``87.2 ± 0.4 %``."""
    half = f" ± {100 * estimate.half:.1f}" if estimate.half is not None and estimate.half == estimate.half else ""
    return f"{100 * estimate.mean:.1f}{half} %"


def _regime(g: Grid) -> list[str]:
    return [g.regime_note] if g.regime_note else []


def _size(g: Grid) -> str:
    cells = len(g.comparison.cells)
    axes = [_values(axis, len(values)) for axis, values in g.values.items() if len(values) > 1]
    seeds = sorted({row.n for row in g.rows})
    seed_text = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    grid = f" ({' × '.join(axes)})" if axes else ""
    done = "all finished" if not g.missing else f"{cells - len(g.missing)} finished"
    return f"{_count(cells, 'run')}{grid}, {done}: {_count(seed_text, 'finished seed')} per setting."


def _undefended(g: Grid, targeted: list[Row], attacked: list[Row]) -> list[str]:
    if g.baseline is None:
        return []
    name = g.baseline
    bare = [row for row in targeted if g.series(row) == name]
    if bare:
        row, estimate = _worst(bare, lambda r: r.attack_accuracy, 1)
        worst = f" (worst seed {100 * estimate.high:.1f} %)" if estimate.n > 1 else ""
        where = _where(g, row, bare)
        return [f"Without a defence (“{name}”) the attack{where} won {percent(estimate)} of its aux points{worst}."]
    bare = [row for row in attacked if g.series(row) == name and row.test_accuracy_clean is not None]
    calm = [row for row in g.rows if g.series(row) == name and not g.attacked(row) and row.test_accuracy_clean]
    if not bare:
        return []
    row, estimate = _worst(bare, lambda r: r.test_accuracy_clean, -1)
    where = _where(g, row, bare)
    quiet = calm[0].test_accuracy_clean if len(calm) == 1 else None
    before = f", against {percent(quiet)} unattacked" if quiet is not None else ""
    done = "made training diverge" if math.isnan(estimate.mean) else f"left a test accuracy of {percent(estimate)}"
    return [f"Without a defence (“{name}”) the attack{where} {done}{before}."]


def _where(g: Grid, row: Row, rows: list[Row]) -> str:
    setting = g.describe(g.setting(row))
    if not setting:
        return ""
    return f", at its strongest ({setting})," if len(rows) > 1 else f" ({setting})"


def _ranked(g: Grid, rows: list[Row], value: _Reader, sign: int, what: str, case: str) -> list[str]:
    """Who is best at its worst; only among series that were measured in the same settings."""
    by_series: dict[str, list[Row]] = {}
    for row in rows:
        if value(row) is not None:
            by_series.setdefault(g.series(row), []).append(row)
    if len(by_series) < 2:
        return []
    shared = set.intersection(*({g.setting(row) for row in group} for group in by_series.values()))
    if not shared:
        return [f"The {what} is not ranked: no setting has finished for every series."]
    partly = any(g.setting(row) not in shared for group in by_series.values() for row in group)
    listed = "; ".join(g.describe(setting) for setting in g.settings if setting in shared)
    among = f" among what finished for all ({listed})" if partly else ""
    by_series = {name: [row for row in group if g.setting(row) in shared] for name, group in by_series.items()}
    worst = {name: _worst(group, value, sign) for name, group in by_series.items()}
    order = sorted(worst, key=lambda name: badness(worst[name][1].mean, sign))
    best, (row, estimate) = order[0], worst[order[0]]
    if estimate.mean != estimate.mean:
        return [f"The {what} is not ranked: it is not a number for any series."]
    several = len(by_series[best]) > 1
    where = f" in its {case} ({g.describe(g.setting(row))})" if several else ""
    names = [f"“{name}” ({percent(worst[name][1])})" for name in order[1:] if estimate.overlaps(worst[name][1])]
    text = f"The {what}{among} was that of “{best}”, {percent(estimate)}{where}"
    if estimate.n < 2:
        return [f"{text}; next “{order[1]}”, {percent(worst[order[1]][1])}."]
    if not names:
        return [f"{text}; next “{order[1]}”, {percent(worst[order[1]][1])}, and the intervals do not overlap."]
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} others"]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return [f"{text}; its interval overlaps with that of {listed}, so these data do not separate them."]


def _worst(rows: list[Row], value: _Reader, sign: int) -> tuple[Row, Estimate]:
    known = [(row, estimate) for row in rows if (estimate := value(row)) is not None]
    return max(known, key=lambda pair: badness(pair[1].mean, sign))


def _single(g: Grid, row: Row) -> str:
    s = row.summaries[0]
    text = f"One run of {_count(s.rounds, 'round')}"
    text += f", seed {s.seed}" if s.seed is not None else ""
    unknown = math.isnan(s.test_accuracy) and not any(c.run is not None and c.run.evaluations for c in row.cells)
    text += ": nobody evaluated the model" if unknown else f": test accuracy {100 * s.test_accuracy:.1f} %"
    if s.test_accuracy_clean != s.test_accuracy and s.test_accuracy_clean == s.test_accuracy_clean:
        text += f" ({100 * s.test_accuracy_clean:.1f} % without the aux points)"
    if s.attack_accuracy is not None:
        text += f"; the attack won {100 * s.attack_accuracy:.1f} % of its aux points"
    elif not g.attacked(row):
        text += "; nobody attacked"
    return text + ". One seed says nothing about how much another would differ."


def _caveats(g: Grid) -> list[str]:
    found = []
    stray = [summary for row in g.rows for summary in row.summaries if not summary.converged]
    if stray:
        total = len(g.finished)
        subject = "The run" if total == 1 else f"{len(stray)} of {total} finished runs"
        found.append(f"{subject} did not converge; the numbers of such runs are those of the final round all the same.")
    if g.missing:
        found.append(f"{_count(len(g.missing), 'run')} missing or unfinished: see below.")
    single = [row for row in g.rows if row.n == 1]
    if g.comparison.single:
        return found
    if single and len(single) == len([row for row in g.rows if row.n]):
        found.append("With one seed there are no intervals: differences between settings may be chance.")
    elif any(row.n > 1 for row in g.rows):
        found.append(f"± is half the width of the {100 * CONFIDENCE:.0f}% interval over seeds.")
    return found


def _values(axis: str, count: int) -> str:
    return f"{count} {axis}s" if axis.lower() in _COUNTED else f"{count} values of {axis}"


def _count(count: int | str, noun: str) -> str:
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"
