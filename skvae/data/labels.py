"""Class labels, of which some may be missing: lists, arrays, Series of pandas or polars, and tensors."""

from datetime import date
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils._missing import is_pandas_na
from sklearn.utils.multiclass import check_classification_targets

from .arrays import host_array


class Labels(NamedTuple):
    """Labels of the labelled samples."""

    rows: np.ndarray  # (m,), indices of the labelled samples
    values: np.ndarray  # (m,), their labels
    mark: object  # value that marks samples without a label besides None, NaN, NA and NaT, or None
    n_samples: int  # labelled or not


def read_labels(y, unlabelled):
    """Read labels of which some may be missing.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        A list, an array, a Series of pandas or polars, or a tensor. None, NaN, NA and NaT are missing labels.
    unlabelled : "auto", int, str or None
        Further value that marks samples without a label. "auto" is -1 if the labels are integers, unless -1 and 1 are
        the only ones, or if they are text apart from -1.

    Returns
    -------
    labels : Labels

    Raises
    ------
    ValueError
        If y is not one-dimensional.
    """
    y = label_array(y)
    rows = np.flatnonzero(~is_missing(y))
    values = plain(y[rows])
    mark = _automatic_mark(values) if isinstance(unlabelled, str) and unlabelled == "auto" else unlabelled
    if mark is not None and len(values):
        is_label = np.fromiter((value != mark for value in values.tolist()), dtype=bool, count=len(values))
        rows, values = rows[is_label], plain(values[is_label])
    return Labels(rows, values, mark, len(y))


def read_class_labels(y, unlabelled):
    """Read labels for a classifier, which needs one at least, as `read_labels` does.

    Raises
    ------
    ValueError
        If there are samples, but none is labelled, or if y is None or not one-dimensional.
    """
    if y is None:
        raise ValueError("ClusterLabelClassifier requires y to be passed, but the target y is None.")
    labels = read_labels(y, unlabelled)
    if labels.n_samples and not len(labels.rows):
        marks = "None or NaN" if labels.mark is None else f"None, NaN or {labels.mark!r}"
        raise ValueError(
            f"y has no labelled row: all {labels.n_samples} are {marks}; give the class of at least one row."
        )
    return labels


def label_array(y, name="y"):
    """Convert labels to an array (n,), with None for missing ones where the array holds objects.

    Strings and numbers, or integers and NaN, in one list keep their types: NumPy would make all strings, or floats.

    Raises
    ------
    ValueError
        If they are not one-dimensional, or are complex numbers.
    """
    y = host_array(y)
    if isinstance(y, list | tuple):
        y = _array_of_list(y)
    elif hasattr(y, "to_list") and hasattr(y, "to_numpy") and not isinstance(y.dtype, np.dtype):
        # Of dtypes of pandas or polars. As arrays, integers among missing values would become floats.
        y = np.fromiter(y.to_list(), dtype=object, count=len(y))
    elif hasattr(y, "to_numpy") and not isinstance(getattr(y, "dtype", None), np.dtype | None):
        y = np.asarray(y, dtype=object)
    y = y if hasattr(y, "shape") else np.asarray(y)
    if len(y.shape) != 1 and not (len(y.shape) == 2 and y.shape[1] == 1):
        advice = f"; of one-hot rows give {name}.argmax(axis=1)" if len(y.shape) == 2 else ""
        raise ValueError(
            f"{name} should be a 1d array with one class for each row, but got an array of shape {tuple(y.shape)}"
            f"{advice}."
        )
    if getattr(getattr(y, "dtype", None), "kind", None) == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {y.dtype}; give whole numbers or text.")
    y = column_or_1d(y, warn=True)
    if y.dtype.kind == "O" and (missing := is_missing(y)).any():
        y = np.where(missing, None, y)
    return y


def _array_of_list(y):
    """Convert a list of labels to an array: of objects if they are of several types."""
    y = [host_array(label) for label in y]
    objects = np.array([label.item() if _is_scalar_array(label) else label for label in y], dtype=object)
    types = set(map(type, objects.ravel().tolist()))
    nested = objects.ndim != 1 or not types.isdisjoint({list, tuple, np.ndarray})
    return objects if nested or len(types) > 1 else np.array(objects.tolist())


def _is_scalar_array(label):
    return isinstance(label, np.ndarray) and label.ndim == 0


def is_missing(labels):
    """Return a mask of the labels that are NaN, NaT, NA or None."""
    if labels.dtype.kind == "f":
        return np.isnan(labels)
    if labels.dtype.kind in "mM":
        return np.isnat(labels)
    if labels.dtype.kind != "O":
        return np.zeros(len(labels), dtype=bool)
    return np.fromiter(map(_is_missing_object, labels), dtype=bool, count=len(labels))


def _is_missing_object(label):
    """Return whether a label is None, NA, or not equal to itself, as NaN and NaT of every type are not."""
    if label is None or is_pandas_na(label):
        return True
    try:
        return bool(label != label)
    except (TypeError, ValueError):  # no label at all, such as an array
        return False


def plain(labels):
    """Convert labels without missing ones to an array of numbers or dates, if they are objects that all are such."""
    if labels.dtype.kind != "O" or not len(labels):
        return labels
    for number in (Integral, Real):
        if all(isinstance(label, number | np.bool_) for label in labels):
            return np.array([label.item() if isinstance(label, np.generic) else label for label in labels])
    if all(isinstance(label, date) and getattr(label, "tzinfo", None) is None for label in labels):
        return labels.astype("datetime64")
    return labels


def _automatic_mark(values):
    """Return the mark of "auto": see `read_labels`."""
    if values.dtype.kind == "i":
        return -1 if set(np.unique(values)) != {-1, 1} else None
    text = values.dtype.kind == "U" or (values.dtype.kind == "O" and any(isinstance(value, str) for value in values))
    return -1 if text and all(isinstance(value, str) or _is_minus_one(value) for value in values) else None


def _is_minus_one(value):
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and value == -1


def sorted_classes(labels):
    """Return the distinct labels in sorted order, and the position of each label among them.

    Raises
    ------
    ValueError
        If they are not classes, but for example real numbers.
    TypeError
        If they are of several types, or of one that cannot be sorted.
    """
    labels = plain(labels)
    if len(labels):
        check_types(labels)
        _check_numbers(labels)
        check_classification_targets(labels)
    return np.unique(labels, return_inverse=True)


def _check_numbers(labels):
    """Raise if labels are floats that are no integers."""
    assert_all_finite(labels, input_name="y")
    broken = labels[labels != np.rint(labels)] if labels.dtype.kind == "f" else ()
    if len(broken):
        raise ValueError(
            f"Unknown label type: continuous. y holds {float(broken[0])!r}, but classes should be whole numbers or "
            "text; bin measurements first (KBinsDiscretizer), or use a regressor."
        )


def check_types(labels, name="y"):
    """Raise if labels are objects and not all strings."""
    if labels.dtype.kind != "O" or all(isinstance(label, str) for label in labels):
        return
    types = sorted({type(label).__name__ for label in labels})
    if len(types) > 1:
        raise TypeError(f"{name} has labels of the types {types}; they should be all strings or all numbers.")
    raise TypeError(f"{name} has labels of type {types[0]}; they should be strings or numbers.")
