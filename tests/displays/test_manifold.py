import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skvae import AutoencoderEmbedder, TorchGMM, TorchPPCA, VAEEmbedder
from skvae.displays import ManifoldDisplay
from skvae.displays.codes import latent_distribution
from skvae.models import COVARIANCES

MINUS = "\N{MINUS SIGN}"
SHAPE = {"image_shape": (3, 4)}
SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def vae(images):
    return VAEEmbedder(2, **SMALL).fit(images)


def test_grid_goes_through_the_quantiles_of_the_prior(vae):
    """Rows from top to bottom, as they are seen: the second coordinate grows upwards."""
    figure, ax = plt.subplots()
    display = ManifoldDisplay.from_estimator(vae, n_grid=5, **SHAPE, ax=ax)
    quantiles = norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9])
    assert_allclose(display.x, quantiles, atol=1e-9)
    assert_allclose(display.y, quantiles[::-1], atol=1e-9)
    for row, column in [(0, 0), (0, 4), (3, 1)]:
        code = [[quantiles[column], quantiles[4 - row]]]
        assert_allclose(display.images[row, column].ravel(), vae.inverse_transform(code)[0], atol=1e-6)
    (picture,) = ax.get_images()
    shown = picture.get_array()
    assert_allclose(shown[6:9, 7:11], display.images[1, 1])
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.plot() is display


def test_ticks_are_at_the_middles_of_their_images(vae):
    display = ManifoldDisplay.from_estimator(vae, n_grid=4, **SHAPE)
    assert_allclose(display.ax_.get_xticks(), [2.5, 8.5, 14.5, 20.5])
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == [
        "1.15",
        "0.32",
        f"{MINUS}0.32",
        f"{MINUS}1.15",
    ]
    assert display.ax_.get_ylabel() == "latent dimension 1"


def test_other_dimensions_stay_where_they_are_put(images):
    vae = VAEEmbedder(4, **SMALL).fit(images)
    display = ManifoldDisplay.from_estimator(vae, n_grid=3, components=(2, 0), **SHAPE)
    low = norm.ppf(1 / 6)
    assert_allclose(display.images[2, 1].ravel(), vae.inverse_transform([[low, 0, 0, 0]])[0], atol=1e-6)
    assert_allclose(display.images[1, 0].ravel(), vae.inverse_transform([[0, 0, low, 0]])[0], atol=1e-6)
    assert display.ax_.get_xlabel() == "latent dimension 2"
    display = ManifoldDisplay.from_estimator(vae, n_grid=3, fixed=[9, 9, 1.5, -1], **SHAPE)
    assert_allclose(display.images[1, 1].ravel(), vae.inverse_transform([[0, 0, 1.5, -1]])[0], atol=1e-6)


