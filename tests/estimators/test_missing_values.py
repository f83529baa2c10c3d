"""TorchGMM and TorchPPCA with missing values."""

import warnings

import numpy as np
import pandas as pd
import pytest
from helpers import outputs
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.utils import get_tags

from skvae import TorchGMM, TorchPPCA
from skvae.models import COVARIANCES

ESTIMATORS = [
    *(TorchGMM(2, covariance_type=name, max_iter=30, tol=0.1, random_state=0) for name in COVARIANCES),
    TorchPPCA(2),
]
METHODS = ("predict_proba", "transform", "score_samples", "impute")
over_estimators = pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
over_types = pytest.mark.parametrize("covariance_type", COVARIANCES)


def hide(X, share=0.2, seed=0):
    """Rows with NaN, of which a few have no value at all if the share is large."""
    return np.where(np.random.default_rng(seed).uniform(size=X.shape) < share, np.nan, X)


@pytest.fixture(scope="module")
def iris():
    return load_iris().data


@pytest.fixture(scope="module")
def X(iris):
    return hide(iris)


def assert_same_outputs(one, two, X, **tolerance):
    found, expected = outputs(one, X, METHODS), outputs(two, X, METHODS)
    for name, value in expected.items():
        assert_allclose(found[name], value, err_msg=name, **({"rtol": 1e-8, "atol": 1e-8} | tolerance))


# Both.


@over_estimators
def test_tag(estimator):
    assert get_tags(estimator).input_tags.allow_nan


