"""Initialization of TorchGMM: labels, responsibilities, clusterers, parameters; weights; batches."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import DBSCAN, AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import shuffle

from skvae import TorchGMM
from skvae.estimators._mixture_init import responsibilities_from
from skvae.fitting.mixture_init import INIT_JITTER, INIT_METHODS
from skvae.models import COVARIANCES

ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")
over_all_types = pytest.mark.parametrize("covariance_type", COVARIANCES)


def assert_same_fit(one, two, **tolerance):
    for name in ATTRIBUTES:
        assert_allclose(getattr(one, name), getattr(two, name), err_msg=name, **({"rtol": 1e-7} | tolerance))


def one_step(X, **parameters):
    """A fit of one iteration, which warns that it has not converged."""
    y, sample_weight = parameters.pop("y", None), parameters.pop("sample_weight", None)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        return TorchGMM(3, max_iter=1, **parameters).fit(X, y, sample_weight)


def test_labels_initialize_class_means(blobs):
    X, y = blobs
    names = np.array(["c", "a", "b"])[y]
    gmm = TorchGMM(3, init_params="labels", max_iter=0).fit(X, names)
    assert_allclose(gmm.means_, [X[names == name].mean(0) for name in "abc"])
    assert_allclose(gmm.weights_, [np.mean(names == name) for name in "abc"])
    assert_array_equal(np.array(list("abc"))[gmm.fit(X, names).predict(X)], names)


def test_unlabelled_samples_are_ignored_in_the_initialization(blobs):
    X, y = blobs
    labelled = np.random.default_rng(0).permutation(len(y))[:30]
    partial = np.full(len(y), -1)
    partial[labelled] = y[labelled]
    initial = TorchGMM(3, init_params="labels", max_iter=0).fit(X, partial)
    assert_allclose(initial.means_, [X[partial == c].mean(0) for c in range(3)])
    assert_array_equal(TorchGMM(3, init_params="labels").fit(X, partial).predict(X), y)
    words = np.where(partial == -1, None, np.array(["a", "b", "c"], dtype=object)[y])
    assert_array_equal(TorchGMM(3, init_params="labels", max_iter=0).fit(X, words).means_, initial.means_)


def test_labels_in_a_pipeline(blobs):
    pipeline = make_pipeline(StandardScaler(), TorchGMM(3, init_params="labels"))
    assert_array_equal(pipeline.fit(*blobs).predict(blobs[0]), blobs[1])
    assert pipeline.transform(blobs[0]).shape == (300, 3)


def test_class_means_with_other_initial_parameters(blobs):
    """Start at class means with equal weights and equal round covariances."""
    X, y = blobs
    params = {"weights_init": np.full(3, 1 / 3), "precisions_init": np.stack([np.eye(4) * 10] * 3)}
    gmm = TorchGMM(3, init_params="labels", max_iter=0, **params).fit(X, y)
    assert_allclose(gmm.covariances_, params["precisions_init"] / 100, atol=1e-12)
    assert_allclose(gmm.weights_, 1 / 3)
    assert_allclose(gmm.means_, [X[y == c].mean(0) for c in range(3)])


@over_all_types
def test_responsibilities_initialize_a_mixture(covariance_type, correlated):
    resp = np.random.default_rng(0).dirichlet(np.ones(3), size=len(correlated))
    gmm = TorchGMM(3, covariance_type=covariance_type, init_params=resp, max_iter=0, reg_covar=0).fit(correlated)
    assert_allclose(gmm.weights_, resp.mean(0))
    assert_allclose(gmm.means_, resp.T @ correlated / resp.sum(0)[:, None])
    listed = TorchGMM(3, covariance_type=covariance_type, init_params=resp.tolist(), max_iter=0, reg_covar=0)
    assert_same_fit(listed.fit(correlated), gmm)


@over_all_types
@pytest.mark.parametrize("init_params", ["k-means++", "random_from_data"])
def test_single_samples_initialize_a_mixture_without_regularization(covariance_type, init_params, correlated):
    """A single row has no covariance: a component is as wide as a small share of all rows, and takes those nearest."""
    options = {"covariance_type": covariance_type, "init_params": init_params, "max_iter": 0}
    whole = TorchGMM(covariance_type=covariance_type, reg_covar=0.0, max_iter=0).fit(correlated).covariances_
    for seed in range(8):
        initial = TorchGMM(4, reg_covar=0.0, random_state=seed, **options).fit(correlated)
        assert_allclose(initial.weights_, 0.25)
        assert_allclose(initial.covariances_ / whole, INIT_JITTER, rtol=1e-2)
        distance = np.abs(correlated[:, None] - initial.means_).max(2)
        assert_array_equal((distance < 1e-9).sum(0), 1)
        if covariance_type == "full":
            differences = (correlated[:, None] - initial.means_)[:, :, None]
            squares = (differences @ np.linalg.inv(whole) @ differences.swapaxes(2, 3))[..., 0, 0]
            assert_array_equal(initial.predict(correlated), squares.argmin(1))


def test_single_samples_lead_to_as_good_a_mixture_without_regularization(correlated):
    options = {"init_params": "random_from_data", "tol": 1e-6, "max_iter": 2_000}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The covariances of components")  # a few fall for a row, which is a maximum
        without = [TorchGMM(4, reg_covar=0.0, random_state=seed, **options).fit(correlated) for seed in range(8)]
    regular = [TorchGMM(4, random_state=seed, **options).fit(correlated) for seed in range(8)]
    assert np.median([gmm.lower_bound_ for gmm in without]) > np.median([gmm.lower_bound_ for gmm in regular]) - 0.05


def test_initial_weight_of_zero(correlated):
    gmm = TorchGMM(3, weights_init=[0, 0.5, 0.5], max_iter=0, random_state=0).fit(correlated)
    assert np.isfinite(gmm.score_samples(correlated)).all()
    assert (gmm.predict_proba(correlated)[:, 0] == 0).all()


def test_initial_precision_of_a_tied_spherical_mixture(correlated):
    initial = TorchGMM(3, covariance_type="tied_spherical", random_state=0).fit(correlated)
    gmm = TorchGMM(
        3, covariance_type="tied_spherical", precisions_init=2 * initial.precisions_, max_iter=0, random_state=0
    )
    assert_allclose(gmm.fit(correlated).precisions_, 2 * initial.precisions_)


@over_all_types
@pytest.mark.parametrize(("dtype", "far"), [(np.float64, 1e200), (np.float32, 1e30)])
def test_scores_of_samples_whose_distances_overflow(covariance_type, dtype, far, correlated):
    gmm = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(correlated.astype(dtype))
    rows = np.array([[far, far, far], [-far, far, 0.0], [far, 0.0, -far]], dtype=dtype)
    assert np.isfinite(gmm.score_samples(rows)).all()
    assert_allclose(gmm.predict_proba(rows).sum(1), 1, rtol=1e-5)


def test_clusterer_initializes_a_mixture(blobs):
    X, y = blobs
    clusterer = KMeans(3, n_init=1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the global state is what is tested)
    one, two = (TorchGMM(3, init_params=clusterer, random_state=0).fit(X) for _ in range(2))
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert not hasattr(clusterer, "labels_"), "the clusterer of the user was fitted"
    assert_same_fit(one, two, rtol=0)
    assert adjusted_rand_score(y, one.predict(X)) == 1
    noise = TorchGMM(3, init_params=DBSCAN(eps=1.2)).fit(X)
    assert adjusted_rand_score(y, noise.predict(X)) == 1


def test_weights_are_passed_to_the_clusterer(blobs):
    class Spy(KMeans):
        def fit(self, X, y=None, sample_weight=None):
            seen.append(sample_weight)
            return super().fit(X, y, sample_weight)

    seen, weight = [], np.linspace(1, 2, 300)
    TorchGMM(3, init_params=Spy(3, random_state=0)).fit(blobs[0], sample_weight=weight)
    assert_array_equal(seen[0], weight)


@pytest.mark.parametrize(
    ("init_params", "y", "match"),
    [
        ("labels", None, "init_params='labels' needs y"),
        ("labels", [0, 1, -1] * 100, "y holds 2 classes .* but n_components=3; let the two agree"),
        ("labels", [0, 1, 2], "label for each of the 300 rows of X, but it has 3"),
        (np.ones((300, 2)) / 2, None, r"shape \(300, 3\), one row for each row of X, but it has the shape \(300, 2\)"),
        (np.ones((300, 3)), None, r"summing to 1 in each row \(or to 0 .* rows sum to up to 3"),
        (-np.ones((300, 3)), None, "not negative"),
        (np.full((300, 3), 0.3333), None, "rows sum to up to 0.9999, that of row 0 to 0.9999"),
        (
            np.where(np.arange(300)[:, None] == 7, [1, 1e-4, 0], [1, 0, 0]),
            None,
            "up to 1.0001, that of row 7 to 1.0001",
        ),
        (KMeans(2, random_state=0), None, r"KMeans\(.*\) found 2 clusters, but n_components=3"),
    ],
)
def test_invalid_init_params(init_params, y, match, blobs):
    with pytest.raises(ValueError, match=match):
        TorchGMM(3, init_params=init_params).fit(blobs[0], y)


def test_init_params_of_the_user_are_evaluated_once(blobs, monkeypatch):
    calls = []

    def spy(*args, **kwargs):
        calls.append(args)
        return responsibilities_from(*args, **kwargs)

    monkeypatch.setattr("skvae.estimators.gmm.responsibilities_from", spy)
    TorchGMM(3, init_params="labels", n_init=5).fit(*blobs)
    assert len(calls) == 1


@over_all_types
def test_from_parameters(covariance_type, correlated):
    fitted = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(correlated)
    options = {"covariance_type": covariance_type, "random_state": 0}
    mixture = TorchGMM.from_parameters(fitted.weights_, fitted.means_, fitted.covariances_, **options)
    assert_same_fit(mixture, fitted)
    assert_allclose(mixture.score_samples(correlated), fitted.score_samples(correlated))
    assert_array_equal(mixture.predict(correlated), fitted.predict(correlated))
    assert_allclose(mixture.sample(10)[0], fitted.sample(10)[0])
    assert mixture.n_components == 3


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "params", "match"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], [[[1.0]], [[1.0]]], {}, "sum to 1.1"),
        ([1.0], [[0.0], [1.0]], [[[1.0]], [[1.0]]], {}, r"weights should have the shape \(2,\)"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], {}, r"covariances should have the shape \(2, 1, 1\)"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, -1.0], {"covariance_type": "spherical"}, r"components \[1\] are not"),
        ([0.5, 0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]], {"n_components": 3}, "2 means, but n_components=3"),
    ],
)
def test_invalid_from_parameters(weights, means, covariances, params, match):
    with pytest.raises(ValueError, match=match):
        TorchGMM.from_parameters(weights, means, covariances, **params)


@over_all_types
@pytest.mark.parametrize("init_params", INIT_METHODS)
def test_integer_weights_are_repeated_samples(covariance_type, init_params, correlated):
    """Also for random initializations, and in any order."""
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, size=len(correlated))
    mixed, mixed_weight = shuffle(correlated, weight, random_state=1)
    options = {"covariance_type": covariance_type, "init_params": init_params, "random_state": 0, "n_init": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        gmm = TorchGMM(3, max_iter=20, reg_covar=1e-2, **options)
        repeated = gmm.fit(correlated.repeat(weight, axis=0))
        score = repeated.score_samples(correlated)
        weighted = gmm.fit(mixed, sample_weight=mixed_weight)
    assert_allclose(weighted.score_samples(correlated), score, rtol=1e-7, atol=1e-7)


def test_samples_of_weight_zero_are_ignored(correlated):
    weight = np.ones(len(correlated))
    weight[:100] = 0
    spoilt = correlated.copy()
    spoilt[:100] = 1e6
    one = TorchGMM(3, random_state=0).fit(spoilt, sample_weight=weight)
    assert_same_fit(one, TorchGMM(3, random_state=0).fit(correlated[100:]))
    resp = np.full((600, 3), [0.2, 0.3, 0.5])
    resp[100:300] = [0.5, 0.3, 0.2]
    one, two = (
        one_step(spoilt, init_params=resp, sample_weight=weight),
        one_step(correlated[100:], init_params=resp[100:]),
    )
    assert_same_fit(one, two)


@pytest.mark.parametrize(
    "init_params",
    ["labels", KMeans(3, n_init=1, random_state=0), AgglomerativeClustering(3)],
    ids=lambda init: str(init),
)
def test_initialization_ignores_samples_of_weight_zero(init_params, blobs):
    X, y = blobs[0].copy(), blobs[1].copy()
    weight = np.ones(len(X))
    weight[::3], X[::3], y[::3] = 0, 1e6, 7  # a class of its own
    counted = weight > 0
    one = one_step(X, y=y, init_params=init_params, sample_weight=weight)
    assert_same_fit(one, one_step(X[counted], y=y[counted], init_params=init_params))


def test_fit_does_not_depend_on_the_scale_of_weights(correlated):
    weight = np.random.default_rng(0).uniform(size=len(correlated))
    one, two = (TorchGMM(3, random_state=0).fit(correlated, sample_weight=weight * scale) for scale in (1e-6, 1e3))
    assert_same_fit(one, two, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (np.zeros(300), "zero"),
        (-np.ones(300), "[Nn]egative"),
        (np.ones(299), "sample_weight"),
        (np.full(300, np.nan), "NaN"),
        (np.repeat([1, 0], [2, 298]), "n_components=3 is larger than n_samples=2"),
    ],
)
def test_invalid_weights(weight, match, blobs):
    with pytest.raises(ValueError, match=match):
        TorchGMM(3).fit(blobs[0], sample_weight=weight)


@over_all_types
def test_first_batch_is_one_em_iteration(covariance_type, correlated):
    options = {"covariance_type": covariance_type, "random_state": 0}
    assert_same_fit(TorchGMM(3, **options).partial_fit(correlated), one_step(correlated, **options))


@over_all_types
def test_second_equal_batch_with_decay_one_averages(covariance_type, correlated):
    """With learning_decay=1, a second batch as large as the first weighs as much: sums of equal weight add."""
    options = {"covariance_type": covariance_type, "reg_covar": 0.0}
    initial = TorchGMM(3, random_state=0, **options).partial_fit(correlated)
    weights, means, covariances = initial.weights_, initial.means_, initial.covariances_
    step = TorchGMM.from_parameters(weights, means, covariances, learning_decay=1.0, **options)
    step._weight_seen = float(len(correlated))
    shifted = correlated + 0.3
    step.partial_fit(shifted)
    full = TorchGMM.from_parameters(weights, means, covariances, learning_decay=1.0, **options).partial_fit(shifted)
    assert_allclose(step.weights_, (weights + full.weights_) / 2)
    first = weights[:, None] * means + full.weights_[:, None] * full.means_
    assert_allclose(step.means_, first / (weights + full.weights_)[:, None])


@over_all_types
def test_stream_of_batches_converges_to_the_fit(covariance_type, blobs):
    X, y = shuffle(*blobs, random_state=0)
    stream = TorchGMM(3, covariance_type=covariance_type, random_state=0)
    for _ in range(15):
        for first in range(0, 300, 50):
            stream.partial_fit(X[first : first + 50])
    batch = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(X)
    assert stream.score(X) > batch.score(X) - 0.02
    assert adjusted_rand_score(y, stream.predict(X)) > 0.95
    assert (stream.n_iter_, len(stream.lower_bounds_)) == (90, 90)


def test_stream_of_batches_follows_drifting_data():
    lags = []
    for learning_decay in (0.55, 0.7, 1.0):
        rng, gmm = np.random.default_rng(0), TorchGMM(2, random_state=0, learning_decay=learning_decay)
        for step in range(200):
            centers = np.array([-5.0, 5.0]) + step / 20
            gmm.partial_fit(rng.normal(size=(50, 1)) + rng.choice(centers, size=(50, 1)))
        lags.append(np.abs(np.sort(gmm.means_[:, 0]) - centers).mean())
    assert lags == sorted(lags)
    assert lags[0] < 1.2, "the mixture is more than 24 batches behind"
    assert lags[2] > 3, "with learning_decay=1 nothing is forgotten"


def test_partial_fit_continues_from_a_fit(correlated):
    gmm = TorchGMM(3, random_state=0).fit(correlated)
    before = gmm.score(correlated)
    gmm.partial_fit(correlated[:1])
    assert abs(gmm.score(correlated) - before) < 0.05, "one row has moved the mixture of six hundred"
    with pytest.raises(ValueError, match="3 components, but n_components=2"):
        gmm.set_params(n_components=2).partial_fit(correlated)


def test_partial_fit_with_weights(correlated):
    weight = np.random.default_rng(0).integers(1, 4, size=600)
    one = TorchGMM(3, random_state=0).partial_fit(correlated).partial_fit(correlated, sample_weight=weight)
    two = TorchGMM(3, random_state=0).partial_fit(correlated).partial_fit(correlated.repeat(weight, axis=0))
    assert_same_fit(one, two)


def test_first_batch_needs_enough_samples(correlated):
    gmm = TorchGMM(3)
    with pytest.raises(ValueError, match="n_components=3 is larger than n_samples=2"):
        gmm.partial_fit(correlated[:2])
    with pytest.raises(NotFittedError):
        gmm.predict(correlated)
    gmm.partial_fit(correlated)
    with pytest.raises(ValueError, match="X has 2 features"):
        gmm.partial_fit(correlated[:, :2])


def test_transform_is_predict_proba(blobs):
    gmm = TorchGMM(3, random_state=0).fit(blobs[0])
    assert_array_equal(gmm.transform(blobs[0]), gmm.predict_proba(blobs[0]))
    assert list(gmm.get_feature_names_out()) == ["torchgmm0", "torchgmm1", "torchgmm2"]
    assert_array_equal(TorchGMM(3, random_state=0).fit_transform(blobs[0]), gmm.transform(blobs[0]))


def test_icl_is_bic_plus_uncertainty(correlated):
    gmm = TorchGMM(3, random_state=0).fit(correlated)
    doubt = -2 * np.log(gmm.predict_proba(correlated).max(1)).sum()
    assert gmm.icl(correlated) == pytest.approx(gmm.bic(correlated) + doubt)
    assert doubt > 1


@over_all_types
def test_initializations_in_shared_passes_equal_separate_ones(covariance_type, correlated, monkeypatch):
    options = {"covariance_type": covariance_type, "init_params": "random_from_data", "random_state": 3, "tol": 1e-5}
    gmm = TorchGMM(3, n_init=6, max_iter=500, **options)
    together = gmm.fit(correlated)
    bounds = together.lower_bounds_
    monkeypatch.setattr("skvae.fitting.whitened_rows.WhitenedRows.n_together", lambda self, n_components: 1)
    alone = TorchGMM(3, n_init=6, max_iter=500, **options).fit(correlated)
    assert_allclose(alone.lower_bounds_, bounds, rtol=1e-10)
    assert_same_fit(alone, together)


@over_all_types
def test_squarem_takes_fewer_iterations(covariance_type, correlated):
    options = {"covariance_type": covariance_type, "random_state": 0, "tol": 1e-8, "max_iter": 5_000}
    plain = TorchGMM(3, **options).fit(correlated)
    fast = TorchGMM(3, acceleration="squarem", **options).fit(correlated)
    assert fast.converged_
    assert (np.diff(fast.lower_bounds_) > -1e-9).all()
    assert fast.lower_bound_ > plain.lower_bound_ - 1e-5
    assert fast.n_iter_ < plain.n_iter_ or plain.n_iter_ < 12
    assert fast.score(correlated) == pytest.approx(fast.lower_bound_, abs=1e-6)


def test_squarem_stopped_early_is_an_em_step(correlated):
    for max_iter in range(1, 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            gmm = TorchGMM(3, acceleration="squarem", random_state=0, max_iter=max_iter, tol=0).fit(correlated)
        assert gmm.n_iter_ <= max_iter
        assert gmm.score(correlated) > gmm.lower_bound_ - 1e-9
        assert_allclose(gmm.covariances_ @ gmm.precisions_, np.stack([np.eye(3)] * 3), atol=1e-8)


def test_memory_map(correlated, tmp_path):
    mapped = np.memmap(tmp_path / "rows.dat", dtype=np.float64, mode="w+", shape=correlated.shape)
    mapped[:] = correlated
    mapped.flush()
    mapped = np.memmap(tmp_path / "rows.dat", dtype=np.float64, mode="r", shape=correlated.shape)
    one, two = (TorchGMM(3, random_state=0).fit(X) for X in (mapped, correlated))
    assert_same_fit(one, two, rtol=0)
    assert_array_equal(one.predict(mapped), two.predict(correlated))


def test_attributes_fit_scikit_learns_estimator(correlated):
    """A fitted TorchGMM can be turned into a GaussianMixture by its attributes alone."""
    gmm, twin = TorchGMM(3, random_state=0).fit(correlated), GaussianMixture(3)
    for name in ("weights_", "means_", "precisions_cholesky_"):
        setattr(twin, name, getattr(gmm, name))
    assert_allclose(twin.predict_proba(correlated), gmm.predict_proba(correlated), rtol=1e-6, atol=1e-9)
