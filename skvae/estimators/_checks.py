"""Checks of arguments, and checks and seeds that the processes of a group share."""

from numbers import Integral, Real

import torch
from sklearn.utils import check_scalar

from ..data.arrays import seed_from
from ..fitting.distributed import current_group


def check_enough_rows(X, n_components, name="n_components"):
    """Raise if all processes that fit together have fewer samples than components."""
    n_samples = row_count(X)
    if n_samples < n_components:
        raise ValueError(f"{name}={n_components} is larger than n_samples={n_samples}; decrease {name}, or add rows.")


def row_count(X):
    """Return the number of samples of all processes that fit together."""
    return sum(current_group().all_gather_int(len(X)))


def check_processes(estimator, X):
    """Raise if the processes that fit together have different parameters, or numbers or dtypes of features."""
    group = current_group()
    if group.size == 1:
        return
    local = {"device", "verbose", "verbose_interval", "chunk_size", "checkpoint", "callbacks"}
    facts = {"estimator": type(estimator).__name__, "n_features": X.shape[1], "dtype": str(X.dtype)}
    for name, value in estimator.get_params(deep=False).items():
        parts = value if isinstance(value, list | tuple) else [value]
        if name not in local and all(isinstance(part, str | Real | None) for part in parts):
            facts[name] = repr(value)
    all_facts = group.all_gather_object(facts)
    for name, value in facts.items():
        values = [theirs.get(name) for theirs in all_facts]
        if any(other != value for other in values):
            raise ValueError(f"{name} should be the same in all processes, but is {', '.join(map(str, values))}.")


def fit_seed(random_state):
    """Return the `seed_from` of the first of the processes that fit together."""
    return current_group().all_gather_int(seed_from(random_state))[0]


def fit_generator(random_state):
    """Return a generator that is the same in all processes that fit together: see `fit_seed`."""
    return torch.Generator().manual_seed(fit_seed(random_state))


def check_sample_size(n_samples):
    """Return the number of samples to draw, if it is valid.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is less than one.
    """
    return check_scalar(n_samples, "n_samples", Integral, min_val=1)


def check_index(name, value, size):
    """Return the index of a component or cluster, if it is valid.

    Raises
    ------
    ValueError
        If it is not an integer from 0 to ``size - 1``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value < size:
        raise ValueError(f"{name}={value!r} should be None or an integer from 0 to {size - 1}.")
    return int(value)
