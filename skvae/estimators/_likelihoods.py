"""From arrays to likelihoods: which one the data can come from, and its units."""

import numpy as np
import torch

from ..models import LIKELIHOODS
from ._base import to_tensor


def choose_likelihood(name, X):
    """Resolve "auto" by looking at the data."""
    if name == "auto":
        name = "bernoulli" if within_support("bernoulli", X) else "gaussian"
    return name


def within_support(name, X):
    """Whether all values are in the support of a likelihood, up to the rounding of a scaler."""
    low, high = LIKELIHOODS[name].support
    slack = 8 * np.finfo(X.dtype).eps
    return X.min() >= low - slack and X.max() <= high + slack


def check_support(name, X):
    """X, with rounding beyond the support of a likelihood clipped.

    Raises
    ------
    ValueError
        If there are values outside the support.
    """
    low, high = LIKELIHOODS[name].support
    if not within_support(name, X):
        raise ValueError(
            f"likelihood={name!r} needs values in [{low:g}, {high:g}], but X has values from {X.min():.6g} to "
            f"{X.max():.6g}; scale X (MinMaxScaler(clip=True) keeps new rows inside), or use likelihood='gaussian'."
        )
    return X if X.min() >= low and X.max() <= high else X.clip(low, high)


def build_likelihood(name, X):
    """The likelihood for the columns of X; constant ones keep their unit."""
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    scale[scale <= 10 * np.finfo(X.dtype).eps * np.abs(mean)] = 1.0
    return LIKELIHOODS[name].from_data(torch.tensor(mean), torch.tensor(scale))


def standardized_rows(likelihood, X, device):
    """What the networks see of X, in float32 on the device."""
    with torch.no_grad():
        return likelihood.standardize(to_tensor(X, None, "cpu")).to(torch.float32).to(device)
