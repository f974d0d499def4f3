"""What a prior says and allows, as tables, sentences and plain numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bezoar.certify.prior_facts import PriorFacts, RuleFact
from bezoar.priors import PRIORS
from bezoar.reports.tables import Column, Table

#: Rows of a table in a terminal; files have all of them.
_SHOWN = 24


def client_table(facts: PriorFacts) -> Table:
    """Every client's weight and chance of being bad."""
    weights = [None] * facts.n if facts.weights is None else facts.weights.tolist()
    rows = tuple((i, weights[i], float(facts.bad[i])) for i in range(facts.n))
    notes = []
    if facts.half:
        notes.append(f"Chances are frequencies of draws, ± {facts.half:.3f} at most (95 %).")
    if facts.weights is None:
        notes.append("The weights are not known exactly.")
    columns = (
        Column("client", "client"),
        Column("weight", "weight w", "%", 100, 2),
        Column("bad", "P(bad)", "%", 100, 1),
    )
    return Table("clients", f"{facts.n} clients", columns, rows, tuple(notes))


def count_table(facts: PriorFacts) -> Table:
    """The law of the number of bad clients."""
    more = 1 - np.cumsum(facts.law)
    rows = tuple(
        (k, float(p), max(0.0, float(more[k]))) for k, p in enumerate(facts.law) if p > 0 or 0 < more[k] < 1 - 1e-12
    )
    columns = (Column("bad", "bad"), Column("p", "P(= bad)", "%", 100, 2), Column("more", "P(> bad)", "%", 100, 2))
    notes = ("Given that somebody is honest.",) + (() if facts.law_exact else ("Frequencies of draws.",))
    return Table("bad-count", "How many are bad", columns, rows, notes)


def rule_table(facts: PriorFacts, own: tuple[RuleFact, ...] = ()) -> Table:
    """How likely there are more bad clients than a rule withstands."""
    rows = tuple((fact.name, fact.withstands, fact.breaks) for fact in (*own, *facts.rules))
    columns = (
        Column("rule", "rule", numeric=False),
        Column("withstands", "withstands"),
        Column("breaks", "P(breaks)", "%", 100, 2),
    )
    note = (
        f"Bad rows of {facts.n} that can not move the rule arbitrarily far, with the best f for it. –: too few rows, "
        f"or, for SIP, no matter of their number."
    )
    return Table("rules", "Expected breakdown of rules", columns, rows, (note,))


def shown(table: Table) -> Table:
    """The table as far as a terminal shows it."""
    if len(table.rows) <= _SHOWN:
        return table
    note = f"... and {len(table.rows) - _SHOWN} more rows in {table.name}.csv."
    return Table(table.name, table.title, table.columns, table.rows[:_SHOWN], (*table.notes, note))


def words(facts: PriorFacts) -> list[str]:
    """What follows, one sentence or two a line."""
    mean = float(facts.law @ np.arange(facts.n + 1))
    levels = ", ".join(f"f = {f} covers {level:.0%}" for level, f in facts.quantiles.items())
    found = [f"Of {facts.n} clients {mean:.2f} are bad on average; {levels}."]
    half = (facts.n - 1) // 2
    over = float(facts.law[half + 1 :].sum())
    if over >= 5e-5:
        found.append(
            f"Half of the clients or more are bad with probability {over:.2%}: then no rule that only counts (f < n/2) "
            f"promises anything."
        )
    if facts.family is None or facts.overlap is None:
        return [*found, f"Overlaps of candidate sets are not known: {facts.why}."]
    family, overlap = facts.family, facts.overlap
    kept = family.mass
    found.append(
        f"{len(family):,} candidate sets hold the honest one with probability {kept:.2%} (delta = {facts.delta:g})."
    )
    first, second = (_who(facts, k) for k in overlap.worst)
    if overlap.disjoint:
        found.append(
            f"Impossible as it stands: {overlap.disjoint:,} of them have no client in common with another one, for "
            f"example {first} and {second}: no rule can serve both. Giving up the less likely set of each such pair "
            f"leaves {1 - overlap.lost:.2%} of their probability."
        )
    elif overlap.rho.max() == 0:
        found.append("There is one candidate set: its mean is the answer, nothing is lost (rho = 0).")
    else:
        found.append(
            f"Every two of them have a client in common: SIP attains rho_S for each, {facts.mean_rho:.3g} on average "
            f"and {overlap.rho.max():.3g} at worst, between {first} and {second}."
        )
    found += _against(facts)
    found += _advice(facts)
    return found


