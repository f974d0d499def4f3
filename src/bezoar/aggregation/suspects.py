"""Fail closed: whether more clients look hostile than a defence was declared to withstand."""

from __future__ import annotations

from typing import Literal

from bezoar.aggregation.base import Aggregate

#: What a server does with a round in which more than f clients look hostile.
MoreThanF = Literal["go-on", "skip", "stop"]


def more_than_f(answer: Aggregate, f: int) -> str | None:
    """Why an aggregate is not to be trusted although the rule gave it: more than ``f`` rows look hostile; else None.

    A row looks hostile if it stands in ``answer.excluded``: the gate left it out (not finite, malformed, far too long,
    a weight that is none), or the rule's own verdict did (FLAME, SignGuard, DnC, FLDetector, ...). Not being selected
    (Krum), being trimmed, clipped, or given little weight is no verdict: it happens to honest rows in every round.
    More than f rows that are not finite make a rule raise HostileRowsError instead of giving an answer. Rules that
    leave out a fixed number whatever comes (DnC about c f, FABA f) always look as if they had found it.

    >>> import torch
    >>> answer = Aggregate(torch.zeros(2), excluded={1: "not finite", 4: "outside of the cluster"})
    >>> more_than_f(answer, 2), more_than_f(answer, 1)
    (None, '2 clients look hostile, more than the declared f=1: rows 1 (not finite), 4 (outside of the cluster)')
    """
    suspects = answer.excluded
    if len(suspects) <= f:
        return None
    shown = ", ".join(f"{row} ({why})" for row, why in list(suspects.items())[:5])
    more = f" and {len(suspects) - 5} more" if len(suspects) > 5 else ""
    return f"{len(suspects)} clients look hostile, more than the declared f={f}: rows {shown}{more}"
