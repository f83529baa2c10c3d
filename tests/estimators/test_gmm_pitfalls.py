"""Known mistakes of other implementations of Gaussian mixtures."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import fit_quietly, full_covariances
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skvae import TorchGMM
from skvae.models import COVARIANCES

over_all_types = pytest.mark.parametrize("covariance_type", COVARIANCES)
over_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@over_all_types
@pytest.mark.parametrize("n_components", [2, 3, 4])  # fewer than the three features, as many, more
def test_density_is_that_of_the_published_parameters(covariance_type, n_components, correlated):
    gmm = fit_quietly(TorchGMM(n_components, covariance_type=covariance_type, random_state=0), correlated)
    covariances = full_covariances(gmm.covariances_, covariance_type, n_components, 3)
    joint = [
        np.log(weight) + multivariate_normal.logpdf(correlated, mean, covariance)
        for weight, mean, covariance in zip(gmm.weights_, gmm.means_, covariances, strict=True)
    ]
    evidence = logsumexp(joint, axis=0)
    assert_allclose(gmm.score_samples(correlated), evidence, rtol=1e-9)
    assert_allclose(gmm.predict_proba(correlated), np.exp(joint - evidence).T, atol=1e-9)


@over_all_types
@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
def test_float32_far_from_the_origin(covariance_type, offset, correlated):
    """The variance is not a difference of large numbers: only what rounding took from the rows is lost."""
    X = (correlated + offset).astype(np.float32)
    single, double = (
        fit_quietly(TorchGMM(3, covariance_type=covariance_type, random_state=0), rows)
        for rows in (X, X.astype(np.float64))
    )
    assert single.n_regularized_ == double.n_regularized_ == 0
    assert_allclose(single.covariances_, double.covariances_, rtol=1e-3, atol=1e-3)
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, abs=1e-4)
    proba = double.predict_proba(X.astype(np.float64))
    sure = proba.max(1) > 0.75  # the digits that means in float32 have lost decide about others
    assert sure.mean() > 0.5
    assert_array_equal(single.predict(X)[sure], proba[sure].argmax(1))


@over_all_types
@over_dtypes
def test_numbers_out_of_range_are_a_value_error(covariance_type, dtype, correlated):
    """Squares overflow. torch's own errors are not ValueErrors."""
    X = (correlated * (1e200 if dtype == np.float64 else 1e25)).astype(dtype)
    with pytest.raises(ValueError, match=r"components \[.*\] are not finite; scale the input data"):
        TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(X)


