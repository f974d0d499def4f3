"""What choosing k costs: the loss of top-k for every k, over several gradients of a ResNet9's size.

    python benchmarks/choose_k.py
    python benchmarks/choose_k.py --d 421642 --gradients 4 --json choose-k.json

Subjects: ``reference`` (the same by torch: for every vector ``torch.sort`` of the absolute values, falling, and their
cumulative sums in float64) and ``choose_k``. The vectors have the heavy tails of gradients (Student's t with 3 degrees
of freedom). Both run in turn in one process; ratios are medians of the ratios of neighbouring runs. ``cpu s`` are
seconds of all threads together: on a busy machine they say more than the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import interleave, table
from torch import Tensor

from bezoar.allocator import tune
from bezoar.certify import choose_k


def reference(vectors: list[Tensor], omega: float) -> int:
    """The smallest k by torch alone."""
    total = torch.zeros(len(vectors[0]), dtype=torch.float64)
    for vector in vectors:
        kept = vector.abs().sort(descending=True).values.cumsum(0, dtype=torch.float64)
        total += kept / kept[-1]
    return int(torch.searchsorted(total / len(vectors), 1 - omega)) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--d", type=int, default=6_568_640)
    parser.add_argument("--gradients", type=int, default=8)
    parser.add_argument("--omega", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    chosen = parser.parse_args()
    tune()
    torch.set_num_threads(chosen.threads)
    draws = torch.Generator().manual_seed(0)
    vectors = []
    for _ in range(chosen.gradients):
        chi = torch.randn(3, chosen.d, generator=draws).square_().sum(0).div_(3).sqrt_()
        vectors.append(torch.randn(chosen.d, generator=draws).div_(chi))
    cpu: dict[str, list[float]] = {}
    answers: dict[str, int] = {}

    def timed(name: str, find: Callable[[list[Tensor], float], int]) -> Callable[[], None]:
        def run() -> None:
            before = time.process_time()
            answers[name] = find(vectors, chosen.omega)
            cpu.setdefault(name, []).append(time.process_time() - before)

        return run

    subjects = {"reference": timed("reference", reference), "choose_k": timed("choose_k", choose_k)}
    timings = interleave(subjects, chosen.repeats, torch.device("cpu"), warmups=1)
    assert abs(answers["reference"] - answers["choose_k"]) <= 1, answers
    rows, figures = [], {}
    for name, timing in timings.items():
        pairs = zip(timing.seconds, timings["reference"].seconds, strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        spent = statistics.median(cpu[name][1:])
        best = min(timing.seconds)
        rows.append([name, f"{timing.median:.2f}", f"{best:.2f}", f"{ratio:.2f}", f"{spent:.2f}", str(answers[name])])
        figures[name] = {"seconds": timing.seconds, "ratio": ratio, "cpu_seconds": spent, "k": answers[name]}
    print(f"\nd = {chosen.d:,}, {chosen.gradients} gradients, omega = {chosen.omega}, {chosen.threads} threads")
    print(table(["subject", "median s", "best s", "x reference", "cpu s", "k"], rows), flush=True)
    if chosen.json:
        setting = {key: getattr(chosen, key) for key in ("d", "gradients", "omega", "repeats", "threads")}
        record = {"setting": setting, "torch": torch.__version__, "subjects": figures}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
