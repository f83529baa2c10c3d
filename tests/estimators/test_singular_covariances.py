"""Singular covariances, as of dependent columns, are regularized and reported, on every processor."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skvae import TorchGMM

DEPENDENT = {
    "a copy": lambda X: np.column_stack([X, X[:, 0]]),
    "three copies": lambda X: np.column_stack([X, X[:, [0, 0, 1]]]),
    "other units": lambda X: np.column_stack([X, 3.7 * X[:, 0]]),
    "other units and an offset": lambda X: np.column_stack([X, 1.8 * X[:, 0] + 32]),
    "a sum": lambda X: np.column_stack([X, X[:, 0] + X[:, 1] - X[:, 2]]),
    "a constant": lambda X: np.column_stack([X, np.full(len(X), 0.1)]),
}
over_dependent = pytest.mark.parametrize("case", DEPENDENT)
over_seeds = pytest.mark.parametrize("seed", range(3))


def groups(seed, n_features=3):
    """Rows of two groups."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(60, n_features)), rng.normal(size=(40, n_features)) + 8])


def warned(X, **parameters):
    """A fitted mixture, and whether it warned of singular covariances."""
    parameters = {"reg_covar": 0.0, "random_state": 0, "max_iter": 100} | parameters
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gmm = TorchGMM(2, **parameters).fit(X)
    texts = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
    return gmm, any("singular" in text and "Increase reg_covar" in text for text in texts)


def assert_regularized(gmm, X):
    """The remaining components are a mixture."""
    assert np.isfinite(gmm.score_samples(X)).all()
    np.testing.assert_allclose(gmm.predict_proba(X).sum(1), 1, rtol=1e-5)
    assert (np.diagonal(gmm.covariances_, axis1=-2, axis2=-1) > 0).all()


@over_dependent
@over_seeds
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
@pytest.mark.parametrize(("unit", "reg_covar"), [(1.0, 0.0), (1e-6, 0.0), (1e6, 1e-8)])
def test_dependent_columns_are_reported(case, seed, covariance_type, unit, reg_covar):
    X = DEPENDENT[case](groups(seed)) * unit
    gmm, was_warned = warned(X, covariance_type=covariance_type, reg_covar=reg_covar)
    enough = case == "a constant" and reg_covar > 0  # a variance of its own, however small beside the others
    assert was_warned == (not enough)
    assert (gmm.n_regularized_ > 0) == (not enough)
    assert_regularized(gmm, X)


@over_dependent
@over_seeds
def test_dependent_columns_are_reported_in_float32(case, seed):
    X = DEPENDENT[case](groups(seed)).astype(np.float32)
    X[:, 3] = X[:, 0] if "cop" in case else X[:, 3]  # others are rounded
    gmm, was_warned = warned(X)
    if "cop" in case or case == "a constant":
        assert was_warned
        assert gmm.n_regularized_ > 0
    assert_regularized(gmm, X)


@pytest.mark.parametrize("case", ["a copy", "three copies", "other units"])
@over_seeds
def test_dependent_columns_are_reported_where_values_are_missing(case, seed):
    X = groups(seed)
    X[np.random.default_rng(seed).uniform(size=X.shape) < 0.1] = np.nan
    X = DEPENDENT[case](X)  # missing in both columns
    gmm, was_warned = warned(X, tol=1e-2)
    assert was_warned
    assert gmm.n_regularized_ > 0
    assert np.isfinite(gmm.score_samples(X)).all()
    assert np.isfinite(gmm.impute(X)).all()


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "tied_diag", "tied_spherical"])
@over_seeds
def test_copies_are_regular_without_correlations(covariance_type, seed):
    gmm, was_warned = warned(DEPENDENT["three copies"](groups(seed)), covariance_type=covariance_type)
    assert not was_warned
    assert gmm.n_regularized_ == 0


@over_seeds
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_distinct_columns_are_not_regularized(seed, unit, noise):
    """A thousandth of a standard deviation is no rounding error."""
    X = groups(seed)
    X = np.column_stack([X, X[:, 0] + noise * np.random.default_rng(seed + 10).normal(size=len(X))]) * unit
    gmm, was_warned = warned(X)
    assert not was_warned
    assert gmm.n_regularized_ == 0


@over_dependent
def test_enough_regularization_does_not_warn(case):
    gmm, was_warned = warned(DEPENDENT[case](groups(0)), reg_covar=1e-2)
    assert not was_warned
    assert gmm.n_regularized_ == 0
