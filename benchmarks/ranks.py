"""What a round costs on several processes with one thread each, next to one process with as many threads.

    python benchmarks/ranks.py                                        # ResNet9, two ranks, clip and mean
    python benchmarks/ranks.py --rules clip+mean krum trimmed-mean --repeats 3 --json ranks.json

Both are processes of their own that wait while the other one plays; they play in turn, so that a change of the
machine's load meets both. A round is 100 clients with 5 samples each: client gradients, the rule, and the server's
step. The ratio is the median, over turns, of the ranks' seconds over the one process's in the same turn. ``talk`` are
the seconds that rank 0 spends on handing on, gathering and adding up, waiting for the others included.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import SHAPES, peak_bytes, table
from torch import Tensor

from bezoar.aggregation import Clip, Krum, Mean, Rule, TrimmedMean
from bezoar.allocator import tune
from bezoar.experiments.setup import cross_entropy
from bezoar.models import FlatModel, make_model
from bezoar.ranks import ALONE, Ranks
from bezoar.ranks.torchrun import joined
from bezoar.servers import SGD
from bezoar.updates import Sharded, Updates, client_gradients
from bezoar.updates.gradients import layout_of

RULES: dict[str, Callable[[int], Rule]] = {
    "clip+mean": lambda f: Clip(1.0) >> Mean(),
    "krum": lambda f: Krum(f=f),
    "trimmed-mean": lambda f: TrimmedMean(f=f),
}
_LR = 1e-3


@dataclass(frozen=True)
class Setting:
    """What is played."""

    shape: str
    clients: int
    samples: int
    ranks: int


def rounds(setting: Setting, ranks: Ranks) -> Callable[[str], None]:
    """A function that plays one round with a rule."""
    shape = SHAPES[setting.shape]
    flat = FlatModel.of(make_model(setting.shape, shape, 10, seed=0))
    draws = torch.Generator().manual_seed(0)
    n = setting.clients * setting.samples
    inputs, targets = torch.randn(n, *shape, generator=draws), torch.randint(10, (n,), generator=draws)
    inputs = inputs.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    clients = torch.arange(setting.clients).repeat_interleave(setting.samples)
    owners = torch.arange(setting.clients) % ranks.size
    mine = owners[clients] == ranks.rank
    layout = layout_of(flat.model)
    server = SGD(momentum=0.9)
    state: dict[str, Tensor] = {}

    def a_round(rule: str) -> None:
        updates: Updates = client_gradients(flat.model, cross_entropy, inputs[mine], targets[mine], clients[mine])
        if not ranks.alone:
            updates = Sharded(updates, torch.arange(setting.clients), owners, ranks, flat.vector, layout)
        step = server.step(RULES[rule](setting.clients // 5).aggregate(updates).vector, _LR, state)
        state.update(step.state)
        step.apply_(flat.vector)

    return a_round


def listen(setting: Setting) -> None:
    """Play a round whenever the parent names a rule, and tell what it took."""
    tune()
    with ExitStack() as inside:
        ranks, spent = ALONE, [0.0]
        if "RANK" in os.environ:
            ranks = inside.enter_context(joined())
            guarded = ranks._guarded  # type: ignore[attr-defined]

            def timed(talk: Callable[[], object]) -> None:
                start = time.perf_counter()
                guarded(talk)
                spent[0] += time.perf_counter() - start

            ranks._guarded = timed  # type: ignore[attr-defined]
        a_round = rounds(setting, ranks)
        print("ready", flush=True)
        for line in sys.stdin:
            spent[0] = 0.0
            ranks.sent.clear()
            start = time.perf_counter()
            a_round(line.strip())
            seconds = time.perf_counter() - start
            peak = peak_bytes(torch.device("cpu"))
            said = {"seconds": seconds, "talk": spent[0], "sent": sum(ranks.sent.values()), "peak": peak}
            print(json.dumps(said), flush=True)


class Players:
    """Processes that play together."""

    def __init__(self, setting: Setting, size: int, threads: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, __file__, "--setting", json.dumps(asdict(setting))]
        self.processes = []
        for rank in range(size):
            env = os.environ | {"OMP_NUM_THREADS": str(threads)}
            if size > 1:
                told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
                env |= {key: str(value) for key, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
            pipe = subprocess.PIPE
            self.processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env))
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                self.end()
                raise SystemExit("a player did not start")

    def play(self, rule: str) -> dict[str, Any]:
        """One round: the slowest rank's seconds and peak, what rank 0 spent on talk, the most that a rank sent."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{rule}\n")
            process.stdin.flush()
        said = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                self.end()
                raise SystemExit(f"a player died in a round with {rule}")
            said.append(json.loads(line))
        worst = {key: max(part[key] for part in said) for key in ("seconds", "sent", "peak")}
        return worst | {"talk": said[0]["talk"]}

    def end(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def report(setting: Setting, rules: list[str], repeats: int, warmups: int) -> dict[str, Any]:
    """Measure, print the table, and return its figures."""
    figures, lines = {}, []
    with ExitStack() as inside:
        one = Players(setting, 1, setting.ranks)
        inside.callback(one.end)
        many = Players(setting, setting.ranks, 1)
        inside.callback(many.end)
        for rule in rules:
            turns = []
            for turn in range(warmups + repeats):
                turns.append((one.play(rule), many.play(rule)))
                seconds = [part["seconds"] for part in turns[-1]]
                print(f"{rule}, turn {turn + 1}: {seconds[0]:.2f} and {seconds[1]:.2f} s", file=sys.stderr, flush=True)
            turns = turns[warmups:]
            ratios = [there["seconds"] / here["seconds"] for here, there in turns]
            quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            found = {
                "one": [here["seconds"] for here, _ in turns],
                "ranks": [there["seconds"] for _, there in turns],
                "talk": [there["talk"] for _, there in turns],
                "sent": turns[-1][1]["sent"],
                "ratio": statistics.median(ratios),
                "quartiles": (quartiles[0], quartiles[2]),
                "peak_one": turns[-1][0]["peak"],
                "peak_rank": turns[-1][1]["peak"],
            }
            figures[rule] = found
            lines.append(
                [
                    rule,
                    f"{statistics.median(found['one']):.2f}",
                    f"{statistics.median(found['ranks']):.2f}",
                    f"{found['ratio']:.3f}",
                    f"{quartiles[0]:.3f} - {quartiles[2]:.3f}",
                    f"{statistics.median(found['talk']):.2f}",
                    f"{found['sent'] / 1e6:.1f}",
                ]
            )
    print(f"\n{asdict(setting)}, repeats={repeats}, torch {torch.__version__}")
    head = ["rule", "one process s", "ranks s", "ratio", "quartiles", "talk s", "MB sent"]
    print(table(head, lines), flush=True)
    return {"setting": asdict(setting), "repeats": repeats, "torch": str(torch.__version__), "rules": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES], default="resnet9")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5, help="samples a client")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rules", nargs="+", choices=[*RULES], default=["clip+mean"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmups", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.setting:
        listen(Setting(**json.loads(chosen.setting)))
        return
    setting = Setting(chosen.shape, chosen.clients, chosen.samples, chosen.ranks)
    figures = report(setting, chosen.rules, chosen.repeats, chosen.warmups)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
