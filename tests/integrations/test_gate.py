from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar.errors import ConfigError
from bezoar.integrations.gate import GateError, Template


def saved(array: np.ndarray[Any, Any]) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


MODEL = {
    "w": np.zeros((3, 4), np.float32),
    "b": np.zeros(3, np.float64),
    "bn.running_var": np.ones(3, np.float32),
    "steps": np.int64(7) + np.zeros((), np.int64),
}
TEMPLATE = Template.of(MODEL)


def message(**changes: Any) -> dict[str, Any]:
    sent: dict[str, Any] = {name: saved(array) for name, array in MODEL.items()}
    sent.update(changes)
    return {name: value for name, value in sent.items() if value is not None}


def test_parameters_are_the_floating_arrays_that_are_no_buffers() -> None:
    assert [f.name for f in TEMPLATE.parameters] == ["w", "b"]
    assert TEMPLATE.d == 15
    assert TEMPLATE.dtype == np.float64
    assert [(f.start, f.stop) for f in TEMPLATE.parameters] == [(0, 12), (12, 15)]
    assert Template.of(MODEL, policy="rule").d == 18
    assert Template.of({"w": np.zeros(2, np.float16)}).dtype == np.float32


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"n": np.zeros(2, np.int64)}, "no parameters"),
        ({"z": np.zeros(2, np.complex64)}, "complex64"),
        ({"o": np.array([None])}, "object"),
        ({"t": np.array(["a"])}, "<U1"),
        ({}, "no parameters"),
    ],
)
def test_models_that_can_not_be_aggregated_are_refused(model: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Template.of(model)


def test_a_good_message_is_read_without_a_copy_in_the_order_of_the_model() -> None:
    values = {
        name: np.asarray(np.random.default_rng(0).normal(size=a.shape)).astype(a.dtype) for name, a in MODEL.items()
    }
    sent = {name: saved(values[name]) for name in reversed(MODEL)}
    read = TEMPLATE.check(sent)
    assert list(read) == list(MODEL)
    for name, array in read.items():
        np.testing.assert_array_equal(array, values[name])
        assert not array.flags.owndata


def test_arrays_in_fortran_order_keep_their_places() -> None:
    w = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(TEMPLATE.check(message(w=saved(w)))["w"], w)


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"w": None}, "'w' missing"),
        ({"extra": saved(np.zeros(1))}, "'extra' unknown"),
        ({"w": saved(np.zeros((4, 3), np.float32))}, r"shape \[4, 3\], expected \[3, 4\]"),
        ({"w": saved(np.zeros((3, 4), np.float64))}, "type float64, expected float32"),
        ({"w": saved(np.zeros((3, 4), ">f4"))}, "type >f4"),
        ({"w": saved(np.full((3, 4), "x"))}, "type <U1"),
        ({"w": saved(np.zeros((3, 4), np.float32))[:-1]}, "47 bytes of numbers, expected 48"),
        ({"w": saved(np.zeros((3, 4), np.float32)) + b"0"}, "49 bytes of numbers"),
        ({"w": b""}, "not in NumPy's format"),
        ({"w": b"\x93NUMPY"}, "not in NumPy's format"),
        ({"w": b"\x93NUMPY\x09\x00" + b"0" * 99}, "not in NumPy's format"),
        ({"w": pickle.dumps(np.zeros((3, 4), np.float32))}, "not in NumPy's format"),
        ({"w": header("(1000000000000,)")}, "shape"),
        ({"w": header("(3, 4)")}, "0 bytes of numbers"),
        ({"w": header("(3, 4)", "|O")}, "type object"),
        ({"w": header("(" * 500)}, "not in NumPy's format"),
        ({"w": b"0" * 10_000_000}, "takes 10000000 bytes"),
        ({"w": [[0.0] * 4] * 3}, "is no array but list"),
        ({"w": None, "x": None, "b": None}, "'b', 'w' missing"),
    ],
)
def test_malformed_messages_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GateError, match=says):
        TEMPLATE.check(message(**changes))


def test_no_mapping() -> None:
    with pytest.raises(GateError, match="not a mapping"):
        TEMPLATE.check([1, 2])  # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    for prefix in (b"", b"\x93NUMPY\x01\x00", header("(3, 4)")[:40]):
        with pytest.raises(GateError):
            TEMPLATE.check(message(w=prefix + data[:280]))
