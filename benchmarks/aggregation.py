"""What robust rules cost, next to what reading the data once costs.

    python benchmarks/aggregation.py                            # time at n=100, d=1,000,000, two threads
    python benchmarks/aggregation.py --memory                   # extra memory of each rule, a process each
    python benchmarks/aggregation.py --peers --d 100000         # next to ByzFL and Flower, where installed
    python benchmarks/aggregation.py --stream /some/folder      # 20 memory-mapped rows of 1e8 parameters

References, in the same run and interleaved with the rules: ``mean`` (``torch.mean`` over the rows), ``gram`` (one
product U U^T), ``mix`` (an n x n matrix times U) and ``sort`` (``numpy.sort`` over the rows). A rule's ratio is the
median, over turns, of its time over the sum of its references' times in the same turn. Every call starts from the
bare tensor: checks for NaN and conversion of kinds are included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Timing, interleave, peak_bytes, table
from _peers import byzfl_rules, flower_rules, kinds
from torch import Tensor

from bezoar.aggregation import RULES, pipeline


@dataclass(frozen=True)
class Subject:
    """A pipeline, what it is compared with, and the ratio it should not exceed (None: no target)."""

    parts: Callable[[int], Sequence[Any]]
    references: tuple[str, ...]
    target: float | None


def _with_f(*kinds_of: str) -> Callable[[int], Sequence[Any]]:
    return lambda f: [{"kind": kind, "f": f} for kind in kinds_of]


def _plain(*kinds_of: str) -> Callable[[int], Sequence[Any]]:
    return lambda f: list(kinds_of)


GRAM = ("gram", "mean", "mean")
SUBJECTS: dict[str, Subject] = {
    "mean": Subject(_plain("mean"), ("mean",), None),
    "median": Subject(_plain("median"), ("mean",), 5.5),
    "trimmed-mean": Subject(_with_f("trimmed-mean"), ("mean",), 5.5),
    "mea-med": Subject(_with_f("mea-med"), ("mean",), None),
    "krum": Subject(_with_f("krum"), GRAM, 1.1),
    "multi-krum": Subject(_with_f("multi-krum"), GRAM, 1.1),
    "geometric-median": Subject(_plain("geometric-median"), GRAM, 1.1),
    "centered-clipping": Subject(_plain("centered-clipping"), GRAM, 1.1),
    "caf": Subject(_with_f("caf"), GRAM, 1.1),
    "faba": Subject(_with_f("faba"), GRAM, 1.1),
    "bayes-mean": Subject(_plain("bayes-mean"), GRAM, 1.1),
    "sign-vote": Subject(_plain("sign-vote"), ("mean",), None),
    "monna": Subject(lambda f: [{"kind": "monna", "f": f, "trusted": 0}], GRAM, 1.1),
    "cva": Subject(_with_f("cva"), GRAM, None),
    "filter-l2": Subject(_with_f("filter-l2"), GRAM, 1.1),
    "clipped-clustering": Subject(_plain("clipped-clustering"), GRAM, None),
    "foolsgold": Subject(_plain("foolsgold"), GRAM, None),
    "flame": Subject(_plain("flame"), GRAM, None),
    "dnc": Subject(_with_f("dnc"), ("mean",), None),
    "signguard": Subject(_plain("signguard"), ("mean",), None),
    "nnm > krum": Subject(_with_f("nnm", "krum"), GRAM, 1.1),
    "nnm > geometric-median": Subject(lambda f: [{"kind": "nnm", "f": f}, "geometric-median"], GRAM, 1.1),
    "nnm > trimmed-mean": Subject(_with_f("nnm", "trimmed-mean"), ("gram", "mix", "sort"), 1.0),
    "clip > nnm > trimmed-mean": Subject(
        lambda f: [{"kind": "clip", "radius": 900.0}, {"kind": "nnm", "f": f}, {"kind": "trimmed-mean", "f": f}],
        ("gram", "mix", "sort"),
        1.0,
    ),
    "bulyan": Subject(_with_f("bulyan"), ("gram", "sort"), 1.5),
}


def data(n: int, d: int, dtype: str = "float32") -> Tensor:
    """Standard normal rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))


