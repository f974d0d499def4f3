"""Clients that send a count sketch of their update instead of their model (FetchSGD)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from bezoar.errors import ConfigError
from bezoar.integrations.coordinator import SKETCH
from bezoar.integrations.flower.messages import arrays_of, record_of
from bezoar.integrations.gate import Template
from bezoar.kernels.count_sketch import CountSketch

#: Name of the record that tells clients which sketch to use.
CONFIG = "bezoar.sketch"


def sketch_config(sketch: CountSketch, buffers: tuple[str, ...], seed: int) -> ConfigRecord:
    """What clients must know to make the server's sketch."""
    return ConfigRecord({"rows": sketch.rows, "columns": sketch.columns, "seed": seed, "buffers": list(buffers)})


def sketch_mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A Mod for ``@app.train(mods=[sketch_mod])``: sends the sketch of the update, not the model.

    Arrays that are no parameters (BatchNorm's statistics) go along as they are. Messages of a server that asks for no
    sketches pass unchanged.
    """
    config = message.content.config_records.get(CONFIG)
    if config is None:
        return call_next(message, context)
    before = {name: array.copy() for name, array in arrays_of(_only(message)).items()}
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    after = arrays_of(_only(reply))
    patterns = config["buffers"]
    assert isinstance(patterns, list)
    template = Template.of(before, tuple(str(pattern) for pattern in patterns))
    update = np.concatenate([(before[f.name] - after[f.name]).reshape(-1) for f in template.parameters])
    rows, columns, seed = (int(str(config[key])) for key in ("rows", "columns", "seed"))
    table = CountSketch(template.d, rows, columns, seed).insert(torch.from_numpy(update.astype(np.float32)))
    sent = {SKETCH: table.numpy().reshape(rows, columns)}
    sent |= {field.name: after[field.name] for field in template.fields if field.buffer}
    name = next(iter(reply.content.array_records))
    reply.content[name] = record_of(sent)
    return reply


def _only(message: Message) -> ArrayRecord:
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise ConfigError(f"sketch_mod: the message holds {len(records)} array records, expected the model alone")
    return records[0]
