"""Sparse rows: dense chunk by chunk, with the results of the dense array."""

import numpy as np
import pytest
from helpers import METHODS, outputs, weights_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone

from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from skvae.data.inputs import MAX_DENSE_BYTES, sparse_samples
from skvae.data.samples import LazySamples
from skvae.data.weights import canonical_sample_order

NETS = {"hidden_layer_sizes": (8,), "batch_size": 64, "max_epochs": 2, "random_state": 0}
EMBEDDERS = [
    VAEEmbedder(2, **NETS),
    AutoencoderEmbedder(2, early_stopping=True, **NETS),
    VaDEClusterer(2, latent_dim=2, n_init=2, pretrain_epochs=1, **NETS),
]
NARROW = (*METHODS, "posterior_variance")  # methods whose results have few columns
KMEANS = TorchMiniBatchKMeans(2, max_iter=2, random_state=0)
ESTIMATORS = [
    TorchGMM(2, covariance_type="diag", max_iter=2, random_state=0),
    TorchGMM(2, covariance_type="diag", init_params=KMEANS, max_iter=2, random_state=0),
    TorchPPCA(2),
    KMEANS,
    ClusterLabelClassifier(KMEANS),
    *(clone(embedder).set_params(batch_size=1_000, max_epochs=1) for embedder in EMBEDDERS),
]
over_estimators = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
over_embedders = pytest.mark.parametrize("estimator", EMBEDDERS, ids=lambda estimator: type(estimator).__name__)
pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:EM did not converge:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Clusters overlap"),
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples"),
    pytest.mark.filterwarnings("ignore:Posterior collapse"),
]


def random_rows(n_rows, n_columns, density=0.1):
    """Sparse rows, half of which have larger values."""
    rng = np.random.default_rng(0)
    X = sparse.csr_array(sparse.random(n_rows, n_columns, density=density, format="csr", random_state=rng))
    return (X * (1 + np.arange(n_rows) % 2)[:, None]).tocsr()


@pytest.fixture
def in_chunks(monkeypatch):
    """As if every sparse table were larger than a chunk."""
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", 0)


@pytest.fixture
def largest(monkeypatch):
    """Sizes of what is made dense."""
    sizes, toarray = [], sparse.csr_array.toarray

    def recorded(self, *args, **kwargs):
        sizes.append(self.shape[0] * self.shape[1])
        return toarray(self, *args, **kwargs)

    monkeypatch.setattr(sparse.csr_array, "toarray", recorded)
    return sizes


@over_estimators
def test_the_whole_is_never_dense(estimator, largest, monkeypatch):
    monkeypatch.setattr(
        "skvae.fitting.weighted_rows.MAX_SAMPLE_ROWS", 3_000
    )  # a start is looked for in a sample, which is
    X = random_rows(10_000, 250, density=0.02)
    n_chunk = MAX_DENSE_BYTES // X.dtype.itemsize
    outputs(clone(estimator).fit(X, np.arange(X.shape[0]) % 2), X, NARROW)
    assert max(largest) <= n_chunk < X.shape[0] * X.shape[1] / 2
    assert len(largest) > 5


def test_with_more_columns_than_rows_the_whole_is_never_dense(largest):
    X = random_rows(1_000, 2_500, density=0.02)
    ppca = TorchPPCA(3).fit(X)
    outputs(ppca, X, NARROW)
    n_columns = 1_100 * X.shape[0]
    assert max(largest) <= n_columns < X.shape[0] * X.shape[1] / 2
    held = TorchPPCA(3).fit(X.toarray())
    assert_allclose(ppca.components_, held.components_, atol=1e-10)
    assert_allclose(ppca.score_samples(X), held.score_samples(X.toarray()), rtol=1e-10)


