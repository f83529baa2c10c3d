"""Missing values at the border: where they are, what has to be there, what is filled in."""

import numpy as np
import torch

from ..fitting.chunks import row_chunks
from ..fitting.distributed import current_group
from ..fitting.missing import impute
from .tables import Table, TensorRows


def has_missing(X):
    """Whether a value of X is NaN; files, which are read a chunk at a time, refuse it then (see `_streams_nan`)."""
    if isinstance(X, TensorRows):
        return bool(X.x.isnan().any())
    return X.has_missing() if isinstance(X, Table) else bool(np.isnan(X.min()))


def any_missing(X):
    """Whether a value is missing in the rows of any of the processes that fit together.

    Raises
    ------
    ValueError
        If there is, and rows are read a chunk at a time.
    """
    own = has_missing(X)
    missing = any(current_group().all_gather_int(own))
    if missing and not own and isinstance(X, Table):
        raise ValueError(
            "Another process has rows with NaN, but those of this one are read a chunk at a time, where no value may "
            "be missing; give it fewer rows, or an array."
        )
    return missing


def rows_with_values(X, weight=None, counted=slice(None)):
    """Rows that have a value, their weights and what selects them, as `counted_rows` gives them.

    Raises
    ------
    ValueError
        If there is none.
    """
    some = ~np.isnan(X).all(axis=1)
    if not some.any():
        raise ValueError("Every value of X is NaN; at least one should be observed.")
    if some.all():
        return X, weight, counted
    if isinstance(counted, slice):
        counted = some
    else:
        counted = counted.copy()
        counted[counted] = some
    return X[some], None if weight is None else weight[some], counted


def check_columns(estimator, X):
    """Raise if a column of the training data has no value.

    Raises
    ------
    ValueError
        It names the columns, by their names if X had any.
    """
    (n_seen,) = current_group().all_reduce_sum(torch.from_numpy((~np.isnan(X)).sum(axis=0)))
    empty = n_seen.numpy() == 0
    if empty.any():
        names = getattr(estimator, "feature_names_in_", np.arange(X.shape[1]))[empty].tolist()
        raise ValueError(
            f"Columns {names} of X hold nothing but NaN, at least in the rows that count; leave them out, for nothing "
            "can be learnt about them."
        )


def observed_means(X, weight=None):
    """Weighted means of the observed values of each column (n_features,), in float64.

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
    """X with expected values where it has NaN, in its dtype; observed values are the same to the last bit."""
    return np.where(np.isnan(X), expected.astype(X.dtype, copy=False), X)


def impute_chunk(x, mixture, family):
    """Rows of a tensor with NaN replaced by its expectation under a mixture in float64; the others stay."""
    missing = x.isnan()
    if not missing.any():
        return x.clone()
    return torch.where(missing, impute(x.double(), mixture, family).to(x.dtype), x)
