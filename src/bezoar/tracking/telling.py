"""A run tells its trackers; what goes wrong with one of them is its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bezoar.errors import ConfigError
from bezoar.tracking.base import Series, Started, Tracker

#: What the values of each kind of record are named after.
_PREFIX = {"round": "round", "evaluation": "evaluation", "timing": "seconds"}


def values(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record by name: those in tables and lists as ``round/attack/scale``, ``.../0``.

    >>> values({"kind": "evaluation", "round": 4, "test_loss": None, "test_accuracy": 0.5, "per_class": [1, 0.0]})
    {'evaluation/test_accuracy': 0.5, 'evaluation/per_class/0': 1.0, 'evaluation/per_class/1': 0.0}
    """
    kind = str(record.get("kind", "timing"))
    shown = {key: value for key, value in record.items() if key not in ("kind", "round")}
    return dict(_numbers(_PREFIX.get(kind, kind), shown))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float):
        # Integers may be too large for a float.
        try:
            number = float(value)
        except OverflowError:
            return
        if math.isfinite(number):
            yield name, number
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(f"{name}/{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _numbers(f"{name}/{index}", part)


class Telling:
    """All trackers of one run.

    A tracker that fails is left out from then on: a warning says so once, and :attr:`report` why.
    """

    def __init__(self, trackers: Mapping[str, Tracker], run: Started, earlier: Iterable[Mapping[str, Any]]) -> None:
        """Start them, and tell them of the ``earlier`` records, up to the round that the run goes on after.

        Raises:
            ConfigError: by a tracker that can not start as it is.
        """
        self._series: dict[str, Series] = {}
        self._logged: dict[str, int] = {}
        self._at = run.round
        #: None for each tracker that was told everything so far, else what went wrong.
        self.report: dict[str, str | None] = dict.fromkeys(trackers)
        for name, tracker in trackers.items():
            try:
                self._series[name] = tracker.start(run)
                self._logged[name] = self._series[name].logged
            except ConfigError:
                self.finish(None)
                raise
            except Exception as error:
                self._drop(name, error)
        if self._series:
            self.log(earlier)

    def log(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Records as they are written, plain: rounds, evaluations, timings (without a kind)."""
        if not self._series:
            return
        steps: dict[int, dict[str, float]] = {}
        for record in records:
            steps.setdefault(int(record["round"]), {}).update(values(record))
        for step in sorted(steps):
            self._at = step
            for name in list(self._series):
                if step <= self._logged[name]:
                    continue
                try:
                    self._series[name].log(step, steps[step])
                except Exception as error:
                    self._drop(name, error)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The run has ended: with a summary, or without (None)."""
        for name in list(self._series):
            try:
                self._series.pop(name).finish(summary)
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._series.pop(name, None)
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.report[name] = f"after round {self._at}: {type(error).__name__}: {what}"
        warnings.warn(f"tracker {name} failed, the run goes on without it: {what}", RuntimeWarning, stacklevel=2)
