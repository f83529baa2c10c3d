"""Passes over chunks of rows: sums, and functions of each row."""

import numpy as np
import torch

from ..fitting.chunks import LINEAR_BYTES, RESIDUAL_BYTES, row_chunks
from ..fitting.devices import is_out_of_memory
from ..fitting.distributed import current_group
from ..fitting.warnings import warn
from .arrays import float_dtype, tensor_dtype, to_dtype, to_tensor
from .tables import Table, TensorRows

SHORT_SUM = 128  # rows whose products are summed in the dtype of the data


def chunks_of(X, n_rows):
    """Slices of so many rows, and these rows; a table is read in larger blocks, which its files may be made of."""
    blocks = [slice(0, len(X))] if isinstance(X, np.ndarray) else row_chunks(*X.shape)
    for block in blocks:
        found = X[block]
        for rows in row_chunks(len(found), X.shape[1], n_rows):
            part = found[rows]
            start = block.start + rows.start
            yield slice(start, start + len(part)), part


def column_means(X, weight=None):
    """Weighted means of the features (n_features,), summed in float64; not finite if the sums overflow.

    They are those of all processes that fit together.
    """
    chunks, group, mass = row_chunks(*X.shape), current_group(), float(len(X) if weight is None else weight.sum())
    with np.errstate(over="ignore", invalid="ignore"):
        if weight is None and isinstance(X, np.ndarray):
            mean = X.mean(axis=0, dtype=np.float64)
        elif weight is None:
            mean = sum(X[rows].sum(axis=0, dtype=np.float64) for rows in chunks) / len(X)
        else:
            mean = sum(weight[rows] @ X[rows].astype(np.float64, copy=False) for rows in chunks) / weight.sum()
        if group.size == 1:
            return mean
        sums, mass = group.all_reduce_sum(torch.from_numpy(mean * mass), mass)
        return (sums / mass).numpy()


def centered(X, center, dtype, device):
    """Rows less a float64 centre, as a tensor."""
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

    if group.size > 1 or not isinstance(X, Table) or X.run_length > 1:
        blocks = [group.all_gather(weighted(centered(X, center, dtype, device)))]
        return lambda: blocks
    features = X.transposed()
    return lambda: (
        weighted(torch.from_numpy(features[block] - center[block, None]).to(dtype=dtype, device=device).mT)
        for block in row_chunks(*features.shape)
    )


def scatter_about(X, center, weight, dtype, device, chunk_size=None):
    """Weighted sum of outer products of rows about a centre (d, d), float64, in one pass with a copy of a chunk alone.

    The products of a chunk are made in the dtype; on a CPU by NumPy, which knows that they are symmetric. They are not
    finite if they overflow. The rows are those of all processes that fit together.
    """
    kind, n_features = np.float32 if dtype == torch.float32 else np.float64, X.shape[1]
    reference = center.astype(kind)
    # Longer sums in float32 would lose digits; adding their float64 total costs little while it fits into a cache.
    n_rows = SHORT_SUM if n_features <= 256 else 4 * SHORT_SUM
    n_rows = chunk_size or min(n_rows, max(1, RESIDUAL_BYTES // (8 * n_features)))
    buffer = np.empty((min(len(X), n_rows), n_features), kind)
    total = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, found in chunks_of(X, n_rows):
            part = np.subtract(found, reference, out=buffer[: len(found)], casting="same_kind")
            if weight is not None:
                part *= np.sqrt(weight[rows, None]).astype(kind)
            if total.device.type == "cpu":
                total += torch.from_numpy(part.T @ part)
            else:
                part = torch.from_numpy(part).to(device)
                total += part.mT @ part
    shift = torch.from_numpy(center - reference).to(total)
    n_samples = len(X) if weight is None else float(weight.sum())
    return current_group().all_reduce_sum(total - n_samples * shift.outer(shift))[0]


def map_chunks(function, X, n_rows):
    """Apply a function to chunks of rows; return one array, or a tensor where X is one.

    Where the memory of a device is too small for a chunk, this chunk and all others are halved.

    Parameters
    ----------
    function : callable, ndarray or Tensor (b, d) -> Tensor (b, ...)
    X : ndarray, Table or TensorRows of shape (n, d)
    n_rows : int
        Rows in a chunk.

    Returns
    -------
    result : ndarray or Tensor of shape (n, ...)

    Warns
    -----
    RuntimeWarning
        Once, if chunks had to be smaller.
    """
    result, size = None, n_rows
    with torch.inference_mode():
        for rows, found in chunks_of(X, n_rows):
            done = 0
            while done < len(found):
                tried = found[done : done + size]
                part = attempted(function, tried)
                if part is not None:
                    result = put_rows(result, slice(rows.start + done, rows.start + done + len(tried)), part, X)
                    done += len(tried)
                    continue
                if size == n_rows:
                    warn(
                        f"The device ran out of memory with chunks of {n_rows} rows; the call goes on with smaller "
                        "ones.",
                        RuntimeWarning,
                    )
                size = len(tried) // 2
    return result


def attempted(function, rows):
    """What a function gives for rows, or None if the device has not enough memory; for a single row, this is raised."""
    try:
        return function(rows)
    except RuntimeError as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    return None  # only now is the memory of what failed free: the error held it


def put_rows(result, rows, part, X):
    """Write what a function gives for some rows of X into the array of all results; return this.

    Parameters
    ----------
    result : ndarray, Tensor or None
        None for the first rows, when it is made: a tensor on the device of X where X has one.
    rows : slice
    part : Tensor of shape (b, ...)
    X : ndarray, Table or TensorRows of shape (n, d)
    """
    # In one piece from the start: small results between chunks would keep their memory from being freed.
    if isinstance(X, TensorRows):
        if result is None:
            dtype = tensor_dtype(float_dtype(X.dtype)) if part.is_floating_point() else part.dtype
            with torch.inference_mode(False):  # the user may want to differentiate what is computed from it
                result = torch.empty((len(X), *part.shape[1:]), dtype=dtype, device=X.device)
    else:
        part = to_dtype(part.cpu().numpy(), X.dtype)
        result = np.empty((len(X), *part.shape[1:]), part.dtype) if result is None else result
    result[rows] = part
    return result
