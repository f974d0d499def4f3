"""What workers have in common: how often they tell of their cell, how often a cell is tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bezoar.experiments.records import plain
from bezoar.experiments.run import Progress

#: Seconds between two messages of a worker about its progress.
NEWS_SECONDS = 0.2

#: How often a cell is tried again after its worker has died.
RETRIES = 2


def thinned(send: Callable[[dict[str, Any]], None]) -> Progress:
    """Sends evaluations, and other records at most every :data:`NEWS_SECONDS`."""
    last = 0.0

    def tell(record: Mapping[str, Any]) -> None:
        nonlocal last
        if record["kind"] == "evaluation" or time.monotonic() - last > NEWS_SECONDS:
            last = time.monotonic()
            send(plain(record))

    return tell


def times(count: int) -> str:
    """In words.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if count == 1 else f"{count} times"
