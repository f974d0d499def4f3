"""The certificate of the radius as records: what certificate.json and rounds.jsonl hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from bezoar.certify.radius import guaranteed_loss_rate
from bezoar.experiments.certificates import _words
from bezoar.experiments.certificates._bounds import March
from bezoar.experiments.certificates._cell import Cell
from bezoar.experiments.certificates._predictions import Predictions

LOG10 = math.log(10)


def summary(cells: Sequence[Cell], words: Sequence[str]) -> dict[str, Any]:
    """What certificate.json holds beside the origin."""
    return {"method": "radius", "cells": [_cell_record(cell) for cell in cells], "words": list(words)}


def _cell_record(cell: Cell) -> dict[str, Any]:
    sure, found, sparse = cell.predictions, cell.search, cell.server.sparse
    return {
        "k": cell.server.k,
        "parameters": cell.server.d,
        "width": cell.server.width,
        "momentum": cell.server.momentum,
        "c": cell.c,
        "c_is_a_lower_estimate": cell.estimated,
        "loss_rate_guaranteed": guaranteed_loss_rate(cell.server.k, cell.server.d) if sparse else 0.0,
        "loss_rate_measured": max([*cell.loss_rates[0], *cell.loss_rates[1]], default=None),
        "gamma": None if cell.always is None else cell.always.gamma,
        "gamma_if_loss_rate_is_as_measured": None if cell.if_measured is None else cell.if_measured.gamma,
        "moved_l1": cell.moved,
        "vacuous": _words.vacuous(cell),
        "log10_of_the_invalid_closed_form": None if cell.invalid is None else cell.invalid / LOG10,
        "end": next(iter(round_records(cell, [len(cell.facts) - 1]))),
        "predictions": None if sure is None else _predictions_record(sure),
        "search": None if found is None else found.record(),
    }


def round_records(cell: Cell, chosen: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One record a round; radii as decimal logarithms (null: zero), what was not measured or does not hold is null."""

    def of(march: March | None, name: str, t: int) -> float | None:
        return None if march is None else getattr(march, name)[t]

    def ten(march: March | None, t: int) -> float | None:
        return None if march is None else march.log_radius[t] / LOG10

    def measured(values: Sequence[float], t: int) -> float | None:
        return values[t] if values else None

    for t in chosen:
        fact = cell.facts[t]
        yield {
            "k": cell.server.k,
            "round": fact.round,
            "lr": fact.lr,
            "attackers": fact.attackers,
            "cohort": fact.cohort,
            "radius": fact.radius,
            "longest_honest_update": None if fact.norms is None else fact.honest,
            "mean_update_l2": fact.update,
            "memory_l2": fact.memory,
            "growth_l1": of(cell.always, "growth", t),
            "rho_l1": of(cell.always, "rho", t),
            "clipped_growth_l2": of(cell.convex, "growth", t),
            "rho_l2": of(cell.convex, "rho", t),
            "loss_rate_clean": measured(cell.loss_rates[0], t),
            "loss_rate_poisoned": measured(cell.loss_rates[1], t),
            "log10_recurrence_l1": ten(cell.always, t),
            "log10_recurrence_l1_if_loss_rate_is_as_measured": ten(cell.if_measured, t),
            "log10_reach_l1": cell.reach[t] / LOG10,
            "log10_bound_l1": cell.bound[t] / LOG10,
            "log10_bound_l2": ten(cell.convex, t),
            "distance_l1": measured(cell.distances[0], t),
            "distance_l2": measured(cell.distances[1], t),
        }


def _predictions_record(sure: Predictions) -> dict[str, Any]:
    return {
        "test_points": len(sure.right),
        "certified": _words.share(sure.any),
        "certified_l1": _words.share(sure.l1),
        "certified_l2": _words.share(sure.l2),
        "certified_and_right": _words.share(sure.any & sure.right),
        "accuracy": _words.share(sure.right),
        "flipped": _words.share(sure.flipped),
        "certified_but_flipped": int((sure.flipped & sure.any).sum()),
    }
