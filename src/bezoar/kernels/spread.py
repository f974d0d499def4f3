"""Columns that may be spread over processes: what each of them makes of its own, brought together."""

from __future__ import annotations

from torch import Tensor


class Spread:
    """How one process's columns become all columns. Here they are all columns already, and nothing is to be done.

    What an answer is made of on the way is either a sum over columns (``total``), a largest entry (``largest``) or a
    number a column (``join``).
    """

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, the same bits on each; ``values`` may be overwritten."""
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest of ``values`` over all processes, entry by entry; ``values`` may be overwritten."""
        return values

    def join(self, vector: Tensor) -> Tensor:
        """``vector`` [d], of which every process knows its own columns, whole."""
        return vector


#: Nothing is spread.
WHOLE = Spread()
