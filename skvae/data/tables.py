"""Rows that are read a chunk at a time: sparse, larger than memory, on disk, or on the device of a tensor."""

import math
import mmap

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import assert_all_finite

from ..fitting.devices import to_device
from ..fitting.lazy_rows import LazyRows

IN_MEMORY = 2**30  # bytes of a dense table from a file that is held as a whole
ONE_CHUNK = 2**23  # bytes of a sparse one that is: no more than what is made dense at a time in any case
RUN, RUN_BYTES = 256, 2**17  # rows that lie together in a file and are read together are no more, but at least one


class Table:
    """A table that gives dense rows when they are asked for, checked and in the dtype of the results.

    Parameters
    ----------
    source : sparse matrix in CSR form, or array-like with ``shape``, ``dtype`` and slices of rows
        Axes after the second are flattened.
    dtype : dtype
        What rows are converted to.
    order : ndarray of int, optional
        Which rows of the source the table has; all if not given.
    allow_nan : bool, default=False
        Whether values may be missing.
    bounds : tuple of float or ndarray, optional
        Values are clipped to them.
    """

    ndim = 2

    def __init__(self, source, dtype, order=None, allow_nan=False, bounds=None):
        self._source, self.dtype, self._order = source, np.dtype(dtype), order
        self._allow_nan, self._bounds = allow_nan, bounds
        self.shape = (source.shape[0] if order is None else len(order), math.prod(source.shape[1:]))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Dense rows (b, d), of a slice, a mask, or an array of indices."""
        if self._order is not None:
            rows = self._order[rows]
        found = self._slice(rows) if isinstance(rows, slice) else self._take(rows)
        new = np.asarray if issparse(self._source) else np.array  # the caller may write to what it gets
        found = new(found, dtype=self.dtype, order="C").reshape(len(found), self.shape[1])
        _release(self._source)
        assert_all_finite(found, allow_nan=self._allow_nan, input_name="X")
        return found if self._bounds is None else found.clip(*self._bounds, out=found)

    @property
    def run_length(self):
        """How many neighbouring rows are best read together: one where rows can be read in any order."""
        if issparse(self._source):
            return 1
        n_bytes = math.prod(self._source.shape[1:]) * np.dtype(self._source.dtype).itemsize
        return min(RUN, max(1, RUN_BYTES // max(1, n_bytes)))

    def has_missing(self):
        """Whether a stored value of a sparse matrix is NaN. In files this is not known before they are read."""
        return issparse(self._source) and holds_nan(self._stored())

    def transposed(self):
        """The table of the columns of a sparse matrix, as rows."""
        return Table(self._stored().T.tocsr(), self.dtype, allow_nan=self._allow_nan)

    def select(self, rows):
        """The table with some of the rows: of a slice, a mask, or an array of indices."""
        if self._order is not None:
            return self._with(order=self._order[rows])
        n_rows = len(self)  # of which not even indices are held
        is_slice = isinstance(rows, slice)
        return self._with(order=np.arange(*rows.indices(n_rows)) if is_slice else _indices(rows, n_rows))

    def clip(self, low, high):
        """The table with values clipped to bounds, numbers or arrays (d,)."""
        return self._with(bounds=(low, high))

    def without_missing(self):
        """The table, but an error where a value that is read is missing."""
        return self._with(allow_nan=False)

    def _stored(self):
        """The rows of a sparse matrix that the table has."""
        return self._source if self._order is None else self._source[self._order]

    def _with(self, **changes):
        settings = {"order": self._order, "allow_nan": self._allow_nan, "bounds": self._bounds}
        return Table(self._source, self.dtype, **settings | changes)

    def _read(self, rows):
        """Rows of the source, in the form of an array."""
        part = self._source[rows]
        return part.toarray() if issparse(part) else np.asarray(part)

    def _slice(self, rows):
        """Rows of the source in a slice; of what is on disk, not every library knows steps or negative ends."""
        start, stop, step = rows.indices(self._source.shape[0])
        return self._read(slice(start, max(start, stop))) if step == 1 else self._take(np.arange(start, stop, step))

    def _take(self, indices):
        """Rows of the source with these indices, read in runs of neighbours."""
        indices = _indices(indices, self._source.shape[0])
        if isinstance(self._source, np.ndarray) or issparse(self._source):
            return self._read(indices)
        wanted, place = np.unique(indices, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        found, done = None, 0
        for run in runs if len(wanted) else ():
            part = self._read(slice(int(run[0]), int(run[-1]) + 1))
            found = np.empty((len(wanted), *part.shape[1:]), part.dtype) if found is None else found
            found[done : done + len(run)] = part
            done += len(run)
        return self._read(slice(0, 0)) if found is None else found[place]


def _indices(rows, n_rows):
    """Rows that a mask or indices choose, as indices that are not negative."""
    rows = np.asarray(rows, dtype=None if len(rows) else np.intp)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    return np.where(rows < 0, rows + n_rows, rows)


class TensorRows:
    """Rows of a tensor that stay on its device, with the dtype that NumPy has for them.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    """

    ndim = 2

    def __init__(self, x):
        self.x, self.shape, self.device = x, tuple(x.shape), x.device
        self.dtype = torch.empty(0, dtype=x.dtype).numpy().dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Rows of a slice (b, d), a view of the tensor."""
        return self.x[rows]

    def select(self, rows):
        """Some of the rows: of a mask, or an array of indices."""
        return TensorRows(self.x[torch.from_numpy(rows).to(self.device)])

    def clip(self, low, high):
        """The rows with values clipped to bounds, numbers or arrays (d,)."""
        low, high = (torch.as_tensor(bound, dtype=self.x.dtype, device=self.device) for bound in (low, high))
        return TensorRows(self.x.clamp(low, high))


