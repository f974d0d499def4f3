"""What a training for expected robustness costs beside its gradients, attack and rule.

    python benchmarks/expected.py          # 20 clients, softmax (d = 310) and ridge (d = 100), 80 rounds

Reference, in the same run and interleaved: ``parts`` is a loop of the bare gradients, the bare attack and the bare
rule. ``training`` is :func:`bezoar.expected.play.play` with its measurements. A ratio is the median, over turns, of the
two times of one turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from _common import interleave

from bezoar.aggregation import Rule, pipeline
from bezoar.attacks import ALIE
from bezoar.attacks.base import standalone
from bezoar.expected import Task, make_problem
from bezoar.expected.play import Steps, play
from bezoar.expected.tasks import Problem
from bezoar.updates import DenseUpdates

BAD = [8, 9, 10, 11]
RULES = {
    "trimmed mean": [{"kind": "trimmed-mean", "f": 8}],
    "NNM >> trimmed mean": [{"kind": "nnm", "f": 8}, {"kind": "trimmed-mean", "f": 8}],
    "geometric median": ["geometric-median"],
}
TASKS = {
    "softmax": {"kind": "softmax", "groups": (8, 4, 4, 4), "features": 30},
    "ridge": {"kind": "ridge", "groups": (8, 4, 4, 4), "features": 99},
}


def parts(problem: Problem, rule: Rule, rounds: int) -> None:
    """Gradients, attack and rule at the models of a training, nothing else."""
    good = [i for i in range(problem.n) if i not in BAD]
    gradients, theta = problem.gradients(good), problem.start
    context, attack, ids = standalone(DenseUpdates(theta[None]), problem.n, 4), ALIE(z=1.5), torch.tensor(good)
    for t in range(1, rounds + 1):
        rows = attack.send(DenseUpdates(gradients.at(theta, t), ids), rule, context).rows
        theta = theta - 0.1 * rule.aggregate(DenseUpdates(rows.materialise())).vector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    honest = np.ones((1, 20), dtype=np.bool_)
    honest[0, BAD] = False
    for name, table in TASKS.items():
        problem = make_problem(Task.model_validate(table), 0)
        for label, tables in RULES.items():
            rule = pipeline(tables)
            steps = Steps(arguments.rounds, 0.1, 0.0, 0)
            subjects: dict[str, Callable[[], object]] = {
                "parts": partial(parts, problem, rule, arguments.rounds),
                "training": partial(play, problem, rule, ALIE(z=1.5), BAD, steps, honest),
            }
            found = interleave(subjects, arguments.turns, torch.device("cpu"))
            times = {name: timing.seconds for name, timing in found.items()}
            ratio = statistics.median(b / a for a, b in zip(times["parts"], times["training"], strict=True))
            extra = statistics.median(b - a for a, b in zip(times["parts"], times["training"], strict=True))
            print(f"{name}, {label}: {statistics.median(times['training']) / arguments.rounds * 1e3:.2f} ms a round, "
                  f"{ratio:.2f} x its parts (+ {extra / arguments.rounds * 1e3:.2f} ms a round)")  # fmt: skip


if __name__ == "__main__":
    main()
