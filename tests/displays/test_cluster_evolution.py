import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Ellipse
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from skvae import TorchGMM, VAEEmbedder
from skvae.callbacks import LatentSnapshots, Snapshots
from skvae.displays import ClusterEvolutionDisplay
from skvae.displays.cluster_evolution import fit_mixtures, nearest_component, spread_out
from skvae.displays.drawing import ellipse_of


def ellipses(ax):
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def points(ax):
    return np.concatenate([part.get_offsets() for part in ax.collections])


def test_panels_are_epochs_with_the_same_axes(vade, images):
    y = np.arange(120) % 3
    display = ClusterEvolutionDisplay.from_estimator(vade, y)
    assert [ax.get_title() for ax in display.axes_] == [f"epoch {epoch}" for epoch in range(5)]
    snapshots = LatentSnapshots.of(vade)
    plane = PCA(2).fit(snapshots.codes[-1])
    for ax, codes, means, covariances in zip(
        display.axes_, snapshots.codes, snapshots.means, snapshots.covariances, strict=True
    ):
        expected = plane.transform(codes)
        assert_allclose(points(ax), np.concatenate([expected[y == c] for c in range(3)]), atol=1e-5)
        assert ax.get_aspect() == 1
        assert ax.get_xlim() == display.axes_[0].get_xlim()
        assert ax.get_ylim() == display.axes_[0].get_ylim()
        for ellipse, mean, covariance in zip(ellipses(ax), plane.transform(means), covariances, strict=True):
            assert_allclose(ellipse.get_center(), mean, atol=1e-5)
            width, height, angle = ellipse_of(plane.components_ @ covariance @ plane.components_.T, 2)
            assert_allclose([ellipse.width, ellipse.height, ellipse.angle], [width, height, angle], rtol=1e-4)
    low, high = display.axes_[0].get_xlim()
    assert low < display.codes[..., 0].min() < display.codes[..., 0].max() < high
    assert display.plot() is display


def test_colours_are_the_components_of_each_epoch(vade):
    display = ClusterEvolutionDisplay.from_estimator(vade)
    assert display.labels.shape == (5, 120)
    assert_array_equal(display.labels[-1], vade.labels_)
    legend = display.axes_[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2"]
    assert display.axes_[0].get_legend() is None


def test_nearest_component_is_scikit_learns(images):
    gmm = GaussianMixture(3, random_state=0).fit(images[:, :4])
    found = nearest_component(images[:, :4], gmm.weights_, gmm.means_, gmm.covariances_)
    assert_array_equal(found, gmm.predict(images[:, :4]))


def test_mixtures_fitted_to_each_snapshot(pipeline, images):
    """Their numbers are those of the next snapshot, as far as the rows are."""
    snapshots, mixture = LatentSnapshots.of(pipeline), TorchGMM(3, covariance_type="diag", random_state=0)
    display = ClusterEvolutionDisplay.from_estimator(pipeline, mixture=mixture)
    assert not hasattr(mixture, "means_")
    labels, means, covariances = fit_mixtures(mixture, snapshots.codes.astype(float))
    assert_array_equal(display.labels, labels)
    last = TorchGMM(3, covariance_type="diag", random_state=0).fit(snapshots.codes[-1].astype(float))
    assert_allclose(means[-1], last.means_)
    for codes, found, centers, spreads in zip(snapshots.codes, labels, means, covariances, strict=True):
        assert_array_equal(nearest_component(codes, np.bincount(found, minlength=3) / 120, centers, spreads), found)
        assert_allclose([codes[found == c].mean(axis=0) for c in range(3)], centers, atol=0.05)
    for one, two in itertools.pairwise(labels):
        agree = [(np.choose(one, order) == two).mean() for order in itertools.permutations(range(3))]
        assert agree[0] == max(agree)  # the order of the numbers themselves


def test_discriminant_plane_of_the_last_mixture(vade):
    display = ClusterEvolutionDisplay.from_estimator(vade, projection="discriminant")
    assert_allclose(display.covariances[-1].mean(axis=0), np.eye(2), atol=1e-5)


def test_codes_of_two_dimensions_stay_as_they_are(images):
    vae = VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=3, callbacks=[LatentSnapshots(images)], random_state=0)
    display = ClusterEvolutionDisplay.from_estimator(vae.fit(images))
    assert_array_equal(display.codes, LatentSnapshots.of(vae).codes)
    assert display.labels is None
    assert not ellipses(display.axes_[0])


