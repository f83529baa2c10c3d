"""Degenerate data lead to a finite model, or to a clear error."""

import re

import numpy as np
import pytest
from helpers import fit_quietly, outputs, over_estimators, some_classes, with_parameter

pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:.* clusters have no labelled row"),
]


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


def with_outlier(size):
    rows = normal(60, 3)
    rows[17] = size
    return rows


TABLES = {
    "constant column": np.column_stack([normal(60, 2), np.full(60, 3.7)]),
    "constant column far away": np.column_stack([normal(60, 2), np.full(60, 1e9)]),
    "duplicated columns": np.repeat(normal(60, 2), 2, axis=1),
    "columns that differ by rounding": np.column_stack([normal(60, 2), normal(60, 2) * (1 + 1e-14)]),
    "two distinct rows": np.repeat(normal(2, 3), 30, axis=0),
    "all rows equal": np.full((60, 3), 0.1),
    "all zeros": np.zeros((60, 3)),
    "more columns than rows": normal(12, 40),
    "as many rows as components": normal(3, 2),
    "one-hot": np.eye(5)[np.arange(60) % 5],
    "one column of ones": np.ones((20, 1)),
    "scale 1e-30": normal(60, 3) * 1e-30,
    "scale 1e-300": normal(60, 3) * 1e-300,
    "scale 1e30": normal(60, 3) * 1e30,
    "scale 1e300": normal(60, 3) * 1e300,
    "largest numbers": np.where(normal(60, 3) > 0, 1, -1) * np.finfo(np.float64).max,
    "mixed scales": normal(60, 4) * [1e-20, 1, 1e6, 1e20],
    "far from zero": normal(60, 3) + 1e12,
    "outlier": with_outlier(1e6),
    "huge outlier": with_outlier(1e20),
    "infinite outlier, almost": with_outlier(1e308),
    "signed zeros": np.where(normal(60, 3) > 0, 0.0, -0.0),
    "steps of a line": np.arange(60.0)[:, None] * [1, 2, 3],
}
SIZES = {"as many rows as components": 2, "one column of ones": 1}


def finite_parts(estimator):
    """Yield fitted arrays and numbers, those of networks and nested estimators included."""
    for name, value in vars(estimator).items():
        if name.endswith("_estimator") or name == "estimator_":
            yield from finite_parts(value)
        elif name == "module_":
            yield from ((name, array.numpy()) for array in value.state_dict().values() if array.is_floating_point())
        elif name.endswith("_") and isinstance(value, np.ndarray | float) and np.asarray(value).dtype.kind == "f":
            yield name, value


def in_range(X):
    """Return whether the squares of the values can be summed in their dtype without overflow or underflow."""
    limits, largest = np.finfo(X.dtype), np.abs(X).max().astype(np.longdouble)
    return largest == 0 or 1e10 * limits.tiny < largest**2 < limits.max / 1e6


def error_of_fit(estimator, X):
    """Fit, and return the text of a ValueError, or None."""
    try:
        fit_quietly(estimator, X, y=some_classes(X))
    except ValueError as error:
        return str(error)
    return None


@over_estimators
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", TABLES)
def test_degenerate_data(estimator, name, dtype):
    estimator = with_parameter(estimator, SIZES.get(name, 2), "n_components", "n_clusters")
    X = TABLES[name]
    if np.abs(X).max() > np.finfo(dtype).max / 100:
        X = X / np.finfo(np.float64).max * np.finfo(dtype).max / 100
    X = X.astype(dtype)
    message = error_of_fit(estimator, X)
    if message is not None:
        assert re.fullmatch(r".*(overflow|not finite; scale|beyond the range of).*", message)
        assert not in_range(X), message
        assert not [attribute for attribute in vars(estimator) if attribute.endswith("_")]
        return
    found = outputs(estimator, X)
    for part, value in [*finite_parts(estimator), *found.items()]:
        assert np.isfinite(value).all(), (part, value)
    if "predict_proba" in found:
        np.testing.assert_allclose(found["predict_proba"].sum(axis=1), 1, rtol=1e-5)
