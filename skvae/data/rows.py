"""Samples that enter a fit, and as centred tensors that a fit visits."""

from typing import NamedTuple

import numpy as np

from ..fitting.distributed import current_group
from ..fitting.weighted_rows import WeightedRows
from .arrays import to_tensor
from .chunks import centered
from .samples import LazySamples, streamed


class Samples(NamedTuple):
    """Samples of positive weight, and a centre that they are fitted about."""

    X: np.ndarray | LazySamples  # (n, d)
    weight: np.ndarray | None  # (n,), float64; None: all one
    center: np.ndarray  # (d,), float64
    has_missing: bool = False  # whether any process has missing values
    selected: slice | np.ndarray = slice(None)  # (n_passed,) bool: which of the samples that the user passed
    n_passed: int | None = None

    def weighted_rows(self, dtype, device, block_size=None):
        """Return the centred samples as `WeightedRows` (see `centered_rows`)."""
        x = centered_rows(self.X, dtype, device, self.center, block_size)
        weight = None if self.weight is None else to_tensor(self.weight, dtype, device)
        return WeightedRows(x, weight, current_group())


def centered_rows(X, dtype, device, center, block_size=None):
    """Return rows less a centre as a tensor, or as a stream where X is read a chunk at a time.

    Parameters
    ----------
    X : ndarray or LazySamples of shape (n, d)
    dtype : torch.dtype
    device : torch.device
    center : ndarray of shape (d,), float64
    block_size : int, optional
        Rows of a stream that are read at once; None: a few megabytes.

    Returns
    -------
    x : Tensor or LazyRows of shape (n, d)
    """
    if isinstance(X, LazySamples):
        return streamed(X, dtype, device, center=center, block_size=block_size)
    return centered(X, center, dtype, device)