def _release(source):
    """Let the system have the pages of a memory map back: what was read of a file would stay in memory."""
    # Changes to a map that is not written to its file (mode "c") are in these pages alone.
    if isinstance(source, np.memmap) and source.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        source._mmap.madvise(mmap.MADV_DONTNEED)


def is_lazy(X, dtypes):
    """Whether rows of X should be read when they are needed.

    They should be if X has nothing but slices, or if it is on disk and would be larger in memory than `IN_MEMORY`.

    Parameters
    ----------
    X : object
    dtypes : tuple of dtype
        Those that are not converted; others are converted to the first.
    """
    if isinstance(X, Table):
        return True
    if isinstance(X, np.ndarray):
        held = getattr(X, "_mmap", None) is None  # also of a copy of a memory map, which is of its class
    else:
        names = ("iloc", "__dataframe__", "__array_namespace__")
        held = isinstance(X, list | tuple) or issparse(X) or any(hasattr(X, name) for name in names)
    if held:
        return False
    shape, dtype = getattr(X, "shape", None), _numpy_dtype(X)
    if not isinstance(shape, tuple) or not shape or dtype is None or not hasattr(X, "__getitem__"):
        return False
    return not hasattr(X, "__array__") or not fits_in_memory(shape, result_dtype(dtype, dtypes))


def fits_in_memory(shape, dtype):
    """Whether a dense table should be held as a whole."""
    return _n_bytes(shape, dtype) <= IN_MEMORY


def _n_bytes(shape, dtype):
    return math.prod(shape) * np.dtype(dtype).itemsize


def sparse_rows(X, allow_nan, together):
    """The rows of a sparse matrix: as a table, or as an array if they are no more than a chunk.

    Parameters
    ----------
    X : sparse matrix in CSR form
    allow_nan : bool
        Whether values may be missing.
    together : bool
        Whether rows with missing values, if these are allowed, have to be at hand together.

    Raises
    ------
    ValueError
        If there are missing values, and the rows, which have to be at hand together, are too many.
    """
    if _n_bytes(X.shape, X.dtype) <= ONE_CHUNK:
        return X.toarray()
    if not (allow_nan and together):
        return Table(X, X.dtype, allow_nan=allow_nan)
    if not holds_nan(X):
        return Table(X, X.dtype)
    if fits_in_memory(X.shape, X.dtype):
        return X.toarray()
    raise ValueError(
        f"X is sparse and contains NaN, and as a dense array, which missing values need here, it would take "
        f"{_n_bytes(X.shape, X.dtype) / 2**30:.3g} GiB of memory; fill the missing values in, or give fewer rows."
    )


def holds_nan(X):
    """Whether a stored value of a sparse matrix is NaN."""
    return X.dtype.kind == "f" and bool(np.isnan(X.data).any())


def _numpy_dtype(X):
    """The dtype of X, None if it has none that NumPy knows."""
    dtype = getattr(X, "dtype", None)
    try:
        return None if dtype is None else np.dtype(dtype)
    except TypeError:
        return None


def result_dtype(dtype, dtypes):
    """The dtype in which values of a dtype are held."""
    return np.dtype(dtype) if np.dtype(dtype) in dtypes else np.dtype(dtypes[0])


def select_rows(X, rows):
    """Some rows of an array, a table or a tensor."""
    return X.select(rows) if isinstance(X, Table | TensorRows) else X[rows]


def streamed(X, dtype, device, *, center=None, block_size=None):
    """Rows of a table, less a float64 centre, as tensors that are read in blocks.

    Parameters
    ----------
    X : Table of shape (n, d)
    dtype : torch.dtype
    device : torch.device
    center : ndarray of shape (d,), optional
    block_size : int, optional
        Rows read at a time; None: a few megabytes.

    Returns
    -------
    x : LazyRows of shape (n, d)
    """

    def read(rows):
        found = X[rows if isinstance(rows, slice) else rows.numpy()]
        found = found if center is None else found - center
        return to_device(torch.from_numpy(found).to(dtype), device)

    return LazyRows(read, X.shape, dtype, device, block_size, X.run_length)
