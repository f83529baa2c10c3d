import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture

from skvae import TorchGMM, VAEEmbedder
from skvae.displays import ClusterSamplesDisplay

SHAPE = {"image_shape": (3, 4)}


def names_of(display):
    return [text.get_text() for text in display.ax_.get_yticklabels()]


def test_rows_are_clusters_of_vade(vade):
    figure, ax = plt.subplots()
    display = ClusterSamplesDisplay.from_estimator(vade, 2000, **SHAPE, random_state=0, ax=ax)
    assert display.images.shape == (3, 2000, 3, 4)
    for c in range(3):  # which are 0 or 1 there
        drawn = vade.sample(2000, cluster=c, random_state=1)[0].mean(axis=0)
        assert_allclose(display.images[c].mean(axis=0).ravel(), drawn, atol=0.06)
    assert np.abs(display.images[0] - display.images[1]).mean() > 0.2
    assert names_of(display) == [f"{c} ({weight:.1%})" for c, weight in enumerate(vade.weights_)]
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.plot() is display


def test_order_by_weight(vade):
    by_index = ClusterSamplesDisplay.from_estimator(vade, 4, **SHAPE, random_state=0)
    by_weight = ClusterSamplesDisplay.from_estimator(vade, 4, order="weight", **SHAPE, random_state=0)
    order = np.argsort(-vade.weights_)
    assert_array_equal(by_weight.clusters, order)
    assert_array_equal(by_weight.images, by_index.images[order])
    assert (np.diff(by_weight.weights) <= 0).all()


def test_pipeline_decodes_codes_of_its_mixture(pipeline):
    display = ClusterSamplesDisplay.from_estimator(pipeline, 200, **SHAPE, random_state=0)
    codes = pipeline[0].transform(display.images.reshape(600, 12))
    assert (pipeline[-1].predict(codes).reshape(3, 200) == np.arange(3)[:, None]).mean() > 0.9
    assert_allclose(display.weights, pipeline[-1].weights_)


@pytest.mark.parametrize("mixture", [TorchGMM(3, random_state=0), GaussianMixture(3, random_state=0)])
def test_mixture_over_pixels(mixture, images):
    mixture.fit(images)
    display = ClusterSamplesDisplay.from_estimator(mixture, 2000, **SHAPE, random_state=0)
    assert_allclose(display.images.mean(axis=1).reshape(3, 12), mixture.means_, atol=0.02)
    (picture,) = display.ax_.get_images()
    assert picture.get_clim() == pytest.approx((mixture.means_.min(), mixture.means_.max()))


def test_draws_are_seeded_and_private(vade):
    before = torch.get_rng_state()
    draws = [ClusterSamplesDisplay.from_estimator(vade, 3, **SHAPE, random_state=seed).images for seed in (0, 0, 1)]
    assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0
    own = ClusterSamplesDisplay.from_estimator(vade, 3, **SHAPE).images
    assert_array_equal(own, draws[vade.random_state])
    assert torch.equal(torch.get_rng_state(), before)


def test_images_that_have_labels(images):
    X, labels = images[:7], np.array(["b", "a", "a", "b", "b", "b", "a"])
    display = ClusterSamplesDisplay.from_predictions(X, labels, n_samples=3, **SHAPE)
    assert_allclose(display.images.reshape(2, 3, 12), [X[[1, 2, 6]], X[[0, 3, 4]]])
    assert names_of(display) == ["a (42.9%)", "b (57.1%)"]
    display = ClusterSamplesDisplay.from_predictions(X, labels, order="weight", **SHAPE)
    assert list(display.clusters) == ["b", "a"]
    assert np.isnan(display.images[1, 3]).all()
    (picture,) = display.ax_.get_images()
    assert picture.get_array().shape == (2 * 5, 4 * 6)  # a margin of one pixel around each


def test_missing_colour_images_are_white():
    X, labels = np.full((3, 12), 0.5), [0, 0, 1]
    display = ClusterSamplesDisplay.from_predictions(X, labels, image_shape=(3, 2, 2))
    shown = display.ax_.get_images()[0].get_array()
    assert_allclose(shown[5:7, 5:7], 1)
    assert_allclose(shown[5:7, 1:3], 0.5)


def test_wrong_inputs(vade, images):
    with pytest.raises(NotFittedError):
        ClusterSamplesDisplay.from_estimator(TorchGMM(2))
    with pytest.raises(TypeError, match="KMeans has no distribution of latent codes"):
        ClusterSamplesDisplay.from_estimator(KMeans(2, n_init=1).fit(images))
    with pytest.raises(TypeError, match="VAEEmbedder has no mixture; give a VaDEClusterer"):
        ClusterSamplesDisplay.from_estimator(VAEEmbedder(2, hidden_layer_sizes=(4,), max_epochs=1).fit(images))
    with pytest.raises(ValueError, match=r"order should be one of \['index', 'weight'\], but got 'size'"):
        ClusterSamplesDisplay.from_estimator(vade, order="size", **SHAPE)
    with pytest.raises(ValueError, match="n_samples == 0, must be >= 1"):
        ClusterSamplesDisplay.from_estimator(vade, 0, **SHAPE)
    with pytest.raises(ValueError, match="The sample has 12 features, but image_shape=.2, 2. has 4"):
        ClusterSamplesDisplay.from_estimator(vade, image_shape=(2, 2))
    with pytest.raises(ValueError, match="inconsistent"):
        ClusterSamplesDisplay.from_predictions(images, [0, 1], **SHAPE)
