"""What the server's steps cost: SparseFed's and FetchSGD's, next to the same in plain torch.

    python benchmarks/server.py
    python benchmarks/server.py --device cuda --json server.json

A SparseFed step is momentum, error feedback, top-k, masking and the update of the weights. Its reference does the same
with whole vectors and ``torch.topk``. A FetchSGD step is the sketch of the aggregate, momentum and error in the sketch,
unsketching, top-k, masking and the update of the weights. Its reference draws buckets and signs for every coordinate,
keeps them in tables [r, d], and uses ``torch.bincount``, ``torch.median`` and ``torch.topk``; so do the parts, which
are measured apart as well. Aggregates are normal, constant or heavily tied (rounded normal) numbers. Everything runs in
turn in one process; ratios are medians of the ratios of neighbouring runs, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import Timing, interleave, table
from torch import Tensor

from bezoar.allocator import tune
from bezoar.kernels.count_sketch import CountSketch
from bezoar.servers import FetchSGD, Server, SparseFed

KINDS = ("normal", "constant", "tied")
_LR, _RHO = 0.1, 0.9

Subject = Callable[[], object]


def aggregate(kind: str, d: int, device: torch.device) -> Tensor:
    """Aggregates [d] of one kind."""
    draws = torch.Generator().manual_seed(0)
    if kind == "constant":
        return torch.ones(d, device=device)
    values = torch.randn(d, generator=draws)
    return (values if kind == "normal" else (2 * values).round()).to(device)


def stepper(server: Server, vector: Tensor) -> Subject:
    """Steps of ``server`` on the same aggregate, one after another."""
    weights, state = torch.zeros_like(vector), dict[str, Tensor]()

    def step() -> None:
        done = server.step(vector, _LR, state)
        state.update(done.state)
        done.apply_(weights)

    return step


def plain_sparsefed(vector: Tensor, k: int) -> Subject:
    """The same on whole vectors with torch.topk; equal values are chosen in no particular order."""
    weights, momentum, error = (torch.zeros_like(vector) for _ in range(3))
    state = [momentum, error]

    def step() -> None:
        momentum = torch.add(vector, state[0], alpha=_RHO)
        error = state[1] + momentum
        index = error.abs().topk(k).indices
        moved = error[index]
        error[index] = 0
        momentum[index] = 0
        weights[index] -= _LR * moved
        state[:] = momentum, error

    return step


class PlainSketch:
    """Buckets and signs of every coordinate in tables, as implementations with hash tables keep them."""

    def __init__(self, d: int, rows: int, columns: int, device: torch.device) -> None:
        draws = torch.Generator().manual_seed(0)
        self.columns = columns
        self.buckets = torch.randint(columns, (rows, d), generator=draws).to(device)
        self.signs = (torch.randint(0, 2, (rows, d), generator=draws) * 2 - 1).float().to(device)

    def insert(self, vector: Tensor) -> Tensor:
        """The table [r, c] of ``vector`` [d]."""
        rows = zip(self.buckets, self.signs, strict=True)
        return torch.stack([torch.bincount(at, sign * vector, minlength=self.columns).float() for at, sign in rows])

    def heavy_hitters(self, table: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest estimates."""
        estimate = (table.gather(1, self.buckets) * self.signs).median(0).values
        index = estimate.abs().topk(k).indices
        return index, estimate[index]

    def stepper(self, vector: Tensor, k: int) -> Subject:
        """Whole steps on the same aggregate, cells of the step set to zero."""
        weights, first = torch.zeros_like(vector), torch.zeros_like(self.insert(vector))
        state = [first, first]

        def step() -> None:
            momentum = torch.add(self.insert(vector), state[0], alpha=_RHO)
            error = torch.add(state[1], momentum, alpha=_LR)
            index, moved = self.heavy_hitters(error, k)
            cells = self.buckets[:, index]
            error.scatter_(1, cells, 0.0)
            momentum.scatter_(1, cells, 0.0)
            weights[index] -= moved
            state[:] = momentum, error

        return step


