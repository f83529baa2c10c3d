"""Datasets and loaders of torch as sources of samples: map-style datasets, whose items are samples, and batches."""

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

MAX_ITEMS = 1024  # that are asked for together


class DatasetSource:
    """Samples of a map-style dataset, with ``shape``, ``dtype`` and slices, as files on disk have them.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Its items are samples (d,) or images, or tuples of which these are the first part.

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
        """Return the samples of a slice (b, ...)."""
        indices = range(*rows.indices(len(self)))
        samples = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for start in range(0, len(indices), MAX_ITEMS):
            some = indices[start : start + MAX_ITEMS]
            part = self._items(some)
            if part.shape[1:] != self.shape[1:] or not np.can_cast(part.dtype, self.dtype):
                raise self._shape_error(f"{part.shape[1:]} and dtype {part.dtype}", some)
            samples[start : start + len(part)] = part
        return samples

    def __array__(self, dtype=None, copy=None):
        """Return all samples."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _items(self, indices):
        """Return the samples of some items as an array."""
        indices = [*indices]
        if getattr(self._dataset, "__getitems__", None):
            items = self._dataset.__getitems__(indices)
        else:
            items = [self._dataset[i] for i in indices]
        samples = [np.asarray(host_array(without_labels(item))) for item in items]
        shapes = {sample.shape for sample in samples}
        if len(shapes) > 1:
            raise self._shape_error(" or ".join(map(str, sorted(shapes))), indices)
        return np.stack(samples)

    def _shape_error(self, shapes, indices):
        return ValueError(
            f"Items {indices[0]} to {indices[-1]} of X, a {type(self._dataset).__name__}, have shape {shapes}, but all "
            "items should have the shape and the dtype of the first one."
        )


def samples_of_dataset(X):
    """Return the tensor of a `TensorDataset`, or a source of the samples of another dataset.

    Parameters
    ----------
    X : Dataset, DataLoader or Iterator
        Of a loader, the dataset is taken.

    Returns
    -------
    X : Tensor or DatasetSource

    Raises
    ------
    TypeError
        If X gives its samples once and in its own order only, or if items are not arrays of numbers.
    ValueError
        If the batches of a loader are not made of the samples of its dataset.
    """
    X = dataset_of(X)
    if isinstance(X, IterableDataset | Iterator):
        raise TypeError(
            f"X is of type {type(X).__name__}, which gives its rows once and in its own order; give an array or a "
            "map-style Dataset, or batches (a DataLoader, or an iterator) to partial_fit."
        )
    if isinstance(X, TensorDataset):
        return X.tensors[0]
    return DatasetSource(X) if isinstance(X, Dataset) else X


def dataset_of(X):
    """Return the dataset of a `DataLoader`; other inputs as they are."""
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


def without_labels(item):
    """Return the sample of an item, or the samples of a batch, which stand before labels."""
    holds_parts = isinstance(item, list) and bool(item) and isinstance(item[0], torch.Tensor | np.ndarray)
    return item[0] if isinstance(item, tuple) or holds_parts else item