@pytest.mark.parametrize("n_components", [3, 0.3, None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_components_of_wide_tables(n_components, weighted, dtype, in_chunks):
    X = random_rows(50, 300).astype(dtype)
    weight = np.arange(50) % 3 if weighted else None
    one, two = (clone(TorchPPCA(n_components)).fit(rows, sample_weight=weight) for rows in (X, X.toarray()))
    assert one.n_components_ == two.n_components_
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    # The last axis of all belongs to no variance.
    assert_allclose(one.components_[:30], two.components_[:30], atol=tolerance)
    assert_allclose(one.explained_variance_, two.explained_variance_, rtol=1e-3, atol=tolerance)
    assert one.components_.dtype == dtype


def test_what_is_no_more_than_a_chunk_is_dense():
    X = sparse.csr_array((2**10, 2**10))
    assert isinstance(sparse_samples(X, allow_nan=False, stream_nan=True), np.ndarray)
    assert isinstance(sparse_samples(X.astype(np.float32), allow_nan=False, stream_nan=True), np.ndarray)
    larger = sparse.csr_array((2**10 + 1, 2**10))
    assert isinstance(sparse_samples(larger, allow_nan=False, stream_nan=True), LazySamples)
    assert isinstance(sparse_samples(larger.astype(np.float32), allow_nan=False, stream_nan=True), np.ndarray)


@over_embedders
@pytest.mark.parametrize("kind", ["plain", "weighted", "missing", "float32", "bytes"])
def test_networks_learn_the_same_to_the_last_bit(estimator, kind, in_chunks):
    X, weight = random_rows(300, 7, density=0.4), None
    if kind == "weighted":
        weight = np.arange(300) % 4
    if kind == "missing":
        X.data[::9] = np.nan
    if kind in ("float32", "bytes"):
        X = (X * 100).astype(np.float32 if kind == "float32" else np.uint8)
    one, two = (clone(estimator).fit(rows, sample_weight=weight) for rows in (X, X.toarray()))
    for (name, mine), theirs in zip(weights_of(one).items(), weights_of(two).values(), strict=True):
        assert_array_equal(mine, theirs, err_msg=name)
    for name, found in outputs(one, X, NARROW).items():
        assert_allclose(found, outputs(two, X.toarray(), NARROW)[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"init": "random", "n_init": 3}, {"tol": 1e-4, "batch_size": 300}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_draws_the_same_batches(settings, weighted, in_chunks):
    X = random_rows(4_000, 5, density=0.6)
    weight = np.arange(4_000) % 3 if weighted else None
    kmeans = TorchMiniBatchKMeans(3, random_state=0).set_params(**settings)
    one, two = (clone(kmeans).fit(rows, sample_weight=weight) for rows in (X, X.toarray()))
    assert_array_equal(one.cluster_centers_, two.cluster_centers_)
    assert_array_equal(one.labels_, two.labels_)
    assert one.n_steps_ == two.n_steps_


def test_few_kinds_of_rows_do_not_make_a_batch_of_all(in_chunks, monkeypatch, largest):
    """With fewer distinct rows than a batch has, it would be all rows."""
    monkeypatch.setattr("skvae.data.tensors.POOL_BYTES", 0)
    X = sparse.csr_array(np.repeat(np.eye(4), 5_000, axis=0))
    kmeans = TorchMiniBatchKMeans(4, batch_size=100, n_init=3, random_state=0).fit(X)
    assert_allclose(np.sort(kmeans.cluster_centers_, axis=0), np.sort(np.eye(4), axis=0), atol=1e-9)
    drawn = [size for size in largest if size not in (X.shape[0] * 4, 4)]  # but for passes over a chunk
    assert max(drawn) <= 800 * 4


def test_a_start_of_the_user_s_sees_a_sample(in_chunks):
    X, shapes = random_rows(4_000, 5), []

    def init(rows, n_clusters, random_state):
        shapes.append((type(rows), rows.shape))
        return rows[random_state.choice(len(rows), n_clusters, replace=False)]

    for size in (500, 5_000):
        TorchMiniBatchKMeans(3, init=init, n_init=1, init_size=size, max_iter=1, random_state=0).fit(X)
    assert shapes == [(np.ndarray, (500, 5)), (np.ndarray, (4_000, 5))]


def test_large_numbers_are_refused(in_chunks):
    X = sparse.csr_array(np.eye(5_000, 3, dtype=np.float32) * -1e20)
    with pytest.raises(ValueError, match=r"X has values up to 1e\+20.*overflow in torch.float32; divide X"):
        TorchMiniBatchKMeans(3).fit(X)


@pytest.mark.parametrize("unit", [1.0, 7.0])
@pytest.mark.parametrize("missing", [False, True])
def test_order_of_rows(unit, missing):
    X = unit * random_rows(5_000, 40)
    if missing:
        X.data[::50] = np.nan
    assert_array_equal(
        canonical_sample_order(LazySamples(X, X.dtype, allow_nan=True)), canonical_sample_order(X.toarray())
    )


@pytest.mark.parametrize("estimator", [TorchGMM(2, random_state=0), TorchPPCA(2)], ids=str)
def test_missing_values_that_need_all_rows(estimator, in_chunks, monkeypatch):
    X = random_rows(200, 4, density=0.9)
    X.data[::9] = np.nan
    one, two = clone(estimator).fit(X), clone(estimator).fit(X.toarray())
    for name, values in outputs(one, X, NARROW).items():
        assert_allclose(values, outputs(two, X.toarray(), NARROW)[name], rtol=1e-9, err_msg=name)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    for method in (clone(estimator).fit, one.transform):
        with pytest.raises(ValueError, match="X is sparse and contains NaN, and as a dense array, which missing"):
            method(X)


@over_embedders
def test_missing_values_that_were_not_learned(estimator, in_chunks):
    X = random_rows(200, 4)
    fitted = clone(estimator).fit(X)
    X.data[5] = np.nan
    with pytest.raises(ValueError, match="was fitted to rows without missing values"):
        fitted.transform(X)
