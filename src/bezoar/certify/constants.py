"""Robustness constants by number of rows, declared and actual bad rows; the proofs are in docs/robustness.md."""

from __future__ import annotations

import math
import operator

from bezoar.aggregation.base import Constant, Mixing, Part, Pipeline, Rule
from bezoar.errors import ConfigError

#: Proved statements come before those taken on others' word, and these before recalled ones.
_TRUST = {"exact": 0, "proved": 0, "published": 1, "unverified": 2}


def constants(rule: Rule, n: int, f: int | None = None, q: int | None = None) -> tuple[Constant, ...]:
    """All constants known for ``rule`` with n rows, the best proved one first; empty if nothing is promised.

    Args:
        rule: a rule or a pipeline.
        n: number of rows.
        f: declared number of bad rows; by default the rule's own, which it must equal if both are given.
        q: actual number of bad rows, f by default; with more than f nothing is promised.

    Raises:
        ConfigError: a number is out of range, or neither the rule nor the caller says how many rows may be bad.

    >>> from bezoar.aggregation import TrimmedMean
    >>> constants(TrimmedMean(f=3), n=9, q=1)
    (Constant(value=0.6, formula='f/(n-q-f)', source='exact'),)
    """
    n, f, q = _numbers(rule, n, f, q)
    if q > f:
        return ()
    known = rule.constants(n, f, q)
    return tuple(sorted(known, key=lambda constant: (_TRUST[constant.source], constant.value)))


def kappa(rule: Rule, n: int, f: int | None = None, q: int | None = None) -> float:
    """The smallest constant that is proved or published; infinity if there is none or q > f.

    Arguments and errors are those of :func:`constants`.

    >>> from bezoar.aggregation import Mean, Median
    >>> kappa(Median(), n=9, f=4), kappa(Mean(), n=9, f=1)
    (4.0, inf)
    """
    known = constants(rule, n, f, q)
    return min((constant.value for constant in known if constant.source != "unverified"), default=math.inf)


def breakdown(rule: Rule, n: int) -> int:
    """The largest number of bad rows that can not drive the answer arbitrarily far from the honest mean.

    It belongs to the kind of rule, not to the f declared: a rule with an f counts with the largest f that n allows
    (unless it is known to fail before), a rule without by the constants it states, 0 if it states none. A pipeline is
    as strong as its weakest part; a bad row spoils at most one bucket, so what follows bucketing counts with the number
    of buckets. A trusted row (MoNNA) is taken to be honest.

    >>> from bezoar.aggregation import Mean, Median, TrimmedMean
    >>> breakdown(TrimmedMean(f=1), 9), breakdown(Median(), 9), breakdown(Mean(), 9)
    (4, 4, 0)
    """
    m = n = _count("n", n, 1)
    parts: tuple[Part, ...] = (*rule.mixings, rule.rule) if isinstance(rule, Pipeline) else (rule,)
    best = n
    for part in parts:
        best = min(best, part.withstands(m))
        if best < 0:
            raise ConfigError(f"{part.name} can not work with n={m} rows: it needs more")
        m = part.rows_out(m) if isinstance(part, Mixing) else m
    return best


def _numbers(rule: Rule, n: int, f: int | None, q: int | None) -> tuple[int, int, int]:
    n = _count("n", n, 1)
    f = None if f is None else _count("f", f, 0)
    q = None if q is None else _count("q", q, 0)
    declared = rule.tolerated
    if declared is None:
        f = q if f is None else f
        if f is None:
            raise ConfigError(f"{rule.name} has no f: say how many of the n={n} rows may be bad, f=...")
        if f > (n - 1) // 2:
            raise ConfigError(f"f={f} is out of range for n={n} rows; f must be between 0 and {(n - 1) // 2}")
    elif f is not None and f != declared:
        raise ConfigError(f"{rule.name} is declared with f={declared}, not f={f}: leave f out or give the same")
    else:
        f = declared
    rule.check(n)
    q = f if q is None else q
    if q >= n:
        raise ConfigError(f"q={q} is out of range for n={n} rows; q must be between 0 and {n - 1}")
    return n, f, q


def _count(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r}")
    return number
