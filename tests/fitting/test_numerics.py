"""Accuracy of EM: TorchGMM and scikit-learn's GaussianMixture against the same iterations in extended precision.

The error is that of the covariances after the same iterations from the same start, relative in the Frobenius norm, of
the worst component. ``python tests/fitting/test_numerics.py`` prints it for every case and covariance type.
"""

import warnings

import numpy as np
import pytest
from helpers import full_covariances
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from skvae import TorchGMM
from skvae.models import COVARIANCES

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="A long double has no more digits than a double here."
)
N_ROWS, N_FEATURES, K, N_ITERATIONS = 450, 4, 3, 12
SKLEARN_TYPES = ("full", "tied", "diag", "spherical")
# Largest errors. In float64 1e-12 is rounding; rows of clusters that are tight for their distance have lost the digits
# of the distance when they are taken about one centre; the responsibilities are known no better than the covariances.
FLOOR = {np.float64: 1e-12, np.float32: 2e-5}
LIMITS = {
    (np.float64, "tight, std/separation 1e-5"): 1e-11,
    (np.float64, "collinear, condition 1e12", "full"): 1e-8,
    (np.float64, "collinear, condition 1e12", "tied"): 1e-8,
    (np.float32, "tight, std/separation 1e-3"): 1e-4,
    (np.float32, "tight, std/separation 1e-5"): 5e-3,
}