def _against(facts: PriorFacts) -> list[str]:
    f, mean, worst = facts.threshold
    assert facts.overlap is not None
    if facts.overlap.rho.max() == 0:
        return []
    if math.isinf(mean):
        return [f"A rule that counts would need f = {f} for the same sets, which is half of {facts.n} clients or more."]
    if facts.overlap.disjoint:
        return []
    best = facts.mean_rho
    ratio = mean / best if best else math.inf
    verdict = (
        f"SIP's promise is {ratio:.2g} times better on average"
        if ratio > 1 + 1e-9
        else "SIP promises the same: the sets are no more structured than a count"
    )
    return [
        f"The best rule that counts needs f = {f} for the same sets; its constant f/(|S| - f) is {mean:.3g} on average "
        f"and {worst:.3g} at worst. {verdict}."
    ]


def _advice(facts: PriorFacts) -> list[str]:
    assert facts.overlap is not None
    now = float(facts.overlap.rho.max())
    helpful = [(client, rho) for client, rho in facts.trusted if rho < now * (1 - 1e-9)]
    if not helpful:
        return []
    client, rho = helpful[0]
    fall = f"the worst rho would fall from {now:.3g} to {rho:.3g}"
    if math.isinf(now):
        fall = f"it would become possible, with rho = {rho:.3g}"
    lead = f"If client {client} were trusted (honest whatever happens), {fall}"
    others = [f"client {i}: {value:.3g}" for i, value in helpful[1:3]]
    return [lead + (f" ({'; '.join(others)})." if others else ".")]


def _who(facts: PriorFacts, k: int) -> str:
    assert facts.family is not None
    bad = np.flatnonzero(~facts.family.honest[k]).tolist()
    if not bad:
        return f"set {k} (nobody bad)"
    return f"set {k} (bad: {', '.join(map(str, bad[:16]))}{', ...' if len(bad) > 16 else ''})"


def record(facts: PriorFacts, own: tuple[RuleFact, ...] = ()) -> dict[str, Any]:
    """Everything as plain numbers; what is infinite or not known is None."""
    overlap: dict[str, Any] | None = None
    if facts.family is not None and facts.overlap is not None:
        f, mean, worst = facts.threshold
        overlap = {
            "sets": len(facts.family),
            "mass": facts.family.mass,
            "rho_mean": _finite(facts.mean_rho),
            "rho_worst": _finite(float(facts.overlap.rho.max())),
            "worst_pair": [np.flatnonzero(~facts.family.honest[k]).tolist() for k in facts.overlap.worst],
            "disjoint_sets": facts.overlap.disjoint,
            "lost_without_them": facts.overlap.lost,
            "threshold": {"f": f, "mean": _finite(mean), "worst": _finite(worst)},
            "trusted": [{"client": client, "rho_worst": _finite(rho)} for client, rho in facts.trusted],
        }
    return {
        "prior": PRIORS.table(facts.prior),
        "clients": facts.n,
        "weights": None if facts.weights is None else facts.weights.tolist(),
        "bad": facts.bad.tolist(),
        "bad_half_width": facts.half,
        "bad_count": facts.law.tolist(),
        "bad_count_exact": facts.law_exact,
        "f_quantiles": {f"{level:g}": f for level, f in facts.quantiles.items()},
        "rules": [
            {"rule": fact.name, "withstands": fact.withstands, "breaks": fact.breaks} for fact in (*own, *facts.rules)
        ],
        "delta": facts.delta,
        "overlap": overlap,
        "words": words(facts),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
