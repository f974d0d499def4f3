"""Every error bezoar raises on purpose: what was wrong, where, and what would be right, in one line.

Errors derive from :class:`BezoarError`; the command line prints them without a traceback. Those caused by an
argument are also ``ValueError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BezoarError(Exception):
    """Base of all errors that bezoar raises on purpose."""


class ConfigError(BezoarError, ValueError):
    """An experiment, a rule or an option is described wrongly."""


class DataError(BezoarError):
    """A data set is missing, damaged or of the wrong shape."""


class UnsupportedError(BezoarError, ValueError):
    """A combination that can not work, found before anything runs."""


class HostileRowsError(BezoarError, ValueError):
    """More client updates are unusable (NaN, infinite) than the rule was told to tolerate.

    ``rows`` holds the row indices, in the caller's numbering.
    """

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


class DivergedError(BezoarError):
    """Training can not go on: the model or the aggregate is no longer finite."""


class SuspectsError(BezoarError):
    """More clients look hostile than the defence was declared to withstand, and it was told to stop then."""


class BusyError(BezoarError):
    """Another process is writing the same records."""


class ElsewhereError(BezoarError):
    """Another process of the same run failed, and rank 0 says why: nothing is to be printed here."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known name, or lists all of them.

    >>> nearest("medain", ["mean", "median"])
    "did you mean 'median'?"
    >>> nearest("xyz", ["mean", "median"])
    'known: mean, median'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
