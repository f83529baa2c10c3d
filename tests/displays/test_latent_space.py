import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture

from skvae import TorchGMM
from skvae.displays import LatentSpaceDisplay
from skvae.displays.latent_space import ellipse_of, full_covariances
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
    with pytest.raises(ValueError, match=r"1 feature\(s\)"):
        LatentSpaceDisplay.from_predictions(X[:, :1])


def test_discriminant_plane_is_fishers():
    """Against scikit-learn's linear discriminant analysis, with classes of equal size."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    X, y = load_iris(return_X_y=True)
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    covariances = np.stack([np.cov(X[y == c].T, bias=True) for c in range(3)])
    display = LatentSpaceDisplay.from_predictions(X, y, means=means, covariances=covariances, projection="discriminant")
    codes = LinearDiscriminantAnalysis().fit(X, y).transform(X)
    assert_allclose(np.abs(display.codes), np.abs(codes), rtol=1e-6, atol=1e-8)
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
