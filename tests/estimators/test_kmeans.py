"""TorchMiniBatchKMeans, against scikit-learn where the algorithms coincide, and its documented behaviour."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.utils._param_validation import InvalidParameterError

from skvae import TorchMiniBatchKMeans


@pytest.fixture
def overlapping():
    return make_blobs(n_samples=3000, centers=6, n_features=5, cluster_std=3.0, random_state=3)[0]


def test_one_full_step_is_scikit_learns(blobs):
    start = blobs[0][:4]
    ours = TorchMiniBatchKMeans(4, init=start, reassignment_ratio=0).partial_fit(blobs[0])
    theirs = MiniBatchKMeans(4, init=start, n_init=1, reassignment_ratio=0).partial_fit(blobs[0])
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-12)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)


def test_partial_fit_is_scikit_learns(overlapping):
    start, weight = overlapping[:6], np.random.default_rng(0).uniform(0.5, 2, len(overlapping))
    ours = TorchMiniBatchKMeans(6, init=start, reassignment_ratio=0)
    theirs = MiniBatchKMeans(6, init=start, n_init=1, reassignment_ratio=0)
    for rows in np.split(np.arange(len(overlapping)), 10):
        for estimator in (ours, theirs):
            estimator.partial_fit(overlapping[rows], sample_weight=weight[rows])
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10)
    assert ours.n_steps_ == theirs.n_steps_ == 10


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_predictions_are_scikit_learns_for_equal_centres(overlapping, offset):
    X = overlapping + offset
    ours = TorchMiniBatchKMeans(6, random_state=0).fit(X)
    theirs = KMeans(6, init=ours.cluster_centers_, n_init=1, max_iter=1, tol=1e9).fit(X)
    theirs.cluster_centers_ = ours.cluster_centers_
    weight = np.random.default_rng(0).uniform(size=len(X))
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-6)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-9)
    assert ours.score(X, sample_weight=weight) == pytest.approx(theirs.score(X, sample_weight=weight), rel=1e-9)
    assert ours.inertia_ == pytest.approx(-theirs.score(X), rel=1e-9)


@pytest.mark.parametrize("settings", [{}, {"learning_rate": 0.3}, {"init": "random"}, {"tol": 1e-3}], ids=str)
def test_inertia_is_near_that_of_kmeans(overlapping, settings):
    ours = [TorchMiniBatchKMeans(6, random_state=seed, **settings).fit(overlapping).inertia_ for seed in range(5)]
    assert min(ours) < 1.02 * KMeans(6, n_init=5, random_state=0).fit(overlapping).inertia_


def test_partial_fit_is_near_fit(overlapping):
    start = KMeans(6, n_init=5, random_state=0).fit(overlapping).cluster_centers_ + 1
    fitted, partial = (TorchMiniBatchKMeans(6, init=start, random_state=0) for _ in range(2))
    for _ in range(5):
        for chunk in np.array_split(overlapping, 6):
            partial.partial_fit(chunk)
    assert partial.score(overlapping) == pytest.approx(fitted.fit(overlapping).score(overlapping), rel=0.01)
    assert partial.n_steps_ == 30
    assert len(partial.labels_) == 500


def test_partial_fit_continues_a_fit(overlapping):
    estimator = TorchMiniBatchKMeans(6, random_state=0, max_iter=1).fit(overlapping)
    before = estimator.cluster_centers_
    estimator.partial_fit(overlapping[:3])
    assert 0 < np.abs(estimator.cluster_centers_ - before).max() < 1


def test_labels_are_of_the_last_batch(blobs):
    estimator = TorchMiniBatchKMeans(3, random_state=0)
    X = blobs[0]
    np.testing.assert_array_equal(estimator.fit_predict(X), estimator.predict(X))
    assert adjusted_rand_score(estimator.labels_, blobs[1]) == 1
    estimator.partial_fit(X[:40])
    np.testing.assert_array_equal(estimator.labels_, estimator.predict(X[:40]))
    estimator.set_params(compute_labels=False).fit(X)
    assert not hasattr(estimator, "labels_")
    assert estimator.inertia_ == pytest.approx(-estimator.score(X), rel=0.05)
    np.testing.assert_array_equal(estimator.fit_predict(X), estimator.predict(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_distance_of_a_point_to_itself(dtype, offset):
    X = (np.random.default_rng(0).normal(size=(40, 5)) * 10 + offset).astype(dtype)
    estimator = TorchMiniBatchKMeans(40, init=X, reassignment_ratio=0).fit(X)
    distances = estimator.transform(estimator.cluster_centers_)
    assert (distances >= 0).all()
    assert (distances.diagonal() == 0).all()
    assert distances.dtype == dtype


@pytest.mark.parametrize("settings", [{}, {"learning_rate": 0.2}, {"batch_size": 64}], ids=str)
def test_offset_changes_nothing(overlapping, settings):
    estimator = TorchMiniBatchKMeans(6, random_state=0, **settings)
    near = clone(estimator).fit(overlapping)
    far = clone(estimator).fit(overlapping + 1e6)
    np.testing.assert_array_equal(near.labels_, far.labels_)
    np.testing.assert_allclose(near.transform(overlapping), far.transform(overlapping + 1e6), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [16, 100, 1000])
@pytest.mark.parametrize("settings", [{}, {"init": "random"}, {"learning_rate": 0.2}, {"tol": 1e-4}], ids=str)
def test_integer_weights_are_repeated_samples(batch_size, settings):
    rng = np.random.default_rng(0)
    X, weight = rng.normal(size=(300, 3)), rng.integers(0, 4, 300)
    repeated = rng.permutation(X.repeat(weight, axis=0))
    estimator = TorchMiniBatchKMeans(5, random_state=0, batch_size=batch_size, **settings)
    one, two = clone(estimator).fit(X, sample_weight=weight), clone(estimator).fit(repeated)
    np.testing.assert_allclose(one.cluster_centers_, two.cluster_centers_, rtol=1e-8)
    assert one.inertia_ == pytest.approx(two.inertia_)
    assert one.n_steps_ == two.n_steps_


def test_clusters_have_the_order_of_an_init_array():
    X, y = make_blobs(n_samples=3000, centers=10, n_features=8, cluster_std=0.5, random_state=0)
    exemplars = X[[np.flatnonzero(y == label)[0] for label in range(10)]]
    for settings in ({}, {"learning_rate": 0.1}):
        np.testing.assert_array_equal(TorchMiniBatchKMeans(10, init=exemplars, **settings).fit(X).labels_, y)


def test_far_centres_are_reassigned(blobs):
    X, y = blobs
    start = np.array([X[0], X[0] + 1e4, X[0] - 1e4])
    assert adjusted_rand_score(TorchMiniBatchKMeans(3, init=start, random_state=0).fit(X).labels_, y) == 1


def test_init_by_a_callable(blobs):
    X, calls = blobs[0], []

    def first_samples(X, n_clusters, random_state):
        calls.append(random_state.randint(1000))
        return X[:n_clusters]

    estimator = TorchMiniBatchKMeans(3, init=first_samples, random_state=0).fit(X)
    assert len(calls) == 3
    assert len(set(calls)) == 3
    from_array = TorchMiniBatchKMeans(3, init=X[:3], random_state=0).fit(X)
    np.testing.assert_allclose(estimator.cluster_centers_, from_array.cluster_centers_, rtol=0.1, atol=0.1)


def test_fewer_distinct_samples_than_clusters():
    X = np.repeat([[0.1, 0.2], [0.3, 0.7], [1.1, 0.1]], 20, axis=0)
    for settings in ({}, {"init": "random"}, {"batch_size": 2}):
        estimator = TorchMiniBatchKMeans(5, random_state=0, **settings)
        with pytest.warns(
            ConvergenceWarning, match=r"of n_clusters=5 clusters have samples: X has only 3 distinct samples"
        ):
            estimator.fit(X)
        assert np.isfinite(estimator.cluster_centers_).all()
        assert len(set(estimator.labels_)) == 3
        assert estimator.inertia_ < 1e-12


MATRICES = arrays(
    np.float64,
    st.tuples(st.integers(3, 12), st.integers(1, 3)),
    elements=st.floats(-1e100, 1e100, allow_nan=False) | st.sampled_from([0.0, 1.0, -1.0]),
)


@given(MATRICES, st.sampled_from(["counts", 0.5]), st.sampled_from([2, 100]))
def test_centres_of_finite_data_are_finite(X, learning_rate, batch_size):
    estimator = TorchMiniBatchKMeans(3, learning_rate=learning_rate, batch_size=batch_size, max_iter=5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = estimator.fit_predict(X)
    assert np.isfinite(estimator.cluster_centers_).all()
    assert set(labels) <= {0, 1, 2}
    assert np.isfinite(estimator.transform(X)).all()
    np.testing.assert_array_equal(labels, estimator.predict(X))


INVALID = {
    "shape of init": ({"init": np.zeros((3, 2))}, {}, r"init has centres of shape \(3, 2\), but .* = \(3, 4\)"),
    "number of inits": ({"init": np.zeros((2, 4))}, {}, r"init has centres of shape \(2, 4\)"),
    "init is not finite": ({"init": np.full((3, 4), np.nan)}, {}, "init contains NaN"),
    "callable": ({"init": lambda X, k, random_state: X[:1]}, {}, r"init has centres of shape \(1, 4\)"),
    "too few samples": ({"n_clusters": 301}, {}, r"n_clusters=301 is larger than n_samples=300"),
    "negative weights": ({}, {"sample_weight": -np.ones(300)}, "Negative values in data passed to `sample_weight`"),
    "zero weights": ({}, {"sample_weight": np.zeros(300)}, "at least one (non-zero|row should count|sample)"),
}


@pytest.mark.parametrize(("parameters", "arguments", "match"), INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_errors_are_clear_and_change_nothing(method, parameters, arguments, match, blobs):
    estimator = TorchMiniBatchKMeans(**({"n_clusters": 3} | parameters))
    before = dict(vars(estimator))
    with pytest.raises(ValueError, match=match):
        getattr(estimator, method)(blobs[0], **arguments)
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is before[name] for name in before)


@pytest.mark.parametrize("rate", [0.0, -1.0, "fast", None])
def test_invalid_learning_rates(rate, blobs):
    with pytest.raises(InvalidParameterError, match="learning_rate"):
        TorchMiniBatchKMeans(3, learning_rate=rate).fit(blobs[0])


def test_numbers_whose_squares_overflow(blobs):
    with pytest.raises(ValueError, match=r"X has values up to 1.18e\+21.*overflow in torch.float32; divide X"):
        TorchMiniBatchKMeans(3).fit((blobs[0] * 1e20).astype(np.float32))


def test_parameters_without_effect_emit_warnings(blobs):
    with pytest.warns(RuntimeWarning, match="init_size=2 is smaller than n_clusters=3") as small:
        TorchMiniBatchKMeans(3, init_size=2, random_state=0).fit(blobs[0])
    with pytest.warns(RuntimeWarning, match="n_init=4 has no effect") as idle:
        TorchMiniBatchKMeans(3, init=blobs[0][:3], n_init=4, random_state=0).fit(blobs[0])
    assert small[0].filename == idle[0].filename == __file__


def test_random_state_determines_the_fit(overlapping):
    estimator = TorchMiniBatchKMeans(6, random_state=0)
    one, two, other = (clone(estimator).set_params(random_state=s).fit(overlapping) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.cluster_centers_, two.cluster_centers_)
    assert not np.array_equal(one.cluster_centers_, other.cluster_centers_)


def test_feature_names_and_data_frames(blobs):
    estimator = TorchMiniBatchKMeans(3, random_state=0).fit(blobs[0])
    assert estimator.get_feature_names_out().tolist() == [f"torchminibatchkmeans{i}" for i in range(3)]
    frame = clone(estimator).set_output(transform="pandas").fit_transform(blobs[0], sample_weight=np.ones(300))
    np.testing.assert_allclose(frame.to_numpy(), estimator.transform(blobs[0]), rtol=1e-6)


def test_numbers_of_steps_and_epochs(overlapping):
    estimator = TorchMiniBatchKMeans(6, batch_size=500, max_iter=3, max_no_improvement=None, random_state=0)
    estimator.fit(overlapping)
    assert (estimator.n_steps_, estimator.n_iter_) == (18, 3)


def test_verbose(blobs, capsys):
    TorchMiniBatchKMeans(3, max_iter=2, verbose=1, random_state=0).fit(blobs[0])
    assert capsys.readouterr().out.startswith("Step 1 of at most 2: mean inertia ")
