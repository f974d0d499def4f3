"""What a round with clipped clients costs, next to one plain training step over the same samples.

    python benchmarks/round.py --shape cnn
    python benchmarks/round.py --shape resnet9 --repeats 5 --json round.json

Subjects: ``plain`` (forward, backward, torch.optim.SGD with momentum), ``clip+mean`` (client gradients, norms, clipped
mean, momentum step), ``sparsefed`` (the same with top-k error feedback) and ``loop`` (clip+mean with client gradients
by plain autograd, client by client). All run in turn in one process; ratios are medians of the ratios of neighbouring
runs, with quartiles. Peak memory comes from a process of its own for each subject, over what it held before its first
step; the loop's includes the n x d matrix.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from _common import SHAPES, Timing, interleave, peak_bytes, table

from bezoar.aggregation import Clip, Mean
from bezoar.allocator import tune
from bezoar.experiments.setup import cross_entropy
from bezoar.models import FlatModel, make_model
from bezoar.servers import SGD, Server, SparseFed
from bezoar.updates import client_gradients

SUBJECTS = ("plain", "clip+mean", "sparsefed", "loop")
_LR = 1e-3


@dataclass(frozen=True)
class Setting:
    """One line of the table's heading."""

    shape: str
    clients: int
    samples: int
    threads: int
    device: str
    memory_format: str
    allocator: str
    k: str


def subject(name: str, setting: Setting) -> Callable[[], object]:
    """A function that takes one step; its model, data and state are its own."""
    device = torch.device(setting.device)
    layout = torch.channels_last if setting.memory_format == "channels_last" else torch.contiguous_format
    shape = SHAPES[setting.shape]
    model = make_model(setting.shape, shape, 10, seed=0).to(device)
    draws = torch.Generator().manual_seed(0)
    n = setting.clients * setting.samples
    inputs = torch.randn(n, *shape, generator=draws).to(device)
    if setting.memory_format == "channels_last":
        # ``contiguous`` leaves the strides of one-channel images as they are, and then a flat model, whose weights are
        # contiguous, would run in the other format, a third slower.
        channels, height, width = shape
        strides = (channels * height * width, 1, width * channels, channels)
        inputs = torch.empty_strided(inputs.shape, strides, device=device).copy_(inputs)
    targets = torch.randint(10, (n,), generator=draws).to(device)
    clients = torch.arange(setting.clients).repeat_interleave(setting.samples)
    if name == "plain":
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        optimiser = torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9)

        def plain() -> None:
            optimiser.zero_grad()
            cross_entropy(model(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        return plain
    flat = FlatModel.of(model)
    rule = Clip(1.0) >> Mean()
    server: Server = SparseFed(k=setting.k, momentum=0.9) if name == "sparsefed" else SGD(momentum=0.9)
    state: dict[str, Any] = {}

    method: Literal["ghost", "loop"] = "loop" if name == "loop" else "ghost"

    def a_round() -> None:
        updates = client_gradients(flat.model, cross_entropy, inputs, targets, clients, method=method)
        step = server.step(rule.aggregate(updates).vector, _LR, state)
        state.update(step.state)
        step.apply_(flat.vector)

    return a_round


def prepare(setting: Setting) -> None:
    """Allocator and threads of this process."""
    if setting.allocator == "tuned" and not tune():
        print("the allocator could not be tuned here", file=sys.stderr)
    torch.set_num_threads(setting.threads)


def measure_memory(name: str, setting: Setting) -> int:
    """Bytes that three steps needed on top of model, data and library."""
    device = torch.device(setting.device)
    step = subject(name, setting)
    before = peak_bytes(device)
    for _ in range(3):
        step()
    return peak_bytes(device) - before


def memory_apart(name: str, setting: Setting) -> int:
    """``measure_memory`` in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--setting", json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the memory of {name} could not be measured:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def ratios(timing: Timing, plain: Timing) -> tuple[float, float, float]:
    """Median and quartiles of the ratios of neighbouring runs."""
    each = [mine / theirs for mine, theirs in zip(timing.seconds, plain.seconds, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return low, middle, high


def report(setting: Setting, repeats: int, subjects: list[str]) -> dict[str, Any]:
    """Measure, print the table, and return its figures."""
    device = torch.device(setting.device)
    timings = interleave({name: subject(name, setting) for name in subjects}, repeats, device)
    memory = {name: memory_apart(name, setting) for name in subjects}
    rows, figures = [], {}
    for name in subjects:
        low, middle, high = ratios(timings[name], timings["plain"])
        best = min(timings[name].seconds) / min(timings["plain"].seconds)
        faults = statistics.median(timings[name].faults)
        share = memory[name] / max(1, memory["plain"])
        rows.append(
            [
                name,
                f"{timings[name].median * 1e3:.1f}",
                f"{middle:.3f}",
                f"{low:.3f} - {high:.3f}",
                f"{best:.3f}",
                f"{faults:.0f}",
                f"{memory[name] / 2**20:.0f}",
                f"{share:.2f}",
            ]
        )
        figures[name] = {
            "seconds": timings[name].seconds,
            "ratio": middle,
            "quartiles": (low, high),
            "ratio_of_minima": best,
            "page_faults": faults,
            "peak_bytes": memory[name],
            "memory_ratio": share,
        }
    options = ", ".join(f"{key}={value}" for key, value in asdict(setting).items())
    print(f"\n{options}, repeats={repeats}, torch {torch.__version__}")
    head = ["subject", "median ms", "x plain", "quartiles", "x (minima)", "page faults", "peak MiB", "x plain memory"]
    print(table(head, rows), flush=True)
    return {"setting": asdict(setting), "repeats": repeats, "torch": torch.__version__, "subjects": figures}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="cnn")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5, help="samples a client")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-format", choices=["channels_last", "contiguous"], default="channels_last")
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--k", default="1%", help="coordinates that move in a SparseFed round")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="plain is always run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--memory-of", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    if chosen.memory_of:
        setting = Setting(**json.loads(chosen.setting))
        prepare(setting)
        print(measure_memory(chosen.memory_of, setting))
        return
    figures = []
    for shape in SHAPES if chosen.shape == "all" else [chosen.shape]:
        setting = Setting(
            shape,
            chosen.clients,
            chosen.samples,
            chosen.threads,
            chosen.device,
            chosen.memory_format,
            chosen.allocator,
            chosen.k,
        )
        prepare(setting)
        subjects = ["plain", *(name for name in SUBJECTS if name != "plain" and name in chosen.subjects)]
        figures.append(report(setting, chosen.repeats, subjects))
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
