"""What the benchmarks share: interleaved timing, page faults, peak memory, one table."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

#: Shape of a sample of the models that rounds are timed with.
SHAPES = {"cnn": (1, 28, 28), "resnet9": (3, 32, 32)}


@dataclass(frozen=True)
class Timing:
    """Seconds and page faults of every run of one subject."""

    seconds: tuple[float, ...]
    faults: tuple[int, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high


def interleave(
    subjects: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warmups: int = 2,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Run all subjects in turn, ``repeats`` times, so that a change of the machine's load meets all of them.

    Before each run wait ``pause`` seconds: threads of another library's BLAS keep a core busy for a while after use.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    faults: dict[str, list[int]] = {name: [] for name in subjects}
    for turn in range(warmups + repeats):
        for name, subject in subjects.items():
            time.sleep(pause)
            before = page_faults()
            start = time.perf_counter()
            subject()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= warmups:
                seconds[name].append(time.perf_counter() - start)
                faults[name].append(page_faults() - before)
    return {name: Timing(tuple(seconds[name]), tuple(faults[name])) for name in subjects}


def page_faults() -> int:
    """Page faults of this process so far that needed no reading from disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_bytes(device: torch.device) -> int:
    """Largest memory of this process so far: on the GPU what torch allocated, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: that also counts what the parent process held when it started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])