def overlapping(scales, seed=0):
    """Three overlapping clusters whose covariances have these square roots of eigenvalues, and their centres."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(N_FEATURES, N_FEATURES)))[0]
    centers = 3 * rng.normal(size=(K, N_FEATURES))
    shapes = rng.uniform(0.5, 1.5, size=(K, N_FEATURES))
    noise = rng.normal(size=(K, N_ROWS // K, N_FEATURES))
    X = (centers[:, None] + noise * shapes[:, None]).reshape(N_ROWS, N_FEATURES)
    return X * scales @ rotation, centers * scales @ rotation


def tight(ratio, seed=0):
    """Three clusters with this ratio of their standard deviation to their distance."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(K, N_FEATURES))
    mixing = ratio * np.linalg.qr(rng.normal(size=(N_FEATURES, N_FEATURES)))[0] * [1.0, 0.7, 0.5, 0.3]
    noise = rng.normal(size=(K, N_ROWS // K, N_FEATURES)) @ mixing.T
    return (centers[:, None] + noise).reshape(N_ROWS, N_FEATURES), centers


def offset(location, scale):
    """Overlapping clusters of this size, this far from the origin."""
    X, centers = overlapping(np.ones(N_FEATURES))
    return location + scale * X, location + scale * centers


CASES = {
    "well conditioned": lambda: overlapping(np.ones(N_FEATURES)),
    "mean 1e4, std 1e-2": lambda: offset(1e4, 1e-2),
    "collinear, condition 1e6": lambda: overlapping(np.array([1.0, 1.0, 1.0, 1e-3])),
    "collinear, condition 1e12": lambda: overlapping(np.array([1.0, 1.0, 1.0, 1e-6])),
    "tight, std/separation 1e-3": lambda: tight(1e-3),
    "tight, std/separation 1e-5": lambda: tight(1e-5),
}


def cholesky(matrices):
    """Lower Cholesky factors in the precision of the matrices."""
    lower = np.zeros_like(matrices)
    for j in range(matrices.shape[-1]):
        column = matrices[:, j:, j] - (lower[:, j:, :j] @ lower[:, j, :j, None])[..., 0]
        lower[:, j:, j] = column / np.sqrt(column[:, :1])
    return lower


def solve_lower(lower, columns):
    """Solve lower triangular systems for the columns (d, n), in their precision."""
    solution = np.zeros_like(columns)
    for i in range(len(columns)):
        solution[i] = (columns[i] - lower[i, :i] @ solution[:i]) / lower[i, i]
    return solution


def pool(scatter, weight, covariance_type):
    """Covariances (k, d, d) of a type from the scatter of each component about its mean."""
    if "tied" in covariance_type:
        scatter, weight = np.broadcast_to(scatter.sum(0), scatter.shape), np.broadcast_to(weight.sum(), weight.shape)
    covariances = scatter / weight[:, None, None]
    if covariance_type in ("full", "tied"):
        return covariances
    variances = covariances.diagonal(axis1=1, axis2=2)
    if "spherical" in covariance_type:
        variances = np.broadcast_to(variances.mean(1, keepdims=True), variances.shape)
    return variances[:, :, None] * np.eye(scatter.shape[1], dtype=scatter.dtype)


def reference(X, centers, precision, covariance_type):
    """Covariances (k, d, d) after EM in extended precision, and its lower bounds."""
    X, means = X.astype(np.longdouble), centers.astype(np.longdouble)
    weights = np.full(K, np.longdouble(1) / K)
    covariances = np.stack([np.eye(X.shape[1], dtype=np.longdouble) / np.longdouble(precision)] * K)
    bounds = []
    for _ in range(N_ITERATIONS):
        log_density = []
        for weight, mean, lower in zip(weights, means, cholesky(covariances), strict=True):
            squares = (solve_lower(lower, (X - mean).T) ** 2).sum(0)
            log_det = 2 * np.log(lower.diagonal()).sum() + X.shape[1] * np.log(2 * np.longdouble(np.pi))
            log_density.append(np.log(weight) - (squares + log_det) / 2)
        log_density = np.stack(log_density, 1)
        evidence = np.logaddexp.reduce(log_density, axis=1)
        bounds.append(evidence.mean())
        resp = np.exp(log_density - evidence[:, None])
        total = resp.sum(0)
        weights, means = total / len(X), (resp.T @ X) / total[:, None]
        residuals = X - means[:, None]
        scatter = (residuals * resp.T[:, :, None]).swapaxes(1, 2) @ residuals
        covariances = pool(scatter, total, covariance_type)
    return covariances, np.array(bounds)


def published_covariances(gmm, covariance_type):
    """Return the covariances of all components, (K, N_FEATURES, N_FEATURES), in extended precision."""
    return full_covariances(gmm.covariances_.astype(np.longdouble), covariance_type, K, N_FEATURES)


def error(found, expected):
    """Largest relative error of a component, in the Frobenius norm."""
    norms = np.linalg.norm((found - expected).astype(float), axis=(1, 2))
    return float((norms / np.linalg.norm(expected.astype(float), axis=(1, 2))).max())


def errors(case, covariance_type, dtype=np.float64):
    """Errors of the covariances of TorchGMM and scikit-learn, and of our lower bounds; infinite where a fit fails."""
    X, centers = CASES[case]()
    X, centers = X.astype(dtype), centers.astype(dtype)
    width = {"tight, std/separation 1e-3": 1e-3, "tight, std/separation 1e-5": 1e-5, "mean 1e4, std 1e-2": 1e-2}
    precision = 1 / width.get(case, 1.0) ** 2
    expected, bounds = reference(X, centers, precision, covariance_type)
    given = {
        "weights_init": np.full(K, 1 / K, dtype),
        "means_init": centers,
        "precisions_init": np.full(COVARIANCES[covariance_type].compact_shape(K, N_FEATURES), precision, dtype),
    }
    if covariance_type in ("full", "tied"):
        given["precisions_init"] = given["precisions_init"] * np.eye(N_FEATURES, dtype=dtype)
    options = {"covariance_type": covariance_type, "reg_covar": 0.0, "tol": 0.0, "max_iter": N_ITERATIONS, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # of scikit-learn, where it fails
        ours = TorchGMM(K, **options).fit(X)
        found = {"ours": error(published_covariances(ours, covariance_type), expected), "theirs": np.inf}
        if covariance_type in SKLEARN_TYPES:
            try:
                theirs = GaussianMixture(K, **options).fit(X)
            except ValueError:
                pass
            else:
                found["theirs"] = error(published_covariances(theirs, covariance_type), expected)
    n_iter = len(ours.lower_bounds_)
    found["bound"] = float(np.abs(np.array(ours.lower_bounds_) - bounds[:n_iter]).max())
    return found | {"n_iter": n_iter, "n_regularized": ours.n_regularized_}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
@pytest.mark.parametrize("case", CASES)
def test_digits(case, covariance_type, dtype):
    found = errors(case, covariance_type, dtype)
    limit = LIMITS.get((dtype, case, covariance_type), LIMITS.get((dtype, case), FLOOR[dtype]))
    assert found["n_iter"] == N_ITERATIONS
    assert found["ours"] <= limit
    assert found["bound"] <= 10 * limit
    assert np.isinf(limit) or found["n_regularized"] == 0
    if dtype == np.float64 and covariance_type in SKLEARN_TYPES:
        assert found["theirs"] < 1e-9 or found["ours"] < found["theirs"] / 100, "scikit-learn has as many digits"


@pytest.mark.parametrize("covariance_type", SKLEARN_TYPES)
def test_reference_is_scikit_learn_where_that_is_exact(covariance_type):
    assert errors("well conditioned", covariance_type)["theirs"] < 1e-13


if __name__ == "__main__":
    for dtype in (np.float64, np.float32):
        for case in CASES:
            for covariance_type in COVARIANCES:
                print(f"{dtype.__name__:9}{case:28}{covariance_type:16}", errors(case, covariance_type, dtype))
