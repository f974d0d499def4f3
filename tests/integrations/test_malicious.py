from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar.data.sampling import compromised
from bezoar.errors import ConfigError
from bezoar.integrations.malicious import Malicious, as_malicious


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 5))
def test_a_count_is_the_simulator_s_draw(n: int, count: int, seed: int) -> None:
    who = Malicious(count=count, seed=seed)
    if count > n:
        with pytest.raises(ConfigError):
            who.of(n)
    else:
        assert who.of(n) == tuple(compromised(n, count=count, seed=seed).tolist())


def test_listed_clients_come_ascending_and_must_exist() -> None:
    assert as_malicious([7, 2]).of(8) == (2, 7)
    with pytest.raises(ConfigError, match="client 7 can not be malicious: the 7 clients are 0"):
        as_malicious([7, 2]).of(7)


def test_a_number_of_clients_given_is_not_asked() -> None:
    assert Malicious(share=0.5, n=10, seed=1).of(4) == Malicious(share=0.5, seed=1).of(10)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_rounds(start: int, more: int, every: int) -> None:
    who = Malicious(clients=(0,), start=start, stop=start + more, every=every)
    assert [t for t in range(1, 40) if who.active(t)] == list(range(start, start + more + 1, every))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got none"),
        ({"count": 1, "share": 0.2}, "got count and share"),
        ({"clients": (1, 1)}, "different partition ids"),
        ({"clients": (-1,)}, "different partition ids"),
        ({"clients": ("a",)}, "different partition ids"),
        ({"share": 1.5, "n": 10}, "share"),
        ({"share": 0.01, "n": 10}, "less than one"),
        ({"count": 11, "n": 10}, "at most 10"),
        ({"clients": (0,), "start": 0}, "start=0"),
        ({"clients": (0,), "start": 3, "stop": 2}, "stop=2"),
        ({"clients": (0,), "every": 0}, "every=0"),
    ],
)
def test_what_can_not_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Malicious(**options)
