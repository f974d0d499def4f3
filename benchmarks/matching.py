"""What gradient matching costs, next to plain training steps on as many samples.

    python benchmarks/matching.py
    python benchmarks/matching.py --models mlp --steps 100 --json matching.json

Subjects: ``plain`` (``--steps`` times forward and backward, no optimiser) and ``matching x R`` (as many steps of
GradientMatching from R starts, on as many virtual samples; the target is the gradient of 512 samples with flipped
labels). A step of matching differentiates through a gradient, so it takes about twice the arithmetic of a plain one.
All run in turn in one process; ratios are medians of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import interleave, table
from torch import Tensor, nn

from bezoar.allocator import tune
from bezoar.attacks.gradient_to_data import GradientMatching, Match, Points, points_gradient
from bezoar.models import make_model

SHAPE = (1, 28, 28)
MODELS: dict[str, dict[str, Any]] = {"mlp": {"hidden": [64]}, "cnn": {"width": 8, "hidden": 32}}


@dataclass(frozen=True)
class Task:
    """A model, what its gradient shall be, and samples to start from."""

    model: nn.Module
    wanted: Tensor
    base: Points


def task(name: str, points: int) -> Task:
    """Everything drawn from one seed."""
    model = make_model(name, SHAPE, 10, seed=0, **MODELS[name])
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(512) % 10
    # Each class is brighter in rows of its own, so that gradients of unlike labels differ.
    rows = (torch.arange(28)[:, None] // 3 == labels[:, None, None, None]).float()
    images = rows + torch.randn(512, *SHAPE, generator=draws)
    wanted = points_gradient(model, Points(images, 9 - labels))
    return Task(model, wanted, Points(torch.randn(points, *SHAPE, generator=draws), torch.arange(points) % 10))


def plain(at: Task, steps: int) -> Callable[[], None]:
    """Forward and backward passes over the samples that matching starts from."""
    parameters = list(at.model.parameters())

    def run() -> None:
        for _ in range(steps):
            torch.autograd.grad(F.cross_entropy(at.model(at.base.inputs), at.base.targets), parameters)

    return run


def report(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, and return its figures."""
    at = task(name, chosen.points)
    found: dict[str, Match] = {}

    def matching(restarts: int) -> Callable[[], None]:
        method = GradientMatching(steps=chosen.steps, restarts=restarts)

        def run() -> None:
            found[f"matching x {restarts}"] = method.find(at.model, at.wanted, at.base).match

        return run

    subjects: dict[str, Callable[[], object]] = {"plain": plain(at, chosen.steps)}
    subjects |= {f"matching x {restarts}": matching(restarts) for restarts in chosen.restarts}
    timings = interleave(subjects, chosen.repeats, torch.device("cpu"), warmups=1)
    rows, figures = [], {}
    for subject, timing in timings.items():
        pairs = zip(timing.seconds, timings["plain"].seconds, strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        best = min(timing.seconds) / min(timings["plain"].seconds)
        cosine = found[subject].cosine if subject in found else None
        shown = "" if cosine is None else f"{cosine:.3f}"
        rows.append([subject, f"{timing.median:.2f}", f"{ratio:.2f}", f"{best:.2f}", shown])
        figures[subject] = {"seconds": timing.seconds, "ratio": ratio, "ratio_of_minima": best, "cosine": cosine}
    print(f"\n{name} {MODELS[name]}, {chosen.points} samples, {chosen.steps} steps, {chosen.threads} threads")
    print(table(["subject", "median s", "x plain", "x (minima)", "cosine"], rows), flush=True)
    return {"model": name, "torch": torch.__version__, "subjects": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--restarts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    chosen = parser.parse_args()
    tune()
    torch.set_num_threads(chosen.threads)
    figures = [report(name, chosen) for name in chosen.models]
    if chosen.json:
        setting = {"points": chosen.points, "steps": chosen.steps, "threads": chosen.threads, "repeats": chosen.repeats}
        chosen.json.write_text(json.dumps({"setting": setting, "models": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
