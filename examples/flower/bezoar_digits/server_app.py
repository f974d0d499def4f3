"""The server: three lines of bezoar."""

from __future__ import annotations

import tomllib
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from bezoar.integrations.flower import RobustStrategy
from bezoar_digits import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds behind the rule, and evaluate the model here after each."""
    run = context.run_config
    seed = int(run["seed"])

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        net = task.model(seed)
        net.load_state_dict(arrays.to_torch_state_dict())
        accuracy, loss = task.evaluate(net)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    strategy = RobustStrategy(
        defence(str(run["rule"])),
        fraction_train=float(run["fraction-train"]),
        fraction_evaluate=0.0,
        min_available_nodes=int(run["min-nodes"]),
        seed=seed,
    )
    strategy.start(
        grid,
        ArrayRecord(task.model(seed).state_dict()),
        num_rounds=int(run["rounds"]),
        evaluate_fn=evaluate,
        out=str(run["out"]) or None,
        resume=bool(run["resume"]),
        name=f"digits, {run['attack']}",
    )


def defence(text: str) -> Any:
    """A pipeline (a list), a preset's table, or a preset's name, from the text in the run's configuration."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    table = tomllib.loads(f"rule = {text}")["rule"]
    # A pipeline alone gets the server of FedAvg: presets say themselves which they want.
    return {"pipeline": table, "server": {"kind": "sgd", "momentum": 0.0}} if isinstance(table, list) else table
