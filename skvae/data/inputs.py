"""User input before validation: accepted forms, whether they are held or streamed, and error messages."""

import math
from collections.abc import Iterator
from numbers import Real

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn import get_config
from torch.utils.data import DataLoader, Dataset

from ..models.images import has_channels_last
from .arrays import host_array
from .labels import is_missing
from .samples import LazySamples, holds_nan
from .torch_datasets import samples_of_dataset

MAX_HELD_BYTES = 2**30  # of a dense matrix from a file that is held as a whole
MAX_DENSE_BYTES = 2**23  # of a sparse matrix that is made dense as a whole: no more than a chunk in any case
MAX_NAMED = 10  # columns in an error


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


def without_na(X):
    """Return objects with NaN for missing values that are no numbers, such as `pandas.NA`; others as they are."""
    if isinstance(X, np.ndarray) and X.dtype == object:
        return np.where(is_missing(X.ravel()).reshape(X.shape), np.nan, X)
    if not hasattr(X, "isetitem") or object not in list(X.dtypes):  # no data frame of pandas
        return X
    X = X.copy(deep=False)
    for index in np.flatnonzero([dtype == "object" for dtype in X.dtypes]):
        X.isetitem(index, without_na(X.iloc[:, index].to_numpy()))
    return X


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


def explain_error(error, X, estimator):
    """Return an error about X with the columns or images that it is about, or the error itself.

    Parameters
    ----------
    error : ValueError or TypeError
        Error that scikit-learn's validation raised.
    X : object
        Input of the user.
    estimator : estimator
        It may have a parameter ``image_shape``.
    """
    if getattr(X, "ndim", 2) == 2:
        return name_columns(error, X)
    has_shape = getattr(estimator, "image_shape", None) is not None  # so that the error is about it
    if has_shape or X.ndim not in (3, 4) or not isinstance(error, ValueError):
        return error
    shape = tuple(X.shape[1:])
    advice = f"image_shape={shape}, or " if hasattr(estimator, "image_shape") else ""
    if advice and has_channels_last(shape):
        advice = f"image_shape={(shape[-1], *shape[:-1])} and np.moveaxis(X, -1, 1), or "
    return ValueError(f"{error} If they are images, give {advice}rows: X.reshape({len(X)}, {math.prod(shape)}).")


def name_columns(error, X):
    """Return an error about values of X that names their columns, or the error itself if all are wrong."""
    try:
        is_wrong, advice = WRONG_COLUMNS[next(part for part in WRONG_COLUMNS if part in str(error))]
        has_names = hasattr(X, "columns") and not callable(X.columns)
        names = list(X.columns) if has_names else list(range(X.shape[1]))
        by_place = getattr(X, "iloc", X)  # names may occur twice
        wrong = [name for place, name in enumerate(names) if is_wrong(np.asarray(by_place[:, place]))]
    except Exception:  # of an input of any type; its error is what matters
        return error
    if not wrong or (len(wrong) == len(names) and not has_names):
        return error
    more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
    cls = TypeError if isinstance(error, TypeError) else ValueError  # NumPy has classes of its own
    return cls(f"{str(error).rstrip('.')}. Column(s) {wrong[:MAX_NAMED]}{more} of X {advice}.")


def holds_no_numbers(column):
    """Return whether a column, apart from missing values, is not of numbers and cannot be converted to them."""
    if column.dtype.kind in "biufc":
        return False
    if column.dtype.kind in "Mm":
        return True
    try:
        column[~is_missing(column)].astype(np.float64)
    except (ValueError, TypeError):
        return True
    return False


def holds_infinity(column):
    """Return whether a value of a column is infinite."""
    if column.dtype.kind == "O":
        return any(isinstance(value, Real) and math.isinf(value) for value in column.tolist())
    return column.dtype.kind in "fc" and bool(np.isinf(column).any())


# Parts of errors, how to find the columns that they are about, and advice.
WRONG_COLUMNS = {
    "infinity": (holds_infinity, "hold infinite values; replace them"),
    **dict.fromkeys(
        ("could not convert", "could not be promoted", "array element with a sequence", "argument must be"),
        (holds_no_numbers, "hold no numbers; encode them (OneHotEncoder, OrdinalEncoder), or leave them out"),
    ),
}
