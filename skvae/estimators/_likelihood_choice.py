"""The choice of a likelihood: by its name, or a user's object, with checks of its support.

Users' objects are modules with the methods of a likelihood, or classes with ``from_data``.
"""

import copy
import warnings

import numpy as np
import torch
from torch import nn

from ..data.arrays import float_dtype, tensor_dtype, to_tensor
from ..data.columns import Columns
from ..data.messages import meant, shown
from ..data.samples import ConditionedSamples, clip_samples, features_of, is_lazy, streamed
from ..fitting.distributed import current_group
from ..fitting.warnings import warn
from ..models import LIKELIHOODS, Counts, MaskedLikelihood, MixedLikelihood, NegativeBinomial, Support
from ..models.features import Likelihood
from ..models.mixed import ColumnLikelihoods

MAX_EXCESS, MAX_FRACTION = 1e-3, 0.1  # beyond a bound, or a whole number, that rounding may explain
REQUIRED_METHODS = ("support", "n_inputs", "n_outputs", "standardize", "inputs", "log_prob", "mean", "sample")


def choose_likelihood(likelihood, columns):
    """Resolve "auto" by the ranges of the data, and check other names and objects.

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


def hint_at_counts(estimator, likelihood, columns):
    """Warn if "auto" has chosen a likelihood of measurements for counts."""
    is_auto = isinstance(estimator.likelihood, str) and estimator.likelihood == "auto" and estimator.image_shape is None
    is_gaussian = isinstance(likelihood, str) and likelihood == "gaussian"
    if is_auto and is_gaussian and columns.look_like_counts() and current_group().rank == 0:
        warn(
            f"X holds counts (whole numbers from {np.nanmin(columns.ranges.low):g} to "
            f"{np.nanmax(columns.ranges.high):g} with a long tail), for which likelihood='auto' takes 'gaussian': "
            "likelihood='negative_binomial' (or 'poisson') models them; give 'gaussian' by name if it is meant."
        )


def likelihood_name(likelihood):
    """Return the name of a likelihood, or that of its class if it is not registered."""
    if isinstance(likelihood, str):
        return likelihood
    if isinstance(likelihood, MaskedLikelihood):
        return likelihood_name(likelihood.likelihood)
    if isinstance(likelihood, ColumnLikelihoods) and len(likelihood.groups) == 1:
        return likelihood_name(likelihood.groups[0].likelihood)
    if isinstance(likelihood, ColumnLikelihoods | MixedLikelihood):
        return "mixed"
    cls = likelihood if isinstance(likelihood, type) else type(likelihood)
    return next((name for name, registered in LIKELIHOODS.items() if registered is cls), cls.__name__)


def check_support(likelihood, X, columns=None):
    """Return X, with rounding beyond the support of a likelihood clipped.

    Parameters
    ----------
    likelihood : str, torch.nn.Module or class
        A fitted module has the categories of the training data in its support.
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
    columns : Columns, optional
        Ranges and moments of the columns of X.

    Raises
    ------
    ValueError
        If there are values outside the support.
    """
    columns, n_features = Columns(X) if columns is None else columns, features_of(X).shape[1]
    is_beyond, low, high = False, np.full(n_features, -np.inf), np.full(n_features, np.inf)
    for part, features in column_groups(likelihood, n_features):
        selected = columns if features == list(range(n_features)) else columns.select(features)
        try:
            bounds = check_values(part, selected)
        except ValueError as error:
            if selected is columns:
                raise
            raise ValueError(f"Column(s) {selected.named(range(len(features)))} of X: {error}") from None
        if bounds is not None:
            low[features], high[features] = bounds
            smallest, largest = selected.ranges.low, selected.ranges.high
            is_beyond = is_beyond or (smallest < bounds[0]).any() or (largest > bounds[1]).any()
    return clip_samples(X, low, high) if is_beyond else X


def column_groups(likelihood, n_features):
    """Return pairs of a likelihood and the indices of its features."""
    if isinstance(likelihood, MaskedLikelihood):
        return column_groups(likelihood.likelihood, n_features)
    if isinstance(likelihood, ColumnLikelihoods):
        return likelihood.groups
    if isinstance(likelihood, MixedLikelihood):
        return list(zip(likelihood.likelihoods, likelihood.features, strict=True))
    return [(likelihood, list(range(n_features)))]


def check_values(likelihood, columns):
    """Raise if columns have values outside the support of a likelihood; return its bounds, None if it has none.

    Rounding beyond the bounds is no error.
    """
    name = likelihood_name(likelihood)
    # A class of the user's may give its support to its instances only, which are checked when they are built.
    support = Support(*getattr(LIKELIHOODS[name] if isinstance(likelihood, str) else likelihood, "support", ()))
    low, high = bounds_of(support)
    if support.integers:
        check_integers(name, low, high, columns)
        return None
    if not np.isfinite(low).any() and not np.isfinite(high).any():
        return None
    smallest, largest = columns.ranges.low, columns.ranges.high
    if not all_within(support, columns):
        beyond = max(float(np.nanmax(low - smallest)), float(np.nanmax(largest - high)))
        clip = f" clip X (np.clip) if {beyond:.2g} beyond the bound is rounding," if beyond < MAX_EXCESS else ""
        raise ValueError(
            f"likelihood={name!r} needs values in {interval(low, high)}, but X has values from "
            f"{shown(np.nanmin(smallest), *low.flat)} to {shown(np.nanmax(largest), *high.flat)}; scale X "
            f"(MinMaxScaler(clip=True) keeps new rows inside),{clip} or use likelihood='gaussian'."
        )
    return low, high


def check_integers(name, low, high, columns):
    """Raise if there are values that are not whole numbers from low to high."""
    smallest, largest, fraction, off, _, _ = columns.ranges
    if fraction is not None:
        advice = "round X (np.rint) if it should be counts"
        advice = f"{advice}." if off < MAX_FRACTION else f"use likelihood='gaussian' for measurements, or {advice}."
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
        limit, value = np.broadcast_to(high, len(largest))[feature], largest[feature]
        raise ValueError(
            f"likelihood={name!r} has the categories of the training data alone, up to {shown(limit, value)} in "
            f"feature {columns.named([feature])[0]!r}, but X has {shown(value, limit)} there; fit with samples of this "
            "category, or leave such samples out."
        )


def all_within(support, columns):
    """Return whether all values are within the support, up to the rounding of a scaler."""
    low, high = columns.ranges.low, columns.ranges.high
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows to predict may have no value in any feature
        widest = max(-float(np.nanmin(low)), float(np.nanmax(high)))
    slack = 8 * np.finfo(float_dtype(columns.dtype)).eps * min(1.0, widest)
    return not (low < np.subtract(support.low, slack)).any() and not (high > np.add(support.high, slack)).any()


def bounds_of(support):
    """Return the bounds of a support as float64 arrays, 0-d or with a number for each feature."""
    return np.asarray(support.low, dtype=np.float64), np.asarray(support.high, dtype=np.float64)


def outside_counter(likelihood, dtype, unknown=None):
    """Return a function that counts rows (b, d) outside the support of a likelihood, with a value of such a row.

    Missing values, values that stand for unknown categories (d,), and rounding of a dtype beyond the bounds, do not
    count. None if the support is unbounded.
    """
    support = Support(*getattr(likelihood, "support", ()))
    low, high = bounds_of(support)
    integers = torch.as_tensor(support.integers)
    if not integers.any() and not np.isfinite(low).any() and not np.isfinite(high).any():
        return None
    slack = 8 * np.finfo(float_dtype(dtype)).eps
    low, high = torch.as_tensor(low - slack), torch.as_tensor(high + slack)
    alike = low.ndim == high.ndim == 0 and not integers.any()
    unknown = None if unknown is None else torch.as_tensor(unknown)

    def count(x):
        if alike:  # one pass over the rows is enough if all are within, as nearly always
            smallest, largest = torch.stack(x.aminmax()).tolist()
            if smallest >= low and largest <= high:
                return 0, None
        is_outside = (x < low.to(x)) | (x > high.to(x))
        if integers.any():
            is_outside |= ((x.round() - x).abs() > 0) & integers.to(x.device)
        if unknown is not None:
            is_outside &= x != unknown.to(x)
        n_outside = int(is_outside.any(1).sum())
        return n_outside, np.dtype(dtype).type(float(x[is_outside][0])) if n_outside else None

    return count


def warn_of_outside(likelihood, counts, n_rows):
    """Warn of samples outside the support of a likelihood, if there are any; see `outside_counter`."""
    n_outside = sum(n for n, _ in counts)
    if not n_outside:
        return
    example = next(value for n, value in counts if n)
    support, name = Support(*likelihood.support), likelihood_name(likelihood)
    low, high = bounds_of(support)
    if isinstance(support.integers, tuple):
        values, advice = "that of the likelihood of each feature", "."
    elif support.integers:
        largest = f" to {high:g}" if high.ndim == 0 else " to the largest that each feature has in its support"
        values = f"whole numbers from {low.max():g}{largest if np.isfinite(high).any() else ''}"
        advice = "." if example == np.rint(example) else "; np.rint makes counts of values that rounding has changed."
    else:
        values, advice = f"values in {interval(low, high)}", " (MinMaxScaler(clip=True) keeps new rows inside)."
    value = shown(example, np.rint(example), *low.flat, *high.flat)
    warn(
        f"{n_outside} of {n_rows} samples of X have values outside the support of likelihood={name!r}, such as "
        f"{value}: its support is {values}, and the networks were not trained on others. Prepare X as in training"
        f"{advice}"
    )


def interval(low, high):
    """Return bounds as text."""
    if low.ndim or high.ndim:
        return "the support of each feature"
    return f"{'[' if np.isfinite(low) else '('}{low:g}, {high:g}{']' if np.isfinite(high) else ')'}"


def build_likelihood(likelihood, X, columns=None, size_factors=None):
    """Return the likelihood for the columns of X; a module of the user's is copied.

    Parameters
    ----------
    likelihood : str, torch.nn.Module, class with ``from_data``, or ColumnLikelihoods
        From `choose_likelihood` or `choose_column_likelihoods`.
    X : ndarray of shape (n, d), or LazySamples
    columns : Columns, optional
        Ranges and moments of the columns of X.
    size_factors : {"total", "given"}, optional
        Size factors of counts.

    Raises
    ------
    TypeError
        If a class makes an object that is not a module with the methods of a likelihood.
    ValueError
        If X is outside the support, if all values of a feature are missing, or if there are size factors, but no counts
        or missing ones.
    """
    columns = Columns(X) if columns is None else columns
    columns.check_observed()
    if isinstance(likelihood, ColumnLikelihoods):
        built = likelihood.build(columns, build_for_columns)
    else:
        built = build_for_columns(likelihood, columns)
    if not isinstance(likelihood, nn.Module):
        check_support(built, X, columns)
    if size_factors is not None:
        set_size_factors(built, columns, size_factors)
    return for_missing(built, columns)


def set_size_factors(likelihood, columns, source):
    """Multiply the rates of counts by size factors: the totals of samples, or those that are given.

    Raises
    ------
    ValueError
        If there are no counts, if some are missing, or if size factors are given and there are other columns.
    """
    groups = column_groups(likelihood, len(columns.ranges.low))
    counts = [each for each, _ in groups if isinstance(each, Counts)]
    if not counts or (source == "given" and len(groups) > 1):
        what = (
            "size_factor='total' is for counts" if source == "total" else "size_factors are for counts in all columns"
        )
        raise ValueError(
            f"{what}, but likelihood={likelihood_name(likelihood)!r}; give 'negative_binomial', "
            "'zero_inflated_negative_binomial' or 'poisson', or no size factors."
        )
    for each in counts:
        each.size_factors = source
    check_totals(likelihood, columns)


def set_dispersions(likelihood, n_features):
    """Let dispersions of counts be shifted; return for how many features.

    Raises
    ------
    ValueError
        If not all columns are counts with dispersions.
    """
    counts = likelihood.likelihood if isinstance(likelihood, MaskedLikelihood) else likelihood
    if not isinstance(counts, NegativeBinomial):
        raise ValueError(
            f"dispersion='covariates' is for counts in all columns, but likelihood={likelihood_name(likelihood)!r}; "
            "give 'negative_binomial' or 'zero_inflated_negative_binomial', or dispersion='feature'."
        )
    counts.has_shifts = True
    return n_features


def has_size_factors(likelihood):
    """Return whether a likelihood multiplies the rates of counts by size factors."""
    return any(getattr(part, "size_factors", None) is not None for part in likelihood.modules())


def check_totals(likelihood, columns):
    """Raise if counts with size factors are missing."""
    for each, features in column_groups(likelihood, len(columns.ranges.low)):
        if getattr(each, "size_factors", None) is not None and columns.select(features).n_missing:
            raise ValueError(
                "Size factors need the counts of all features, but X has missing values among them; fill them in, or "
                "leave size factors out."
            )


def build_for_columns(likelihood, columns):
    """Return the likelihood of columns: a copy of a module, or what a class, or the class of a name, makes of them."""
    if isinstance(likelihood, nn.Module):
        return copy.deepcopy(likelihood)
    cls = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
    built = cls.from_data(columns)
    if not isinstance(built, nn.Module):
        raise TypeError(f"{cls.__name__}.from_data should make a torch.nn.Module, but made {built!r}.")
    check_required_methods(built, REQUIRED_METHODS)
    return built


def for_missing(likelihood, columns):
    """Return the likelihood, or if values are missing, that of the observed values.

    Raises
    ------
    TypeError
        If it has no likelihood of single values.
    """
    if isinstance(likelihood, MaskedLikelihood) or not columns.n_missing:
        return likelihood
    if not hasattr(likelihood, "feature_log_prob"):
        raise TypeError(
            f"X has missing values, but likelihood={likelihood_name(likelihood)} has no feature_log_prob, the log-"
            "likelihood of each value; add it, or fill in the missing values."
        )
    return MaskedLikelihood(likelihood)


def check_required_methods(likelihood, names):
    """Raise if a likelihood lacks one of these methods or attributes."""
    missing = [name for name in names if not hasattr(likelihood, name)]
    inherited = getattr(type(likelihood), "log_prob", None) is Likelihood.log_prob  # the sum of feature_log_prob
    if inherited and not hasattr(likelihood, "feature_log_prob"):
        missing.append("log_prob")
    if missing:
        raise TypeError(f"likelihood={likelihood_name(likelihood)} lacks {', '.join(missing)}; add what is missing.")


def stored_rows(likelihood, X, device):
    """Return the rows to train on: standardized in float32, or whole numbers of one byte as they are (not on mps).

    They are on the device if they take at most half of its free memory, else on the CPU. Lazy samples are read, and
    standardized, when they are needed.
    """
    likelihood = copy.deepcopy(likelihood).cpu()  # which may have been trained on a device
    n_features = features_of(X).shape[1]

    def standardize(rows):
        if not rows.is_floating_point() and device.type != "mps":  # which has no float64 to standardize in
            return rows
        with torch.no_grad():
            u = likelihood.standardize(rows[:, :n_features]).to(torch.float32)
            return u if u.shape == rows.shape else torch.cat([u, rows[:, n_features:].to(u)], 1)

    if is_lazy(X):
        dtype = torch.float64 if isinstance(X, ConditionedSamples) else tensor_dtype(X.dtype)
        is_standardized = dtype.is_floating_point or device.type == "mps"
        return streamed(X, dtype, "cpu").map(standardize, torch.float32 if is_standardized else dtype)
    rows = standardize(to_tensor(X[:] if isinstance(X, ConditionedSamples) else X, None, "cpu"))
    if device.type == "cuda" and rows.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return rows
    return rows.to(device)
