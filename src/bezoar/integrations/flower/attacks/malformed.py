"""Clients that send what is no model at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord

from bezoar.errors import ConfigError, nearest
from bezoar.integrations.flower.attacks.turn import CallNext, Mod, model_in, turn_of
from bezoar.integrations.flower.messages import NUMPY, arrays_of, record_of
from bezoar.integrations.malicious import Malicious, as_malicious

#: Changes a reply in place; the second argument is where clients claim their number of samples.
Spoil = Callable[[Message, str], None]


def malformed_mod(kind: str, who: Malicious | Iterable[int], weight_key: str = "num-examples") -> Mod:
    """Malicious clients train honestly and spoil the message.

    Kinds: ``"renamed"``, ``"extra"`` and ``"missing"`` arrays; ``"shape"`` and ``"type"`` of the first array;
    ``"garbage"`` instead of its bytes; ``"claimed"``: its header promises a petabyte; an ``"empty"`` array record; a
    ``"second"`` one; ``"weight"``: a claim of 10^12 samples; ``"error"``: the client raises. Numbers that are not
    finite are ``attack_mod(NonFinite(), who)``.

    Args:
        kind: what is wrong.
        who: partition ids, or :class:`~bezoar.integrations.malicious.Malicious`.
        weight_key: where clients claim their number of samples.

    Raises:
        ConfigError: no such kind.

    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[malformed_mod("garbage", who=(3,))])
    """
    if kind not in _KINDS:
        raise ConfigError(f"malformed_mod: no kind {kind!r}; {nearest(kind, _KINDS)}")
    malicious = as_malicious(who)

    def mod(message: Message, context: Context, call_next: CallNext) -> Message:
        turn = turn_of(message, context, malicious)
        reply = call_next(message, context)
        if turn is not None and turn.active and not reply.has_error():
            _KINDS[kind](reply, weight_key)
        return reply

    return mod


def _changed(change: Callable[[dict[str, Any], str], None]) -> Spoil:
    """Spoil the arrays by name; ``change`` gets them and the first name."""

    def spoil(reply: Message, key: str) -> None:
        name, record = model_in(reply.content)
        arrays = arrays_of(record)
        change(arrays, next(iter(arrays)))
        reply.content[name] = record_of(arrays)

    return spoil


def _rename(arrays: dict[str, Any], first: str) -> None:
    arrays["bezoar." + first] = arrays.pop(first)


def _extend(arrays: dict[str, Any], first: str) -> None:
    arrays["bezoar.extra"] = arrays[first]


def _drop(arrays: dict[str, Any], first: str) -> None:
    del arrays[first]


def _reshape(arrays: dict[str, Any], first: str) -> None:
    arrays[first] = np.concatenate([arrays[first].reshape(-1)] * 2)


def _retype(arrays: dict[str, Any], first: str) -> None:
    arrays[first] = arrays[first].astype(np.complex64)


def _bytes(reply: Message, data: Callable[[Array], bytes]) -> None:
    name, record = model_in(reply.content)
    first = next(iter(record))
    arrays = dict(record)
    arrays[first] = Array(record[first].dtype, record[first].shape, NUMPY, data(record[first]))
    reply.content[name] = ArrayRecord(arrays)


def _petabyte(array: Array) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**48},), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.data[-64:]


def _empty(reply: Message, key: str) -> None:
    reply.content[model_in(reply.content)[0]] = ArrayRecord()


def _second(reply: Message, key: str) -> None:
    reply.content["bezoar.second"] = model_in(reply.content)[1]


def _claim(reply: Message, key: str) -> None:
    for name, record in list(reply.content.metric_records.items()):
        if key in record:
            reply.content[name] = MetricRecord({**record, key: 10**12})


def _raise(reply: Message, key: str) -> None:
    raise RuntimeError("this client fails on purpose")


_KINDS: dict[str, Spoil] = {
    "renamed": _changed(_rename),
    "extra": _changed(_extend),
    "missing": _changed(_drop),
    "shape": _changed(_reshape),
    "type": _changed(_retype),
    "garbage": lambda reply, key: _bytes(reply, lambda array: b"\x80\x04garbage"),
    "claimed": lambda reply, key: _bytes(reply, _petabyte),
    "empty": _empty,
    "second": _second,
    "weight": _claim,
    "error": _raise,
}
