"""Whether blocks of neighbours cost the count sketch accuracy: bezoar's next to one that hashes every coordinate.

    python benchmarks/sketch_accuracy.py

Vectors: the gradient of a CNN on Fashion-MNIST before training and after 60 steps, SparseFed's error feedback at that
point, normal numbers, and three runs of 1400 large neighbours in noise. *Found* is the share of the squared norm of the
true top-k that the sketch's k heavy hitters hold; *error* is the norm of what their estimates miss, over the norm of
the true top-k. Mean and standard deviation over seeds of the sketch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import table
from torch import Tensor

from bezoar.data import load
from bezoar.kernels.count_sketch import CountSketch
from bezoar.kernels.topk import top_k
from bezoar.models import flatten, make_model
from bezoar.servers import SparseFed

#: (d, rows, columns, seed) and a vector [d] -> its estimate [d].
Scheme = Callable[[tuple[int, int, int, int], Tensor], Tensor]


def blocks(sizes: tuple[int, int, int, int], vector: Tensor) -> Tensor:
    """The estimate of bezoar's sketch."""
    sketch = CountSketch(*sizes)
    return sketch.estimate(sketch.insert(vector))


def hashed(sizes: tuple[int, int, int, int], vector: Tensor) -> Tensor:
    """The estimate of a sketch with a random bucket and sign for every coordinate and row."""
    d, rows, columns, seed = sizes
    draws = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(rows):
        buckets = torch.randint(columns, (d,), generator=draws)
        signs = torch.randint(0, 2, (d,), generator=draws).to(vector.dtype) * 2 - 1
        row = torch.zeros(columns, dtype=vector.dtype).index_add_(0, buckets, signs * vector)
        estimates.append(signs * row[buckets])
    return torch.stack(estimates).quantile(0.5, dim=0)


def vectors(data_dir: str | None, k: int | str) -> dict[str, Tensor]:
    """What is sketched, by name."""
    dataset = load("fashion-mnist", data_dir)
    model = make_model("cnn", dataset.shape, 10, seed=0)
    weights, server, state = flatten(model), SparseFed(k=k), dict[str, Tensor]()
    draws = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for step in range(60):
        rows = torch.randint(len(dataset.train), (250,), generator=draws)
        model.zero_grad()
        inputs, targets = dataset.batch(dataset.train, rows), dataset.train.targets[rows]
        F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        found.setdefault("gradient, start", gradient)
        done = server.step(gradient, 0.05, state)
        if step == 59:
            found["gradient, 60 steps"] = gradient
            found["error, 60 steps"] = done.state["error"].index_copy(0, done.index, done.values / 0.05)  # type: ignore[arg-type]
        state = dict(done.state)
        done.apply_(weights)
    d = len(weights)
    found["normal"] = torch.randn(d, generator=draws)
    found["runs"] = 0.02 * torch.randn(d, generator=draws)
    for start in torch.randint(d - 1400, (3,), generator=draws).tolist():
        found["runs"][start : start + 1400] += 5 + torch.randn(1400, generator=draws)
    return found


def measure(scheme: Scheme, vector: Tensor, rows: int, columns: int, k: int, seeds: int) -> list[str]:
    """Cells of one line."""
    best = vector[top_k(vector, k)].norm()
    shares, errors = [], []
    for seed in range(seeds):
        estimate = scheme((len(vector), rows, columns, seed), vector)
        index = top_k(estimate, k)
        shares.append((vector[index].norm() / best).square())
        errors.append((estimate[index] - vector[index]).norm() / best)
    return [f"{float(t.mean()):.3f} +- {float(t.std()):.3f}" for t in (torch.stack(shares), torch.stack(errors))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", help="where Fashion-MNIST lies (default: BEZOAR_DATA, else ./data)")
    parser.add_argument("--k", default="1%", help="heavy hitters, a count or a share")
    parser.add_argument("--seeds", type=int, default=12)
    chosen = parser.parse_args()
    k = int(chosen.k) if chosen.k.isdigit() else chosen.k
    lines = []
    for name, vector in vectors(chosen.data_dir, k).items():
        d = len(vector)
        for rows, columns in ((5, d // 13), (5, d // 10), (1, d // 10)):
            cells = [
                measure(scheme, vector, rows, columns, SparseFed(k=k).count(d), chosen.seeds)
                for scheme in (blocks, hashed)
            ]
            lines.append([name, str(rows), f"d/{d // columns}", cells[0][0], cells[1][0], cells[0][1], cells[1][1]])
    print(table(["vector", "r", "c", "found", "found, hashed", "error", "error, hashed"], lines))


if __name__ == "__main__":
    main()
