"""Labels of which some are missing."""

from numbers import Integral

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils.multiclass import check_classification_targets


def labelled_rows(y, unlabelled):
    """Indices of the labelled rows, their labels, and the value that marks the others beside NaN and None (or None).

    Raises
    ------
    ValueError
        If there are rows, but none is labelled, or if the labels are no classes.
    """
    if y is None:
        raise ValueError("ClusterLabelClassifier requires y to be passed, but the target y is None.")
    if hasattr(y, "to_numpy") and not isinstance(getattr(y, "dtype", None), (np.dtype, type(None))):
        y = np.asarray(y, dtype=object)  # of pandas' own kinds; integers among missing values would become floats
    y = column_or_1d(y, warn=True)
    rows = np.flatnonzero(~is_missing(y))
    labels = y[rows]
    if y.dtype.kind == "O" and len(labels) and all(isinstance(label, Integral) for label in labels):
        labels = np.array(labels.tolist())
    mark = unlabelled
    if mark == "auto":
        mark = -1 if labels.dtype.kind == "i" and set(np.unique(labels)) != {-1, 1} else None
    if mark is not None:
        kept = labels.astype(object) != mark
        rows, labels = rows[kept], labels[kept]
    if len(y) and not len(labels):
        marks = "None or NaN" if mark is None else f"None, NaN or {mark!r}"
        raise ValueError(f"y has no labelled row: all {len(y)} are {marks}; give the class of at least one row.")
    return rows, labels, mark


def is_missing(labels):
    """Which labels are NaN or None."""
    if labels.dtype.kind == "f":
        return np.isnan(labels)
    if labels.dtype.kind != "O":
        return np.zeros(len(labels), dtype=bool)
    missing = (label is None or is_scalar_nan(label) or is_pandas_na(label) for label in labels)
    return np.fromiter(missing, dtype=bool, count=len(labels))


def sorted_classes(labels):
    """Distinct labels in sorted order, and the position of each label among them.

    Raises
    ------
    ValueError
        If they are no classes, but for example real numbers.
    TypeError
        If they can not be sorted.
    """
    assert_all_finite(labels, input_name="y")
    try:
        if len(labels):
            check_classification_targets(labels)
        return np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise TypeError(f"y has labels of the types {kinds}; they should be all strings or all numbers.") from error