def compare(
    name: str, subjects: Mapping[str, Subject], repeats: int, device: torch.device
) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table and figures of one case; the last subject is the reference of those before."""
    # Threads of the subject before spin for a while.
    timings = interleave(subjects, repeats, device, pause=0.05)
    *ours, reference = subjects
    rows, figures = [], {}
    for subject in subjects:
        low, middle, high = _ratios(timings[reference], timings[subject])
        quartiles = f"{low:.1f} - {high:.1f}" if subject in ours else ""
        ratio = f"{middle:.1f}" if subject in ours else "1"
        best = min(timings[subject].seconds)
        rows.append([name, subject, f"{timings[subject].median * 1e3:.1f}", f"{best * 1e3:.1f}", ratio, quartiles])
        figures[subject] = {"seconds": timings[subject].seconds, "times_faster": middle, "quartiles": (low, high)}
    return rows, figures


def _ratios(reference: Timing, mine: Timing) -> tuple[float, float, float]:
    each = [theirs / own for theirs, own in zip(reference.seconds, mine.seconds, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return low, middle, high


def steps(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """SparseFed's step for all kinds of aggregates and every k."""
    rows, figures = [], {}
    for kind in chosen.kinds:
        vector = aggregate(kind, chosen.d, device)
        for k in chosen.k:
            subjects = {"bezoar": stepper(SparseFed(k=k), vector), "plain torch": plain_sparsefed(vector, k)}
            name = f"{kind}, k = {k:,}"
            lines, figures[name] = compare(name, subjects, chosen.repeats, device)
            rows += lines
    print(
        table(["SparseFed's step", "subject", "median ms", "least ms", "times faster", "quartiles"], rows), flush=True
    )
    return figures


def sketches(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The parts of a FetchSGD step and the whole."""
    ours = CountSketch(chosen.d, chosen.rows, chosen.columns)
    plain = PlainSketch(chosen.d, chosen.rows, chosen.columns, device)
    rows, figures = [], {}
    for kind in chosen.kinds:
        for case, subjects in sketch_cases(ours, plain, aggregate(kind, chosen.d, device), chosen.sketch_k).items():
            name = f"{kind}: {case}"
            lines, figures[name] = compare(name, subjects, chosen.repeats, device)
            rows += lines
    print(table(["count sketch", "subject", "median ms", "least ms", "times faster", "quartiles"], rows), flush=True)
    return figures


def sketch_cases(ours: CountSketch, plain: PlainSketch, vector: Tensor, k: int) -> dict[str, dict[str, Subject]]:
    """What is compared, and with what."""
    table, reference = ours.insert(vector), plain.insert(vector)
    server = FetchSGD(k=k, rows=ours.rows, columns=ours.columns)
    return {
        "insert": {"bezoar": lambda: ours.insert(vector), "plain torch": lambda: plain.insert(vector)},
        "unsketch, top-k": {
            "bezoar": lambda: ours.heavy_hitters(table, k),
            "plain torch": lambda: plain.heavy_hitters(reference, k),
        },
        "whole step": {"bezoar": stepper(server, vector), "plain torch": plain.stepper(vector, k)},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of aggregates")
    parser.add_argument("--d", type=int, default=6_568_640, help="parameters (default: ResNet9's)")
    parser.add_argument("--k", type=int, nargs="+", default=[1_000, 50_000, 400_000])
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--columns", type=int, default=500_000)
    parser.add_argument("--sketch-k", type=int, default=50_000, help="coordinates that a FetchSGD step moves")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--only", choices=["step", "sketch"], help="half of the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    if chosen.allocator == "tuned" and not tune():
        print("the allocator could not be tuned here", file=sys.stderr)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    setting = {key: value for key, value in vars(chosen).items() if key != "json"} | {"torch": torch.__version__}
    print(", ".join(f"{key}={value}" for key, value in setting.items()))
    figures: dict[str, Any] = {"setting": setting}
    if chosen.only != "sketch":
        figures["step"] = steps(chosen, device)
    if chosen.only != "step":
        figures["sketch"] = sketches(chosen, device)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
