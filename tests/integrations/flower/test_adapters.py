"""Adapters of a transformer through Flower: only they travel, and a defence that fails closed does so there too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from bezoar.aggregation import NNM, Mean, TrimmedMean
from bezoar.errors import SuspectsError
from bezoar.experiments.defence import defence
from bezoar.integrations.flower import InProcessGrid, RobustStrategy
from bezoar.models import LoRA, built, make_model
from bezoar.models.files import kept
from bezoar.updates import client_gradients
from tests.updates.test_gradients import losses

N, LR = 6, 0.5
TOKENS = torch.randint(11, (N, 4, 8), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, (N, 4), generator=torch.Generator().manual_seed(1))


def model() -> nn.Module:
    """The same frozen base everywhere, drawn from the seed; adapters of which B is not zero."""
    made = built(make_model("transformer", (8,), 11, 0, width=8, heads=2), lora=LoRA(("query", "value", "up"), rank=2))
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    return made.model


def arrays(of: nn.Module) -> ArrayRecord:
    return ArrayRecord(kept(of)[0])


def client(malicious: int = 0) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        own, number = model(), int(context.node_config["partition-id"])
        received = message.content["arrays"]
        assert isinstance(received, ArrayRecord)
        own.load_state_dict(received.to_torch_state_dict(), strict=False)
        trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(losses(own(TOKENS[number]), LABELS[number]).mean(), trained)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= LR * gradient if number >= malicious else torch.nan
        reply = RecordDict({"arrays": arrays(own), "metrics": MetricRecord({"num-examples": 4})})
        return Message(reply, reply_to=message)

    return app


def play(rule: Any, malicious: int = 0, rounds: int = 1) -> Any:
    strategy = RobustStrategy(rule, fraction_evaluate=0.0)
    return strategy.start(InProcessGrid(client(malicious), N), arrays(model()), num_rounds=rounds)


def test_one_round_is_one_step_on_the_adapters_alone() -> None:
    result = play(Mean())
    start = model()
    owners = torch.arange(N).repeat_interleave(4)
    updates = client_gradients(start, losses, TOKENS.flatten(0, 1), LABELS.flatten(), owners, "ghost")
    step = LR * updates.combine(torch.full((N,), 1 / N, dtype=torch.float64))
    assert list(result.arrays) == [segment.name for segment in updates.layout]
    assert all("lora_" in name for name in result.arrays)
    before = kept(start)[0]
    for segment in updates.layout:
        expected = before[segment.name] - step[segment.start : segment.stop].view(segment.shape)
        np.testing.assert_allclose(result.arrays[segment.name].numpy(), expected.numpy(), atol=1e-6)


def test_a_robust_rule_keeps_adapters_finite_and_moving() -> None:
    result = play(NNM(f=1) >> TrimmedMean(f=1), malicious=1, rounds=2)
    before = kept(model())[0]
    for name, array in result.arrays.items():
        assert np.isfinite(array.numpy()).all()
        assert not np.array_equal(array.numpy(), before[name].numpy())


def test_more_suspects_than_declared_end_the_round_or_the_run() -> None:
    table = {"pipeline": ["mean"], "server": {"kind": "sgd", "momentum": 0.0}, "declared_f": 1}
    before = kept(model())[0]
    for malicious, moves in ((1, True), (2, False)):
        result = play(defence({**table, "more_than_f": "skip"}), malicious)
        same = all(np.array_equal(array.numpy(), before[name].numpy()) for name, array in result.arrays.items())
        assert same != moves
    with pytest.raises(SuspectsError, match="round 1: 2 clients look hostile, more than the declared f=1"):
        play(defence({**table, "more_than_f": "stop"}), 2)
