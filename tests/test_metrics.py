import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import TorchPPCA, VAEEmbedder
from skvae.metrics import (
    active_units,
    clustering_accuracy_score,
    match_clusters,
    matched_confusion_matrix,
    reconstruction_error,
    structural_similarity_score,
)


def test_permuted_clusters_have_perfect_accuracy():
    rng = np.random.default_rng(0)
    y = rng.integers(5, size=200)
    renamed = rng.permutation(5)[y]
    assert clustering_accuracy_score(y, renamed) == 1.0
    matrix, clusters = matched_confusion_matrix(y, renamed)
    assert_array_equal(matrix, np.diag(np.bincount(y)))
    assert [match_clusters(y, renamed)[cluster] for cluster in clusters] == list(range(5))


labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n) for _ in range(2)])
)


@given(labelings, st.permutations(range(7)))
def test_accuracy_does_not_depend_on_names(labels, names):
    y, clusters = labels
    accuracy = clustering_accuracy_score(y, clusters)
    assert clustering_accuracy_score(y, [names[cluster] for cluster in clusters]) == accuracy
    assert clustering_accuracy_score([f"class {names[label]}" for label in y], clusters) == accuracy
    assert clustering_accuracy_score(clusters, y) == accuracy
    majority = max(y.count(label) for label in y) / len(y) if len(set(clusters)) == 1 else 0
    assert max(majority, 1 / len(y)) <= accuracy <= 1


def test_matching_is_one_to_one_and_optimal():
    y = [0, 0, 0, 1, 1, 1]
    assert clustering_accuracy_score(y, [0, 0, 0, 0, 0, 1]) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 0, 0, 0], 0.5), ([0, 1, 2, 3], 0.5), ([7, 7, 9, 3], 0.75)],
    ids=["fewer", "more", "gaps"],
)
def test_more_or_fewer_clusters_than_classes(labels, expected):
    y = ["cat", "cat", "dog", "dog"]
    assert clustering_accuracy_score(y, labels) == expected
    matrix, clusters = matched_confusion_matrix(y, labels)
    assert matrix.shape == (2, len(set(labels)))
    assert matrix.sum() == 4
    assert sorted(clusters) == sorted(set(labels))
    n_matched = min(matrix.shape)
    assert np.diag(matrix[:, :n_matched]).sum() == pytest.approx(4 * expected) or matrix.shape[1] < 2
    assert len(match_clusters(y, labels)) == n_matched


