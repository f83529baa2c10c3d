"""From arrays to likelihoods: which one the data can come from, and its units.

A likelihood is chosen by its name, or is an object of the user's with the same verbs: a module, or a class with
``from_data``.
"""

import copy
import warnings

import numpy as np
import torch
from torch import nn

from ..data.arrays import float_dtype, to_tensor
from ..data.columns import Columns
from ..data.messages import meant, shown
from ..data.tables import Table
from ..fitting.lazy_rows import RowSource
from ..fitting.warnings import warn
from ..models import LIKELIHOODS, MaskedLikelihood, Support

NEARLY, NEARLY_WHOLE = 1e-3, 0.1  # values so little beyond a bound, or away from a whole number, may be rounded ones
REQUIRED_METHODS = ("support", "n_inputs", "n_outputs", "standardize", "inputs", "log_prob", "mean", "sample")


def choose_likelihood(likelihood, columns):
    """Resolve "auto" by looking at the data; other names and objects are what they are.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class with ``from_data``
    columns : Columns

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If an object is no likelihood.
    """
    if isinstance(likelihood, str):
        if likelihood not in {"auto", *LIKELIHOODS}:
            raise ValueError(
                f"likelihood={likelihood!r} is unknown; use 'auto' or one of {sorted(LIKELIHOODS)}."
                f"{meant(likelihood, LIKELIHOODS)}"
            )
        if likelihood == "auto":
            return "bernoulli" if all_within(LIKELIHOODS["bernoulli"].support, columns) else "gaussian"
    elif isinstance(likelihood, type):
        check_required_methods(likelihood, ["from_data"])
    elif isinstance(likelihood, nn.Module):
        check_required_methods(likelihood, REQUIRED_METHODS)
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
    if isinstance(likelihood, MaskedLikelihood):
        return likelihood_name(likelihood.likelihood)
    kind = likelihood if isinstance(likelihood, type) else type(likelihood)
    return {known: name for name, known in LIKELIHOODS.items()}.get(kind, kind.__name__)


def check_support(likelihood, X, columns=None):
    """X, with rounding beyond the support of a likelihood clipped.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class
        A fitted module knows which codes of categories the training data had.
    X : ndarray, Table or TensorRows of shape (n, d)
    columns : Columns, optional
        What is known of the columns of X.

    Raises
    ------
    ValueError
        If there are values outside the support.
    """
    columns, name = Columns(X) if columns is None else columns, likelihood_name(likelihood)
    # A class of the user's may give its support to its instances only, which are checked when they are built.
    support = Support(*getattr(LIKELIHOODS[name] if isinstance(likelihood, str) else likelihood, "support", ()))
    low, high = bounds_of(support)
    if support.integers:
        check_integers(name, low, high, columns)
        return X
    if not np.isfinite(low).any() and not np.isfinite(high).any():
        return X
    smallest, largest = columns.ranges.low, columns.ranges.high
    if not all_within(support, columns):
        beyond = max(float(np.nanmax(low - smallest)), float(np.nanmax(largest - high)))
        clip = f" clip X (np.clip) if {beyond:.2g} beyond the bound is rounding," if beyond < NEARLY else ""
        raise ValueError(
            f"likelihood={name!r} needs values in {interval(low, high)}, but X has values from "
            f"{shown(np.nanmin(smallest), *low.flat)} to {shown(np.nanmax(largest), *high.flat)}; scale X "
            f"(MinMaxScaler(clip=True) keeps new rows inside),{clip} or use likelihood='gaussian'."
        )
    if not (smallest < low).any() and not (largest > high).any():
        return X
    return X.clip(low, high).astype(X.dtype, copy=False) if isinstance(X, np.ndarray) else X.clip(low, high)


def check_integers(name, low, high, columns):
    """Raise if a table has values that are not whole numbers from low to high."""
    smallest, largest, fraction, off, _ = columns.ranges
    if fraction is not None:
        advice = "round X (np.rint) if it should be counts"
        advice = f"{advice}." if off < NEARLY_WHOLE else f"use likelihood='gaussian' for measurements, or {advice}."
        raise ValueError(
            f"likelihood={name!r} needs whole numbers, but X has {shown(fraction, np.rint(fraction))}, and values up "
            f"to {off:.2g} away from whole numbers; {advice}"
        )
    if (smallest < low).any():
        raise ValueError(
            f"likelihood={name!r} needs whole numbers from {low.max():g}, but X has {np.nanmin(smallest):.6g}; use "
            "likelihood='gaussian' for data with negative values, or OrdinalEncoder for codes of categories."
        )
    beyond = largest > high
    if beyond.any():
        feature = beyond.argmax()
        known, found = np.broadcast_to(high, len(largest))[feature], largest[feature]
        raise ValueError(
            f"likelihood={name!r} knows the codes of the training data alone, up to {shown(known, found)} in feature "
            f"{columns.named([feature])[0]!r}, but X has {shown(found, known)} there; fit with rows that have this "
            "category, or leave such rows out."
        )


def all_within(support, columns):
    """Whether all values are within bounds, up to the rounding of a scaler."""
    low, high = columns.ranges.low, columns.ranges.high
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows to predict may have no value in any feature
        widest = max(-float(np.nanmin(low)), float(np.nanmax(high)))
    slack = 8 * np.finfo(float_dtype(columns.dtype)).eps * min(1.0, widest)
    return not (low < np.subtract(support.low, slack)).any() and not (high > np.add(support.high, slack)).any()


