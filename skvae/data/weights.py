"""Sample weights: checks, selection and resampling by them, and an order of samples to resample in."""

import numpy as np
import torch
from sklearn import config_context
from sklearn.utils.validation import _check_sample_weight

from ..fitting.distributed import current_group
from ..fitting.rows import blocks_of
from ..fitting.weighted_rows import canonical_order
from .arrays import host_array, named_in_errors
from .samples import run_length, select_samples, tensor_or_stream


def positive_weight_samples(X, sample_weight):
    """Select the samples of positive weight.

    Returns
    -------
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
    weight : ndarray of shape (n,) or None
        Weights in float64; None where ``sample_weight`` is None.
    selected : slice or ndarray of bool of shape (n_samples,)
        Index of the samples in X.

    Raises
    ------
    ValueError
        If the weights are not finite, negative, all zero, or not one for each sample.
    """
    if sample_weight is None:
        return X, None, slice(None)
    weight = check_weights(sample_weight, X)
    selected = weight > 0
    return (X, weight, slice(None)) if selected.all() else (select_samples(X, selected), weight[selected], selected)


def check_weights(sample_weight, X):
    """Return weights of samples in float64.

    Raises
    ------
    ValueError
        If they are not finite, negative, all zero, or not one for each sample.
    """
    weight = nonnegative_weights(sample_weight, X)
    if not weight.any():
        raise ValueError("Every sample_weight is zero; at least one row should count.")
    return weight


def nonnegative_weights(sample_weight, X):
    """Return weights of samples in float64, of which all may be zero.

    Raises
    ------
    ValueError
        If they are not finite, negative, or not one for each sample.
    """
    check_not_text(sample_weight)
    # Weights are an array, also of a tensor.
    with named_in_errors("sample_weight"), config_context(array_api_dispatch=False):
        return _check_sample_weight(host_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)


def check_not_text(sample_weight):
    """Raise if weights are a string, such as "balanced"."""
    if isinstance(sample_weight, str):
        raise ValueError(
            f"sample_weight={sample_weight!r} should be an array of numbers, one for each row; "
            "sklearn.utils.class_weight.compute_sample_weight makes those that balance classes."
        )


def weighted_sum(values, weight=None):
    """Compute the weighted sum of values (n,) in float64."""
    return float(values.sum(dtype=np.float64) if weight is None else weight @ values.astype(np.float64, copy=False))


def resample_by_weight(X, sample_weight, seed):
    """Repeat samples by their weights, in an order that does not depend on that of X; files keep their own order.

    Integer weights are numbers of repetitions. Others are rounded up or down at random, so that their sum is preserved;
    if they are smaller than one on average, they are scaled to a mean of one.
    """
    X, weight, _ = positive_weight_samples(X, sample_weight)
    in_file = run_length(X) > 1
    if in_file and weight is None:
        return X
    order = np.arange(len(X)) if in_file else canonical_sample_order(X)
    if weight is None:
        return select_samples(X, order)
    n_rows, total_weight = current_group().all_reduce_sum(len(weight), weight.sum())
    ends = np.cumsum(weight[order] * max(1.0, n_rows / total_weight))
    # Sums of integers are exact, and a shift of less than one does not change their floors.
    counts = np.floor(ends + np.random.default_rng(seed).uniform(1e-9, 1)).astype(np.int64)
    return select_samples(X, np.repeat(order, np.diff(counts, prepend=0)))


def canonical_sample_order(X):
    """Return indices of the samples in an order that depends neither on their order in X nor on linear units."""
    x = tensor_or_stream(X, missing=0.0)
    low, high = (torch.stack([extreme(x[block], 0) for block in blocks_of(x)]) for extreme in (torch.amin, torch.amax))
    low, high = low.amin(0).double(), high.amax(0).double()
    span = high - low
    in_units = bool((low >= 0).all() and (high <= 1).all())  # already, as pixels and probabilities are
    return canonical_order(x, unit=1.0 if in_units else torch.where(span > 0, span, 1.0)).numpy()
