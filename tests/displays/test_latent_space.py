import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skvae import TorchGMM
from skvae.displays import LatentSpaceDisplay
from skvae.displays.codes import full_covariances
from skvae.displays.drawing import COLORS, ellipse_of
from skvae.models import COVARIANCES


def ellipses(ax):
    from matplotlib.patches import Ellipse

    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def test_ellipse_of_known_covariance():
    width, height, angle = ellipse_of(np.diag([4.0, 1.0]), n_std=1)
    assert_allclose([width, height, angle % 180], [4, 2, 0], atol=1e-12)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert ellipse_of(turn @ np.diag([4.0, 1.0]) @ turn.T, n_std=1)[2] % 180 == pytest.approx(90)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_mixture_of_any_type(covariance_type):
    X, y = load_iris(return_X_y=True)
    gmm = TorchGMM(3, covariance_type=covariance_type, random_state=0).fit(X)
    figure, ax = plt.subplots()
    display = LatentSpaceDisplay.from_estimator(gmm, X, y, ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert len(ellipses(ax)) == 3
    assert display.codes.shape == (150, 2)
    assert display.plot() is display
    full = full_covariances(gmm.covariances_, covariance_type, gmm.means_)
    assert full.shape == (3, 4, 4)
    one = GaussianMixture(3)
    one.weights_, one.means_ = gmm.weights_, gmm.means_
    one.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(full))
    assert_allclose(one.score_samples(X), gmm.score_samples(X))


def test_projected_ellipse_is_that_of_projected_samples():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200_000, 4)) @ rng.normal(size=(4, 4))
    gmm = TorchGMM(1).fit(X)
    display = LatentSpaceDisplay.from_estimator(gmm, X)
    assert_allclose(display.covariances[0], np.cov(display.codes.T), rtol=1e-3, atol=1e-3)
    assert_allclose(display.means[0], display.codes.mean(0), atol=1e-6)


def test_codes_alone_and_strings():
    X, y = load_iris(return_X_y=True)
    display = LatentSpaceDisplay.from_predictions(X[:, :2])
    assert display.ax_.get_legend() is None
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    display = LatentSpaceDisplay.from_predictions(X[:, :2], names)
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == sorted(set(names))
    with pytest.raises(ValueError, match="inconsistent"):
        LatentSpaceDisplay.from_predictions(X, y[:10])
    with pytest.raises(ValueError, match="The latent codes have one dimension, and a plane two"):
        LatentSpaceDisplay.from_predictions(X[:, :1])
    X[3:5, 1] = np.nan
    with pytest.raises(ValueError, match="2 of 150 samples have NaN, and no position in the plane; impute them"):
        LatentSpaceDisplay.from_predictions(X)


def test_legends_stay_within_axes_that_have_neighbours():
    X, y = load_iris(return_X_y=True)
    for layout, expected in ((None, True), ("constrained", False)):
        figure, axes = plt.subplots(1, 2, layout=layout)
        LatentSpaceDisplay.from_predictions(X, y, ax=axes[0])
        figure.draw_without_rendering()
        legend, inside = axes[0].get_legend().get_window_extent(), axes[0].get_window_extent()
        assert (legend.x1 <= inside.x1) == expected
        assert legend.x1 < axes[1].get_window_extent().x0


def test_rows_without_a_label_are_grey():
    codes = np.random.default_rng(0).normal(size=(30, 2))
    labels = np.array(["a", "b", None] * 10, dtype=object)
    labels[2] = np.nan
    display = LatentSpaceDisplay.from_predictions(codes, labels)
    grey, *classes = display.ax_.collections
    assert_allclose(grey.get_offsets(), codes[2::3])
    assert [part.get_label() for part in classes] == ["a", "b"]
    assert_allclose(display.class_means_, [codes[::3].mean(0), codes[1::3].mean(0)])


def test_labels_that_are_no_classes():
    with pytest.raises(ValueError, match="continuous"):
        LatentSpaceDisplay.from_predictions(np.eye(3), [0.5, 1.5, 2.5])


def test_labels_in_a_column():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="1d array"):
        LatentSpaceDisplay.from_predictions(np.eye(3), pandas.DataFrame({"a": [0, 1, 1], "b": 1}))