def references(values: Tensor) -> dict[str, Callable[[], object]]:
    """Reading the data once, in several ways."""
    array = values.numpy()
    mixing = torch.full((len(values), len(values)), 1 / len(values))
    return {
        "mean": lambda: values.mean(0),
        "gram": lambda: values @ values.T,
        "mix": lambda: mixing @ values,
        "sort": lambda: np.sort(array, axis=0),
    }


def ratio(timings: dict[str, Timing], name: str, against: Sequence[str]) -> tuple[float, float, float]:
    """Median and quartiles, over turns, of a subject's time over the sum of its references' times."""
    turns = zip(timings[name].seconds, *(timings[other].seconds for other in against), strict=True)
    values = sorted(first / sum(rest) for first, *rest in turns)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return statistics.median(values), low, high


def time_rules(names: Sequence[str], n: int, d: int, f: int, repeats: int) -> dict[str, Any]:
    """The table of ratios."""
    values = data(n, d)
    wanted = {"mean", *(reference for name in names for reference in SUBJECTS[name].references)}
    plain = {name: call for name, call in references(values).items() if name in wanted}
    rules = {name: pipeline(SUBJECTS[name].parts(f)) for name in names}
    calls = {f"= {name}": partial(rule, values) for name, rule in rules.items()}
    timings = interleave({**plain, **calls}, repeats, torch.device("cpu"))
    rows = [[name, f"{1e3 * timings[name].median:.1f}", "", "", "", ""] for name in plain]
    record: dict[str, Any] = {}
    for name in names:
        subject = SUBJECTS[name]
        middle, low, high = ratio(timings, f"= {name}", subject.references)
        of_mean = ratio(timings, f"= {name}", ("mean",))[0]
        record[name] = {
            "milliseconds": 1e3 * timings[f"= {name}"].median,
            "means": of_mean,
            "references": list(subject.references),
            "ratio": middle,
            "quartiles": [low, high],
            "target": subject.target,
        }
        goal = "" if subject.target is None else f"{subject.target:.2f}"
        milliseconds = f"{1e3 * timings[f'= {name}'].median:.1f}"
        against = " + ".join(subject.references)
        rows.append([name, milliseconds, f"{of_mean:.2f}", against, f"{middle:.2f} ({low:.2f}-{high:.2f})", goal])
    print(table(["rule", "ms", "x mean", "reference", "ratio", "target"], rows))
    record["references"] = {name: 1e3 * timings[name].median for name in plain}
    return record


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory_of(name: str, n: int, d: int, f: int) -> None:
    """Print the growth of the resident peak of one call, after a call on few columns has loaded everything."""
    values = data(n, d)
    rule = pipeline(SUBJECTS[name].parts(f))
    rule(values[:, :4096].clone())
    _reset_peak()
    before = peak_bytes(torch.device("cpu"))
    rule(values)
    print(peak_bytes(torch.device("cpu")) - before)


