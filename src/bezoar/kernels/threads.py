"""Work on slices in threads. NumPy releases the interpreter lock in its loops, and torch is told how many to use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

#: Works on the range from start to stop.
Worker = Callable[[int, int], None]


def in_threads(worker: Callable[[], Worker], total: int, width: int) -> None:
    """Do all ranges of at most ``width`` up to ``total``, on as many threads as torch may use.

    ``worker`` is called once a thread and can hold scratch memory. The ranges do not depend on the number of threads,
    so results do not either.
    """
    ranges = iter([(start, min(start + width, total)) for start in range(0, total, width)])
    threads = min(torch.get_num_threads(), -(-total // width))
    if threads <= 1:
        _drain(worker(), ranges)
        return
    shared = _Shared(ranges)
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def drain() -> None:
        # A new thread starts with torch's defaults, not with the modes of the caller.
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            _drain(worker(), shared)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(drain) for _ in range(threads)]:
            done.result()


def _drain(work: Worker, ranges: Iterator[tuple[int, int]]) -> None:
    for start, stop in ranges:
        work(start, stop)


class _Shared(Iterator[tuple[int, int]]):
    """One iterator for several threads."""

    def __init__(self, ranges: Iterator[tuple[int, int]]) -> None:
        self._ranges, self._lock = ranges, threading.Lock()

    def __next__(self) -> tuple[int, int]:
        with self._lock:
            return next(self._ranges)
