"""What a robust round costs inside Flower: bezoar's rules next to Flower's own, and a whole round without Ray.

    python benchmarks/flower.py
    python benchmarks/flower.py --quick --json flower.json
    python benchmarks/flower.py --rounds

The first table: seconds of ``aggregate_train``, deserialisation included, of Flower's strategies and of
``RobustStrategy`` with the same rule, on the same replies (n clients, four arrays, float32, f = n / 5, for Bulyan the
largest f that it allows), in one process and in turn. Every call gets new messages around the same bytes, as some of
Flower's strategies take arrays out of them; making these is not timed. The ratio is that of the best times.

``--rounds``: seconds of a round of 100 clients that train an MLP (64-128-10, 9,610 parameters) on digits for one epoch,
batches of 16: a plain loop in PyTorch that averages, and the same as a Flower app in ``run_in_process`` with FedAvg and
with a robust rule.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import flwr
import numpy as np
import torch
from _common import table
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as theirs
from flwr.serverapp.strategy import Strategy
from sklearn.datasets import load_digits
from torch import nn

from bezoar.aggregation import NNM, Bulyan, Krum, Mean, Median, MultiKrum, TrimmedMean
from bezoar.allocator import tune
from bezoar.integrations.flower import InProcessGrid, RobustStrategy, answer_roll_call, run_in_process

Pair = tuple[Callable[[], Strategy], Callable[[], Strategy]]


def pairs(n: int) -> dict[str, Pair]:
    """Flower's strategy and ours, for every row."""
    f = n // 5
    deep = (n - 3) // 4
    return {
        "FedAvg / Mean": (theirs.FedAvg, lambda: RobustStrategy(Mean())),
        "FedMedian / Median": (theirs.FedMedian, lambda: RobustStrategy(Median())),
        "FedTrimmedAvg / TrimmedMean": (
            lambda: theirs.FedTrimmedAvg(beta=f / n),
            lambda: RobustStrategy(TrimmedMean(f=f)),
        ),
        "Krum": (lambda: theirs.Krum(num_malicious_nodes=f), lambda: RobustStrategy(Krum(f=f))),
        "MultiKrum": (
            lambda: theirs.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f),
            lambda: RobustStrategy(MultiKrum(f=f)),
        ),
        "Bulyan": (lambda: theirs.Bulyan(num_malicious_nodes=deep), lambda: RobustStrategy(Bulyan(f=deep))),
    }


def federation(n: int, d: int) -> tuple[InProcessGrid, ArrayRecord]:
    """n clients whose updates are drawn once, and the model they start from: weights of scale 0.05, updates of 0.01."""
    rng = np.random.default_rng(0)
    cuts = (d * 6 // 10, d * 3 // 10, d - d * 6 // 10 - d * 3 // 10 - d // 100, d // 100)
    model = {f"layer{i}": 0.05 * rng.standard_normal(size, dtype=np.float32) for i, size in enumerate(cuts)}
    sent = [
        {name: Array(value + 0.01 * rng.standard_normal(value.size, dtype=np.float32)) for name, value in model.items()}
        for _ in range(n)
    ]
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord(sent[int(context.node_config["partition-id"])])
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})}), reply_to=message)

    return InProcessGrid(answer_roll_call(app), n), ArrayRecord({name: Array(value) for name, value in model.items()})


def rows(n: int, d: int, repeats: int, only: list[str] | None) -> list[dict[str, Any]]:
    """Seconds of Flower's strategies and of ours, in turn."""
    grid, model = federation(n, d)
    found = []
    for name, makers in pairs(n).items():
        if only and not any(word.lower() in name.lower() for word in only):
            continue
        seconds: list[list[float]] = [[], []]
        for turn in range(repeats + 1):
            for side, make in enumerate(makers):
                strategy = make()
                messages = strategy.configure_train(1, model, ConfigRecord(), grid)
                replies = list(grid.send_and_receive(messages))
                gc.collect()
                start = time.perf_counter()
                arrays, _ = strategy.aggregate_train(1, replies)
                spent = time.perf_counter() - start
                assert arrays is not None
                if turn:
                    seconds[side].append(spent)
        flower, ours = seconds
        found.append(
            {
                "rule": name,
                "flower": min(flower),
                "bezoar": min(ours),
                "flower_median": statistics.median(flower),
                "bezoar_median": statistics.median(ours),
                "ratio": min(flower) / min(ours),
            }
        )
        print(f"{name}: {min(flower):.3f} s and {min(ours):.3f} s", file=sys.stderr, flush=True)
    return found


