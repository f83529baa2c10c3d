"""Datasets and loaders of torch: tables whose rows are items, and streams of batches."""

from collections.abc import Iterator
from types import NoneType

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from .arrays import host_array

AT_ONCE = 1024  # items that are asked for together


class DatasetRows:
    """Rows of a map-style dataset, with the shape, dtype and slices of a table on disk.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Its items are rows (d,) or images, or tuples of which these are the first part.

    Raises
    ------
    TypeError
        If items are not arrays of numbers.
    ValueError
        If there are none.
    """

    def __init__(self, dataset):
        self._dataset, name = dataset, type(dataset).__name__
        if not hasattr(dataset, "__len__"):
            raise TypeError(f"X is a {name} without __len__, but the number of rows has to be known; add the method.")
        if not len(dataset):
            raise ValueError(f"X is a {name} with 0 sample(s), but at least 1 is needed; add items.")
        first = self._items([0])
        if first.dtype.kind not in "fiub" or first.ndim < 2:
            raise TypeError(
                f"The items of X, a {name}, have shape {first.shape[1:]} and dtype {first.dtype}, but they should be "
                "rows of numbers, or tuples whose first part is one."
            )
        self.shape, self.dtype, self.ndim = (len(dataset), *first.shape[1:]), first.dtype, first.ndim

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Rows of a slice (b, ...)."""
        indices = range(*rows.indices(len(self)))
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for start in range(0, len(indices), AT_ONCE):
            wanted = indices[start : start + AT_ONCE]
            part = self._items(wanted)
            if part.shape[1:] != self.shape[1:] or not np.can_cast(part.dtype, self.dtype):
                raise self._unlike(f"{part.shape[1:]} and dtype {part.dtype}", wanted)
            found[start : start + len(part)] = part
        return found

    def __array__(self, dtype=None, copy=None):
        """All rows."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _items(self, indices):
        """Rows of some items, in the form of an array."""
        indices = [*indices]
        if getattr(self._dataset, "__getitems__", None):
            items = self._dataset.__getitems__(indices)
        else:
            items = [self._dataset[i] for i in indices]
        rows = [np.asarray(host_array(first_part(item))) for item in items]
        shapes = {row.shape for row in rows}
        if len(shapes) > 1:
            raise self._unlike(" or ".join(map(str, sorted(shapes))), indices)
        return np.stack(rows)

    def _unlike(self, found, indices):
        return ValueError(
            f"Items {indices[0]} to {indices[-1]} of X, a {type(self._dataset).__name__}, have shape {found}, but all "
            "items should have the shape and the dtype of the first one."
        )


def table_of(X):
    """The tensor of a `TensorDataset`, and the rows of any other dataset; anything else as it is.

    Parameters
    ----------
    X : Dataset, DataLoader or object
        Of a loader, the dataset is taken.

    Raises
    ------
    TypeError
        If X gives its rows once and in its own order alone, or if items are not arrays of numbers.
    ValueError
        If the batches of a loader are not made of the rows of its dataset.
    """
    X = dataset_of(X)
    if isinstance(X, IterableDataset | Iterator):
        raise TypeError(
            f"X is of type {type(X).__name__}, which gives its rows once and in its own order; give an array or a "
            "map-style Dataset, or batches (a DataLoader, or an iterator) to partial_fit."
        )
    if isinstance(X, TensorDataset):
        return X.tensors[0]
    return DatasetRows(X) if isinstance(X, Dataset) else X


def dataset_of(X):
    """The dataset of a `DataLoader`; anything else as it is."""
    if not isinstance(X, DataLoader):
        return X
    if isinstance(X.dataset, IterableDataset):
        return X.dataset
    plain = type(X.sampler) in (SequentialSampler, RandomSampler) and type(X.batch_sampler) in (BatchSampler, NoneType)
    if not plain or getattr(X.sampler, "replacement", False):
        raise ValueError(
            "X is a DataLoader whose sampler may leave rows out or repeat them, but all rows of its dataset would be "
            "used; give a torch.utils.data.Subset of the dataset, or sample_weight."
        )
    if X.collate_fn not in (default_collate, default_convert):
        raise ValueError(
            "X is a DataLoader with a collate_fn of its own, but the rows of its dataset would be used as they are; "
            "give a Dataset whose items are the rows."
        )
    return X.dataset


def first_part(item):
    """The row of an item, or the rows of a batch: what stands before labels."""
    holds_parts = isinstance(item, list) and bool(item) and isinstance(item[0], torch.Tensor | np.ndarray)
    return item[0] if isinstance(item, tuple) or holds_parts else item