def test_invalid_labels():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clustering_accuracy_score([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="0 sample"):
        clustering_accuracy_score([], [])
    with pytest.raises(ValueError, match="1d array"):
        clustering_accuracy_score([[0, 1], [1, 0]], [0, 1])
    for y in (["a", np.nan], ["a", None], [0, pd.NA], pd.Series([0, None], dtype="Int64")):
        with pytest.raises(ValueError, match="Input labels_true contains NaN: 1 of 2 labels are missing; leave these"):
            clustering_accuracy_score(y, [0, 1])
    with pytest.raises(TypeError, match=r"labels_pred has labels of the types \['int', 'str'\]"):
        clustering_accuracy_score([0, 1], ["a", 1])


@pytest.mark.parametrize(
    "convert",
    [
        lambda labels: labels,
        lambda labels: labels - 1,
        lambda labels: labels.astype(float) / 2,
        lambda labels: labels.astype(np.uint8),
        lambda labels: labels[:, None],
        lambda labels: np.array(list("abc"))[labels],
        lambda labels: np.array(list("abc"), dtype=object)[labels].tolist(),
        lambda labels: pd.Series(list("abc"), dtype="category")[labels],
        lambda labels: torch.tensor(labels / 2, requires_grad=True),
        lambda labels: torch.tensor(labels).bfloat16(),
        lambda labels: pd.Series(labels, index=np.arange(len(labels))[::-1], dtype="Int64"),
    ],
    ids=[
        "integers",
        "noise",
        "floats",
        "bytes",
        "column",
        "strings",
        "objects",
        "category",
        "tensor",
        "bfloat16",
        "Int64",
    ],
)
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_types_of_labels(convert):
    rng = np.random.default_rng(0)
    y, clusters = rng.integers(3, size=50), rng.integers(5, size=50)
    assert clustering_accuracy_score(convert(y), clusters) == clustering_accuracy_score(y, clusters)
    assert clustering_accuracy_score(clusters, convert(y)) == clustering_accuracy_score(y, clusters)
    shares = np.bincount(y) / len(y)
    assert clustering_accuracy_score(y == 1, convert(y)) == pytest.approx(shares[1] + max(shares[0], shares[2]))


def test_active_units():
    """Three of five dimensions have variances above the threshold."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(400, 5)) * [1.0, 0.5, 0.2, 0.05, 0.0] + [0, 0, 0, 0, 100]
    assert active_units(Z) == 3
    assert active_units(Z.astype(np.float32)) == 3
    assert active_units(Z, threshold=0.1) == 2
    assert active_units(Z, threshold=0) == 4
    assert active_units([[0.0], [0.19]]) == 0
    assert active_units([[0.0], [0.21]]) == 1
    with pytest.raises(ValueError, match="1 sample"):
        active_units(Z[:1])
    with pytest.raises(ValueError, match="threshold == -1, must be >= 0"):
        active_units(Z, threshold=-1)
    with pytest.raises(ValueError, match="Z contains NaN"):
        active_units([[np.nan], [1.0]])


def test_active_units_of_an_embedder(blobs):
    vae = VAEEmbedder(3, hidden_layer_sizes=(16,), max_epochs=10, random_state=0).fit(blobs[0])
    assert active_units(vae.transform(blobs[0])) == vae.active_units_


def test_reconstruction_error(correlated):
    X = correlated
    ppca, pca = TorchPPCA(2).fit(X), PCA(2).fit(X)
    expected = mean_squared_error(X, pca.inverse_transform(pca.transform(X)))
    assert reconstruction_error(pca, X) == pytest.approx(expected)
    assert reconstruction_error(ppca, X) >= expected - 1e-12
    embedder = VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=2, random_state=0).fit(X)
    assert reconstruction_error(embedder, X) == pytest.approx(mean_squared_error(X, embedder.reconstruct(X)))
    pipeline = make_pipeline(StandardScaler(), PCA(2)).fit(X)
    decoded = pipeline.inverse_transform(pipeline.transform(X))
    assert reconstruction_error(pipeline, X) == pytest.approx(mean_squared_error(X, decoded))
    frame = pd.DataFrame(X, columns=list("abc"))
    assert reconstruction_error(PCA(2).fit(frame), frame) == pytest.approx(expected)
    assert reconstruction_error(pca, X.tolist()) == pytest.approx(expected)


def test_reconstruction_error_with_weights(correlated):
    weight = np.random.default_rng(0).integers(3, size=len(correlated))
    pca = PCA(1).fit(correlated)
    repeated = reconstruction_error(pca, np.repeat(correlated, weight, axis=0))
    assert reconstruction_error(pca, correlated, sample_weight=weight) == pytest.approx(repeated)
    with pytest.raises(ValueError, match="at least one"):
        reconstruction_error(pca, correlated, sample_weight=np.zeros(len(correlated)))
    with pytest.raises(ValueError, match="Negative values"):
        reconstruction_error(pca, correlated, sample_weight=-np.ones(len(correlated)))


def test_reconstruction_error_of_missing_values():
    class Zero:
        def reconstruct(self, X):
            return np.zeros(np.shape(X))

    assert reconstruction_error(Zero(), [[1.0, np.nan], [3.0, 2.0]]) == pytest.approx(14 / 3)
    assert reconstruction_error(Zero(), [[1.0, np.nan], [3.0, 2.0]], sample_weight=[2, 1]) == pytest.approx(15 / 4)
    assert reconstruction_error(Zero(), 2 * np.ones((3, 4, 4))) == 4
    with pytest.raises(ValueError, match="Every value of X is missing"):
        reconstruction_error(Zero(), [[np.nan], [np.nan]])
    with pytest.raises(TypeError, match="KMeans has neither reconstruct nor inverse_transform; give an embedder"):
        reconstruction_error(KMeans(2).fit(np.eye(3)), np.eye(3))


def similarity_of_windows(one, two, data_range, size):
    """Compute equation 13 of the paper window by window, with unbiased covariances."""
    windows = [np.lib.stride_tricks.sliding_window_view(image, (size, size)) for image in (one, two)]
    windows = [part.reshape(-1, size**2) for part in windows]
    means = [part.mean(axis=1) for part in windows]
    variances = [part.var(axis=1, ddof=1) for part in windows]
    product = (windows[0] - means[0][:, None]) * (windows[1] - means[1][:, None])
    covariance = product.sum(axis=1) / (size**2 - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * means[0] * means[1] + c1) * (2 * covariance + c2)
    below = (means[0] ** 2 + means[1] ** 2 + c1) * (variances[0] + variances[1] + c2)
    return (above / below).mean()


@pytest.mark.parametrize("size", [3, 7])
def test_structural_similarity(size):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, size=(4, 9, 11))
    decoded = images + rng.normal(0, 60, size=images.shape)
    expected = [similarity_of_windows(*pair, 255, size) for pair in zip(images, decoded, strict=True)]
    settings = {"data_range": 255, "win_size": size}
    flat = images.reshape(4, -1), decoded.reshape(4, -1)
    score = structural_similarity_score(*flat, image_shape=(9, 11), **settings)
    assert score == pytest.approx(np.mean(expected), rel=1e-10)
    assert structural_similarity_score(images, decoded, image_shape=(9, 11), **settings) == score
    assert structural_similarity_score(*flat, image_shape=[1, 9, 11], **settings) == score
    weighted = structural_similarity_score(*flat, image_shape=(9, 11), sample_weight=[1, 0, 0, 3], **settings)
    assert weighted == pytest.approx((expected[0] + 3 * expected[3]) / 4)
    planes = images.reshape(2, -1), decoded.reshape(2, -1)
    assert structural_similarity_score(*planes, image_shape=(2, 9, 11), **settings) == pytest.approx(score)
    assert structural_similarity_score(images, images, image_shape=(9, 11), **settings) == 1.0


def test_invalid_images():
    X = np.zeros((3, 64))
    settings = {"image_shape": (8, 8), "data_range": 1.0}
    with pytest.raises(ValueError, match=r"X_true has the shape \(3, 64\), but image_shape=\(8, 9\) was given"):
        structural_similarity_score(X, X, **settings | {"image_shape": (8, 9)})
    with pytest.raises(ValueError, match=r"X_pred has the shape \(3, 63\)"):
        structural_similarity_score(X, X[:, :-1], **settings)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        structural_similarity_score(X, X[:2], **settings)
    with pytest.raises(ValueError, match="data_range == 0, must be > 0"):
        structural_similarity_score(X, X, **settings | {"data_range": 0})
    for size in (4, 9):
        with pytest.raises(ValueError, match=f"win_size={size} should be odd and at most the smaller side .* 8"):
            structural_similarity_score(X, X, win_size=size, **settings)
    with pytest.raises(ValueError, match="X_pred contains NaN"):
        structural_similarity_score(X, X * np.nan, **settings)


def test_import_error_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match=r"needs scikit-image; install it with 'pip install skvae\[images\]'"):
        structural_similarity_score(np.zeros((1, 64)), np.zeros((1, 64)), image_shape=(8, 8), data_range=1)


def test_integer_weights_are_repeated_samples():
    rng = np.random.default_rng(0)
    y, clusters, weight = rng.integers(3, size=60), rng.integers(4, size=60), rng.integers(4, size=60)
    weight[clusters == 3] = 0
    repeated = np.repeat(np.arange(60), weight)
    pairs = (y, clusters), (y[repeated], clusters[repeated])
    accuracy = clustering_accuracy_score(*pairs[1])
    assert clustering_accuracy_score(*pairs[0]) != accuracy
    assert clustering_accuracy_score(*pairs[0], sample_weight=weight) == pytest.approx(accuracy)
    assert match_clusters(*pairs[0], sample_weight=weight) == match_clusters(*pairs[1])
    weighted, plain = matched_confusion_matrix(*pairs[0], sample_weight=weight), matched_confusion_matrix(*pairs[1])
    for one, two in zip(weighted, plain, strict=True):
        assert_array_equal(one, two)
    for bad, message in ((-weight, "[Nn]egative"), (0 * weight, "at least one"), (weight[1:], "expected")):
        with pytest.raises(ValueError, match=message):
            clustering_accuracy_score(*pairs[0], sample_weight=bad)


def test_images_with_channels_last_are_refused():
    X = np.random.default_rng(0).uniform(size=(3, 8, 9, 3))
    for images in (X, X.reshape(3, -1)):
        with pytest.raises(ValueError, match=r"channels last; give image_shape=\(3, 8, 9\)"):
            structural_similarity_score(images, images, image_shape=(8, 9, 3), data_range=1, win_size=3)
    first = np.moveaxis(X, -1, 1)
    with pytest.raises(ValueError, match=r"X_pred has the shape.*channels last.*np.moveaxis\(X_pred, -1, 1\)"):
        structural_similarity_score(first, X, image_shape=(3, 8, 9), data_range=1)
    assert structural_similarity_score(first, first, image_shape=(3, 8, 9), data_range=1) == pytest.approx(1)
