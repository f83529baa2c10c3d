"""Rows that are read a chunk at a time: the same results as in memory, one pass an iteration, and little memory."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import Slices, fitted_values
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.cluster import DBSCAN, KMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning

from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA
from skvae.fitting.rows import row_chunks
from skvae.models.covariances import COVARIANCES

K = 3
ESTIMATORS = [
    TorchGMM(K, max_iter=5, tol=0.0, random_state=0, chunk_size=97),
    TorchPPCA(2, chunk_size=50),
    TorchMiniBatchKMeans(K, batch_size=64, random_state=0),
]
over_estimators = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
over_kinds = pytest.mark.parametrize("covariance_type", COVARIANCES)
pytestmark = pytest.mark.filterwarnings("ignore:EM did not converge:sklearn.exceptions.ConvergenceWarning")


class RecordedKMeans(KMeans):
    """k-means that says how many rows it was fitted to."""

    n_rows = ()

    def fit(self, X, y=None, sample_weight=None):
        self.n_rows.append(len(X))
        return super().fit(X, y, sample_weight)


@pytest.fixture
def X():
    """Overlapping clusters with correlations, sorted by cluster, of numbers from 0 to 255."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4)) + 3 * rng.normal(size=4) for _ in range(K)]
    rows = np.concatenate(parts)
    return np.round(255 * (rows - rows.min()) / np.ptp(rows))


@pytest.fixture(params=["memmap float64", "memmap float32", "memmap uint8", "sparse float", "sparse int", "slices"])
def source(request, X, tmp_path, monkeypatch):
    """Rows that are read a chunk at a time, and the same in memory."""
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", 0)
    kind, _, dtype = request.param.partition(" ")
    if kind == "sparse":
        return csr_matrix(X.astype(dtype)), X
    if kind == "slices":
        return Slices(X), X
    X = X.astype(dtype)
    X.tofile(tmp_path / "rows")
    return np.memmap(tmp_path / "rows", dtype=dtype, mode="r", shape=X.shape), X


