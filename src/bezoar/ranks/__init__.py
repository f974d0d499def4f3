"""One run on many processes: who computes what, and how they agree.

Nothing here knows of updates or rules. ``torch.distributed`` is known in one module, :mod:`bezoar.ranks.torchrun`,
which only a run on many processes imports.
"""

from bezoar.ranks.base import ALONE, Ranks, many_asked_for
from bezoar.ranks.placement import longest_first

__all__ = ["ALONE", "Ranks", "longest_first", "many_asked_for"]
