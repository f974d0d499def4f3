"""The clients. Only the last line knows of bezoar: it lets a client say which partition it holds."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bezoar.integrations.flower import answer_roll_call
from bezoar_digits import task
from bezoar_digits.attack import attack

app = ClientApp()


@app.train(mods=[attack])
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's samples."""
    run, client = context.run_config, int(context.node_config["partition-id"])
    seed, number = int(run["seed"]), int(str(message.content.config_records["config"]["server-round"]))
    net = task.model(seed)
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    held = task.federation(int(context.node_config["num-partitions"]), float(run["alpha"]), seed).client(client)
    samples, loss = task.train(
        net,
        torch.from_numpy(held),
        float(run["lr"]),
        int(run["epochs"]),
        int(run["batch-size"]),
        task.draws(seed, client, number),
    )
    metrics = MetricRecord({"num-examples": samples, "train_loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


answer_roll_call(app)