def test_some_panels_of_many():
    assert_array_equal(spread_out(4, 6), [0, 1, 2, 3])
    assert_array_equal(spread_out(9, 1), [8])
    for n_shown, n in [*itertools.combinations(range(2, 40), 2), (6, 100), (3, 1000), (99, 100)]:
        found = spread_out(n, n_shown)
        assert len(found) == n_shown
        assert (found[0], found[-1]) == (0, n - 1)
        assert (np.diff(found) > 0).all()


def test_axes_that_are_given(vade):
    figure, axes = plt.subplots(1, 2)
    display = ClusterEvolutionDisplay.from_estimator(vade, n_panels=2, ax=axes)
    assert display.figure_ is figure
    assert [ax.get_title() for ax in axes] == ["epoch 0", "epoch 4"]
    axes = plt.subplots(2, 2)[1]
    ClusterEvolutionDisplay.from_estimator(vade, n_panels=4, ax=axes)
    assert [ax.get_legend() is not None for ax in axes.ravel()] == [False, True, False, False]  # beside all of them


def test_animation_has_a_frame_for_each_snapshot(vade, tmp_path):
    display = ClusterEvolutionDisplay.from_estimator(vade, np.arange(120) % 3, n_panels=2)
    animation = display.animate(tmp_path / "evolution.gif", fps=5, dpi=50)
    with Image.open(tmp_path / "evolution.gif") as gif:
        assert gif.n_frames == 5
        assert gif.info["duration"] == 200
        first = np.asarray(gif.convert("RGB"), dtype=float)
        gif.seek(4)
        assert np.abs(np.asarray(gif.convert("RGB"), dtype=float) - first).mean() > 0.1
    ax = animation._fig.axes[0]
    animation._func(1)
    assert ax.get_title() == "epoch 1"
    assert len(ellipses(ax)) == 3
    assert ax.get_xlim() == display.axes_[0].get_xlim()


def test_wrong_inputs(vade, pipeline, images):
    with pytest.raises(ValueError, match="has no net_: it trains no networks"):
        ClusterEvolutionDisplay.from_estimator(TorchGMM(2).fit(images))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ClusterEvolutionDisplay.from_estimator(vade, [0, 1])
    with pytest.raises(ValueError, match="The snapshots have the mixture of the model"):
        ClusterEvolutionDisplay.from_estimator(vade, mixture=TorchGMM(3))
    with pytest.raises(TypeError, match="mixture should be a Gaussian mixture, such as TorchGMM, but is KMeans"):
        ClusterEvolutionDisplay.from_estimator(pipeline, mixture=KMeans(3, n_init=1))
    with pytest.raises(ValueError, match="needs the means and covariances of at least two"):
        ClusterEvolutionDisplay.from_estimator(pipeline, projection="discriminant")
    with pytest.raises(TypeError, match="snapshots should come from LatentSnapshots.of, but got a VaDEClusterer"):
        ClusterEvolutionDisplay.from_snapshots(vade)
    with pytest.raises(ValueError, match="The latent codes have one dimension"):
        ClusterEvolutionDisplay.from_snapshots(Snapshots(np.arange(2), np.zeros((2, 5, 1))))
    display = ClusterEvolutionDisplay.from_estimator(vade, n_panels=1)
    with pytest.raises(ValueError, match="n_panels == 0"):
        display.plot(n_panels=0)
    with pytest.raises(ValueError, match="fps == 0, must be > 0"):
        display.animate(fps=0)
