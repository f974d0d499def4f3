from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bezoar.aggregation import Mean
from bezoar.attacks import Gaussian, Knowledge
from bezoar.errors import ConfigError
from tests.attacks.context import bare

D = 20000


def rows() -> torch.Tensor:
    return torch.randn(6, D, generator=torch.Generator().manual_seed(1)) * 0.1 + torch.linspace(-2, 2, D)


@pytest.mark.parametrize("around", ["zero", "mean"])
@pytest.mark.parametrize("sigma", [0.5, 30.0])
def test_noise_has_the_deviation_and_the_centre_it_should(around: Any, sigma: float) -> None:
    view, context = bare(rows(), 3)
    sent = Gaussian(sigma, around).rows(view, Mean(), context).sent().double()
    centre = rows().double().mean(0) if around == "mean" else torch.zeros(D, dtype=torch.float64)
    noise = (sent - centre) / sigma
    assert (noise.mean(1).abs() < 5 / math.sqrt(D)).all()
    assert ((noise.std(1) - 1).abs() < 5 / math.sqrt(2 * D)).all()
    # Kurtosis tells normal numbers from uniform ones (1.8).
    assert ((noise**4).mean(1) - 3).abs().max() < 0.3
    # Attackers' noise has nothing to do with each other's.
    assert torch.corrcoef(noise)[0, 1].abs() < 5 / math.sqrt(D)


def test_colluding_attackers_send_one_vector() -> None:
    view, context = bare(rows(), 3)
    sent = Gaussian(collude=True).rows(view, Mean(), context).sent()
    assert torch.equal(sent[0], sent[1])
    assert torch.equal(sent[0], sent[2])


def test_draws_depend_on_seed_round_and_client_alone() -> None:
    def sent(q: int, **known: Any) -> torch.Tensor:
        view, context = bare(rows(), q, **known)
        return Gaussian().rows(view, Mean(), context).sent()

    assert torch.equal(sent(2), sent(3)[:2])
    for other in ({"seed": 8}, {"round": 5}):
        assert not (sent(2) == sent(2, **other)).any(1).all()


def test_noise_around_zero_needs_no_knowledge() -> None:
    assert Gaussian().least == Knowledge.NONE
    assert Gaussian(around="mean").least == Knowledge.OWN_DATA


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"sigma": math.nan}, {"sigma": math.inf}, {"around": "median"}])
def test_nonsense_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="gaussian"):
        Gaussian(**options)
