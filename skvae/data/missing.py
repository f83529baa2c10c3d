"""Missing values in samples: checks, means of the observed values, imputation."""

import numpy as np
import torch

from ..fitting.distributed import current_group
from ..fitting.missing import impute
from ..fitting.rows import row_chunks
from .samples import has_missing, is_lazy


def any_missing(X):
    """Return whether a value is missing in the samples of any of the processes that fit together.

    Raises
    ------
    ValueError
        If there is, and the samples of this process are read a chunk at a time.
    """
    own = has_missing(X)
    missing = any(current_group().all_gather_int(own))
    if missing and not own and is_lazy(X):
        raise ValueError(
            "Another process has rows with NaN, but those of this one are read a chunk at a time, where no value may "
            "be missing; give it fewer rows, or an array."
        )
    return missing


def rows_with_values(X, weight=None, selected=slice(None)):
    """Select samples that have an observed value, from the results of `positive_weight_samples`, in the same form.

    Raises
    ------
    ValueError
        If no value is observed.
    """
    observed = ~np.isnan(X).all(axis=1)
    if not observed.any():
        raise ValueError("Every value of X is NaN; at least one should be observed.")
    if observed.all():
        return X, weight, selected
    if isinstance(selected, slice):
        selected = observed
    else:
        selected = selected.copy()
        selected[selected] = observed
    return X[observed], None if weight is None else weight[observed], selected


def check_columns(estimator, X):
    """Raise if a column of the training data has no observed value.

    Raises
    ------
    ValueError
        With the names of the columns if X had any, else their indices.
    """
    (n_observed,) = current_group().all_reduce_sum(torch.from_numpy((~np.isnan(X)).sum(axis=0)))
    empty = n_observed.numpy() == 0
    if empty.any():
        names = getattr(estimator, "feature_names_in_", np.arange(X.shape[1]))[empty].tolist()
        raise ValueError(
            f"Columns {names} of X hold nothing but NaN, at least in the rows that count; leave them out, for nothing "
            "can be learnt about them."
        )


def observed_means(X, weight=None):
    """Compute weighted means of the observed values of each column (n_features,), in float64.

    They are those of all processes that fit together.
    """
    sums, counts = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for rows in row_chunks(*X.shape):
        observed = ~np.isnan(X[rows])
        mass = np.ones(len(observed)) if weight is None else weight[rows]
        sums += mass @ np.where(observed, X[rows], 0.0).astype(np.float64, copy=False)
        counts += mass @ observed
    sums, counts = current_group().all_reduce_sum(torch.from_numpy(sums), torch.from_numpy(counts))
    return (sums / counts).numpy()


def filled_in(X, expected):
    """Return X with expected values in place of NaN, in its dtype; observed values do not change in the last bit."""
    return np.where(np.isnan(X), expected.astype(X.dtype, copy=False), X)


def impute_chunk(x, mixture, family):
    """Replace NaN in a tensor by its expectation under a mixture, in float64; other values do not change."""
    missing = x.isnan()
    if not missing.any():
        return x.clone()
    return torch.where(missing, impute(x.double(), mixture, family).to(x.dtype), x)
