"""What clients say of themselves: numbers that nobody can check."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

#: No honest metric is larger.
_MOST = 1e300


def medians(reports: Sequence[Mapping[Any, Any]], leave_out: Collection[str] = ()) -> dict[str, float]:
    """The median over clients of every number that at least half of the clients report and that is finite.

    Clients report what they like: a mean can be moved anywhere by one of them.

    >>> medians([{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 1e12, "lonely": 1.0, "text": "x"}])
    {'accuracy': 0.7}
    """
    said = [
        {
            key: float(value)
            for key, value in report.items()
            if isinstance(key, str) and key not in leave_out and isinstance(value, int | float) and abs(value) < _MOST
        }
        for report in reports
    ]
    keys = sorted({key for report in said for key in report})
    known = {key: [report[key] for report in said if key in report] for key in keys}
    return {key: statistics.median(v) for key, v in known.items() if 2 * len(v) >= len(reports)}


def weight_of(value: Any) -> float:
    """What a client claims to weigh; NaN where it claims nothing that could be a weight."""
    if not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
