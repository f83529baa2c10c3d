"""Errors of scikit-learn's validation, with the columns or the images that they are about."""

import math
from numbers import Real

import numpy as np

from ..models.networks import has_channels_last
from .labels import is_missing

MAX_NAMED = 10  # columns in an error


def explained(error, X, estimator):
    """Return a copy of an error about X with the columns or images that it is about, or the error itself.

    Parameters
    ----------
    error : ValueError or TypeError
        Error that scikit-learn's validation raised.
    X : object
        Input of the user.
    estimator : estimator
        It may have a parameter ``image_shape``.
    """
    if getattr(X, "ndim", 2) == 2:
        return name_columns(error, X)
    has_shape = getattr(estimator, "image_shape", None) is not None  # so that the error is about it
    if has_shape or X.ndim not in (3, 4) or not isinstance(error, ValueError):
        return error
    shape = tuple(X.shape[1:])
    advice = f"image_shape={shape}, or " if hasattr(estimator, "image_shape") else ""
    if advice and has_channels_last(shape):
        advice = f"image_shape={(shape[-1], *shape[:-1])} and np.moveaxis(X, -1, 1), or "
    return ValueError(f"{error} If they are images, give {advice}rows: X.reshape({len(X)}, {math.prod(shape)}).")


def name_columns(error, X):
    """Return a copy of an error about values of X that names their columns, or the error itself if all are wrong."""
    try:
        is_wrong, advice = WRONG_COLUMNS[next(part for part in WRONG_COLUMNS if part in str(error))]
        has_names = hasattr(X, "columns") and not callable(X.columns)
        names = list(X.columns) if has_names else list(range(X.shape[1]))
        by_place = getattr(X, "iloc", X)  # names may occur twice
        wrong = [name for place, name in enumerate(names) if is_wrong(np.asarray(by_place[:, place]))]
    except Exception:  # of an input of any type; its error is what matters
        return error
    if not wrong or (len(wrong) == len(names) and not has_names):
        return error
    more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
    cls = TypeError if isinstance(error, TypeError) else ValueError  # NumPy has classes of its own
    return cls(f"{str(error).rstrip('.')}. Column(s) {wrong[:MAX_NAMED]}{more} of X {advice}.")


def holds_no_numbers(column):
    """Return whether a column, apart from missing values, is not of numbers and cannot be converted to them."""
    if column.dtype.kind in "biufc":
        return False
    if column.dtype.kind in "Mm":
        return True
    try:
        column[~is_missing(column)].astype(np.float64)
    except (ValueError, TypeError):
        return True
    return False


def holds_infinity(column):
    """Return whether a value of a column is infinite."""
    if column.dtype.kind == "O":
        return any(isinstance(value, Real) and math.isinf(value) for value in column.tolist())
    return column.dtype.kind in "fc" and bool(np.isinf(column).any())


# Parts of errors, how to find the columns that they are about, and advice.
WRONG_COLUMNS = {
    "infinity": (holds_infinity, "hold infinite values; replace them"),
    **dict.fromkeys(
        ("could not convert", "could not be promoted", "array element with a sequence", "argument must be"),
        (holds_no_numbers, "hold no numbers; encode them (OneHotEncoder, OrdinalEncoder), or leave them out"),
    ),
}