@over_estimators
def test_fits_without_nan_never_meet_patterns(estimator, iris, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("There is nothing missing.")

    for module in ("gmm", "ppca"):
        for name in ("PatternRows", "observed_e_step"):
            monkeypatch.setattr(f"skvae.estimators.{module}.{name}", refuse)
    assert np.isfinite(clone(estimator).fit(iris).score(iris))


@over_estimators
def test_integer_weights_are_repeated_rows(estimator, X):
    counts = np.arange(len(X)) % 4
    weighted = clone(estimator).fit(X, sample_weight=counts)
    repeated = clone(estimator).fit(np.repeat(X, counts, axis=0))
    assert_same_outputs(weighted, repeated, X, rtol=1e-6, atol=1e-6)


@over_estimators
def test_order_of_rows_is_nothing(estimator, X):
    order = np.random.default_rng(0).permutation(len(X))
    assert_same_outputs(clone(estimator).fit(X), clone(estimator).fit(X[order]), X, rtol=1e-6, atol=1e-6)


@over_estimators
def test_rows_without_values_are_left_out_of_a_fit(estimator, X):
    none = np.full((20, 4), np.nan)
    one = clone(estimator).fit(X)
    two = clone(estimator).fit(np.concatenate([none, X]))
    assert_same_outputs(one, two, X, rtol=1e-12, atol=1e-12)
    weighted = clone(estimator).fit(np.concatenate([X, none]), sample_weight=np.r_[np.ones(len(X)), np.zeros(20)])
    assert_same_outputs(one, weighted, X, rtol=1e-12, atol=1e-12)


@over_estimators
def test_a_row_without_values(estimator, X):
    estimator, none = clone(estimator).fit(X), np.full((3, 4), np.nan)
    assert_allclose(estimator.score_samples(none), 0, atol=1e-15)
    if isinstance(estimator, TorchGMM):
        assert_allclose(estimator.predict_proba(none), np.tile(estimator.weights_, (3, 1)))
        mean = estimator.weights_ @ estimator.means_
    else:
        assert_allclose(estimator.transform(none), 0, atol=1e-12)
        mean = estimator.mean_
    assert_allclose(estimator.impute(none), np.tile(mean, (3, 1)))


@over_estimators
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_imputed_rows(estimator, X, dtype):
    rows = X.astype(dtype)
    rows[0] = [-0.0, np.nan, 1e-40, 5.0]
    filled = clone(estimator).fit(X.astype(dtype)).impute(rows)
    assert filled.dtype == dtype
    assert np.isfinite(filled).all()
    known = ~np.isnan(rows)
    assert filled[known].tobytes() == rows[known].tobytes()
    assert np.isnan(rows).any(), "The rows that were given were changed."


@over_estimators
def test_rows_without_missing_values_are_imputed_by_themselves(estimator, X, iris):
    filled = clone(estimator).fit(X).impute(iris)
    assert filled is not iris
    assert_array_equal(filled, iris)


@over_estimators
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_dtype_is_kept(estimator, X, dtype):
    estimator = clone(estimator).fit(X.astype(dtype))
    assert {value.dtype for value in outputs(estimator, X.astype(dtype), METHODS).values()} == {np.dtype(dtype)}
    kinds = {value.dtype for name, value in vars(estimator).items() if isinstance(value, np.ndarray)}
    assert kinds == {np.dtype(dtype)}


@over_estimators
def test_float32_is_close_to_float64(estimator, X):
    single, double = clone(estimator).fit(X.astype(np.float32)), clone(estimator).fit(X)
    assert_same_outputs(single, double, X, rtol=1e-3, atol=1e-3)


@over_estimators
def test_complete_rows_are_the_same_among_others(estimator, X, iris):
    estimator = clone(estimator).fit(X)
    complete, mixed = outputs(estimator, iris, METHODS), outputs(estimator, np.concatenate([iris, X]), METHODS)
    for name, value in complete.items():
        assert_allclose(mixed[name][:150], value, rtol=1e-9, atol=1e-9, err_msg=name)


@over_estimators
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks_change_nothing(estimator, X, chunk_size):
    one, two = clone(estimator).fit(X), clone(estimator).set_params(chunk_size=chunk_size).fit(X)
    assert_same_outputs(one, two, X, rtol=1e-9, atol=1e-9)


@over_estimators
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_far_from_one(estimator, X, scale):
    settings = {"reg_covar": 0.0} if isinstance(estimator, TorchGMM) else {}
    one, two = (clone(estimator).set_params(**settings).fit(rows) for rows in (X, scale * X))
    assert_allclose(two.impute(scale * X) / scale, one.impute(X), rtol=1e-6)
    expected = one.score_samples(X) - (~np.isnan(X)).sum(1) * np.log(scale)
    assert_allclose(two.score_samples(scale * X), expected, rtol=1e-6, atol=1e-5)


@over_estimators
def test_large_offsets(estimator, X):
    """A column of time stamps."""
    offset = np.array([1.7e9, 0, 0, 0])
    one, two = clone(estimator).fit(X), clone(estimator).fit(X + offset)
    assert_allclose(two.impute(X + offset) - offset, one.impute(X), atol=1e-4)


@over_estimators
def test_errors(estimator, X):
    for rows, match in [
        (np.where(np.arange(4) % 2, np.nan, X), r"Columns \[1, 3\] of X hold nothing but NaN"),
        (pd.DataFrame(X, columns=list("abcd")).assign(c=np.nan), r"Columns \['c'\] of X hold nothing but NaN"),
        (np.full((5, 4), np.nan), r"Columns \[0, 1, 2, 3\] of X hold nothing but NaN"),
        (np.where(X > 7, np.inf, X), "contains infinity"),
    ]:
        fresh = clone(estimator)
        with pytest.raises(ValueError, match=match):
            fresh.fit(rows)
        assert not [name for name in vars(fresh) if name.endswith("_")]
    with pytest.raises(ValueError, match=r"Columns \[0\] of X hold nothing but NaN"):
        clone(estimator).fit(np.where(np.isnan(X[:, :1]), X, [np.nan, 1, 1, 1] * X), sample_weight=np.ones(len(X)))
    weight = np.isnan(X[:, 0]).astype(float)
    with pytest.raises(ValueError, match=r"Columns \[0\] of X hold nothing but NaN, at least in the rows that count"):
        clone(estimator).fit(X, sample_weight=weight)
    with pytest.raises(ValueError, match="contains infinity"):
        clone(estimator).fit(X).impute(np.full((1, 4), np.inf))


@pytest.mark.parametrize("estimator", [TorchGMM(6), TorchPPCA(4)], ids=str)
def test_rows_without_values_are_no_rows(estimator):
    X = np.full((9, 4), np.nan)
    X[:3] = np.random.default_rng(0).normal(size=(3, 4))
    with pytest.raises(ValueError, match=r"n_components=\d is larger than .*n_samples=3"):
        estimator.fit(X)


def test_values_missing_at_random_do_not_bias():
    """The second feature is missing where the first is large. Means of what is left are far off, the fits are not."""
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.2], [0.3, 0.2, 1.0]])
    X = rng.multivariate_normal([0, 0, 0], covariance, size=4000)
    observed = X.copy()
    observed[X[:, 0] > 0, 1] = np.nan
    naive = SimpleImputer().fit_transform(observed)
    gmm = TorchGMM(1, tol=1e-9, max_iter=1000).fit(observed)
    ppca = TorchPPCA(2).fit(observed)
    spread = (ppca.components_.T * (ppca.explained_variance_ - ppca.noise_variance_)) @ ppca.components_
    for mean, found in [(gmm.means_[0], gmm.covariances_[0]), (ppca.mean_, spread + ppca.noise_variance_ * np.eye(3))]:
        assert_allclose(mean, 0, atol=0.06)
        assert_allclose(found, covariance, atol=0.08)
    assert abs(naive[:, 1].mean()) > 0.5
    assert np.abs(np.cov(naive.T) - covariance).max() > 0.5
    hidden = np.isnan(observed)
    errors = [np.sqrt(np.square(filled - X)[hidden].mean()) for filled in (gmm.impute(observed), naive)]
    assert errors[0] == pytest.approx(0.6, abs=0.02)  # the root of 1 - 0.8 ** 2
    assert errors[1] > 2 * errors[0]


