"""What an attack that adapts to the defence adds to a training step, next to the same step under plain ALIE.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --threads 2 --repeats 30 --json benchmarks/results/attacks-cpu.json

A step is everything that a round does: the honest clients' gradients, the malicious rows, the defence, and the server's
step. Setting: 10 honest and 4 malicious clients with 32 samples each, the CNN of 421,642 parameters on 28 x 28 images,
Clip >> NNM >> TrimmedMean. Updates are asked for without being stored (``ghost``) or held as a matrix (``held``, what
local training gives). All subjects run in turn in one process; ratios are medians of the ratios of neighbouring runs,
with quartiles. ``20 aggregations`` is the line search that asks the defence itself 20 times (ten scales of either
sign).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from _common import Timing, interleave, table

from bezoar.aggregation import NNM, Clip, Krum, Mean, Rule, TrimmedMean
from bezoar.allocator import tune
from bezoar.attacks import ALIE, AttackContext, BlackBox, OptimisedALIE, OptimisedIPM, UpdateAttack
from bezoar.attacks.base import standalone
from bezoar.experiments.setup import cross_entropy
from bezoar.models import FlatModel, make_model
from bezoar.servers import SGD
from bezoar.updates import Stacked, Updates, client_gradients

_LR = 1e-3
RULES: dict[str, Callable[[int], Rule]] = {
    "clip+nnm+trimmed-mean": lambda f: Clip(2.0) >> NNM(f=f) >> TrimmedMean(f=f),
    "krum": lambda f: Krum(f=f),
    "mean": lambda f: Mean(),
}
METHODS: dict[str, Literal["ghost", "loop"]] = {"ghost": "ghost", "held": "loop"}


@dataclass(frozen=True)
class Asking(UpdateAttack):
    """ALIE with the best of 20 shifts, each of which the defence is asked about in full."""

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Any:
        mean = view.combine(torch.full((len(view),), 1 / len(view), dtype=torch.float64))
        best, reached = None, -1.0
        for sign in ("minus", "plus"):
            for i in range(10):
                rows = ALIE(z=0.1 * 2**i, direction=sign).rows(view, defence, context)
                deviation = float((defence.aggregate(rows).vector - mean).norm())
                if deviation > reached:
                    best, reached = rows, deviation
        return best


SUBJECTS: dict[str, UpdateAttack] = {
    "alie": ALIE(),
    "opt-alie": OptimisedALIE(),
    "opt-ipm": OptimisedIPM(),
    "black-box": BlackBox(),
    "20 aggregations": Asking(),
}


@dataclass(frozen=True)
class Setting:
    """One table."""

    rule: str
    updates: str
    honest: int
    malicious: int
    samples: int
    threads: int


def subject(attack: UpdateAttack, setting: Setting) -> tuple[Callable[[], object], Callable[[], float]]:
    """A function that takes one step, with model, data and state of its own, and one that says how strong it will be.

    That is the distance of the defence's answer from the honest mean.
    """
    draws = torch.Generator().manual_seed(0)
    count = setting.honest * setting.samples
    inputs = torch.randn(count, 1, 28, 28, generator=draws)
    targets = torch.randint(10, (count,), generator=draws)
    owners = torch.arange(setting.honest).repeat_interleave(setting.samples)
    flat = FlatModel.of(make_model("cnn", (1, 28, 28), 10, seed=0))
    rule, server = RULES[setting.rule](setting.malicious), SGD(momentum=0.9)
    state: dict[str, Any] = {}

    def send() -> Stacked:
        updates = client_gradients(flat.model, cross_entropy, inputs, targets, owners, method=METHODS[setting.updates])
        context = standalone(updates, setting.honest + setting.malicious, setting.malicious)
        return attack.send(updates, rule, context).rows

    def step() -> None:
        taken = server.step(rule.aggregate(send()).vector, _LR, state)
        state.update(taken.state)
        taken.apply_(flat.vector)

    def strength() -> float:
        sent = send()
        rows = sent.materialise()
        return float((rule(rows).double() - rows[~sent.malicious].double().mean(0)).norm())

    return step, strength


def ratios(timing: Timing, plain: Timing) -> tuple[float, float, float]:
    """Quartiles of the ratios of neighbouring runs."""
    each = [mine / theirs for mine, theirs in zip(timing.seconds, plain.seconds, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return low, middle, high


def report(setting: Setting, repeats: int, names: list[str]) -> dict[str, Any]:
    """Measure, print the table, and return its figures."""
    torch.set_num_threads(setting.threads)
    steps = {name: subject(SUBJECTS[name], setting) for name in names}
    # Now, while all models are the same.
    strengths = {name: strength() for name, (_, strength) in steps.items()}
    timings = interleave({name: step for name, (step, _) in steps.items()}, repeats, torch.device("cpu"))
    rows, figures = [], {}
    for name in names:
        low, middle, high = ratios(timings[name], timings["alie"])
        rows.append(
            [
                name,
                f"{timings[name].median * 1e3:.1f}",
                f"{middle:.2f}",
                f"{low:.2f} - {high:.2f}",
                f"{strengths[name]:.4g}",
            ]
        )
        figures[name] = {
            "seconds": timings[name].seconds,
            "ratio": middle,
            "quartiles": (low, high),
            "deviation": strengths[name],
        }
    options = ", ".join(f"{key}={value}" for key, value in asdict(setting).items())
    print(f"\n{options}, repeats={repeats}, torch {torch.__version__}")
    print(table(["attack", "median ms", "x alie", "quartiles", "deviation"], rows), flush=True)
    return {"setting": asdict(setting), "repeats": repeats, "torch": torch.__version__, "subjects": figures}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rule", choices=list(RULES), nargs="+", default=["clip+nnm+trimmed-mean"])
    parser.add_argument("--updates", choices=list(METHODS), nargs="+", default=list(METHODS))
    parser.add_argument("--honest", type=int, default=10)
    parser.add_argument("--malicious", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32, help="samples a client")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    tune()
    names = ["alie", *(name for name in SUBJECTS if name != "alie" and name in chosen.subjects)]
    figures = []
    for rule in chosen.rule:
        for updates in chosen.updates:
            for threads in chosen.threads:
                setting = Setting(rule, updates, chosen.honest, chosen.malicious, chosen.samples, threads)
                figures.append(report(setting, chosen.repeats, names))
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
