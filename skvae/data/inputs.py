"""Inputs of users, before they are validated: one matrix, images, datasets; which are held and which are streamed."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn import get_config
from torch.utils.data import DataLoader, Dataset

from .arrays import host_array
from .samples import LazySamples, holds_nan
from .torch_datasets import samples_of_dataset

MAX_HELD_BYTES = 2**30  # of a dense matrix from a file that is held as a whole
MAX_DENSE_BYTES = 2**23  # of a sparse one that is: no more than what is made dense at a time in any case


def as_matrix(X):
    """Return X as one array-like on the host, or a tensor where ``array_api_dispatch`` of scikit-learn is on.

    Datasets and loaders of torch give their samples.
    """
    # Columns of a frame may have any name.
    if not (isinstance(X, np.ndarray | torch.Tensor) or hasattr(X, "iloc") or hasattr(X, "columns")):
        check_one_matrix(X)
    if isinstance(X, DataLoader | Dataset | Iterator):
        X = samples_of_dataset(X)
    return X if isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"] else host_array(X)


def check_one_matrix(X):
    """Raise if X is a container of several matrices, as AnnData and MuData are.

    Raises
    ------
    TypeError
        It says which of them to give.
    """
    name = type(X).__name__
    if hasattr(X, "mod") and hasattr(X, "obs"):
        raise TypeError(
            f"X is of type {name}, which holds several tables; give one matrix of numbers, such as mdata.mod['rna'].X."
        )
    if hasattr(X, "X") and hasattr(X, "obs") and (hasattr(X, "var") or hasattr(X, "layers")):
        raise TypeError(
            f"X is of type {name}, which holds several matrices; give one of them: adata.X, adata.layers['counts'] or "
            "adata.obsm['X_pca']."
        )


def flatten_images(X, estimator):
    """Return images (n, h, w) or (n, c, h, w) as samples (n, d) where an estimator has an ``image_shape``.

    Other inputs are returned as they are.

    Raises
    ------
    ValueError
        If images have another shape.
    """
    shape = getattr(estimator, "image_shape", None)
    if shape is None or np.ndim(X) < 3:
        return X
    X, shape = X if isinstance(X, torch.Tensor) else np.asarray(X), tuple(shape)
    if X.shape[1:] in (shape, (1, *shape)) or (1, *X.shape[1:]) == shape:
        return X.reshape(len(X), -1)
    channels_first = X.shape[-1:] + X.shape[1:-1]
    if X.ndim == 4 and channels_first in (shape, (1, *shape)):
        raise ValueError(
            f"X has images of shape {tuple(X.shape[1:])}, with channels last, but image_shape={shape}; give "
            f"np.moveaxis(X, -1, 1), whose images have the shape {tuple(channels_first)}."
        )
    raise ValueError(
        f"X has images of shape {tuple(X.shape[1:])}, but image_shape={shape}; give rows, or images of this shape "
        "with channels first."
    )


def should_stream(X, dtypes):
    """Return whether X should be read a chunk at a time.

    It should if it has nothing but slices, or if it is on disk and would be larger in memory than `MAX_HELD_BYTES`.

    Parameters
    ----------
    X : object
    dtypes : tuple of dtype
        Those that are not converted; others are converted to the first.
    """
    if isinstance(X, LazySamples):
        return True
    if isinstance(X, np.ndarray):
        in_memory = getattr(X, "_mmap", None) is None  # also of a copy of a memory map, which is of its class
    else:
        names = ("iloc", "__dataframe__", "__array_namespace__")
        in_memory = isinstance(X, list | tuple) or issparse(X) or any(hasattr(X, name) for name in names)
    if in_memory:
        return False
    shape, dtype = getattr(X, "shape", None), _numpy_dtype(X)
    if not isinstance(shape, tuple) or not shape or dtype is None or not hasattr(X, "__getitem__"):
        return False
    return not hasattr(X, "__array__") or _n_bytes(shape, result_dtype(dtype, dtypes)) > MAX_HELD_BYTES


def _numpy_dtype(X):
    """Return the dtype of X, or None if NumPy does not have it."""
    dtype = getattr(X, "dtype", None)
    try:
        return None if dtype is None else np.dtype(dtype)
    except TypeError:
        return None


def result_dtype(dtype, dtypes):
    """Return the dtype in which values of a dtype are held."""
    return np.dtype(dtype) if np.dtype(dtype) in dtypes else np.dtype(dtypes[0])


def sparse_samples(X, allow_nan, stream_nan):
    """Return the samples of a sparse matrix, as an array if they are no more than a chunk.

    Parameters
    ----------
    X : sparse matrix in CSR form
    allow_nan : bool
        Whether values may be missing.
    stream_nan : bool
        Whether samples with missing values, if these are allowed, may be read a chunk at a time.

    Returns
    -------
    X : LazySamples or ndarray of shape (n, d)

    Raises
    ------
    ValueError
        If values are missing, and an array of the samples would be too large.
    """
    if _n_bytes(X.shape, X.dtype) <= MAX_DENSE_BYTES:
        return X.toarray()
    if not allow_nan or stream_nan:
        return LazySamples(X, X.dtype, allow_nan=allow_nan)
    if not holds_nan(X):
        return LazySamples(X, X.dtype)
    if _n_bytes(X.shape, X.dtype) <= MAX_HELD_BYTES:
        return X.toarray()
    raise ValueError(
        f"X is sparse and contains NaN, and as a dense array, which missing values need here, it would take "
        f"{_n_bytes(X.shape, X.dtype) / 2**30:.3g} GiB of memory; fill the missing values in, or give fewer rows."
    )


def _n_bytes(shape, dtype):
    return math.prod(shape) * np.dtype(dtype).itemsize