# TorchGMM.


@over_types
def test_densities_are_those_of_the_marginal_mixture(covariance_type, iris):
    """A mixture of the observed features alone, made from the parameters."""
    full = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(iris)
    some = [0, 2, 3]
    covariances = {
        "full": lambda value: value[:, some][:, :, some],
        "tied": lambda value: value[some][:, some],
        "diag": lambda value: value[:, some],
        "tied_diag": lambda value: value[some],
    }.get(covariance_type, lambda value: value)(full.covariances_)
    part = TorchGMM.from_parameters(full.weights_, full.means_[:, some], covariances, covariance_type=covariance_type)
    rows = np.where(np.arange(4) == 1, np.nan, iris)
    assert_allclose(full.score_samples(rows), part.score_samples(iris[:, some]))
    assert_allclose(full.predict_proba(rows), part.predict_proba(iris[:, some]), atol=1e-12)
    assert_array_equal(full.predict(rows), part.predict(iris[:, some]))
    assert_allclose(full.bic(rows), -2 * part.score_samples(iris[:, some]).sum() + full._n_parameters() * np.log(150))


@over_types
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data", "labels"])
def test_starts(covariance_type, init_params, X):
    settings = {"covariance_type": covariance_type, "init_params": init_params, "random_state": 0, "max_iter": 200}
    gmm = TorchGMM(3, **settings).fit(X, load_iris().target)
    assert gmm.converged_
    assert np.diff(gmm.lower_bounds_).min() > -1e-3  # reg_covar
    assert gmm.lower_bound_ == pytest.approx(gmm.score(X), abs=1e-2)
    assert gmm.lower_bound_ > -2.8


