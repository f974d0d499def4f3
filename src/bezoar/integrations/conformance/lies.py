"""What a client can get wrong, or get right on purpose: functions that change what it is about to say."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error

from bezoar.integrations.conformance.stage import Said, Setting, agreed
from bezoar.integrations.flower.messages import NUMPY
from bezoar.integrations.gate import Array as Numbers

#: More numbers than any machine has memory for.
CLAIMED = 10**15


def wrong_key(said: Said) -> None:
    """Call an array by a name that the model does not have."""
    said.arrays["stranger"] = said.arrays.pop(said.first)


def missing_key(said: Said) -> None:
    """Leave an array out."""
    del said.arrays[said.first]


def extra_array(said: Said) -> None:
    """Send an array too many."""
    said.arrays["stranger"] = np.ones(3, np.float32)


def extra_record(said: Said) -> None:
    """Send a second record of arrays."""
    said.more["more"] = ArrayRecord({"stranger": Array(np.ones(3, np.float32))})


def no_arrays(said: Said) -> None:
    """Send no arrays."""
    said.arrays.clear()


def extra_metric(said: Said) -> None:
    """Report what nobody else reports."""
    assert said.metrics is not None
    said.metrics["surprise"] = 1.0


def no_metrics(said: Said) -> None:
    """Report nothing, no number of samples either."""
    said.metrics = None


def wrong_shape(said: Said) -> None:
    """Send an array of another size."""
    said.arrays[said.first] = said.arrays[said.first].reshape(-1)[:3]


def transposed(said: Said) -> None:
    """Send an array of the right size and another shape."""
    said.arrays[said.first] = said.arrays[said.first].T


def one_number(said: Said) -> None:
    """Send one number, which NumPy would broadcast to the array's shape."""
    said.arrays[said.first] = np.full((1, 1), 50.0, np.float32)


def float64(said: Said) -> None:
    """Send an array in another precision."""
    said.arrays[said.first] = said.arrays[said.first].astype(np.float64)


def text(said: Said) -> None:
    """Send text."""
    said.arrays[said.first] = np.full(said.arrays[said.first].shape, "x")


def complex_numbers(said: Said) -> None:
    """Send complex numbers."""
    said.arrays[said.first] = said.arrays[said.first] + 1j


def nan(said: Said) -> None:
    """Send one NaN."""
    said.arrays[said.first].flat[0] = math.nan


def infinity(said: Said) -> None:
    """Send one infinity."""
    said.arrays[said.first].flat[0] = math.inf


def overflow(said: Said) -> None:
    """Send numbers whose squares float32 can not hold."""
    said.arrays[said.first][:] = 1e38


def huge_payload(said: Said) -> None:
    """Send 16 MB."""
    said.arrays[said.first] = np.zeros(4_000_000, np.float32)


def lying_header(said: Said) -> None:
    """Send a header that claims more numbers than any memory holds."""
    said.arrays[said.first] = _labelled(said, f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({CLAIMED},), }}")


def garbage(said: Said) -> None:
    """Send bytes that are no array."""
    array = said.arrays[said.first]
    said.arrays[said.first] = Array("float32", array.shape, NUMPY, bytes(range(256)) * 4)


def other_serialisation(said: Said) -> None:
    """Say that an array is serialised in another way."""
    array = Array(said.arrays[said.first])
    said.arrays[said.first] = Array(array.dtype, array.shape, "pickle", array.data)


def archive(said: Said) -> None:
    """Send a ``.npz`` archive, which NumPy opens as something that is no array."""
    array, file = said.arrays[said.first], BytesIO()
    np.savez(file, array)
    said.arrays[said.first] = Array("float32", array.shape, NUMPY, file.getvalue())


class Trap:
    """Tells when it was unpickled: whoever reads it has run what a client sent."""

    sprung = False

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> float:
    Trap.sprung = True
    return 0.0


def pickled(said: Said) -> None:
    """Send objects that run code when they are unpickled."""
    array, file = said.arrays[said.first], BytesIO()
    np.save(file, np.full(array.shape, Trap(), object), allow_pickle=True)
    said.arrays[said.first] = Array("float32", array.shape, NUMPY, file.getvalue())


def claim(value: Any) -> Any:
    """A lie about the number of samples."""

    def lie(said: Said) -> None:
        assert said.metrics is not None
        said.metrics[said.key] = value

    return lie


def report(value: float) -> Any:
    """A lie about the training loss."""

    def lie(said: Said) -> None:
        assert said.metrics is not None
        said.metrics["train-loss"] = value

    return lie


def bad_evaluation(said: Said) -> None:
    """Report NaN, and what nobody else reports, of an evaluation."""
    said.metrics = {said.key: 10, "accuracy": math.nan, "surprise": 1.0}


def evaluation_lie(said: Said) -> None:
    """Report a number that decides every mean, of an evaluation."""
    said.metrics = {said.key: 10, "accuracy": 1e30}


def against(setting: Setting, times: float) -> Any:
    """An update against the honest ones, ``times`` as long."""

    def lie(said: Said) -> None:
        common = agreed(setting, said.start)
        for name, way in common.items():
            old: Numbers = said.start.arrays[name]
            said.arrays[name] = (old - times * way).astype(old.dtype)

    return lie


def bad_buffers(said: Said) -> None:
    """Send BatchNorm an impossible variance, and a mean far away."""
    said.arrays["norm.running_var"][:] = -1e6
    said.arrays["norm.running_mean"][:] = 1e6


def backwards(said: Said) -> None:
    """Send the right arrays in another order."""
    said.arrays = dict(reversed(said.arrays.items()))


def raises(said: Said) -> Error:
    """Answer with an error."""
    return Error(code=2, reason="the disk is full")


def _labelled(said: Said, header: str) -> Array:
    """An array whose ``.npy`` header is a lie."""
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\x00" * 64
    return Array("float32", said.arrays[said.first].shape, NUMPY, data)
