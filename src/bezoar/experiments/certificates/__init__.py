"""Certificates of experiments: what is promised, run against what attacks achieve.

A method is a function from a :class:`Request` to an :class:`Outcome`, registered in :data:`METHODS` by name. Its
mathematics lies in :mod:`bezoar.certify`.
"""

from __future__ import annotations

from collections.abc import Callable

from bezoar.errors import ConfigError, nearest
from bezoar.experiments.certificates import crfl, ensemble, expected, flcert, radius
from bezoar.experiments.certificates.base import Outcome, Request
from bezoar.experiments.certificates.records import check_free, write
from bezoar.experiments.certificates.voting import voting

Method = Callable[[Request], Outcome]

#: Name on the command line -> method.
METHODS: dict[str, Method] = {
    "radius": radius.certify,
    "ensemble": voting("ensemble", ensemble.certify),
    "flcert-d": voting("flcert-d", flcert.certify),
    "crfl": voting("crfl", crfl.certify),
    "expected": expected.certify,
}


def method(name: str) -> Method:
    """The method called ``name``. Raises ConfigError if there is none."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "Outcome", "Request", "check_free", "method", "write"]
