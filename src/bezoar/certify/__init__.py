"""What can be promised: robustness constants of rules and pipelines.

>>> from bezoar.aggregation import TrimmedMean
>>> kappa(TrimmedMean(f=3), n=9)
1.0
"""

from bezoar.certify.constants import breakdown, constants, kappa

__all__ = ["breakdown", "constants", "kappa"]
