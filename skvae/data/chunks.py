"""Passes over chunks of samples: sums, and functions of each sample."""

import math

import numpy as np
import torch
from scipy.linalg import get_blas_funcs

from ..fitting.devices import is_out_of_memory
from ..fitting.distributed import current_group
from ..fitting.rows import LINEAR_BYTES, row_chunks, rows_in_cache
from ..fitting.warnings import warn
from ..models.gaussians import copy_to_device
from .arrays import to_tensor
from .samples import empty_results, is_lazy, memory_blocks

SHORT_SUM = 128  # samples whose products are summed in float32
LONG_SUM, MAX_CACHED = 2048, 256  # with more features, whose float64 total does not fit into a cache


def read_chunks(X, n_rows):
    """Yield slices of ``n_rows`` samples and the samples themselves; lazy samples are read in larger blocks."""
    for block in memory_blocks(X):
        samples = X[block]
        for rows in row_chunks(len(samples), X.shape[1], n_rows):
            part = samples[rows]
            start = block.start + rows.start
            yield slice(start, start + len(part)), part


def column_means(X, weight=None):
    """Compute weighted means of the features (n_features,) in float64; they are not finite if sums overflow.

    They are those of all processes that fit together.
    """
    group, mass = current_group(), float(len(X) if weight is None else weight.sum())
    with np.errstate(over="ignore", invalid="ignore"):
        if weight is None:
            mean = sum(_column_sums(X[rows]) for rows in memory_blocks(X)) / len(X)
        else:
            chunks = row_chunks(*X.shape)
            mean = sum(weight[rows] @ X[rows].astype(np.float64, copy=False) for rows in chunks) / weight.sum()
        if group.size == 1:
            return mean
        sums, mass = group.all_reduce_sum(torch.from_numpy(mean * mass), mass)
        return (sums / mass).numpy()


def _column_sums(part):
    """Sum the samples of an array in float64 (d,)."""
    return np.ones(len(part)) @ part if part.dtype == np.float64 else part.sum(axis=0, dtype=np.float64)


def centered(X, center, dtype, device):
    """Return samples less a float64 centre, as a tensor."""
    x = torch.empty(X.shape, dtype=dtype, device=device)
    for rows in row_chunks(*X.shape, n_bytes=LINEAR_BYTES):
        x[rows] = torch.from_numpy(X[rows] - center)
    return x


def centered_columns(X, center, weight, dtype, device):
    """Return a callable that iterates over blocks (n, b) of columns of centred samples, times the roots of weights.

    There is one block, except for sparse matrices, whose columns are made dense in chunks. The samples are those of all
    processes of the group.
    """
    root = None if weight is None else to_tensor(np.sqrt(weight), dtype, device)[:, None]
    group = current_group()

    def weighted(x):
        return x if root is None else x * root

    if group.size > 1 or not is_lazy(X) or X.run_length > 1:
        blocks = [group.all_gather(weighted(centered(X, center, dtype, device)))]
        return lambda: blocks
    features = X.transposed()
    return lambda: (
        weighted(torch.from_numpy(features[block] - center[block, None]).to(dtype=dtype, device=device).mT)
        for block in row_chunks(*features.shape)
    )


def scatter_about(X, center, weight, dtype, device, chunk_size=None):
    """Sum weighted outer products of samples about a centre (d, d), float64, in one pass that copies a chunk at a time.

    The products of a chunk are computed in the dtype. They are not finite if they overflow. The samples are those of
    all processes that fit together.
    """
    numpy_dtype, n_features = np.float32 if dtype == torch.float32 else np.float64, X.shape[1]
    reference = center.astype(numpy_dtype)
    n_rows = rows_in_cache(n_features, LINEAR_BYTES)
    if numpy_dtype == np.float32:
        n_rows = SHORT_SUM if n_features <= MAX_CACHED else 4 * SHORT_SUM
    n_rows = min(len(X), chunk_size or n_rows)
    buffer = np.empty((n_rows, n_features), numpy_dtype)
    products = (_HostProducts if device.type == "cpu" else _DeviceProducts)(n_features, numpy_dtype, device)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, chunk in read_chunks(X, n_rows):
            part = np.subtract(chunk, reference, out=buffer[: len(chunk)], casting="same_kind")
            if weight is not None:
                part *= np.sqrt(weight[rows, None]).astype(numpy_dtype)
            products.add(part)
        total = products.total()
    shift = torch.from_numpy(center - reference).to(total)
    n_samples = len(X) if weight is None else float(weight.sum())
    return current_group().all_reduce_sum(total - n_samples * shift.outer(shift))[0]


