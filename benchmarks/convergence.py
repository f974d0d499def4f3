"""How fast SparseFed's parts find a flat point of a smooth non-convex loss, next to what can be proved.

    python benchmarks/convergence.py
    python benchmarks/convergence.py --seeds 64 --json benchmarks/results/convergence.json

The loss is f(x) = sum_j h(q_j x) with h(r) = r^2 / (1 + r^2) and the rows q_j of a random rotation: smooth, not convex
(h'' < 0 for r^2 > 1/3, and there x_0 lies), flat far away. Gradients come with Gaussian noise of variance s^2 in every
coordinate. All constants are known: L = 2; |h'|^2 <= 27/64, so E |g|^2 <= d (27/64 + s^2); inf f = 0, so the gap is
f(x_0). All figures are means of |grad f(x_t)|^2 over rounds and seeds. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _common import table
from torch import Tensor

from bezoar.certify.convergence import contraction, ef_sgd_bound, ef_sgd_lr


@dataclass(frozen=True)
class Problem:
    """A rotation q [d, d], the start x_0 [d] and the noise s."""

    q: Tensor
    start: Tensor
    noise: float

    #: |h''| <= 2.
    smoothness = 2.0

    @property
    def d(self) -> int:
        return len(self.start)

    @property
    def second_moment(self) -> float:
        """Of a noisy gradient, at any x."""
        return self.d * (27 / 64 + self.noise**2)

    @property
    def gap(self) -> float:
        return float(self.loss(self.start[None]))

    def loss(self, x: Tensor) -> Tensor:
        """f at x [s, d]: [s]."""
        squares = (x @ self.q.T).square()
        return (squares / (1 + squares)).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """Of f at x [s, d]: [s, d]."""
        rest = x @ self.q.T
        return (2 * rest / (1 + rest.square()).square()) @ self.q


def problem(d: int = 40, noise: float = 1.0, seed: int = 0) -> Problem:
    """A rotation from the seed; x_0 has q_j x_0 = 1 for all j."""
    draws = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=draws, dtype=torch.float64))
    return Problem(q, q.sum(0), noise)


@dataclass(frozen=True)
class Method:
    """SparseFed on noisy gradients. ``placement`` and ``masking`` are those of the server; no clipping."""

    k: int
    momentum: float = 0.0
    masking: bool = False
    outside: bool = False


def play(at: Problem, method: Method, rates: npt.NDArray[np.float64], seeds: int, first_seed: int = 0) -> float:
    """The mean of |grad f(x_t)|^2 over rounds (one a rate) and seeds, from x_0; all seeds side by side."""
    x = at.start.repeat(seeds, 1)
    error, momentum = torch.zeros_like(x), torch.zeros_like(x)
    draws = torch.Generator().manual_seed(first_seed)
    total = 0.0
    for lr in rates.tolist():
        gradient = at.gradient(x)
        total += float(gradient.square().sum(1).mean())
        noise = at.noise * torch.randn(x.shape, generator=draws, dtype=x.dtype)
        momentum = method.momentum * momentum + gradient + noise
        error = error + (momentum if method.outside else lr * momentum)
        top = error.abs().topk(method.k, dim=1).indices
        step = torch.zeros_like(x).scatter_(1, top, error.gather(1, top))
        error = error - step
        if method.masking:
            momentum = momentum.scatter(1, top, 0.0)
        x = x - (lr * step if method.outside else step)
    return total / len(rates)


def slope(rounds: list[int], values: list[float]) -> float:
    """The exponent of the power law through the points."""
    return float(np.polyfit(np.log(rounds), np.log(values), 1)[0])


def triangle(peak: float, rounds: int) -> npt.NDArray[np.float64]:
    """Up to ``peak`` at a fifth of the run, then down to zero."""
    at = (np.arange(rounds) + 0.5) / rounds
    return peak * np.minimum(at / 0.2, (1 - at) / 0.8)


def measure(rounds: list[int], k: int, seeds: int) -> dict[str, Any]:
    """All figures."""
    at = problem()
    delta = contraction(k, at.d)

    def rate(t: int) -> float:
        return ef_sgd_lr(at.gap, at.smoothness, at.second_moment, t)

    def constant(t: int) -> npt.NDArray[np.float64]:
        return np.full(t, rate(t))

    found: dict[str, Any] = {"d": at.d, "k": k, "seeds": seeds, "gap": at.gap, "rounds": rounds}
    found["ef_sgd"] = [play(at, Method(k), constant(t), seeds) for t in rounds]
    found["sgd"] = [play(at, Method(at.d), constant(t), seeds) for t in rounds]
    found["bound"] = [ef_sgd_bound(at.gap, at.smoothness, at.second_moment, rate(t), t, delta) for t in rounds]
    found["slope"] = slope(rounds, found["ef_sgd"])
    last = rounds[-1]
    found["momentum"] = {
        "plain": found["ef_sgd"][-1],
        "unmasked": play(at, Method(k, momentum=0.9), constant(last), seeds),
        "tenfold_rate": play(at, Method(k), 10 * constant(last), seeds),
        "masked": play(at, Method(k, momentum=0.9, masking=True), constant(last), seeds),
    }
    for t in (rounds[0], last):
        rates = triangle(2 * rate(t), t)
        found[f"triangle, T={t}"] = {
            "inside": play(at, Method(1), rates, seeds),
            "outside": play(at, Method(1, outside=True), rates, seeds),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, nargs="+", default=[2**e for e in range(6, 16)])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    chosen = parser.parse_args()
    found = measure(chosen.rounds, chosen.k, chosen.seeds)
    rows = [
        [f"{t:,}", f"{ef:.2e}", f"{plain:.2e}", f"{bound:.2e}", f"{ef / bound:.2f}"]
        for t, ef, plain, bound in zip(found["rounds"], found["ef_sgd"], found["sgd"], found["bound"], strict=True)
    ]
    print(f"d = {found['d']}, k = {found['k']}, L = 2, gap = {found['gap']:.1f}, {found['seeds']} seeds")
    print(table(["T", "top-k", "k = d", "bound", "top-k / bound"], rows))
    print(f"slope of top-k over T: {found['slope']:.2f}")
    for name in (name for name in found if name.startswith(("momentum", "triangle"))):
        print(f"{name}: " + ", ".join(f"{key} {value:.2e}" for key, value in found[name].items()))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
