"""Between Flower's messages and named arrays: nothing that a client can put into a message raises here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from bezoar.integrations.coordinator import Reply
from bezoar.integrations.gate import Array as Numbers
from bezoar.integrations.reported import medians, weight_of

#: How Flower calls the serialisation by ``numpy.save``.
NUMPY = "numpy.ndarray"


def arrays_of(record: ArrayRecord) -> dict[str, Numbers]:
    """The server's own model as arrays."""
    return {name: array.numpy() for name, array in record.items()}


def record_of(arrays: Mapping[str, Numbers]) -> ArrayRecord:
    """A model as a record, in the mapping's order."""
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def reply_of(client: int, message: Message, weight_key: str, most_bytes: int) -> Reply:
    """One client's message: its arrays as bytes, what it claims to weigh, and what is wrong with it at first sight."""
    content: RecordDict = message.content
    records = list(content.array_records.values())
    if len(records) != 1:
        return Reply(client, {}, flaw=f"{len(records)} array records, expected one")
    arrays: dict[str, Any] = {}
    total = 0
    for name, array in records[0].items():
        if array.stype != NUMPY or not isinstance(array.data, bytes):
            return Reply(
                client, {}, flaw=f"{str(name)[:60]!r} is serialised as {str(array.stype)[:40]!r}, not {NUMPY!r}"
            )
        arrays[name] = array.data
        total += len(array.data)
    if total > most_bytes:
        return Reply(client, {}, flaw=f"{total} bytes, expected at most {most_bytes}")
    return Reply(client, arrays, claimed(content, weight_key))


def claimed(content: RecordDict, key: str) -> float:
    """What a client claims to weigh; NaN where it claims nothing that could be a weight."""
    found = [record[key] for record in content.metric_records.values() if key in record]
    return weight_of(found[0]) if len(found) == 1 else math.nan


def median_metrics(contents: Iterable[RecordDict], leave_out: Iterable[str] = ()) -> MetricRecord:
    """One record of what clients report, see :func:`bezoar.integrations.reported.medians`."""
    merged: list[dict[str, Any]] = []
    for content in contents:
        merged.append({})
        for record in content.metric_records.values():
            merged[-1].update(record)
    return MetricRecord(dict(medians(merged, set(leave_out))))
