"""Samples as tensors on a device: centred ones, and samplers of batches."""

from typing import NamedTuple

import numpy as np
import torch

from ..fitting.batch_samplers import DirectBatchSampler, PooledBatchSampler
from ..fitting.distributed import current_group
from ..fitting.rows import row_chunks
from ..fitting.weighted_rows import WeightedRows, draw_indices
from .arrays import tensor_dtype, to_tensor
from .chunks import centered
from .samples import LazySamples, TensorSamples, is_lazy, streamed

POOL_BYTES = 2**26  # of the rows in a pool
POOL_BATCHES = 8  # but it has no fewer rows than so many batches
MIN_RUNS = 256  # in a pool: batches from fewer places would differ from one another


class WeightedSamples(NamedTuple):
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
    if is_lazy(X):
        return streamed(X, dtype, device, center=center, block_size=block_size)
    return centered(X, center, dtype, device)


def as_tensor(X, dtype, device):
    """Convert an array or tensor to a tensor, which shares its memory if possible."""
    if isinstance(X, torch.Tensor):
        return X.to(device, dtype)
    if X.flags.writeable and X.flags.c_contiguous:
        return torch.from_numpy(X).to(device, dtype)
    return to_tensor(X, dtype, device)


def on_device(X, device):
    """Copy an array to an accelerator as `TensorSamples`, for more than one pass; return anything else unchanged."""
    if device.type == "cpu" or not isinstance(X, np.ndarray):
        return X
    return TensorSamples(as_tensor(X, tensor_dtype(X.dtype), device))


def batch_sampler(X, weight, dtype, device, generator, *, batch_size, init_size):
    """Return a sampler of batches of the samples of all processes.

    Batches are drawn from all samples if these are in memory or fast to read in any order, else from a pool.

    Parameters
    ----------
    X : ndarray or LazySamples of shape (n, d)
    weight : Tensor of shape (n,) or None
    dtype : torch.dtype
    device : torch.device
    generator : torch.Generator
        Draws the pool.
    batch_size : int
    init_size : int
        Samples from which a model is initialized.

    Returns
    -------
    sampler : BatchSampler
    """
    group, is_streamed = current_group(), is_lazy(X)
    pool_size = max(POOL_BYTES // (X.dtype.itemsize * X.shape[1]), POOL_BATCHES * batch_size, init_size)

    def pooled():
        lazy = X if is_streamed else LazySamples(X, X.dtype)
        rows = WeightedRows(streamed(lazy, dtype, device), weight, group)
        run_length = min(lazy.run_length, max(1, pool_size // MIN_RUNS))
        return PooledBatchSampler(rows, min(pool_size, len(X)), run_length, generator)

    is_larger = is_streamed and len(X) > pool_size
    if any(group.all_gather_int(is_larger and X.run_length > 1)):
        return pooled()
    if is_streamed and X.run_length == 1:
        sampler = DirectBatchSampler(WeightedRows(streamed(X, dtype, device), weight, group))
        # A batch of as many samples as are distinct would be all of them, in dense form.
        if group.size > 1 or sampler.n_distinct > max(batch_size, init_size) or len(X) <= max(batch_size, init_size):
            return sampler
        if is_larger:
            return pooled()
    return DirectBatchSampler(WeightedRows(as_tensor(X[:], dtype, device), weight, group))


def sample_array(X, sampler, n_samples, generator):
    """Return an array of the samples: all of an array; of lazy ones, those in memory or a random sample."""
    if not is_lazy(X):
        return X
    if isinstance(sampler.x, torch.Tensor):
        return sampler.x.cpu().numpy()
    return X[draw_indices(WeightedRows(sampler.x, sampler.weight), min(len(X), n_samples), generator).numpy()]


def count_distinct_samples(X, n_enough):
    """Count the distinct samples of all processes, at least up to ``n_enough``."""
    distinct = np.empty((0, X.shape[1]), X.dtype)
    for rows in row_chunks(*X.shape):
        distinct = np.unique(np.concatenate([distinct, X[rows]]), axis=0)
        if len(distinct) >= n_enough:
            break
    return len(np.unique(np.concatenate(current_group().all_gather_object(distinct)), axis=0))