def memory(names: Sequence[str], n: int, d: int, f: int, threads: int) -> dict[str, float]:
    """Extra memory of each rule in a process of its own, in MB."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name, "--n", str(n), "--d", str(d), "--f", str(f)]
        command += ["--threads", str(threads)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[name] = int(output) / 2**20
    print(table(["rule", "extra MB"], [[name, f"{value:.1f}"] for name, value in found.items()]))
    return found


def peers(names: Sequence[str], n: int, d: int, f: int, repeats: int) -> dict[str, Any]:
    """How many times faster a rule is than ByzFL's faster variant, and than Flower's."""
    values = data(n, d)
    theirs, flowers = byzfl_rules(n, f), flower_rules(n, f)
    if not theirs and not flowers:
        print("neither ByzFL nor Flower is installed: nothing to compare with")
        return {}
    given = kinds(values)
    rows, record = [], {}
    own = {name: SUBJECTS[name].parts(f) for name in names if name in SUBJECTS}
    own |= {
        "nnm": [{"kind": "nnm", "f": f}],
        "bucketing": ["bucketing"],
        "monna": [{"kind": "monna", "f": f, "trusted": 0}],
    }
    for name in [name for name in own if name in theirs or name in flowers]:
        calls: dict[str, Callable[[], object]] = {}
        if name in ("nnm", "bucketing"):
            mixing: Any = RULES.build(own[name][0])
            calls["bezoar"] = partial(mixing, values)
        else:
            rule = pipeline(own[name])
            calls["bezoar"] = partial(rule, values)
        if name in theirs:
            for kind in ("torch", "numpy"):
                sample = given[kind]()
                # Some of its rules keep the last answer: one object for each kind.
                calls[f"byzfl {kind}"] = partial(byzfl_rules(n, f)[name], sample)
        if name in flowers:
            arrays = list(values.numpy())
            calls["flower"] = partial(flowers[name], arrays)
        timings = interleave(calls, repeats, torch.device("cpu"), warmups=1, pause=0.1)
        seconds = {key: timing.median for key, timing in timings.items()}
        best = min((value for key, value in seconds.items() if key.startswith("byzfl")), default=None)
        record[name] = {key: 1e3 * value for key, value in seconds.items()}
        cells = [f"{1e3 * seconds[key]:.1f}" if key in seconds else "" for key in ("bezoar", "byzfl torch")]
        cells += [f"{1e3 * seconds[key]:.1f}" if key in seconds else "" for key in ("byzfl numpy", "flower")]
        cells.append("" if best is None else f"{best / seconds['bezoar']:.1f}")
        cells.append(f"{seconds['flower'] / seconds['bezoar']:.1f}" if "flower" in seconds else "")
        rows.append([name, *cells])
    print(table(["rule", "bezoar ms", "byzfl torch", "byzfl numpy", "flower", "x byzfl", "x flower"], rows))
    return record


def stream(folder: Path, n: int, d: int, f: int) -> dict[str, Any]:
    """Aggregate n memory-mapped rows of d parameters; the resident peak over the input's size."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        draws = np.random.Generator(np.random.Philox(0))
        paths = []
        for i in range(n):
            path = Path(temporary) / f"{i}.npy"
            target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(d,))
            for start in range(0, d, 10**7):
                target[start : start + 10**7] = draws.standard_normal(min(10**7, d - start), dtype=np.float32)
            del target
            paths.append(path)
        rows, record = [], {}
        for name in ("trimmed-mean", "krum", "nnm > trimmed-mean"):
            command = [sys.executable, __file__, "--stream-of", name, "--f", str(f), *map(str, paths)]
            seconds, growth = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            # Pages of the mapped files count as resident, and the answer has to be somewhere.
            extra = (int(growth) - (n + 1) * d * 4) / 2**20
            record[name] = {"seconds": float(seconds), "extra_MB": extra}
            rows.append([name, f"{float(seconds):.1f}", f"{extra:.0f}"])
    print(table(["rule", "seconds", "peak beyond input and answer, MB"], rows))
    return record


def stream_of(name: str, paths: Sequence[str], f: int) -> None:
    """Print seconds and growth of the resident peak of one aggregation of memory-mapped rows."""
    rule = pipeline(SUBJECTS[name].parts(f))
    updates = [np.load(path, mmap_mode="r") for path in paths]
    rule([row[:4096].copy() for row in updates])
    _reset_peak()
    before, start = peak_bytes(torch.device("cpu")), time.perf_counter()
    rule(updates)
    print(time.perf_counter() - start, peak_bytes(torch.device("cpu")) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--f", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rules", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="RULE")
    parser.add_argument("--memory", action="store_true", help="extra memory instead of time")
    parser.add_argument("--peers", action="store_true", help="next to other libraries")
    parser.add_argument("--stream", type=Path, help="folder with room for 20 files of 400 MB")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--stream-of", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stream_of:
        stream_of(options.stream_of, options.paths, options.f)
        return
    n, d = (20, 10**8) if options.stream else (options.n, options.d)
    f = options.f if options.f is not None else n // 5
    if options.memory_of:
        memory_of(options.memory_of, n, d, f)
        return
    print(f"n={n}, d={d}, f={f}, float32, {options.threads} threads, torch {torch.__version__}\n")
    if options.memory:
        record: dict[str, Any] = memory(options.rules, n, d, f, options.threads)
    elif options.peers:
        record = peers(options.rules, n, d, f, options.repeats)
    elif options.stream:
        record = stream(options.stream, n, d, f)
    else:
        record = time_rules(options.rules, n, d, f, options.repeats)
    if options.json:
        setting = {"n": n, "d": d, "f": f, "threads": options.threads, "torch": torch.__version__}
        options.json.write_text(json.dumps({"setting": setting, "figures": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