def assert_same(one, two, tolerance=1e-10):
    one, two = fitted_values(one), fitted_values(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert_allclose(value, two[name], rtol=tolerance, atol=tolerance * np.abs(value).max(), err_msg=name)


@over_estimators
def test_sources_are_arrays(estimator, source):
    rows, X = source
    streamed, held = clone(estimator).fit(rows), clone(estimator).fit(X)
    tolerance = 1e-10 if X.dtype != np.float32 else 1e-4
    assert_same(streamed, held, tolerance)
    scale = np.abs(held.transform(X)).max()
    assert_allclose(streamed.transform(rows), held.transform(X), rtol=0, atol=10 * tolerance * scale)
    assert streamed.transform(rows).dtype == held.transform(X).dtype
    if hasattr(estimator, "predict"):
        assert_array_equal(streamed.predict(rows), held.predict(X))
    assert_allclose(streamed.score(rows), held.score(X), rtol=10 * tolerance)


@over_estimators
def test_edges_of_blocks_change_nothing(estimator, X, monkeypatch):
    def short(n_rows, n_columns, chunk_size=None, n_bytes=None):
        return row_chunks(n_rows, n_columns, chunk_size or 71)

    weight = np.random.default_rng(0).uniform(size=len(X))
    held = clone(estimator).fit(X, sample_weight=weight)
    monkeypatch.setattr("skvae.data.chunks.row_chunks", short)
    streamed = clone(estimator).fit(Slices(X), sample_weight=weight)
    assert_same(streamed, held)
    assert_allclose(streamed.transform(Slices(X)), held.transform(X), atol=1e-8)


@over_kinds
@pytest.mark.parametrize("weighted", [False, True])
def test_mixture_is_that_of_rows_in_memory(covariance_type, weighted, X):
    weight = np.random.default_rng(0).integers(0, 3, size=len(X)) if weighted else None
    start = {"means_init": X[[0, 250, 500]], "weights_init": np.full(K, 1 / K), "n_init": 1}
    gmm = TorchGMM(K, covariance_type=covariance_type, max_iter=20, tol=0.0, random_state=0, chunk_size=60, **start)
    streamed, held = clone(gmm).fit(Slices(X), sample_weight=weight), clone(gmm).fit(X, sample_weight=weight)
    assert_same(streamed, held)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_starts_from_a_sample_of_all_rows_are_those_in_memory(init_params, covariance_type, X):
    gmm = TorchGMM(K, covariance_type=covariance_type, init_params=init_params, n_init=2, random_state=0, chunk_size=60)
    assert_same(clone(gmm).set_params(max_iter=3).fit(Slices(X)), clone(gmm).set_params(max_iter=3).fit(X))


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("weighted", [False, True])
def test_starts_from_a_few_rows(init_params, weighted, monkeypatch):
    X, y = make_blobs(n_samples=2000, centers=K, n_features=4, cluster_std=0.7, random_state=1)
    X = X[np.argsort(y)]
    weight = np.random.default_rng(0).uniform(0, 2, size=len(X)) if weighted else None
    monkeypatch.setattr("skvae.fitting.weighted_rows.MAX_SAMPLE_ROWS", 50)
    gmm = TorchGMM(K, init_params=init_params, n_init=5, max_iter=200, random_state=0, chunk_size=300)
    streamed, held = clone(gmm).fit(Slices(X), sample_weight=weight), clone(gmm).fit(X, sample_weight=weight)
    assert_allclose(streamed.lower_bound_, held.lower_bound_, atol=2e-3)
    if init_params != "random":  # which takes longer than the plateau where it stops
        assert_allclose(np.sort(streamed.means_, axis=0), np.sort(held.means_, axis=0), atol=2e-2)


def test_given_labels_and_responsibilities(X):
    labels = np.repeat(np.arange(K), 200)
    labels[::7] = -1
    resp = np.random.default_rng(0).dirichlet(np.ones(K), size=len(X))
    for init_params, y in [("labels", labels), (resp, None)]:
        gmm = TorchGMM(K, init_params=init_params, max_iter=4, chunk_size=60)
        assert_same(clone(gmm).fit(Slices(X), y), clone(gmm).fit(X, y))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_clusterer_is_fitted_to_a_sample(weighted, monkeypatch):
    X, y = make_blobs(n_samples=1000, centers=K, n_features=4, cluster_std=0.7, random_state=1)
    X = X[np.argsort(y)]
    monkeypatch.setattr("skvae.fitting.weighted_rows.MAX_SAMPLE_ROWS", 50)
    weight = np.random.default_rng(0).uniform(0, 2, size=len(X)) if weighted else None
    monkeypatch.setattr(RecordedKMeans, "n_rows", [])
    gmm = TorchGMM(K, init_params=RecordedKMeans(K, n_init=5), random_state=0, chunk_size=300)
    streamed = gmm.fit(Slices(X), sample_weight=weight)
    assert RecordedKMeans.n_rows == [40 * K]
    assert_array_equal(np.sort(np.bincount(streamed.predict(X))), np.bincount(y)[np.argsort(np.bincount(y))])


def test_a_clusterer_without_predict_is_refused(X):
    with pytest.raises(ValueError, match="no predict and labels only samples that it is fitted to; give a clusterer"):
        TorchGMM(K, init_params=DBSCAN()).fit(Slices(X))


@over_kinds
@pytest.mark.parametrize("linear", [True, False])
def test_one_pass_an_iteration(covariance_type, linear, X, monkeypatch):
    """Also for several starts, and when their products are not the fastest way in memory."""
    if not linear:
        monkeypatch.setattr(type(COVARIANCES[covariance_type]), "prefers_linear", lambda self, n_features: False)
    read = []
    for max_iter in (2, 3):
        rows = Slices(X)
        gmm = TorchGMM(K, covariance_type=covariance_type, init_params="random", n_init=4, tol=0.0, random_state=0)
        gmm.set_params(max_iter=max_iter, chunk_size=60).fit(rows)
        read.append(rows.slices)
    assert sum(map(len, read[1])) - sum(map(len, read[0])) == len(X)
    assert [i for part in read[1][-10:] for i in part] == list(range(len(X)))


@over_kinds
def test_batches_and_warm_starts(covariance_type, X):
    gmms = [TorchGMM(K, covariance_type=covariance_type, random_state=0, chunk_size=70) for _ in range(2)]
    for gmm, kind in zip(gmms, (Slices, np.asarray), strict=True):
        gmm.partial_fit(kind(X[::2])).partial_fit(kind(X[1::2]))
    assert_same(*gmms)
    for gmm, kind in zip(gmms, (Slices, np.asarray), strict=True):
        gmm.set_params(warm_start=True, max_iter=3, tol=0.0).fit(kind(X))
    assert_same(*gmms)


def test_a_dead_component_goes_to_the_row_explained_worst(X):
    far = np.full((1, 4), 1e4)
    start = {"means_init": np.concatenate([X[[0, 500]], far]), "weights_init": [0.5, 0.5, 0.0]}
    gmm = TorchGMM(K, precisions_init=np.ones((K, 4)) / 100, covariance_type="diag", max_iter=8, tol=0.0, **start)
    gmm.set_params(chunk_size=60)
    assert_same(clone(gmm).fit(Slices(X)), clone(gmm).fit(X))


@pytest.mark.parametrize("n_rows", [600, 3])
def test_components_of_fewer_and_of_more_rows_than_features(n_rows, X):
    rows = X[::-1][:n_rows]
    weight = np.arange(1.0, n_rows + 1)
    one, two = TorchPPCA(2).fit(Slices(rows), sample_weight=weight), TorchPPCA(2).fit(rows, sample_weight=weight)
    assert_same(one, two)


@over_estimators
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_found_when_they_are_read(estimator, bad, X):
    X = X.copy()
    X[555, 2] = bad
    fitted = clone(estimator).fit(Slices(np.delete(X, 555, 0)))
    before = fitted_values(fitted)
    with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
        fitted.fit(Slices(X))
    assert fitted_values(fitted) == before
    with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
        fitted.transform(Slices(X))


# k-means with a pool


@pytest.fixture
def small_pool(monkeypatch):
    """Fewer rows are held than there are."""
    monkeypatch.setattr("skvae.data.tensors.POOL_BYTES", 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_from_a_pool_are_as_good_as_from_all_rows(weighted, small_pool):
    """Rows sorted by cluster are the hardest case for runs of neighbours."""
    X, y = make_blobs(n_samples=20_000, centers=12, n_features=6, cluster_std=2.0, random_state=0)
    X = X[np.argsort(y)]
    weight = np.random.default_rng(0).exponential(size=len(X)) if weighted else None
    inertias = {"streamed": [], "held": []}
    for seed in range(5):
        kmeans = TorchMiniBatchKMeans(12, batch_size=256, n_init=3, random_state=seed)
        inertias["streamed"].append(clone(kmeans).fit(Slices(X), sample_weight=weight).inertia_)
        inertias["held"].append(clone(kmeans).fit(X, sample_weight=weight).inertia_)
    assert np.median(inertias["streamed"]) < 1.05 * np.median(inertias["held"])


def test_a_fit_from_a_pool_tells_what_a_fit_tells(small_pool):
    X, _ = make_blobs(n_samples=5000, centers=K, n_features=4, random_state=0)
    rows = Slices(X)
    kmeans = TorchMiniBatchKMeans(K, batch_size=100, random_state=0).fit(rows)
    assert max(map(len, rows.slices[1:])) < 5001
    assert_array_equal(kmeans.labels_, kmeans.predict(X))
    assert_allclose(kmeans.inertia_, -kmeans.score(X))
    best = KMeans(K, random_state=0).fit(X).cluster_centers_
    assert_allclose(np.sort(kmeans.cluster_centers_, axis=0), np.sort(best, axis=0), atol=0.2)
    assert kmeans.n_iter_ == -(-kmeans.n_steps_ * 100 // 5000)
    again = TorchMiniBatchKMeans(K, batch_size=100, random_state=0).fit(Slices(X))
    assert_array_equal(again.cluster_centers_, kmeans.cluster_centers_)
    estimate = TorchMiniBatchKMeans(K, batch_size=100, compute_labels=False, random_state=0).fit(Slices(X))
    assert not hasattr(estimate, "labels_")
    assert_allclose(estimate.inertia_, kmeans.inertia_, rtol=0.2)


def test_rows_without_weight_count_for_nothing_in_a_pool(small_pool):
    X, y = make_blobs(n_samples=5000, centers=K, n_features=4, random_state=0)
    kmeans = TorchMiniBatchKMeans(K - 1, batch_size=100, tol=1e-5, random_state=0)
    kmeans.fit(Slices(np.where(y[:, None] == 0, 1e6, X)), sample_weight=(y != 0).astype(float))
    assert np.abs(kmeans.cluster_centers_).max() < 20


def test_starts_of_a_pool(small_pool):
    X, _ = make_blobs(n_samples=5000, centers=K, n_features=4, random_state=0)
    shapes = []

    def init(rows, n_clusters, random_state):
        shapes.append(rows.shape)
        return rows[random_state.choice(len(rows), n_clusters)]

    TorchMiniBatchKMeans(K, init=init, n_init=1, batch_size=100, random_state=0).fit(Slices(X))
    assert shapes == [(800, 4)]
    given = TorchMiniBatchKMeans(K, init=X[:K], batch_size=100, max_iter=1, random_state=0).fit(Slices(X))
    assert given.cluster_centers_.shape == (K, 4)


def test_large_numbers_in_a_pool(small_pool):
    X = np.ones((5000, 2), np.float32)
    X[4321, 1] = -1e20
    with pytest.raises(ValueError, match=r"X has values up to 1e\+20.*overflow in torch.float32; divide X"):
        TorchMiniBatchKMeans(K, batch_size=100).fit(Slices(X))


def test_warning_of_empty_clusters_from_a_pool(small_pool):
    X = np.repeat([[0.0, 0.0], [1.0, 1.0]], 2500, axis=0)
    with pytest.warns(ConvergenceWarning, match="Only 2 of n_clusters=3 clusters.*X has only 2 distinct samples"):
        TorchMiniBatchKMeans(3, batch_size=100, max_iter=2, random_state=0).fit(Slices(X))


def test_a_batch_may_be_a_table(X):
    one, two = (TorchMiniBatchKMeans(K, random_state=0) for _ in range(2))
    for part in np.array_split(X, 3):
        assert_same(one.partial_fit(Slices(part)), two.partial_fit(part))


MEASURE = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA
from skvae.data import inputs

def resident(field):
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(field))

warnings.simplefilter("ignore")
mixture = {"max_iter": 2, "random_state": 0, "init_params": "random_from_data"}
estimators = {
    "diag": TorchGMM(3, covariance_type="diag", **mixture),
    "components": TorchPPCA(2),
}
for name, path, *shape in (argument.split(",") for argument in sys.argv[1:]):
    if process := os.fork():  # one after another, each with the memory of what is imported
        _, code = os.waitpid(process, 0)
        assert code == 0
        continue
    estimator = estimators[name].fit(np.random.default_rng(0).normal(size=(500, 5)))
    X = np.memmap(path, dtype=np.uint8, mode="r", shape=tuple(map(int, shape)))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    inputs.MAX_HELD_BYTES = 0
    estimator.fit(X).transform(X)
    print(resident("VmHWM") - before, flush=True)
    os._exit(0)
"""


@pytest.mark.first
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set from /proc")
def test_memory_is_that_of_a_few_chunks(tmp_path):
    """Of more than 250 megabytes in float64."""
    shapes = {"diag": (40_000, 784), "components": (400_000, 90)}
    command = [sys.executable, "-c", MEASURE]
    for name, shape in shapes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(shape[0] * shape[1])
        rows = np.memmap(tmp_path / name, dtype=np.uint8, mode="r+", shape=shape)
        rows[::1000] = np.random.default_rng(0).integers(0, 255, size=rows[::1000].shape)
        rows.flush()
        command.append(",".join([name, str(tmp_path / name), *map(str, shape)]))
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    megabytes = dict(zip(shapes, map(float, found.stdout.split()), strict=True))
    assert max(megabytes.values()) < 150, megabytes