def bounds_of(support):
    """Bounds of a support as arrays of float64, of no dimension or one number for each feature."""
    return np.asarray(support.low, dtype=np.float64), np.asarray(support.high, dtype=np.float64)


def counter_of_outside(likelihood, dtype):
    """A function of rows (b, d): how many of them a fitted likelihood can not produce, and a value of such a row.

    Missing values, and rounding of a dtype beyond the bounds, do not count. None if the likelihood can produce all.
    """
    support = Support(*getattr(likelihood, "support", ()))
    low, high = bounds_of(support)
    if not support.integers and not np.isfinite(low).any() and not np.isfinite(high).any():
        return None
    slack = 8 * np.finfo(float_dtype(dtype)).eps
    low, high = torch.as_tensor(low - slack), torch.as_tensor(high + slack)
    alike = low.ndim == high.ndim == 0 and not support.integers

    def count(x):
        if alike:  # one pass over the rows is enough if all are within, as nearly always
            smallest, largest = torch.stack(x.aminmax()).tolist()
            if smallest >= low and largest <= high:
                return 0, None
        found = (x < low.to(x)) | (x > high.to(x))
        if support.integers:
            found |= (x.round() - x).abs() > 0
        n_outside = int(found.any(1).sum())
        return n_outside, np.dtype(dtype).type(float(x[found][0])) if n_outside else None

    return count


def warn_of_outside(likelihood, outside, n_rows):
    """Warn of rows that a likelihood can not produce, if there are any; see `counter_of_outside`."""
    n_outside = sum(n for n, _ in outside)
    if not n_outside:
        return
    example = next(value for n, value in outside if n)
    support, name = Support(*likelihood.support), likelihood_name(likelihood)
    low, high = bounds_of(support)
    if support.integers:
        largest = f" to {high:g}" if high.ndim == 0 else " to the largest that each feature has in its support"
        known = f"whole numbers from {low.max():g}{largest if np.isfinite(high).any() else ''}"
        advice = "." if example == np.rint(example) else "; np.rint makes counts of values that rounding has changed."
    else:
        known, advice = f"values in {interval(low, high)}", " (MinMaxScaler(clip=True) keeps new rows inside)."
    value = shown(example, np.rint(example), *low.flat, *high.flat)
    warn(
        f"{n_outside} of {n_rows} rows of X have values that likelihood={name!r} does not know, such as {value}: it "
        f"knows {known}; the networks never learned what to make of them. Prepare X as in training{advice}",
        UserWarning,
    )


def interval(low, high):
    """Bounds in words."""
    if low.ndim or high.ndim:
        return "the support of each feature"
    return f"{'[' if np.isfinite(low) else '('}{low:g}, {high:g}{']' if np.isfinite(high) else ')'}"


def build_likelihood(likelihood, X, columns=None):
    """The likelihood for the columns of X; a module of the user's is copied.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class with ``from_data``
        From `choose_likelihood`.
    X : ndarray of shape (n, d), or Table
    columns : Columns, optional
        What is known of the columns of X.

    Raises
    ------
    TypeError
        If what a class makes is not a module with the methods of a likelihood.
    ValueError
        If what a class makes can not produce X, or if all values of a feature are missing.
    """
    columns = Columns(X) if columns is None else columns
    columns.check_seen()
    if isinstance(likelihood, nn.Module):
        return for_missing(copy.deepcopy(likelihood), columns)
    kind = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
    built = kind.from_data(columns)
    if not isinstance(built, nn.Module):
        raise TypeError(f"{kind.__name__}.from_data should make a torch.nn.Module, but made {built!r}.")
    check_required_methods(built, REQUIRED_METHODS)
    check_support(built, X, columns)
    return for_missing(built, columns)


def for_missing(likelihood, columns):
    """The likelihood, or if values are missing, one that leaves them out.

    Raises
    ------
    TypeError
        If it can not.
    """
    if isinstance(likelihood, MaskedLikelihood) or not columns.n_missing:
        return likelihood
    if not hasattr(likelihood, "feature_log_prob"):
        raise TypeError(
            f"X has missing values, but likelihood={likelihood_name(likelihood)} has no feature_log_prob, which tells "
            "how likely each value is; add it, or fill in the missing values."
        )
    return MaskedLikelihood(likelihood)


def check_required_methods(likelihood, verbs):
    """Raise if something that a likelihood needs is missing."""
    missing = [verb for verb in verbs if not hasattr(likelihood, verb)]
    if missing:
        raise TypeError(f"likelihood={likelihood_name(likelihood)} lacks {', '.join(missing)}; add what is missing.")


def stored_rows(likelihood, X, device):
    """Return the rows to train on: standardised in float32, or whole numbers of one byte as they are (not on mps).

    They are on the device if they take at most half of its free memory, else on the CPU. Rows of a table are read
    when they are needed.
    """
    likelihood = copy.deepcopy(likelihood).cpu()  # which may have been trained on a device
    in_units = device.type == "mps"  # which has no float64 to standardise in
    if isinstance(X, Table):
        return RowSource(len(X), lambda rows: _stored(likelihood, torch.from_numpy(X[rows]), in_units), X.run_length)
    rows = _stored(likelihood, to_tensor(X, None, "cpu"), in_units)
    if device.type == "cuda" and rows.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return rows
    return rows.to(device)


def _stored(likelihood, rows, in_units):
    if not (in_units or rows.is_floating_point()):
        return rows
    with torch.no_grad():
        return likelihood.standardize(rows).to(torch.float32)
