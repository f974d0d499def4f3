"""Work on slices in threads. NumPy releases the interpreter lock in its loops, and torch is told how many to use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(work: Callable[[int, int], None], total: int, width: int) -> None:
    """Call ``work(start, stop)`` for consecutive ranges of at most ``width``, on as many threads as torch may use.

    The ranges do not depend on the number of threads, so results do not either.
    """
    ranges = [(start, min(start + width, total)) for start in range(0, total, width)]
    threads = min(torch.get_num_threads(), len(ranges))
    if threads <= 1:
        for start, stop in ranges:
            work(start, stop)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, start, stop) for start, stop in ranges]:
            done.result()
