"""Samples that were validated: arrays, samples that are read a chunk at a time, and tensors, behind the same functions.

Arrays stay arrays of NumPy. What depends on the type of samples is in this module alone.
"""

import math
import mmap
from abc import ABC, abstractmethod
from functools import partial

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import assert_all_finite

from ..fitting.devices import to_device
from ..fitting.rows import LazyRows, row_chunks
from .arrays import float_dtype, tensor_dtype

MAX_RUN, MAX_RUN_BYTES = 256, 2**17  # neighbouring samples of a file that are read together, at least one


class Samples(ABC):
    """Samples that are not an array of NumPy, with the ``shape`` (n, d) and the ``dtype`` of one."""

    ndim = 2

    def __len__(self):
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows):
        """Return the samples of a slice (b, d), an array or a tensor."""

    @abstractmethod
    def has_missing(self):
        """Return whether a value is NaN, as far as this is known without reading a file."""

    @abstractmethod
    def select(self, rows):
        """Return the samples of a mask, or an array of indices."""

    @abstractmethod
    def clip(self, low, high):
        """Return samples with values clipped to bounds, numbers or arrays (d,)."""


class LazySamples(Samples):
    """Samples that are made dense, checked and converted when they are asked for.

    Parameters
    ----------
    source : sparse matrix in CSR form, or array-like with ``shape``, ``dtype`` and slices of rows
        Axes after the second are flattened.
    dtype : dtype
        Dtype that samples are converted to.
    order : ndarray of int, optional
        Indices of the samples in the source; all if None.
    allow_nan : bool, default=False
        Whether values may be missing.
    bounds : tuple of float or ndarray, optional
        Values are clipped to them.
    """

    def __init__(self, source, dtype, order=None, allow_nan=False, bounds=None):
        self._source, self.dtype, self._order = source, np.dtype(dtype), order
        self._allow_nan, self._bounds = allow_nan, bounds
        self.shape = (source.shape[0] if order is None else len(order), math.prod(source.shape[1:]))

    def __getitem__(self, rows):
        """Return dense samples (b, d) of a slice, a mask, or an array of indices."""
        if self._order is not None:
            rows = self._order[rows]
        part = self._slice(rows) if isinstance(rows, slice) else self._take(rows)
        new = np.asarray if issparse(self._source) else np.array  # the caller may write to the result
        part = new(part, dtype=self.dtype, order="C").reshape(len(part), self.shape[1])
        _release(self._source)
        assert_all_finite(part, allow_nan=self._allow_nan, input_name="X")
        return part if self._bounds is None else part.clip(*self._bounds, out=part)

    @property
    def run_length(self):
        """Number of neighbouring samples that are best read together: one where any order is as fast."""
        if issparse(self._source):
            return 1
        n_bytes = math.prod(self._source.shape[1:]) * np.dtype(self._source.dtype).itemsize
        return min(MAX_RUN, max(1, MAX_RUN_BYTES // max(1, n_bytes)))

    def has_missing(self):
        """Return whether a stored value of a sparse matrix is NaN; False for files."""
        return issparse(self._source) and holds_nan(self._stored())

    def transposed(self):
        """Return the columns of a sparse matrix as samples."""
        return LazySamples(self._stored().T.tocsr(), self.dtype, allow_nan=self._allow_nan)

    def select(self, rows):
        """Return the samples of a slice, a mask, or an array of indices."""
        if self._order is not None:
            return self._with(order=self._order[rows])
        n_rows = len(self)  # of which not even indices are held
        is_slice = isinstance(rows, slice)
        return self._with(order=np.arange(*rows.indices(n_rows)) if is_slice else _indices(rows, n_rows))

    def clip(self, low, high):
        """Return samples that are clipped when they are read."""
        return self._with(bounds=(low, high))

    def without_missing(self):
        """Return samples that raise an error where a value that is read is missing."""
        return self._with(allow_nan=False)

    def _stored(self):
        """Return the sparse matrix of the samples."""
        return self._source if self._order is None else self._source[self._order]

    def _with(self, **changes):
        settings = {"order": self._order, "allow_nan": self._allow_nan, "bounds": self._bounds}
        return LazySamples(self._source, self.dtype, **settings | changes)

    def _read(self, rows):
        """Read rows of the source as an array."""
        part = self._source[rows]
        return part.toarray() if issparse(part) else np.asarray(part)

    def _slice(self, rows):
        """Read a slice of the source; not every library of files knows steps or negative ends."""
        start, stop, step = rows.indices(self._source.shape[0])
        return self._read(slice(start, max(start, stop))) if step == 1 else self._take(np.arange(start, stop, step))

    def _take(self, indices):
        """Read rows of the source with these indices, in runs of neighbours."""
        indices = _indices(indices, self._source.shape[0])
        if isinstance(self._source, np.ndarray) or issparse(self._source):
            return self._read(indices)
        distinct, place = np.unique(indices, return_inverse=True)
        if not len(distinct):
            return self._read(slice(0, 0))
        runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
        result, done = None, 0
        for run in runs:
            part = self._read(slice(int(run[0]), int(run[-1]) + 1))
            result = np.empty((len(distinct), *part.shape[1:]), part.dtype) if result is None else result
            result[done : done + len(run)] = part
            done += len(run)
        return result[place]


def _indices(rows, n_rows):
    """Return the indices of a mask, or indices without negative ones."""
    rows = np.asarray(rows, dtype=None if len(rows) else np.intp)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    return np.where(rows < 0, rows + n_rows, rows)


def _release(source):
    """Release the pages of a memory map to the system: the parts of a file that were read would stay in memory."""
    # Changes to a map that is not written to its file (mode "c") are in these pages alone.
    if isinstance(source, np.memmap) and source.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        source._mmap.madvise(mmap.MADV_DONTNEED)


def holds_nan(X):
    """Return whether a stored value of a sparse matrix is NaN."""
    return X.dtype.kind == "f" and bool(np.isnan(X.data).any())


class TensorSamples(Samples):
    """Samples of a tensor that stay on its device, with the dtype that NumPy has for them.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    """

    def __init__(self, x):
        self.x, self.shape, self.device = x, tuple(x.shape), x.device
        self.dtype = torch.empty(0, dtype=x.dtype).numpy().dtype

    def __getitem__(self, rows):
        return self.x[rows]  # a view

    def has_missing(self):
        """Return whether a value is NaN."""
        return bool(self.x.isnan().any())

    def select(self, rows):
        """Return the samples of a mask, or an array of indices, on the device."""
        return TensorSamples(self.x[torch.from_numpy(rows).to(self.device)])

    def clip(self, low, high):
        """Return clipped samples on the device."""
        low, high = (torch.as_tensor(bound, dtype=self.x.dtype, device=self.device) for bound in (low, high))
        return TensorSamples(self.x.clamp(low, high))


class ConditionedSamples(Samples):
    """Samples followed by columns of size factors and covariates, in float64.

    Parameters
    ----------
    features : ndarray, LazySamples or TensorSamples of shape (n, d)
    conditions : ndarray of shape (n, e)
    """

    def __init__(self, features, conditions):
        self.features = features[:] if isinstance(features, TensorSamples) else features
        if isinstance(self.features, torch.Tensor):
            self.features = self.features.cpu().numpy()
        self.conditions, self.dtype = conditions, features.dtype
        self.shape = (len(features), features.shape[1] + conditions.shape[1])

    def __getitem__(self, rows):
        """Return the columns of samples (b, d + e) of a slice, a mask, or an array of indices."""
        return np.concatenate([self.features[rows], self.conditions[rows]], 1)

    @property
    def run_length(self):
        """Number of neighbouring samples that are best read together."""
        return run_length(self.features)

    def has_missing(self):
        """Return whether a feature is NaN, as far as this is known without reading a file."""
        return has_missing(self.features)

    def select(self, rows):
        """Return the samples of a mask, or an array of indices."""
        return ConditionedSamples(select_samples(self.features, rows), self.conditions[rows])

    def clip(self, low, high):
        """Return samples with features clipped to bounds."""
        return self.with_features(clip_samples(self.features, low, high))

    def with_features(self, features):
        """Return other samples with the same conditions."""
        return ConditionedSamples(features, self.conditions)


def features_of(X):
    """Return samples without columns of size factors and covariates."""
    return X.features if isinstance(X, ConditionedSamples) else X


def select_samples(X, rows):
    """Return the samples of a slice, a mask, or an array of indices."""
    return X[rows] if isinstance(X, np.ndarray) else X.select(rows)


def clip_samples(X, low, high):
    """Return samples of the same dtype with values clipped to bounds, numbers or arrays (d,)."""
    return X.clip(low, high).astype(X.dtype, copy=False) if isinstance(X, np.ndarray) else X.clip(low, high)


def has_missing(X):
    """Return whether a value is NaN, as far as this is known without reading a file."""
    return bool(np.isnan(X.min())) if isinstance(X, np.ndarray) else X.has_missing()


def refuse_missing(X):
    """Return samples that raise an error where a value that is read is missing."""
    if isinstance(X, ConditionedSamples):
        return X.with_features(refuse_missing(X.features))
    return X.without_missing() if isinstance(X, LazySamples) else X


def is_lazy(X):
    """Return whether samples are read a chunk at a time."""
    return isinstance(features_of(X), LazySamples)


def run_length(X):
    """Return the number of neighbouring samples that are best read together: one where any order is as fast."""
    return X.run_length if is_lazy(X) else 1


def memory_blocks(X):
    """Return slices of samples that are read together: all of an array, else as many as fit into a cache."""
    return [slice(0, len(X))] if isinstance(X, np.ndarray) else row_chunks(*X.shape)


def empty_results(X, part):
    """Return memory for the results of all samples, from those of a chunk, in the floating dtype of the samples.

    Parameters
    ----------
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
    part : Tensor of shape (b, ...)

    Returns
    -------
    results : ndarray of shape (n, ...), or Tensor on the device of the samples where they are on one
    """
    shape, is_float = (len(X), *part.shape[1:]), part.is_floating_point()
    if not isinstance(X, TensorSamples):
        return np.empty(shape, float_dtype(X.dtype) if is_float else torch.empty(0, dtype=part.dtype).numpy().dtype)
    with torch.inference_mode(False):  # the user may want to differentiate functions of the results
        dtype = tensor_dtype(float_dtype(X.dtype)) if is_float else part.dtype
        return torch.empty(shape, dtype=dtype, device=X.device)


def tensor_or_stream(X, missing=0.0):
    """Return a tensor that shares the memory of an array, or streamed rows, with missing values replaced."""
    fill = partial(torch.nan_to_num, nan=missing)
    if is_lazy(X):
        x = streamed(X, tensor_dtype(X.dtype), "cpu")
        return x.map(fill) if X.has_missing() else x
    X = X[:] if isinstance(X, ConditionedSamples) else X
    x = torch.from_numpy(np.require(X, requirements=["C", "W"]))
    return fill(x) if has_missing(X) else x


def streamed(X, dtype, device, *, center=None, block_size=None):
    """Return lazy samples, less a float64 centre, as tensors that are read in blocks.

    Parameters
    ----------
    X : LazySamples of shape (n, d), or ConditionedSamples of them
    dtype : torch.dtype
    device : torch.device
    center : ndarray of shape (d,), optional
    block_size : int, optional
        Samples read at a time; None: a few megabytes.

    Returns
    -------
    x : LazyRows of shape (n, d)
    """

    def read(rows):
        part = X[rows if isinstance(rows, slice) else rows.numpy()]
        part = part if center is None else part - center
        return to_device(torch.from_numpy(part).to(dtype), device)

    return LazyRows(read, X.shape, dtype, device, block_size, X.run_length)
