from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bezoar.errors import ConfigError
from bezoar.integrations.flower import InProcessGrid


def app(seen: list[Any] | None = None) -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        if seen is not None:
            seen.append(partition)
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        received = float(record["x"].numpy()[0])
        record["x"] = Array(np.full(1, -1.0, np.float32))
        message.content["config"]["spoilt"] = True
        calls = context.state.metric_records.setdefault("calls", MetricRecord({"n": 0}))
        calls["n"] = int(str(calls["n"])) + 1
        if context.run_config.get("fail") == partition:
            raise RuntimeError("disk full")
        draws = MetricRecord(
            {
                "received": received,
                "calls": calls["n"],
                "random": random.random(),
                "numpy": float(np.random.rand()),  # noqa: NPY002
                "torch": float(torch.rand(())),
                "partition": int(partition),
                "spoilt": int("already" in message.content["config"]),
            }
        )
        return Message(RecordDict({"metrics": draws}), reply_to=message)

    return made


def ask(grid: InProcessGrid, number: int, nodes: list[int] | None = None) -> list[dict[str, Any]]:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"x": Array(np.full(1, 2.0, np.float32))}),
            "config": ConfigRecord({"server-round": number}),
        }
    )
    messages = [Message(content, node, "train") for node in nodes or grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    return [{"error": r.error.reason} if r.has_error() else dict(r.content["metrics"]) for r in replies]


def test_clients_get_copies_and_keep_their_state() -> None:
    grid = InProcessGrid(app(), 3)
    first, second = ask(grid, 1), ask(grid, 2)
    assert [found["received"] for found in first + second] == [2.0] * 6
    assert [found["calls"] for found in first + second] == [1, 1, 1, 2, 2, 2]
    assert not any(found["spoilt"] for found in first + second)


def test_draws_depend_on_seed_client_and_round_alone() -> None:
    before = torch.get_rng_state()
    one = ask(InProcessGrid(app(), 4), 5)
    random.seed(1)
    torch.manual_seed(1)
    grid = InProcessGrid(app(), 4)
    ask(grid, 4, grid.get_node_ids()[:2])
    two = ask(grid, 5)
    for key in ("random", "numpy", "torch"):
        assert [found[key] for found in one] == [found[key] for found in two]
        assert len({found[key] for found in one}) == 4
    other = ask(InProcessGrid(app(), 4, seed=1), 5)
    assert one[0]["torch"] != other[0]["torch"] != ask(InProcessGrid(app(), 4), 6)[0]["torch"]
    torch.set_rng_state(before)
    ask(InProcessGrid(app(), 2), 1)
    assert torch.equal(before, torch.get_rng_state())


def test_partitions_answer_in_order_whatever_the_order_of_messages() -> None:
    seen: list[Any] = []
    grid = InProcessGrid(app(seen), 4)
    found = ask(grid, 1, grid.get_node_ids()[::-1])
    assert seen == [0, 1, 2, 3]
    assert [reply["partition"] for reply in found] == [3, 2, 1, 0]


def test_an_exception_is_an_error_reply() -> None:
    grid = InProcessGrid(app(), 3, {"fail": 1})
    found = ask(grid, 1)
    assert found[1] == {"error": "RuntimeError: disk full"}
    assert "received" in found[0]
    assert "received" in found[2]


def test_an_app_for_every_partition() -> None:
    seen: list[Any] = []
    other = app(seen)
    grid = InProcessGrid(lambda partition: other if partition == 2 else app(), 3)
    ask(grid, 1)
    assert seen == [2]


def test_wrong_use() -> None:
    with pytest.raises(ConfigError, match="num_partitions"):
        InProcessGrid(app(), 0)
    with pytest.raises(ConfigError, match="no node 5"):
        ask(InProcessGrid(app(), 2), 1, [5])
