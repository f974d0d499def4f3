"""What the posterior mean and guarded SIP cost, next to one Gram product of the same data.

    python benchmarks/pma.py                          # n=20 and 100, d=1,000,000, float32; 5, 1,000 and 10,000 sets

The reference, in the same run and interleaved, is ``gram``: ``DenseUpdates(values).gram()``, which every rule on
distances pays. ``distances`` are the squared distances that rules use (centred, close pairs computed again). A ratio is
the median, over turns, of a subject's time over that of ``gram`` in the same turn; the target is at most 1.2.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import interleave, table

from bezoar.aggregation import SIP, GuardedSIP, PosteriorMean
from bezoar.priors import Family
from bezoar.updates import DenseUpdates

TARGET = 1.2


def candidates(n: int, k: int) -> Family:
    """k different random sets of three quarters of the clients, client 0 in all of them, and everybody."""
    draws = np.random.default_rng(0)
    order = draws.random((3 * k, n - 1)).argsort(1)
    honest = np.concatenate([np.ones((3 * k, 1), dtype=np.bool_), order < (3 * n) // 4], axis=1)
    return Family.uniform(np.unique(np.concatenate([np.ones((1, n), dtype=np.bool_), honest]), axis=0)[-k:])


def measure(n: int, d: int, ks: list[int], repeats: int) -> dict[str, Any]:
    """The table for n clients."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {
        "gram": lambda: DenseUpdates(values).gram(),
        "distances": lambda: DenseUpdates(values).squared_distances(),
    }
    for k in ks:
        family = candidates(n, k)
        if len(family) == k:
            calls[f"posterior mean, {k} sets"] = partial(PosteriorMean(family), values)
    family = candidates(n, 5)
    calls |= {"sip, 5 sets": partial(SIP(family), values), "guarded sip, 5 sets": partial(GuardedSIP(family), values)}
    timings = interleave(calls, repeats, torch.device("cpu"))
    rows, record = [], {}
    for name in calls:
        turns = zip(timings[name].seconds, timings["gram"].seconds, strict=True)
        ratio = statistics.median(own / gram for own, gram in turns)
        record[name] = {"milliseconds": 1e3 * timings[name].median, "of_gram": ratio}
        rows.append([name, f"{1e3 * timings[name].median:.1f}", f"{ratio:.2f}"])
    print(f"n = {n}, d = {d:,}")
    print(table(["subject", "ms", "/ gram"], rows), end="\n\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="*", default=[20, 100])
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, nargs="*", default=[5, 1000, 10_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {str(n): measure(n, options.d, options.sets, options.repeats) for n in options.n}
    print(f"target: at most {TARGET} x one Gram product")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
