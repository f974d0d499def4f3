"""A conformance suite for Flower strategies: does a strategy survive what clients may send?

``bezoar conformance TARGET`` on the command line; in a test of your own:

>>> from bezoar.integrations.conformance import check
>>> from bezoar.integrations.flower import RobustStrategy
>>> from bezoar.aggregation import TrimmedMean
>>> [result.passed for result in check(lambda: RobustStrategy(TrimmedMean(f=2)), cases=["wrong-key", "nan"])]
[True, True]

Needs ``pip install 'bezoar[flower]'``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

try:
    from flwr.serverapp.strategy import Strategy
except ImportError as _error:
    raise ImportError("the conformance suite needs Flower: pip install 'bezoar[flower]'") from _error

from bezoar.errors import ConfigError, nearest
from bezoar.integrations.conformance.cases import CASES, Case
from bezoar.integrations.conformance.stage import Setting
from bezoar.integrations.conformance.targets import target
from bezoar.integrations.conformance.trial import Fault, Trial

__all__ = ["CASES", "Case", "Result", "Setting", "check", "chosen", "results", "target"]


@dataclass(frozen=True)
class Result:
    """How a strategy did in one case.

    Attributes:
        case: the case's name.
        summary: what happened to the strategy.
        right: what it should do.
        fault: what it did instead, in a few words; "" if it passed.
        detail: the same at length.
    """

    case: str
    summary: str
    right: str
    fault: str = ""
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether it did what is right."""
        return not self.fault


def check(
    make: Callable[[], Strategy],
    *,
    clients: int = 13,
    dimension: int = 1000,
    f: int = 2,
    cases: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Result]:
    """Try a strategy in every case, or in those named.

    Args:
        make: makes a fresh strategy; called several times a case. It should declare ``f`` hostile clients.
        clients: clients in the federation, at least 2 f + 3; all, or at least so many, should be asked in a round.
        dimension: parameters of the model.
        f: clients that lie.
        cases: names of cases (see ``CASES``).
        seed: of the federation's models.

    Raises:
        ConfigError: unknown cases, or a federation in which the strategy can not work.
    """
    return list(results(make, Setting(clients, dimension, f, seed), chosen(cases)))


def chosen(names: Sequence[str] | None) -> list[Case]:
    """The cases with these names, in their own order; all for None.

    Raises:
        ConfigError: there is no such case.
    """
    for name in names or ():
        if name not in CASES:
            raise ConfigError(f"no case {name!r}; {nearest(name, CASES)}")
    return [case for case in CASES.values() if names is None or case.name in names]


def results(make: Callable[[], Strategy], setting: Setting, cases: Sequence[Case]) -> Iterator[Result]:
    """One result a case, as they come."""
    trial = Trial(make, setting)
    for case in cases:
        yield _result(case, trial)


def _result(case: Case, trial: Trial) -> Result:
    # Some of Flower's strategies collect garbage for every client, which looks at all objects that are not frozen.
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        case.play(trial)
    except Fault as fault:
        return Result(case.name, case.summary, case.right, fault.kind, fault.detail)
    finally:
        if not frozen:
            gc.unfreeze()
    return Result(case.name, case.summary, case.right)
