"""TorchGMM against scikit-learn's GaussianMixture, and against its own promises."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV

from skvae import TorchGMM
from skvae.models import COVARIANCES

SKLEARN_TYPES = ("full", "tied", "diag", "spherical")
ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")
over_types = pytest.mark.parametrize("covariance_type", SKLEARN_TYPES)
over_all_types = pytest.mark.parametrize("covariance_type", COVARIANCES)


def pair(X, covariance_type, max_iter=20, **options):
    """Fit both implementations, with the same number of iterations from the same initialization."""
    initial = GaussianMixture(3, covariance_type=covariance_type, random_state=0, max_iter=1, tol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        initial.fit(X)
        params = {
            "weights_init": initial.weights_,
            "means_init": initial.means_,
            "precisions_init": initial.precisions_,
        }
        params |= {"tol": 0.0, "max_iter": max_iter, "covariance_type": covariance_type} | options
        return TorchGMM(3, **params).fit(X), GaussianMixture(3, **params).fit(X)


@over_types
def test_equal_to_scikit_learn_from_equal_initializations(covariance_type, correlated):
    ours, theirs = pair(correlated, covariance_type)
    for name in ATTRIBUTES:
        assert getattr(ours, name).shape == getattr(theirs, name).shape
        assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-8, atol=1e-8, err_msg=name)
    if hasattr(theirs, "lower_bounds_"):  # since 1.7
        assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-10)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_)
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    for method in ("predict_proba", "score_samples"):
        assert_allclose(getattr(ours, method)(correlated), getattr(theirs, method)(correlated), rtol=1e-7, atol=1e-9)
    for method in ("score", "bic", "aic"):
        assert getattr(ours, method)(correlated) == pytest.approx(getattr(theirs, method)(correlated))
    assert_array_equal(ours.predict(correlated), theirs.predict(correlated))


@over_types
def test_stops_where_scikit_learn_stops(covariance_type, correlated):
    ours, theirs = pair(correlated, covariance_type, max_iter=500, tol=1e-5)
    assert ours.converged_
    assert ours.n_iter_ == theirs.n_iter_


@over_all_types
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_finds_blobs(covariance_type, init_params, blobs):
    X, y = blobs
    options = {"init_params": init_params, "n_init": 5, "tol": 1e-7, "max_iter": 5_000, "random_state": 0}
    gmm = TorchGMM(3, covariance_type=covariance_type, **options)
    score = adjusted_rand_score(y, gmm.fit_predict(X))
    if init_params == "random":  # a poor initialization, from which components may merge (in scikit-learn too)
        one = TorchGMM(1, covariance_type=covariance_type).fit(X)
        assert gmm.lower_bound_ > one.lower_bound_ + 0.1
    else:
        assert score > 0.95
    assert gmm.weights_.sum() == pytest.approx(1)
    assert_allclose(gmm.predict_proba(X).sum(1), 1)
    assert_array_equal(gmm.predict(X), gmm.predict_proba(X).argmax(1))


@over_all_types
def test_precisions_are_inverse_covariances(covariance_type, correlated):
    gmm = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(correlated)
    if covariance_type in ("full", "tied"):
        assert_allclose(
            gmm.precisions_ @ gmm.covariances_, np.broadcast_to(np.eye(3), gmm.covariances_.shape), atol=1e-8
        )
        root = gmm.precisions_cholesky_
        assert_allclose(root @ np.swapaxes(root, -1, -2), gmm.precisions_)
    else:
        assert_allclose(gmm.precisions_ * gmm.covariances_, 1)
        assert_allclose(gmm.precisions_cholesky_**2, gmm.precisions_)


@over_all_types
def test_initialization_with_fitted_parameters_is_that_fit(covariance_type, correlated):
    gmm = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(correlated)
    params = {f"{name}_init": getattr(gmm, f"{name}_") for name in ("weights", "means", "precisions")}
    again = TorchGMM(3, covariance_type=covariance_type, max_iter=0, **params).fit(correlated)
    assert_allclose(again.score_samples(correlated), gmm.score_samples(correlated))


@over_all_types
def test_samples_have_the_moments(covariance_type, correlated):
    gmm = TorchGMM(2, covariance_type=covariance_type, random_state=0).fit(correlated)
    X, y = gmm.sample(60_000, random_state=1)
    assert X.shape == (60_000, 3)
    assert (np.diff(y) >= 0).all()
    assert_allclose(np.bincount(y) / len(y), gmm.weights_, atol=0.01)
    refit = TorchGMM(1, covariance_type="full")
    for component in range(2):
        rows = X[y == component]
        assert_allclose(rows.mean(0), gmm.means_[component], atol=0.1)
        covariance = gmm.covariances_ if covariance_type.startswith("tied") else gmm.covariances_[component]
        covariance = covariance if covariance_type in ("full", "tied") else covariance * np.eye(3)
        assert_allclose(refit.fit(rows).covariances_[0], covariance, atol=0.06 * np.abs(covariance).max())


def test_sample_has_its_own_seed(blobs):
    gmm = TorchGMM(3, random_state=0).fit(blobs[0])
    one, two = gmm.sample(5, random_state=1)[0], gmm.sample(5, random_state=2)[0]
    assert not np.allclose(one, two)
    assert_array_equal(one, gmm.sample(5, random_state=1)[0])


@over_all_types
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_data_far_from_the_origin(covariance_type, offset, correlated):
    """float64 data far from the origin lose nothing; float32 data lose only what rounding took from them."""
    near, far = (
        TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(correlated + shift) for shift in (0, offset)
    )
    assert_allclose(far.covariances_, near.covariances_, rtol=1e-5, atol=1e-7)
    assert_allclose(far.score_samples(correlated + offset), near.score_samples(correlated), atol=1e-5)
    rounded = (correlated + 1e4).astype(np.float32)
    single = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(rounded)
    double = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(rounded.astype(np.float64))
    assert single.means_.dtype == np.float32
    assert_allclose(single.covariances_, double.covariances_, rtol=1e-3, atol=1e-3)


def test_n_init_keeps_the_best(correlated):
    options = {"init_params": "random_from_data", "random_state": 0, "tol": 1e-6, "max_iter": 500}
    bounds = [TorchGMM(4, n_init=n, **options).fit(correlated).lower_bound_ for n in (1, 3, 10)]
    assert (np.diff(bounds) > -1e-10).all()
    assert bounds[-1] > bounds[0] + 1e-6, "all initializations ended in the same maximum"


def test_warm_start_continues(correlated):
    options = {"random_state": 0, "tol": 0.0, "init_params": "random"}
    with pytest.warns(ConvergenceWarning):
        whole = TorchGMM(3, max_iter=8, **options).fit(correlated)
    parts = TorchGMM(3, max_iter=4, warm_start=True, **options)
    for _ in range(2):
        with pytest.warns(ConvergenceWarning, match="did not converge"):
            parts.fit(correlated)
    assert len(parts.lower_bounds_) == 4
    one_by_one = TorchGMM(3, max_iter=1, warm_start=True, random_state=0, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        while not one_by_one.fit(correlated).converged_:
            pass
    assert_allclose(parts.means_, whole.means_, rtol=1e-6)
    assert_allclose(parts.lower_bound_, whole.lower_bound_)


def test_lower_bounds_are_those_of_the_iterations(correlated):
    gmm = TorchGMM(3, random_state=0).fit(correlated)
    assert len(gmm.lower_bounds_) == gmm.n_iter_
    assert gmm.lower_bounds_[-1] == gmm.lower_bound_
    assert (np.diff(gmm.lower_bounds_) > 0).all()


@pytest.mark.parametrize("init_params", ["kmeans", "random", "random_from_data"])
@pytest.mark.parametrize("chunk_size", [7, 100, 10_000])
def test_chunk_size_does_not_change_the_fit(chunk_size, init_params, correlated):
    options = {"init_params": init_params, "random_state": 0, "tol": 1e-6, "max_iter": 1_000, "n_init": 2}
    one, two = (TorchGMM(3, chunk_size=size, **options).fit(correlated) for size in (None, chunk_size))
    assert_allclose(one.means_, two.means_, rtol=1e-10)
    assert_allclose(one.covariances_, two.covariances_, rtol=1e-9, atol=1e-10)


@over_all_types
def test_as_many_components_as_features(covariance_type, correlated):
    gmm = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(correlated)
    assert gmm.means_.shape == (3, 3)
    assert gmm.score_samples(correlated).shape == (len(correlated),)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"weights_init": [0.5, 0.5]}, r"weights_init should have the shape \(3,\), but it has the shape \(2,\)"),
        ({"weights_init": [0.5, 0.5, 0.5]}, "weights_init should be between 0 and 1 and sum to 1, .* sum to 1.5"),
        ({"weights_init": [-0.5, 0.5, 1.0]}, "values are between -0.5 and 1"),
        ({"means_init": [[0.0, 1.0]]}, r"means_init should have the shape \(3, 3\)"),
        ({"precisions_init": np.ones((3, 3))}, r"precisions_init should have the shape \(3, 3, 3\)"),
        ({"precisions_init": -np.stack([np.eye(3)] * 3)}, "should be symmetric and positive definite"),
        ({"precisions_init": np.stack([np.triu(np.ones((3, 3)))] * 3)}, "should be symmetric and positive definite"),
        ({"precisions_init": -np.ones(3), "covariance_type": "spherical"}, "should be positive"),
    ],
)
def test_invalid_initial_parameters(parameters, match, correlated):
    with pytest.raises(ValueError, match=match):
        TorchGMM(3, **parameters).fit(correlated)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_singular_data_are_fitted_with_a_warning(covariance_type):
    X = np.concatenate([np.repeat(np.linspace(0, 1, 20)[:, None], 2, axis=1), np.full((20, 2), 9.0)])
    gmm = TorchGMM(2, covariance_type=covariance_type, reg_covar=0.0, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"components \[[01](, 1)?\] are singular.*Increase reg_covar"):
        gmm.fit(X)
    assert gmm.n_regularized_ >= 1
    assert len(set(gmm.predict(X))) == 2
    assert TorchGMM(2, covariance_type=covariance_type, random_state=0).fit(X).n_regularized_ == 0


@settings(max_examples=40)
@given(
    X=arrays(
        np.float64,
        st.tuples(st.integers(5, 30), st.integers(1, 4)),
        elements=st.floats(-1e9, 1e9).map(lambda value: value if abs(value) > 1e-30 else 0.0)
        | st.sampled_from([0.0, 1.0, -1.0]),
    ),
    covariance_type=st.sampled_from(sorted(COVARIANCES)),
    n_components=st.integers(1, 5),
    reg_covar=st.sampled_from([0.0, 1e-6, 1.0]),
)
def test_fit_of_arbitrary_data_is_finite(X, covariance_type, n_components, reg_covar):
    gmm = TorchGMM(n_components, covariance_type=covariance_type, reg_covar=reg_covar, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        gmm.fit(X)
    assert all(np.isfinite(getattr(gmm, name)).all() for name in ATTRIBUTES)
    assert np.isfinite(gmm.score_samples(X)).all()
    assert_allclose(gmm.predict_proba(X).sum(1), 1)
    assert gmm.weights_.sum() == pytest.approx(1)


@over_all_types
@pytest.mark.parametrize("case", ["constant", "duplicated", "few distinct", "wide", "one-hot", "huge", "tiny", "tight"])
def test_degenerate_data_are_fitted(covariance_type, case):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    X = {
        "constant": np.column_stack([X, np.full(60, 7.0)]),
        "duplicated": np.column_stack([X, X[:, 0]]),
        "few distinct": X[rng.integers(3, size=60)],
        "wide": rng.normal(size=(20, 40)),
        "one-hot": np.eye(4)[rng.integers(4, size=60)],
        "huge": X * 1e30,
        "tiny": X * 1e-30,
        "tight": np.repeat(X[:5], 12, axis=0) + 1e-9 * rng.normal(size=(60, 3)),
    }[case]
    for reg_covar in (1e-6, 0.0):
        gmm = TorchGMM(5, covariance_type=covariance_type, reg_covar=reg_covar, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            gmm.fit(X)
        for name in ATTRIBUTES:
            assert np.isfinite(getattr(gmm, name)).all(), (name, reg_covar)
        assert np.isfinite(gmm.score_samples(X)).all()
        assert_allclose(gmm.predict_proba(X).sum(1), 1)


@over_all_types
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_lower_bound_is_the_score(covariance_type, dtype, correlated):
    gmm = TorchGMM(3, covariance_type=covariance_type, tol=1e-7, max_iter=2_000, random_state=0)
    X = correlated.astype(dtype)
    assert gmm.fit(X).lower_bound_ == pytest.approx(gmm.score(X), abs=1e-5 if dtype == np.float64 else 1e-3)


def test_warm_start_with_other_shapes_is_an_error(correlated):
    gmm = TorchGMM(2, random_state=0, warm_start=True).fit(correlated)
    with pytest.raises(ValueError, match="do not match .* 2 features; fit again with warm_start=False"):
        gmm.fit(correlated[:, :2])
    with pytest.raises(ValueError, match="do not match covariance_type='diag'"):
        gmm.set_params(covariance_type="diag").predict(correlated)


def test_warnings_point_at_the_caller(correlated):
    with pytest.warns(ConvergenceWarning) as caught:
        TorchGMM(3, max_iter=1, random_state=0).fit(correlated)
    assert caught[0].filename == __file__


def test_prediction_is_in_chunks(correlated, monkeypatch):
    sizes = []
    original = TorchGMM.predict.__globals__["e_step"]

    def spy(x, *args):
        sizes.append(len(x))
        return original(x, *args)

    gmm = TorchGMM(3, random_state=0, chunk_size=100).fit(correlated)
    monkeypatch.setattr("skvae.estimators.gmm.e_step", spy)
    gmm.predict(correlated)
    assert sizes == [100] * 6


def test_verbose_prints_iterations(correlated, capsys):
    TorchGMM(3, random_state=0).fit(correlated)
    assert capsys.readouterr().out == ""
    TorchGMM(3, random_state=0, verbose=2, verbose_interval=1).fit(correlated)
    shown = capsys.readouterr().out
    assert "Initialization 0, iteration 1\t lower bound" in shown
    assert "converged" in shown


def test_cross_validation_and_bic_select_the_number_of_components(blobs):
    search = GridSearchCV(TorchGMM(random_state=0, n_init=3), {"n_components": [1, 2, 3]}, cv=3).fit(blobs[0])
    assert search.best_params_ == {"n_components": 3}
    bics = [TorchGMM(k, random_state=0, n_init=3).fit(blobs[0]).bic(blobs[0]) for k in (1, 2, 3, 6)]
    assert np.argmin(bics) == 2


def test_information_criteria_of_other_data(correlated):
    gmm = TorchGMM(2, random_state=0).fit(correlated)
    half = correlated[::2]
    n_parameters = 2 * 3 + 2 * 6 + 1
    assert gmm.bic(half) == pytest.approx(-2 * gmm.score(half) * len(half) + n_parameters * np.log(len(half)))
    assert gmm.aic(half) == pytest.approx(-2 * gmm.score(half) * len(half) + 2 * n_parameters)


def test_labels_are_ignored(blobs):
    X, y = blobs
    one, two = (clone(TorchGMM(3, random_state=0)).fit(X, labels) for labels in (y, y[::-1]))
    assert_array_equal(one.means_, two.means_)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_samples_of_one_component(covariance_type, blobs):
    gmm = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(blobs[0])
    for component in (0, np.int64(2)):
        X, y = gmm.sample(50, random_state=1, component=component)
        assert_array_equal(y, np.full(50, component))
        assert_array_equal(gmm.predict(X), y)
        assert_array_equal(gmm.sample(50, random_state=1, component=component)[0], X)
    assert gmm.sample(component=1)[0].shape == (1, 4)
    for wrong in (3, -1, True, 1.0, "1", [1]):
        with pytest.raises(ValueError, match=r"component=.* should be None or an integer from 0 to 2"):
            gmm.sample(5, component=wrong)
    with pytest.raises(NotFittedError):
        TorchGMM().sample(component=0)


def test_number_of_samples_of_one_component():
    gmm = TorchGMM.from_parameters([1e-9, 1 - 1e-9], [[-50.0], [50.0]], [4.0, 1.0], covariance_type="spherical")
    X, _ = gmm.sample(4000, random_state=0, component=0)
    assert_allclose([X.mean(), X.std()], [-50, 2], atol=0.15)
