"""Distributed fits: shards of the samples, and fits in a single process of a group.

Under ``torchrun``, or in a process group of `torch.distributed`, every ``fit`` and ``partial_fit`` is collective: each
process passes its own samples, and all get the same parameters.
"""

import os

import torch.distributed as dist
from torch.utils.data import Dataset, Subset

from .fitting.distributed import alone

__all__ = ["alone", "shard"]


def shard(*arrays):
    """Return the samples of this process: a slice of each array. Lengths of the slices differ by at most one.

    Parameters
    ----------
    *arrays : array-like of shape (n_samples, ...)
        Of equal length. Only the slice of a memory map is read, and a `torch.utils.data.Dataset` becomes a `Subset`.

    Returns
    -------
    parts : array-like, or list of array-like if there are several arrays
        The shards concatenated by rank are the arrays; a single process gets the arrays themselves.

    Raises
    ------
    ValueError
        If the lengths of the arrays differ.

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
        raise ValueError(f"Arrays should be of equal length, but have {sorted(lengths)} samples.")
    if dist.is_available() and dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
    else:
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    n_samples = lengths.pop()
    own = slice(n_samples * rank // size, n_samples * (rank + 1) // size)
    parts = [Subset(array, range(n_samples)[own]) if isinstance(array, Dataset) else array[own] for array in arrays]
    return parts[0] if len(parts) == 1 else parts
