"""Several processes that fit one model: their shards of the rows, and fits without the others.

Under ``torchrun``, or in a process group of `torch.distributed`, every ``fit`` and ``partial_fit`` is one of all
processes together: each gives its own rows, and all get the same parameters.
"""

import os

import torch.distributed as dist
from torch.utils.data import Dataset, Subset

from .fitting.distributed import alone

__all__ = ["alone", "shard"]


def shard(*arrays):
    """The rows of this process: of each array a slice, as large as those of the others but for one row.

    Parameters
    ----------
    *arrays : array-like of shape (n_samples, ...)
        Of equal length. Of a memory map only the slice is read, and a `torch.utils.data.Dataset` becomes a `Subset`.

    Returns
    -------
    parts : array-like, or list of array-like if there are several arrays
        The shards of all processes, by rank, are the arrays; without other processes, so is that of this one.

    Raises
    ------
    ValueError
        If lengths differ.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.distributed import shard
    >>> X, y = shard(np.zeros((10, 2)), np.arange(10))
    >>> X.shape, len(y)
    ((10, 2), 10)
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(f"Arrays should be of equal length, but they have {sorted(lengths)} rows.")
    rank, size = _place()
    n_rows = lengths.pop()
    rows = slice(n_rows * rank // size, n_rows * (rank + 1) // size)
    parts = [Subset(array, range(n_rows)[rows]) if isinstance(array, Dataset) else array[rows] for array in arrays]
    return parts[0] if len(parts) == 1 else parts


def _place():
    """Rank of this process, and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