class _HostProducts:
    """Sum of the products of chunks with themselves in float64, by BLAS routines that compute half of a product."""

    def __init__(self, n_features, dtype, device):
        self._syrk = get_blas_funcs("syrk", dtype=dtype)
        self._sum = np.zeros((n_features, n_features), order="F")  # what is below the diagonal does not count
        # Long sums in float32 would lose digits.
        self._short = None if dtype == np.float64 else np.zeros_like(self._sum, dtype)
        self._n_short, self._max_short = 0, SHORT_SUM if n_features <= MAX_CACHED else LONG_SUM

    def add(self, part):
        """Add the products of a chunk (b, d)."""
        if self._short is None:
            self._syrk(1.0, part.T, beta=1.0, c=self._sum, overwrite_c=True)
            return
        self._syrk(1.0, part.T, beta=1.0 if self._n_short else 0.0, c=self._short, overwrite_c=True)
        self._n_short += len(part)
        if self._n_short >= self._max_short:
            self._flush()

    def _flush(self):
        """Add the sum in float32 to that in float64."""
        if self._n_short:
            self._sum += self._short
        self._n_short = 0

    def total(self):
        """Return the sum (d, d)."""
        self._flush()
        return torch.from_numpy(np.triu(self._sum) + np.triu(self._sum, 1).T)


class _DeviceProducts:
    """Sum of the products of chunks with themselves in float64, on an accelerator."""

    def __init__(self, n_features, dtype, device):
        self._sum = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)

    def add(self, part):
        """Add the products of a chunk (b, d)."""
        part = torch.from_numpy(part).to(self._sum.device)
        self._sum += part.mT @ part

    def total(self):
        """Return the sum (d, d)."""
        return self._sum


def map_samples(function, X, *, dtype, device, width, chunk_size=None, parameters=(), incomplete=None):
    """Apply a tensor function to chunks of samples; return one array in the dtype of X, a tensor where X is one.

    Parameters
    ----------
    function : callable, Tensor (b, d) and the parameters -> Tensor (b, ...)
        It returns new memory, because that of the samples is used again.
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
    dtype : torch.dtype
    device : torch.device
    width : int
        Numbers that the function holds for each sample at once.
    chunk_size : int, optional
        Samples in a chunk.
    parameters : sequence of Tensor
        On the CPU and in the dtype; the function gets them on the device. They go there with the first chunk.
    incomplete : callable, optional
        The function for chunks with missing values.

    Returns
    -------
    results : ndarray or Tensor of shape (n, ...)
    """
    n_rows = min(len(X), chunk_size or rows_in_cache(width))
    # Fresh memory for each chunk would cost as much as simple functions do.
    buffer, on_device = torch.empty((n_rows, X.shape[1]), dtype=dtype), None

    def apply(chunk):
        nonlocal on_device
        if isinstance(chunk, torch.Tensor):
            chunk = chunk.cpu() if chunk.device.type == "mps" else chunk  # before it can be float64
            x = chunk.to(dtype, copy=True)
        else:
            x = buffer[: len(chunk)]
            np.copyto(x.numpy(), chunk, casting="same_kind")
        # A sum is cheap, but would have to be waited for on an accelerator.
        is_incomplete = incomplete is not None and math.isnan(x.sum()) and bool(x.isnan().any())
        if on_device is None and len(parameters) and x.device == torch.device("cpu"):
            x, *on_device = copy_to_device([x, *parameters], device)
        elif on_device is None:
            on_device = copy_to_device(parameters, device) if len(parameters) else []
        return (incomplete if is_incomplete else function)(x.to(device), *on_device)

    return map_chunks(apply, X, n_rows)


def map_chunks(function, X, n_rows):
    """Apply a function to chunks of samples; return one array, or a tensor where X is one.

    Where the memory of a device is too small for a chunk, this chunk and all others are halved.

    Parameters
    ----------
    function : callable, ndarray or Tensor (b, d) -> Tensor (b, ...)
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
    n_rows : int
        Samples in a chunk.

    Returns
    -------
    results : ndarray or Tensor of shape (n, ...)

    Warns
    -----
    RuntimeWarning
        Once, if chunks had to be smaller.
    """
    results, size = None, n_rows
    with torch.inference_mode():
        for rows, chunk in read_chunks(X, n_rows):
            done = 0
            while done < len(chunk):
                samples, part = chunk[done : done + size], None
                try:
                    part = function(samples)
                except RuntimeError as error:
                    if len(samples) == 1 or not is_out_of_memory(error):
                        raise
                if part is None:  # only now is the memory of the chunk free: the error held it
                    if size == n_rows:
                        warn(
                            f"The device ran out of memory with chunks of {n_rows} rows; the call continues with "
                            "smaller ones.",
                            RuntimeWarning,
                        )
                    size = len(samples) // 2
                    continue
                # In one piece from the first chunk on: small results between chunks would keep memory from being freed.
                results = empty_results(X, part) if results is None else results
                start = rows.start + done
                results[start : start + len(samples)] = part if torch.is_tensor(results) else part.cpu().numpy()
                done += len(samples)
    return results
