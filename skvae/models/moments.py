"""Sufficient statistics of weighted rows. They add."""

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Weighted sums of residuals about a reference, one row for each component.

    With weights ``r`` (n, k) and a reference ``m`` (k, d) they are ``sum r``, ``sum r (x - m)`` and
    ``sum r (x - m)(x - m)'`` (or only its diagonal). Moments of disjoint rows about the same reference add,
    so that row chunks, files and processes need no algorithm of their own.
    """

    weight: Tensor  # (k,)
    first: Tensor  # (k, d)
    second: Tensor  # (k, d, d) or (k, d)

    def merge(self, other):
        """Moments of the rows of both."""
        return Moments(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))