# A whole round


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def parts(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The data of n clients."""
    inputs, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs / 16, dtype=torch.float32), torch.tensor(targets)
    return [(x[i::n], y[i::n]) for i in range(n)]


def epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in torch.split(torch.randperm(len(x)), 16):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def plain_loop(n: int, rounds: int) -> list[float]:
    """Seconds of the rounds of a loop without any framework."""
    data, model, start = parts(n), net(), {k: v.clone() for k, v in net().state_dict().items()}
    spent = []
    for _ in range(rounds):
        before = time.perf_counter()
        total = {name: torch.zeros_like(value) for name, value in start.items()}
        for x, y in data:
            model.load_state_dict(start)
            epoch(model, x, y)
            for name, value in model.state_dict().items():
                total[name] += value
        start = {name: value / n for name, value in total.items()}
        spent.append(time.perf_counter() - before)
    return spent


def app(n: int) -> ClientApp:
    found, data, model = ClientApp(), parts(n), net()

    @found.train()
    def train(message: Message, context: Context) -> Message:
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        model.load_state_dict(record.to_torch_state_dict())
        x, y = data[int(context.node_config["partition-id"])]
        epoch(model, x, y)
        metrics = MetricRecord({"num-examples": len(x)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return answer_roll_call(found)


class Server:
    """A ServerApp that notes when rounds end."""

    def __init__(self, strategy: Strategy, rounds: int) -> None:
        self.ends: list[float] = []
        self.app = ServerApp()

        @self.app.main()
        def main(grid: Grid, context: Context) -> None:
            def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
                self.ends.append(time.perf_counter())
                return MetricRecord({"round": number})

            strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=rounds, evaluate_fn=evaluate)

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def whole_rounds(n: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds a round of the same training, with and without a framework; the first round warms up."""
    f = n // 5
    found: dict[str, list[float]] = {"plain loop, no framework": plain_loop(n, rounds + 1)[1:]}
    strategies: dict[str, Callable[[], Strategy]] = {
        "in process, FedAvg": lambda: theirs.FedAvg(fraction_evaluate=0.0),
        "in process, NNM + trimmed mean": lambda: RobustStrategy(NNM(f=f) >> TrimmedMean(f=f), fraction_evaluate=0.0),
    }
    for name, make in strategies.items():
        server = Server(make(), rounds + 1)
        run_in_process(server.app, app(n), n)
        found[name] = server.seconds[1:]
    base = min(found["plain loop, no framework"])
    return [
        {"round": name, "best": min(spent), "median": statistics.median(spent), "ratio": min(spent) / base}
        for name, spent in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="n = 20, d = 100,000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these words")
    parser.add_argument("--rounds", action="store_true", help="the second table instead")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    tune()
    torch.set_num_threads(options.threads)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    n, d = (20, 100_000) if options.quick else (options.n, options.d)
    print(f"Flower {flwr.__version__}, torch {torch.__version__}, numpy {np.__version__}, {options.threads} threads")
    if options.rounds:
        figures = whole_rounds(n, 2 * options.repeats)
        print(f"n = {n}, digits, MLP of 9,610 parameters; seconds a round")
        cells = [[r["round"], f"{r['best']:.3f}", f"{r['median']:.3f}", f"{r['ratio']:.2f}"] for r in figures]
        print(table(["round", "best", "median", "x plain"], cells))
    else:
        figures = rows(n, d, options.repeats, options.only)
        print(f"n = {n}, d = {d:,}; seconds of aggregate_train, best (median)")
        cells = [
            [
                r["rule"],
                f"{r['flower']:.4f} ({r['flower_median']:.4f})",
                f"{r['bezoar']:.4f} ({r['bezoar_median']:.4f})",
                f"{r['ratio']:.1f}",
            ]
            for r in figures
        ]
        print(table(["rule", "Flower", "bezoar", "times faster"], cells))
    if options.json:
        setting = {
            "n": n,
            "d": 9610 if options.rounds else d,
            "threads": options.threads,
            "flower": flwr.__version__,
            "repeats": options.repeats,
        }
        options.json.write_text(json.dumps({"setting": setting, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