def test_given_starts(X):
    target = load_iris().target
    labels = TorchGMM(3, init_params="labels").fit(X, target)
    resp = TorchGMM(3, init_params=np.eye(3)[target]).fit(X)
    assert_allclose(labels.means_, resp.means_)
    none = np.full((5, 4), np.nan)  # rows without values have responsibilities, too
    more = TorchGMM(3, init_params=np.eye(3)[np.r_[[0] * 5, target]]).fit(np.concatenate([none, X]))
    assert_allclose(more.means_, resp.means_)
    clustered = TorchGMM(3, init_params=KMeans(3, n_init=5, random_state=0)).fit(X)
    assert clustered.lower_bound_ > -1.35
    given = {f"{name}_init": getattr(labels, f"{name}_") for name in ("weights", "means", "precisions")}
    again = TorchGMM(3, tol=1e-6, max_iter=500, **given).fit(X)
    assert again.lower_bounds_[0] == pytest.approx(labels.score(X))
    assert again.lower_bound_ >= labels.lower_bound_


def test_squarem_takes_fewer_iterations(X):
    settings = {"init_params": "labels", "tol": 1e-7, "max_iter": 2000}
    plain, fast = (TorchGMM(3, acceleration=name, **settings).fit(X, load_iris().target) for name in (None, "squarem"))
    assert fast.n_iter_ < 0.8 * plain.n_iter_
    assert fast.lower_bound_ == pytest.approx(plain.lower_bound_, abs=1e-4)


def test_warm_start_goes_on(X):
    gmm = TorchGMM(3, warm_start=True, random_state=0, max_iter=3, tol=1e-5)
    with pytest.warns(ConvergenceWarning):
        gmm.fit(X)
    before = gmm.lower_bound_
    gmm.set_params(max_iter=1000).fit(X)
    assert gmm.lower_bounds_[0] >= before
    assert gmm.converged_


@over_types
def test_the_first_step_of_a_batch_is_a_step_of_em(covariance_type, X):
    settings = {"covariance_type": covariance_type, "random_state": 0, "reg_covar": 0.0}
    start = TorchGMM(2, max_iter=0, **settings).fit(X)
    parameters = start.weights_, start.means_, start.covariances_
    step = TorchGMM.from_parameters(*parameters, **settings).partial_fit(X)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        whole = TorchGMM.from_parameters(*parameters, warm_start=True, max_iter=1, **settings).fit(X)
    for name in ("weights_", "means_", "covariances_"):
        assert_allclose(getattr(step, name), getattr(whole, name), rtol=1e-8, atol=1e-10)
    assert step.lower_bound_ == pytest.approx(start.score(X))


def test_batches_reach_the_fit(X):
    rng, gmm = np.random.default_rng(0), TorchGMM(2, random_state=0, learning_decay=0.6)
    for _ in range(60):
        gmm.partial_fit(X[rng.permutation(150)[:50]])
    assert gmm.score(X) > TorchGMM(2, random_state=0, tol=1e-6, max_iter=1000).fit(X).score(X) - 0.1
    before = gmm.means_
    gmm.partial_fit(np.where(np.arange(4) == 2, np.nan, X))  # nothing is known of a feature
    assert np.isfinite(gmm.means_).all()
    with pytest.raises(ValueError, match="Every value of X is NaN"):
        gmm.partial_fit(np.full((3, 4), np.nan))
    assert_allclose(gmm.means_, before, atol=1)


