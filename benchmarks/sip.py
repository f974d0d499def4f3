"""What the safe-interval projection costs, next to one plain mean for each candidate set.

    python benchmarks/sip.py                          # n=20, d=1,000,000, float32, 5 and 50 candidate sets

References, in the same run and interleaved: ``mean`` is ``torch.mean`` over all rows; ``means`` the K means over the
rows of each set, one after the other. ``box`` is the projection alone, ``sip(...)`` the rule from the bare tensor, its
base, checks and conversion included. A ratio is the median, over turns, of a subject's time over K times that of
``mean`` in the same turn; the target is at most 3.
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

from bezoar.aggregation import SIP, GeometricMedian, Mean, Median
from bezoar.kernels.boxes import Intervals, common_box
from bezoar.priors import Family

TARGET = 3.0


def candidates(n: int, k: int) -> Family:
    """Nobody bad, groups of 8, 4, 4 and 4 of 20; beyond these five, random sets of 3/4 of the clients that meet."""
    honest = np.ones((5, n), dtype=np.bool_)
    for row, (start, stop) in zip(honest[1:], ((0, 8), (8, 12), (12, 16), (16, 20)), strict=True):
        row[start * n // 20 : stop * n // 20] = False
    draws = np.random.default_rng(0)
    if k <= len(honest):
        return Family.uniform(honest[:k])
    more = np.array([draws.permutation(n) < (3 * n) // 4 for _ in range(2 * k)], dtype=np.bool_)
    return Family.uniform(np.unique(np.concatenate([honest, more]), axis=0)[:k])


def measure(n: int, d: int, k: int, repeats: int) -> dict[str, Any]:
    """The table for k candidate sets."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    family = candidates(n, k)
    intervals = Intervals.of(family.honest, np.sqrt(family.rho()))
    members = [torch.from_numpy(np.flatnonzero(row)) for row in family.honest]
    rules = {"mean": SIP(family, Mean()), "median": SIP(family, Median()), "gm": SIP(family, GeometricMedian())}
    calls: dict[str, Callable[[], object]] = {
        "mean": lambda: values.mean(0),
        "means": lambda: [values[rows].mean(0) for rows in members],
        "box": lambda: common_box(values, intervals),
        "geometric median": lambda: GeometricMedian()(values),
        **{f"sip({name})": partial(rule, values) for name, rule in rules.items()},
    }
    timings = interleave(calls, repeats, torch.device("cpu"))
    rows, record = [], {}
    for name in calls:
        turns = zip(timings[name].seconds, timings["mean"].seconds, timings["means"].seconds, strict=True)
        plain, sets = zip(*((own / (k * mean), own / means) for own, mean, means in turns), strict=True)
        record[name] = {
            "milliseconds": 1e3 * timings[name].median,
            "of_k_means": statistics.median(plain),
            "of_the_sets_means": statistics.median(sets),
        }
        figures = [f"{1e3 * timings[name].median:.1f}", f"{statistics.median(plain):.2f}"]
        rows.append([name, *figures, f"{statistics.median(sets):.2f}"])
    print(f"{k} sets, {len(intervals.pivots)} pivots")
    print(table(["subject", "ms", f"/ ({k} x mean)", "/ means of the sets"], rows), end="\n\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, nargs="*", default=[5, 50])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"n={options.n}, d={options.d}, float32, {options.threads} threads, torch {torch.__version__}\n")
    record = {str(k): measure(options.n, options.d, k, options.repeats) for k in options.sets}
    if options.json:
        setting = {"n": options.n, "d": options.d, "threads": options.threads, "torch": torch.__version__}
        options.json.write_text(json.dumps({"setting": setting, "figures": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