@over_all_types
@pytest.mark.parametrize("chunk_size", [1, 240, 599, 600, 10_000])  # 600 rows are two and a half chunks of 240
def test_chunk_size_does_not_change_predictions(covariance_type, chunk_size, correlated):
    gmm = fit_quietly(TorchGMM(3, covariance_type=covariance_type, random_state=0), correlated)
    answers = [gmm.score_samples(correlated), gmm.predict(correlated), gmm.predict_proba(correlated)]
    assert [answer.shape for answer in answers] == [(600,), (600,), (600, 3)]
    gmm.set_params(chunk_size=chunk_size)
    again = [gmm.score_samples(correlated), gmm.predict(correlated), gmm.predict_proba(correlated)]
    for answer, other in zip(answers, again, strict=True):
        assert_allclose(other, answer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cross_validation_selects_the_true_number_of_components(seed):
    """The score is a log-likelihood: higher is better, and more components than there are do not help."""
    X, _ = make_blobs(n_samples=240, centers=3, n_features=2, cluster_std=0.5, random_state=seed + 10)
    search = GridSearchCV(TorchGMM(random_state=0, n_init=5), {"n_components": [1, 2, 3, 5, 8]}, cv=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert search.fit(X).best_params_ == {"n_components": 3}


@over_all_types
@over_dtypes
def test_weights_sum_to_one_and_can_be_sampled(covariance_type, dtype, correlated):
    gmm = TorchGMM(40, covariance_type=covariance_type, init_params="random_from_data", random_state=0)
    fit_quietly(gmm, correlated.astype(dtype))
    assert gmm.weights_.dtype == dtype
    assert (gmm.weights_ > 0).all()
    assert abs(gmm.weights_.sum(dtype=np.float64) - 1) < 4 * np.finfo(dtype).eps
    for n_samples in (1, 2, 39, 1_000):
        X, y = gmm.sample(n_samples)
        assert X.shape == (n_samples, 3)
        assert y.shape == (n_samples,)
        assert set(y) <= set(range(40))


def test_random_state_of_the_estimator_repeats_samples(blobs):
    gmm = TorchGMM(3, random_state=0).fit(blobs[0])
    assert_array_equal(gmm.sample(50)[0], gmm.sample(50)[0])
    gmm.set_params(random_state=np.random.RandomState(0))
    assert not np.array_equal(gmm.sample(50)[0], gmm.sample(50)[0])


def test_attributes_are_those_of_the_best_initialization(correlated):
    """More initializations change the result where, and only where, they increase the lower bound; then all of it."""
    options = {"init_params": "random_from_data", "random_state": 0, "max_iter": 12}
    fits = [fit_quietly(TorchGMM(5, n_init=n, **options), correlated) for n in range(1, 11)]
    gains = np.diff([gmm.lower_bound_ for gmm in fits])
    assert gains.min() > -1e-9
    improved = gains > 1e-9
    assert 0 < improved.sum() < len(improved)
    for gmm in fits:
        assert gmm.converged_ == (np.diff(gmm.lower_bounds_)[-1] < gmm.tol)
    for before, after, better in zip(fits, fits[1:], improved, strict=False):
        if not better:
            assert_allclose(before.lower_bounds_, after.lower_bounds_)
            assert_allclose(before.means_, after.means_)
    for gmm in fits:
        assert gmm.n_iter_ == len(gmm.lower_bounds_)
        assert gmm.lower_bound_ == gmm.lower_bounds_[-1]
        reached = gmm.n_iter_ > 1 and abs(gmm.lower_bounds_[-1] - gmm.lower_bounds_[-2]) < gmm.tol
        assert gmm.converged_ == reached
        one_more = clone(gmm).set_params(warm_start=True, max_iter=1)
        vars(one_more).update({name: value for name, value in vars(gmm).items() if name.endswith("_")})
        gain = fit_quietly(one_more, correlated).lower_bound_ - gmm.lower_bound_
        assert 0 <= gain < max(2 * np.diff(gmm.lower_bounds_)[-1], 1e-6), "the means are not those of the bound"


@over_all_types
@pytest.mark.parametrize("max_iter", [1, 100])
def test_more_initializations_are_never_worse(covariance_type, max_iter):
    gained = 0
    for seed in range(10):
        X = np.random.default_rng(seed).uniform(size=(50, 4))
        options = {"covariance_type": covariance_type, "max_iter": max_iter, "random_state": seed}
        one, ten = (fit_quietly(TorchGMM(3, n_init=n, **options), X).lower_bound_ for n in (1, 10))
        assert ten >= one - 1e-10  # initializations that are fitted together share their products: the last bits differ
        gained += ten > one + 1e-6
    assert gained >= 5


@over_all_types
def test_warm_start_with_other_data(covariance_type, correlated):
    """The lower bound of the old rows does not make a fit to new ones look converged."""
    options = {"covariance_type": covariance_type, "tol": 1e-6, "max_iter": 2_000, "random_state": 0}
    gmm = TorchGMM(3, warm_start=True, **options).fit(correlated)
    new = correlated * 1.5 + [1.0, -1.0, 2.0]
    gmm.fit(new)
    assert gmm.converged_
    assert gmm.n_iter_ > 2
    params = {f"{name}_init": getattr(gmm, f"{name}_") for name in ("weights", "means", "precisions")}
    assert TorchGMM(3, **params, **options).fit(new).lower_bound_ == pytest.approx(gmm.lower_bound_, abs=1e-4)


@over_all_types
@over_dtypes
def test_lower_bound_never_decreases(covariance_type, dtype, correlated):
    gmm = TorchGMM(4, covariance_type=covariance_type, reg_covar=0.0, tol=0.0, random_state=0)
    fit_quietly(gmm, correlated.astype(dtype))
    assert gmm.n_iter_ == 100
    assert np.diff(gmm.lower_bounds_).min() > (-1e-12 if dtype == np.float64 else -1e-5)
    assert gmm.lower_bound_ > gmm.lower_bounds_[0] + 0.01


@over_all_types
def test_initial_precisions_are_unchanged(covariance_type, correlated):
    """The initial parameters of a fit lead to the same fit."""
    options = {"covariance_type": covariance_type, "random_state": 0, "tol": 1e-6, "max_iter": 1_000}
    whole = TorchGMM(3, **options).fit(correlated)
    initial = TorchGMM(3, **options).set_params(max_iter=0).fit(correlated)
    parts = {f"{name}_init": getattr(initial, f"{name}_") for name in ("weights", "means", "precisions")}
    for name, value in parts.items():
        gmm = TorchGMM(3, **{name: value}, **options).fit(correlated)
        assert gmm.n_iter_ == whole.n_iter_, name
        assert_allclose(gmm.precisions_cholesky_, whole.precisions_cholesky_, rtol=1e-7, atol=1e-9, err_msg=name)


@over_all_types
@pytest.mark.parametrize(("n_components", "n_features"), [(1, 3), (2, 3), (3, 3), (4, 2), (2, 1)])
def test_number_of_parameters(covariance_type, n_components, n_features):
    """The criteria count the free parameters of the fitted attributes."""
    X = np.random.default_rng(0).normal(size=(200, n_features)) * np.arange(1, n_features + 1)
    gmm = fit_quietly(TorchGMM(n_components, covariance_type=covariance_type, random_state=0), X)
    counted = (gmm.bic(X) - gmm.aic(X)) / (np.log(200) - 2)
    covariances = np.unique(np.asarray(gmm.covariances_).round(10))  # a symmetric pair of entries is one number
    assert counted == pytest.approx(n_components - 1 + gmm.means_.size + covariances.size)


@over_all_types
def test_initial_parameters_are_not_modified(covariance_type, correlated):
    initial = fit_quietly(TorchGMM(3, covariance_type=covariance_type, random_state=0, max_iter=1), correlated)
    params = {
        "weights_init": initial.weights_.tolist(),
        "means_init": initial.means_.copy(),
        "precisions_init": np.array(initial.precisions_),
    }
    gmm = TorchGMM(3, covariance_type=covariance_type, **params).fit(correlated)
    assert all(getattr(gmm, name) is value for name, value in params.items())
    assert gmm.weights_init == initial.weights_.tolist()
    assert_array_equal(gmm.means_init, initial.means_)
    assert_array_equal(gmm.precisions_init, initial.precisions_)


@pytest.mark.first
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="The peak is read from /proc.")
def test_peak_memory_of_a_fit():
    """Nothing of size rows x components x features is held."""
    code = """
import re
import warnings
from pathlib import Path

import numpy as np
from skvae import TorchGMM
from skvae.models import COVARIANCES

def megabytes(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
for n, d, k in [(50_000, 20, 40), (10_000, 100, 40)]:
    X = rng.normal(size=(n, d))
    for covariance_type in COVARIANCES:
        gmm = TorchGMM(k, covariance_type=covariance_type, init_params="random_from_data", max_iter=2, random_state=0)
        gmm.fit(X[:1_000]).predict_proba(X[:1_000])
        Path("/proc/self/clear_refs").write_text("5")
        before = megabytes("VmRSS")
        gmm.fit(X).score(X)
        print((megabytes("VmHWM") - before) * 2**20 / (8 * n * d * k), covariance_type)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    growth = [float(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(growth) == 2 * len(COVARIANCES)
    assert max(growth) < 0.4, result.stdout