def test_discriminant_plane_is_fishers():
    """Against scikit-learn's linear discriminant analysis, with classes of equal size."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    X, y = load_iris(return_X_y=True)
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    covariances = np.stack([np.cov(X[y == c].T, bias=True) for c in range(3)])
    display = LatentSpaceDisplay.from_predictions(X, y, means=means, covariances=covariances, projection="discriminant")
    codes = LinearDiscriminantAnalysis().fit(X, y).transform(X)
    scale = display.codes.std(0) / codes.std(0)  # degrees of freedom are counted in other ways by other versions
    assert_allclose(scale, scale[0], rtol=1e-6)
    assert_allclose(np.abs(display.codes), scale * np.abs(codes), rtol=1e-6, atol=1e-8)
    assert_allclose(display.covariances.mean(0), np.eye(2), atol=1e-8)


def test_wrong_projection():
    X, _ = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=r"projection should be one of \['discriminant', 'pca'\], but got 'tsne'"):
        LatentSpaceDisplay.from_predictions(X, projection="tsne")
    with pytest.raises(ValueError, match="needs the means and covariances of at least two"):
        LatentSpaceDisplay.from_predictions(X, projection="discriminant")


def test_unfitted_mixture():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(NotFittedError):
        LatentSpaceDisplay.from_estimator(TorchGMM(3), X, y)


def test_class_means_are_marked():
    X, y = load_iris(return_X_y=True)
    display = LatentSpaceDisplay.from_predictions(X[:, :2], y)
    assert_allclose(display.class_means_, [X[y == c, :2].mean(0) for c in range(3)])
    marks = [line for line in display.ax_.get_lines() if line.get_marker() == "X"]
    assert_allclose(np.concatenate([mark.get_xydata() for mark in marks]), display.class_means_)
    assert [mark.get_markerfacecolor() for mark in marks] == list(COLORS[:3])
    assert [text.get_text() for text in display.ax_.texts] == ["0", "1", "2"]


def test_colours_and_markers_of_many_classes():
    rng = np.random.default_rng(0)
    display = LatentSpaceDisplay.from_predictions(rng.normal(size=(300, 2)), np.arange(300) % 25)
    looks = {
        (tuple(part.get_facecolor()[0]), part.get_paths()[0].vertices.tobytes()) for part in display.ax_.collections
    }
    assert len(looks) == 25


@pytest.mark.parametrize("n_std", [1.0, 2.5])
def test_ellipses_are_where_the_components_are(n_std):
    means, covariances = [[1.0, 2.0], [-3.0, 0.0]], [[[4.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 9.0]]]
    given = {"means": means, "covariances": covariances, "n_std": n_std}
    ax = LatentSpaceDisplay.from_predictions(np.zeros((3, 2)), **given).ax_
    one, two = ellipses(ax)
    assert_allclose([one.get_center(), two.get_center()], means)
    assert_allclose([one.width, one.height, one.angle % 180], [4 * n_std, 2 * n_std, 0], atol=1e-9)
    assert_allclose([two.width, two.height, two.angle % 180], [6 * n_std, 2 * n_std, 90], atol=1e-9)
    assert ax.get_aspect() == 1
    (crosses,) = [line for line in ax.get_lines() if line.get_marker() == "+"]
    assert_allclose(crosses.get_xydata(), means)


def test_vade_encodes_the_rows(vade, images):
    display = LatentSpaceDisplay.from_estimator(vade, images)
    plane = PCA(2).fit(vade.transform(images))
    assert_allclose(display.codes, plane.transform(vade.transform(images)), atol=1e-5)
    assert_allclose(display.means, plane.transform(vade.means_), atol=1e-5)
    assert_allclose(display.covariances, plane.components_ @ vade.covariances_ @ plane.components_.T, atol=1e-5)
    assert_array_equal(display.labels, vade.labels_)
    assert len(ellipses(display.ax_)) == 3


def test_pipeline_of_an_embedder_and_a_mixture(pipeline, images):
    display = LatentSpaceDisplay.from_estimator(pipeline, images, projection="discriminant")
    assert_array_equal(display.labels, pipeline.predict(images))
    given = {"means": pipeline[-1].means_, "covariances": pipeline[-1].covariances_}
    same = LatentSpaceDisplay.from_predictions(pipeline[0].transform(images), projection="discriminant", **given)
    assert_allclose(display.codes, same.codes)
    assert_allclose(display.covariances, same.covariances)


def test_embedders_without_a_mixture(pipeline, images):
    scaled = Pipeline([("scale", StandardScaler()), ("pca", PCA(2))]).fit(images)
    display = LatentSpaceDisplay.from_estimator(scaled, images)
    assert_allclose(display.codes, scaled.transform(images))
    assert display.labels is None
    assert display.means is None
    vae = pipeline[0]
    display = LatentSpaceDisplay.from_estimator(vae, images, np.arange(120) % 3)
    assert_allclose(display.codes, PCA(2).fit_transform(vae.transform(images)), atol=1e-5)


def test_wrong_mixtures():
    X, _ = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="There are covariances but no means"):
        LatentSpaceDisplay.from_predictions(X, covariances=np.eye(4)[None])
    with pytest.raises(ValueError, match=r"means should be of shape \(n_components, 4\), but are of \(2, 3\)"):
        LatentSpaceDisplay.from_predictions(X, means=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"covariances should be of shape \(2, 4, 4\), one matrix for each mean, but"):
        LatentSpaceDisplay.from_predictions(X, means=np.zeros((2, 4)), covariances=np.ones((2, 4)))