def test_singular_patterns_are_regularized_and_reported():
    """A feature that is observed in one row of a component."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(30, 3)), rng.normal(size=(30, 3)) + 20])
    X[31:, 2] = np.nan
    X[:, 1] = X[:, 0]
    with pytest.warns(ConvergenceWarning, match=r"covariances of components \[.*\] are singular"):
        gmm = TorchGMM(2, reg_covar=0.0, random_state=0, tol=1e-2, max_iter=500).fit(X)
    assert gmm.n_regularized_ > 0
    assert np.isfinite(gmm.score_samples(X)).all()
    assert np.isfinite(gmm.impute(X)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TorchGMM(2, reg_covar=1e-2, random_state=0, tol=1e-2).fit(X).n_regularized_ == 0


def test_every_row_with_a_pattern_of_its_own():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 40)) + 0.3 * rng.normal(size=(300, 40))
    observed = hide(X, share=0.5)
    gmm = TorchGMM(2, reg_covar=1e-2, random_state=0, tol=0.1).fit(observed)
    hidden = np.isnan(observed)
    assert np.square(gmm.impute(observed) - X)[hidden].mean() < 0.3 * np.square(X)[hidden].mean()


def test_held_out_rows_choose_the_number_of_components(blobs):
    search = GridSearchCV(TorchGMM(random_state=0, n_init=3), {"n_components": [1, 2, 3]}, cv=3)
    assert search.fit(hide(blobs[0])).best_params_ == {"n_components": 3}


# TorchPPCA.


@pytest.mark.parametrize("n_components", [1, 3, None, 0.9])
def test_one_missing_value_changes_components_little(n_components):
    X = load_wine().data
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    observed = X.copy()
    observed[0, 0] = np.nan
    complete, incomplete = TorchPPCA(n_components).fit(X), TorchPPCA(n_components).fit(observed)
    assert complete.n_components_ == incomplete.n_components_
    assert (complete.n_iter_, incomplete.n_iter_ > 1) == (1, True)
    for name in ("explained_variance_", "explained_variance_ratio_", "noise_variance_", "mean_"):
        assert_allclose(getattr(incomplete, name), getattr(complete, name), rtol=0.05, atol=0.01, err_msg=name)


def test_transform_is_the_posterior_mean_given_the_observed_values(X):
    ppca = TorchPPCA(2).fit(X)
    loadings = ppca.components_.T * np.sqrt(ppca.explained_variance_ - ppca.noise_variance_)
    for row, code, filled in zip(X, ppca.transform(X), ppca.impute(X), strict=True):
        o = ~np.isnan(row)
        precision = np.eye(2) * ppca.noise_variance_ + loadings[o].T @ loadings[o]
        expected = np.linalg.solve(precision, loadings[o].T @ (row[o] - ppca.mean_[o]))
        assert_allclose(code, expected, atol=1e-8)
        assert_allclose(filled[~o], (ppca.mean_ + loadings @ expected)[~o])


def test_undetermined_number_of_components(X):
    with pytest.raises(ValueError, match="n_components='mle' supposes complete rows"):
        TorchPPCA("mle").fit(X)
    for n_components in (None, 0.9):
        with pytest.raises(ValueError, match="needs more samples than features where values are missing"):
            TorchPPCA(n_components).fit(hide(np.random.default_rng(0).normal(size=(8, 9))))


def test_missing_values_with_more_features_than_samples():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 60)) + 0.1 * rng.normal(size=(30, 60))
    observed = hide(X)
    ppca = TorchPPCA(2).fit(observed)
    hidden = np.isnan(observed)
    assert np.sqrt(np.square(ppca.impute(observed) - X)[hidden].mean()) < 0.15


def test_ppca_warns_if_em_does_not_converge(X):
    with pytest.warns(ConvergenceWarning, match="EM did not converge within max_iter=2 iterations"):
        assert TorchPPCA(2, max_iter=2).fit(X).n_iter_ == 2


@pytest.mark.parametrize("kind", ["constant", "duplicated", "all equal", "exact"])
def test_ppca_of_degenerate_data_is_finite(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    X = hide(
        {
            "constant": np.column_stack([X, np.full(60, 7.0)]),
            "duplicated": np.column_stack([X, X]),
            "all equal": np.ones((60, 4)),
            "exact": rng.normal(size=(60, 2)) @ rng.normal(size=(2, 5)),
        }[kind],
        share=0.1,
    )
    for n_components in (2, None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            ppca = TorchPPCA(n_components, max_iter=100).fit(X)
        for found in outputs(ppca, X, METHODS).values():
            assert np.isfinite(found).all()
    if kind == "exact":
        assert_allclose(TorchPPCA(2).fit(X).noise_variance_, 0, atol=1e-10)