def test_quantiles_of_a_mixture(vade):
    """The share of draws from the prior on each side of every line of the grid."""
    display = ManifoldDisplay.from_estimator(vade, n_grid=4, components=(1, 3), **SHAPE)
    rng = np.random.default_rng(0)
    labels = rng.choice(3, size=100_000, p=vade.weights_ / vade.weights_.sum())
    roots = np.linalg.cholesky(vade.covariances_)
    codes = vade.means_[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(100_000, 4)))
    assert_allclose((codes[:, 1, None] < display.x).mean(axis=0), [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=0.005)
    assert_allclose((codes[:, 3, None] < display.y[::-1]).mean(axis=0), [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=0.005)
    center = np.array(codes.mean(axis=0))
    center[[1, 3]] = display.x[0], display.y[0]
    assert_allclose(display.images[0, 0].ravel(), vade.inverse_transform([center])[0], atol=0.01)


def test_quantiles_of_one_cluster(vade):
    display = ManifoldDisplay.from_estimator(vade, n_grid=3, cluster=2, **SHAPE)
    scale = np.sqrt(vade.covariances_[2, 0, 0])
    assert_allclose(display.x, vade.means_[2, 0] + scale * norm.ppf([1 / 6, 0.5, 5 / 6]), rtol=1e-5)
    assert_allclose(display.images[1, 1].ravel(), vade.cluster_centers_[2], atol=1e-5)


def test_pipelines_are_decoded_as_a_whole(pipeline, images):
    display = ManifoldDisplay.from_estimator(pipeline, n_grid=3, cluster=1, **SHAPE)
    center = pipeline[0].inverse_transform(pipeline[-1].means_[[1]])
    assert_allclose(display.images[1, 1].ravel(), center[0], atol=1e-5)
    scaled = Pipeline([("scale", StandardScaler()), ("ppca", TorchPPCA(2))]).fit(100 * images)
    display = ManifoldDisplay.from_estimator(scaled, n_grid=3, **SHAPE)
    assert_allclose(display.images[1, 1].ravel(), 100 * images.mean(axis=0), rtol=1e-6)


def test_an_autoencoder_has_the_moments_of_its_codes(images):
    autoencoder = AutoencoderEmbedder(2, **SMALL).fit(images)
    display = ManifoldDisplay.from_estimator(FrozenEstimator(autoencoder), n_grid=3, **SHAPE)
    codes = autoencoder.transform(images)
    expected = codes[:, 0].mean() + codes[:, 0].std() * norm.ppf([1 / 6, 0.5, 5 / 6])
    assert_allclose(display.x, expected, rtol=1e-5)


def test_colours_and_shapes_of_estimators(images):
    rows = np.concatenate([images] * 3, axis=1)
    vae = VAEEmbedder(2, image_shape=(3, 3, 4), architecture="mlp", **SMALL).fit(rows)
    display = ManifoldDisplay.from_estimator(vae, n_grid=2)
    assert display.images.shape == (2, 2, 3, 4, 3)
    middle = vae.inverse_transform([[display.x[1], display.y[0]]])
    assert_allclose(display.images[0, 1, :, :, 2].ravel(), middle[0, 24:], atol=1e-6)
    assert display.ax_.get_images()[0].get_array().shape == (10, 12, 3)
    square = VAEEmbedder(2, **SMALL).fit(rows[:, :25])
    assert ManifoldDisplay.from_estimator(square, n_grid=2).images.shape == (2, 2, 5, 5)
    table = VAEEmbedder(2, **SMALL).fit(images[:, :9])  # three by three, but nothing says so
    with pytest.raises(ValueError, match="The shape of images of 9 features is unknown"):
        ManifoldDisplay.from_estimator(table, n_grid=2)


def test_images_that_were_decoded_before(images):
    X = images[:6].reshape(2, 3, 12)
    display = ManifoldDisplay.from_predictions(X, **SHAPE, x=[1, 2, 3], y=[5, 4])
    assert_allclose(display.images[1, 2].ravel(), X[1, 2])
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["1.00", "2.00", "3.00"]
    assert len(ManifoldDisplay.from_predictions(X, **SHAPE).ax_.get_xticks()) == 0
    with pytest.raises(ValueError, match="should be of shape .n_rows, n_columns, n_features., but is of .6, 12."):
        ManifoldDisplay.from_predictions(images[:6], **SHAPE)
    with pytest.raises(ValueError, match="x should have 3 values"):
        ManifoldDisplay.from_predictions(X, **SHAPE, x=[1, 2])


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_distribution_of_any_covariance_type(covariance_type, images):
    """Moments of draws from each component, against the densities that the mixture has."""
    gmm = TorchGMM(2, covariance_type=covariance_type, random_state=0).fit(images[:, :3])
    found = latent_distribution(gmm)
    one = GaussianMixture(2)
    one.weights_, one.means_ = gmm.weights_, gmm.means_
    one.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(found.covariances))
    assert_allclose(one.score_samples(images[:, :3]), gmm.score_samples(images[:, :3]))
    draws = found.sample(100_000, torch_generator())
    for codes, mean, covariance in zip(draws, found.means, found.covariances, strict=True):
        assert_allclose(codes.mean(axis=0), mean, atol=0.02)
        assert_allclose(np.cov(codes.T), covariance, atol=0.02 * np.trace(covariance))


def torch_generator():
    import torch

    return torch.Generator().manual_seed(0)


def test_wrong_inputs(vae, vade, images):
    with pytest.raises(NotFittedError):
        ManifoldDisplay.from_estimator(VAEEmbedder(2))
    with pytest.raises(TypeError, match="PCA has no distribution of latent codes; give a VAEEmbedder"):
        ManifoldDisplay.from_estimator(PCA(2).fit(images))
    with pytest.raises(TypeError, match="TorchGMM has no decoder; give an embedder"):
        ManifoldDisplay.from_estimator(TorchGMM(2).fit(images))
    with pytest.raises(TypeError, match="KMeans has no distribution"):
        ManifoldDisplay.from_estimator(Pipeline([("vae", vae), ("kmeans", KMeans(2, n_init=1))]).fit(images))
    for wrong in [(0, 0), (0, 2), (0,), (0, -1), (0, True), (0, 1.0)]:
        with pytest.raises(ValueError, match="should be two different dimensions of the latent space, which has 2"):
            ManifoldDisplay.from_estimator(vae, components=wrong, **SHAPE)
    with pytest.raises(ValueError, match=r"fixed should be one latent code, of shape \(2,\), but is of \(3,\)"):
        ManifoldDisplay.from_estimator(vae, fixed=[0, 0, 0], **SHAPE)
    with pytest.raises(ValueError, match="cluster == 3, must be <= 2"):
        ManifoldDisplay.from_estimator(vade, cluster=3, **SHAPE)
    with pytest.raises(ValueError, match="n_grid == 0, must be >= 1"):
        ManifoldDisplay.from_estimator(vae, n_grid=0, **SHAPE)
    with pytest.raises(ValueError, match=r"The shape of images of 12 features is unknown; .* such as \(28, 28\)"):
        ManifoldDisplay.from_estimator(vae)
    with pytest.raises(ValueError, match="output has 12 features, but image_shape=.4, 4. has 16"):
        ManifoldDisplay.from_estimator(vae, image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"image_shape=\(2, 2, 3\) should be \(height, width\), or"):
        ManifoldDisplay.from_estimator(vae, image_shape=(2, 2, 3))
