"""Estimators of float32 samples end where those of the same samples in float64 do."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import skvae
from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA
from skvae.models.covariances import COVARIANCES

over_types = pytest.mark.parametrize("covariance_type", COVARIANCES)


def spending(seed=0, n=600):
    """Amounts in four categories, two of which half of the customers never buy."""
    rng = np.random.default_rng(seed)
    buys = rng.random(n) < 0.5
    always = rng.lognormal(6, 1, n), rng.lognormal(5, 1, n)
    return np.column_stack([*always, rng.lognormal(6, 0.7, n) * buys, rng.lognormal(5.5, 0.7, n) * buys])


def counts(seed=0, n=800):
    """Words of four topics."""
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(20, 0.3), 4) * 60
    return rng.poisson(topics[rng.integers(4, size=n)]).astype(float)


def flags(seed=0, n=500):
    """A category as columns in large units, beside two numbers."""
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n)
    return np.column_stack([1e4 * np.eye(3)[group], rng.normal(size=(n, 2)) + 2 * group[:, None]])


TABLES = {"spending": spending, "counts": counts, "flags": flags}
over_tables = pytest.mark.parametrize("table", TABLES)


def both(estimator, X, **fit):
    """The same estimator fitted in float32 and in float64 to the values that float32 holds."""
    single = X.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return tuple(
            type(estimator)(**estimator.get_params()).fit(rows, **fit) for rows in (single, single.astype(np.float64))
        )


def assert_ends_together(single, double, X):
    """The fit in float32 ends where the one in float64 does, and its bound falls no more."""
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, rel=1e-3, abs=1e-3)
    bounds, scale = np.array(single.lower_bounds_), max(1.0, abs(single.lower_bound_))
    # Regularization can make the bound fall; it does so in float64 too.
    falls = min(0.0, *np.diff(double.lower_bounds_), 0.0)
    assert (np.diff(bounds) >= falls - 1e-5 * scale).all()
    assert single.n_regularized_ <= double.n_regularized_
    criteria = single.bic(X.astype(np.float32)), double.bic(X.astype(np.float32).astype(np.float64))
    assert criteria[0] == pytest.approx(criteria[1], rel=1e-3, abs=1e-3 * len(X))


@over_tables
@over_types
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_mixtures_end_together(table, covariance_type, init_params):
    X = TABLES[table]()
    for n_components in (2, 5):
        gmm = TorchGMM(n_components, covariance_type=covariance_type, init_params=init_params, random_state=0)
        assert_ends_together(*both(gmm, X), X)


@over_tables
def test_criteria_choose_the_same_size(table):
    X = TABLES[table]()
    for n_components in range(1, 7):
        assert_ends_together(*both(TorchGMM(n_components, random_state=0), X), X)


def test_bounds_are_those_of_scikit_learn():
    X = spending().astype(np.float32)
    ours = TorchGMM(2, random_state=0).fit(X)
    theirs = GaussianMixture(2, random_state=0).fit(X.astype(np.float64))
    assert ours.converged_
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=0.01)


@over_tables
@pytest.mark.parametrize("acceleration", [None, "squarem"])
def test_missing_sparse_weighted_and_accelerated(table, acceleration):
    X, rng = TABLES[table](), np.random.default_rng(1)
    gmm = TorchGMM(3, acceleration=acceleration, random_state=0)
    assert_ends_together(*both(gmm, X, sample_weight=rng.integers(3, size=len(X))), X)
    single, double = both(gmm, sp.csr_array(X))
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, rel=1e-3)
    X[rng.random(X.shape) < 0.05] = np.nan
    assert_ends_together(*both(gmm, X), X)


@over_tables
@over_types
def test_batches_end_together(table, covariance_type):
    X = TABLES[table]().astype(np.float32)
    single, double = (TorchGMM(3, covariance_type=covariance_type, random_state=0) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for batch in np.array_split(X, 4):
            single.partial_fit(batch)
            double.partial_fit(batch.astype(np.float64))
    np.testing.assert_allclose(single.lower_bounds_, double.lower_bounds_, rtol=1e-3, atol=1e-3)
    assert single.n_regularized_ <= double.n_regularized_


def test_parameters_in_float64_are_kept_and_given_up():
    X = flags().astype(np.float32)
    gmm = TorchGMM(2, random_state=0).fit(X)
    assert gmm.means_.dtype == gmm.precisions_cholesky_.dtype == gmm.score_samples(X).dtype == np.float32
    double = TorchGMM(2, random_state=0).fit(X.astype(np.float64))
    np.testing.assert_allclose(gmm.score_samples(X), double.score_samples(X.astype(np.float64)), rtol=1e-4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(gmm)).score_samples(X), gmm.score_samples(X))
    gmm.means_ = gmm.means_ + 1  # what the user sets is what counts
    assert gmm.score(X) < double.score(X) - 1


def test_files_hold_parameters_in_float64(tmp_path):
    X = flags().astype(np.float32)
    for estimator in (TorchGMM(2, random_state=0), TorchPPCA(), TorchMiniBatchKMeans(9, random_state=0)):
        fitted = estimator.fit(X)
        skvae.save(fitted, tmp_path / "model.skvae")
        loaded = skvae.load(tmp_path / "model.skvae")
        assert loaded.score(X) == fitted.score(X)
        np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))


@over_tables
@pytest.mark.parametrize("n_components", [1, 2, 0.95, "mle"])
def test_ppca_in_float32_and_float64_agree(table, n_components):
    X = TABLES[table]()
    single, double = both(TorchPPCA(n_components), X)
    assert single.n_components_ == double.n_components_
    assert single.noise_variance_ == pytest.approx(double.noise_variance_, rel=1e-3)
    assert single.score(X.astype(np.float32)) == pytest.approx(double.score(X.astype(np.float32)), rel=1e-3)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full"])
def test_samples_between_two_starts_are_halved(covariance_type):
    for seed in range(12):
        X = np.random.default_rng(seed).poisson(2, size=(30, 2)).astype(float)
        gmm = TorchGMM(5, covariance_type=covariance_type, init_params="random_from_data", random_state=seed)
        assert_ends_together(*both(gmm, X), X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minkas_choice_for_low_rank_data(dtype):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) * 10).astype(dtype)
    assert TorchPPCA("mle").fit(X).n_components_ == 2


@over_tables
@pytest.mark.parametrize("n_clusters", [2, 5, 20])
def test_kmeans_ends_together(table, n_clusters):
    single, double = both(TorchMiniBatchKMeans(n_clusters, random_state=0), TABLES[table]())
    assert single.inertia_ == pytest.approx(double.inertia_, rel=1e-2)


def column(kind, n, rng):
    """A column as tables have them."""
    return {
        "constant": lambda: np.full(n, rng.integers(-3, 4)),
        "zero-inflated": lambda: np.where(rng.random(n) < 0.6, 0, rng.lognormal(2, 1, n)),
        "flag": lambda: rng.integers(2, size=n),
        "integer": lambda: rng.integers(6, size=n),
        "heavy-tailed": lambda: rng.standard_t(2, size=n),
        "normal": lambda: rng.normal(size=n) + 3 * rng.integers(2, size=n),
    }[kind]().astype(float)


KINDS = ("constant", "zero-inflated", "flag", "integer", "heavy-tailed", "normal")
columns = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([1e-3, 1.0, 1e3, 1e6])), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(columns=columns, n_components=st.integers(1, 4), covariance_type=st.sampled_from(list(COVARIANCES)),
       seed=st.integers(0, 1000))  # fmt: skip
def test_any_table_ends_where_it_does_in_float64(columns, n_components, covariance_type, seed):
    rng = np.random.default_rng(seed)
    X = np.column_stack([column(kind, 150, rng) * unit for kind, unit in columns])
    assert_ends_together(*both(TorchGMM(n_components, covariance_type=covariance_type, random_state=0), X), X)
