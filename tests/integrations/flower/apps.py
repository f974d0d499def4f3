"""A small Flower app, written as users write theirs: digits, one hidden layer, nothing of bezoar in the clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits
from torch import nn

from bezoar.integrations.flower import RobustStrategy, answer_roll_call

_INPUTS, _TARGETS = load_digits(return_X_y=True)
INPUTS, TARGETS = torch.tensor(_INPUTS / 16, dtype=torch.float32), torch.tensor(_TARGETS)
TRAIN = 1500


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(64, 16), *middle, nn.ReLU(), nn.Linear(16, 10))


def client(
    change: Callable[[Message, Context, Message], Message] | None = None,
    mods: list[Any] | None = None,
    norm: bool = False,
    roll_call: bool = True,
) -> ClientApp:
    """Clients that train one epoch; ``change`` (message, context, honest reply) -> reply makes some malicious."""
    app = ClientApp()

    @app.train(mods=mods or [])
    def train(message: Message, context: Context) -> Message:
        model = net(norm)
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        # What training draws is seeded by whoever runs the app.
        state = torch.random.get_rng_state()
        model.load_state_dict(record.to_torch_state_dict())
        torch.random.set_rng_state(state)
        part = slice(int(context.node_config["partition-id"]), TRAIN, int(context.node_config["num-partitions"]))
        inputs, targets = INPUTS[part], TARGETS[part]
        optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
        for rows in torch.randperm(len(inputs)).split(16):
            if len(rows) > 1:
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimiser.step()
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": len(inputs), "seen": float(len(inputs))}),
            }
        )
        reply = Message(content, reply_to=message)
        return reply if change is None else change(message, context, reply)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        metrics = MetricRecord({"num-examples": 10, "accuracy": accuracy(record, norm)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return answer_roll_call(app) if roll_call else app


def accuracy(arrays: ArrayRecord, norm: bool = False) -> float:
    model = net(norm).eval()
    model.load_state_dict(arrays.to_torch_state_dict())
    return float((model(INPUTS[TRAIN:]).argmax(1) == TARGETS[TRAIN:]).double().mean())


def server(strategy: RobustStrategy, found: dict[str, Any], norm: bool = False, **start: Any) -> ServerApp:
    """A ServerApp of three lines; its result goes into ``found["result"]``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord({"accuracy": accuracy(arrays, norm)})

        arrays = ArrayRecord(net(norm).state_dict())
        found["result"] = strategy.start(grid, arrays, evaluate_fn=evaluate, **start)

    return app


def bits(arrays: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in arrays.items()}
