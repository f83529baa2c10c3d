"""From arrays to likelihoods: which one the data can come from, and its units.

A likelihood is chosen by its name, or is an object of the user's with the same verbs: a module, or a class with
``from_data``.
"""

import copy
import functools

import numpy as np
import torch
from torch import nn

from ..fitting.rows import row_chunks
from ..models import LIKELIHOODS, Support
from ._base import float_dtype, to_tensor

VERBS = ("support", "n_inputs", "n_outputs", "standardize", "inputs", "log_prob", "mean", "sample")


def choose_likelihood(likelihood, X):
    """Resolve "auto" by looking at the data; other names and objects are what they are.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class with ``from_data``
    X : ndarray of shape (n, d)

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If an object is no likelihood.
    """
    if isinstance(likelihood, str):
        if likelihood not in {"auto", *LIKELIHOODS}:
            raise ValueError(f"likelihood={likelihood!r} is unknown; use 'auto' or one of {sorted(LIKELIHOODS)}.")
        if likelihood == "auto":
            return "bernoulli" if all_within(LIKELIHOODS["bernoulli"].support, X) else "gaussian"
    elif isinstance(likelihood, type):
        check_verbs(likelihood, ["from_data"])
    elif isinstance(likelihood, nn.Module):
        check_verbs(likelihood, VERBS)
    else:
        raise TypeError(
            f"likelihood={likelihood!r} should be 'auto', one of {sorted(LIKELIHOODS)}, a torch.nn.Module with the "
            "methods of a likelihood, or a class with from_data that makes one."
        )
    return likelihood


def likelihood_name(likelihood):
    """What a likelihood is called: its key, if it has one, or its class."""
    if isinstance(likelihood, str):
        return likelihood
    kind = likelihood if isinstance(likelihood, type) else type(likelihood)
    return {known: name for name, known in LIKELIHOODS.items()}.get(kind, kind.__name__)


def check_support(likelihood, X):
    """X, with rounding beyond the support of a likelihood clipped.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class
        A fitted module knows which codes of categories the training data had.
    X : ndarray of shape (n, d)

    Raises
    ------
    ValueError
        If there are values outside the support.
    """
    name = likelihood_name(likelihood)
    # A class of the user's may give its support to its instances only, which are checked when they are built.
    support = Support(*getattr(LIKELIHOODS[name] if isinstance(likelihood, str) else likelihood, "support", ()))
    low, high = np.asarray(support.low, dtype=np.float64), np.asarray(support.high, dtype=np.float64)
    if support.integers:
        check_integers(name, low, high, X)
        return X
    if not all_within(support, X):
        raise ValueError(
            f"likelihood={name!r} needs values in {interval(low, high)}, but X has values from {X.min():.6g} to "
            f"{X.max():.6g}; scale X (MinMaxScaler(clip=True) keeps new rows inside), or use likelihood='gaussian'."
        )
    if (low <= X.min(axis=0)).all() and (X.max(axis=0) <= high).all():
        return X
    return X.clip(low, high).astype(X.dtype, copy=False)


def check_integers(name, low, high, X):
    """Raise if X has values that are not whole numbers from low to high."""
    broken = np.rint(X) != X if X.dtype.kind == "f" else np.zeros(1, bool)
    if broken.any():
        raise ValueError(
            f"likelihood={name!r} needs whole numbers, but X has {X[broken][0]:.6g}; use likelihood='gaussian' for "
            "measurements, or round X if it should be counts."
        )
    if (X.min(axis=0) < low).any():
        raise ValueError(
            f"likelihood={name!r} needs whole numbers from {low.max():g}, but X has {X.min():.6g}; use "
            "likelihood='gaussian' for data with negative values, or OrdinalEncoder for codes of categories."
        )
    beyond = X.max(axis=0) > high
    if beyond.any():
        feature = int(beyond.argmax())
        raise ValueError(
            f"likelihood={name!r} knows the codes of the training data alone, up to "
            f"{np.broadcast_to(high, X.shape[1])[feature]:g} in feature {feature}, but X has "
            f"{X[:, feature].max():.6g} there; fit with rows that have this category, or leave such rows out."
        )


def all_within(support, X):
    """Whether all values are within bounds, up to the rounding of a scaler."""
    slack = 8 * np.finfo(float_dtype(X.dtype)).eps * min(1.0, max(-float(X.min()), float(X.max())))
    return bool((X.min(axis=0) >= np.subtract(support.low, slack)).all()) and bool(
        (X.max(axis=0) <= np.add(support.high, slack)).all()
    )


def interval(low, high):
    """Bounds in words."""
    return f"[{low:g}, {high:g}]" if low.ndim == high.ndim == 0 else "the support of each feature"


def build_likelihood(likelihood, X):
    """The likelihood for the columns of X; a module of the user's is copied.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class with ``from_data``
        From `choose_likelihood`.
    X : ndarray of shape (n, d)

    Raises
    ------
    TypeError
        If what a class makes is not a module with the methods of a likelihood.
    ValueError
        If what a class makes can not produce X.
    """
    if isinstance(likelihood, nn.Module):
        return copy.deepcopy(likelihood)
    kind = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
    built = kind.from_data(ArraySummary(X))
    if not isinstance(built, nn.Module):
        raise TypeError(f"{kind.__name__}.from_data should make a torch.nn.Module, but made {built!r}.")
    check_verbs(built, VERBS)
    check_support(built, X)
    return built


def check_verbs(likelihood, verbs):
    """Raise if something that a likelihood needs is missing."""
    missing = [verb for verb in verbs if not hasattr(likelihood, verb)]
    if missing:
        raise TypeError(f"likelihood={likelihood_name(likelihood)} lacks {', '.join(missing)}; add what is missing.")


class ArraySummary:
    """A `FeatureSummary` of an array, of which only that is computed which is asked for."""

    def __init__(self, X):
        self._X = X

    @functools.cached_property
    def mean(self):
        """Means of the features."""
        return torch.tensor(self._X.mean(axis=0, dtype=np.float64))

    @functools.cached_property
    def scale(self):
        """Standard deviations; constant features keep their unit."""
        mean = self.mean.numpy()
        chunks = row_chunks(*self._X.shape)
        scale = np.sqrt(sum(np.square(self._X[rows] - mean).sum(axis=0) for rows in chunks) / len(self._X))
        scale[scale <= 10 * np.finfo(float_dtype(self._X.dtype)).eps * np.abs(mean)] = 1.0
        return torch.tensor(scale)

    @functools.cached_property
    def maximum(self):
        """Largest values."""
        return torch.tensor(self._X.max(axis=0).astype(np.float64))


def stored_rows(likelihood, X, device):
    """What is kept of X for training: standardised float32 rows, or whole numbers of one byte as they are.

    They are on the device if they take at most half of its free memory, else on the CPU.
    """
    rows = to_tensor(X, None, "cpu")
    if rows.is_floating_point():
        with torch.no_grad():
            rows = likelihood.standardize(rows).to(torch.float32)
    if device.type == "cuda" and rows.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return rows.pin_memory()
    return rows.to(device)
