"""Rows and their weights: how many there are, which count, in what order, how often."""

from functools import partial

import numpy as np
import torch
from sklearn import config_context
from sklearn.utils.validation import _check_sample_weight

from ..fitting.chunks import blocks_of
from ..fitting.distributed import current_group
from ..fitting.weighted_rows import canonical_order
from .arrays import host_array, named_in_errors, tensor_dtype
from .missing import has_missing
from .tables import Table, select_rows, streamed


def counted_rows(X, sample_weight):
    """Rows of positive weight, their weights (float64, None if all are one) and what selects them.

    Raises
    ------
    ValueError
        If the weights are not finite, negative, all zero, or not one for each row.
    """
    if sample_weight is None:
        return X, None, slice(None)
    weight = check_weights(sample_weight, X)
    counted = weight > 0
    return (X, weight, slice(None)) if counted.all() else (select_rows(X, counted), weight[counted], counted)


def check_weights(sample_weight, X):
    """Weights of rows in float64.

    Raises
    ------
    ValueError
        If they are not finite, negative, all zero, or not one for each row.
    """
    weight = finite_weights(sample_weight, X)
    if not weight.any():
        raise ValueError("Every sample_weight is zero; at least one row should count.")
    return weight


def finite_weights(sample_weight, X):
    """Weights of rows in float64, of which all may be zero.

    Raises
    ------
    ValueError
        If they are not finite, negative, or not one for each row.
    """
    check_no_word(sample_weight)
    # Weights are an array, also of a tensor.
    with named_in_errors("sample_weight"), config_context(array_api_dispatch=False):
        return _check_sample_weight(host_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)


def weighted_sum(values, weight=None):
    """Sum of the values (n,) in float64, each as often as its weight says."""
    return float(values.sum(dtype=np.float64) if weight is None else weight @ values.astype(np.float64, copy=False))


def check_no_word(sample_weight):
    """Raise if a word stands where weights should be."""
    if isinstance(sample_weight, str):
        raise ValueError(
            f"sample_weight={sample_weight!r} should be an array of numbers, one for each row; "
            "sklearn.utils.class_weight.compute_sample_weight makes those that balance classes."
        )


def repeated_rows(X, sample_weight, seed):
    """Rows as often as their weights say, in an order that does not depend on where they stood, but in files as there.

    Whole weights are numbers of rows. Others are rounded up or down at random, so that their sum is kept; if they are
    smaller than one on average, they are scaled to be one.
    """
    X, weight, _ = counted_rows(X, sample_weight)
    in_file = isinstance(X, Table) and X.run_length > 1
    if in_file and weight is None:
        return X
    order = np.arange(len(X)) if in_file else order_of(X)
    if weight is None:
        return select_rows(X, order)
    n_rows, total_weight = current_group().all_reduce_sum(len(weight), weight.sum())
    ends = np.cumsum(weight[order] * max(1.0, n_rows / total_weight))
    # The share of the last row that is cut off is no whole row: rounding of sums of whole numbers is none.
    counted = np.floor(ends + np.random.default_rng(seed).uniform(1e-9, 1)).astype(np.int64)
    return select_rows(X, np.repeat(order, np.diff(counted, prepend=0)))


def order_of(X):
    """Indices of the rows of X, in an order that depends neither on where they stand nor on linear units."""
    if isinstance(X, Table):
        x = streamed(X, tensor_dtype(X.dtype), "cpu")
        x = x.map(partial(torch.nan_to_num, nan=0.0)) if X.has_missing() else x
    else:
        x = torch.from_numpy(np.require(X, requirements=["C", "W"]))
        x = x.nan_to_num(nan=0.0) if has_missing(X) else x
    low, high = (torch.stack([extreme(x[block], 0) for block in blocks_of(x)]) for extreme in (torch.amin, torch.amax))
    low, high = low.amin(0).double(), high.amax(0).double()
    span = high - low
    in_units = bool((low >= 0).all() and (high <= 1).all())  # already, as pixels and probabilities are
    return canonical_order(x, unit=1.0 if in_units else torch.where(span > 0, span, 1.0)).numpy()
