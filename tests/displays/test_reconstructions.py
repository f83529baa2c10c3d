import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skvae import TorchGMM, TorchPPCA, VAEEmbedder
from skvae.displays import ClusterSamplesDisplay, ManifoldDisplay, ReconstructionDisplay
from skvae.metrics import reconstruction_error


def test_reconstructions():
    X = np.random.default_rng(0).random((30, 12))
    vae = VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=1, random_state=0).fit(X)
    figure, ax = plt.subplots()
    display = ReconstructionDisplay.from_estimator(vae, X[:5], image_shape=(3, 4), ax=ax)
    assert display.figure_ is figure
    assert display.images.shape == display.reconstructions.shape == (5, 3, 4)
    (picture,) = ax.get_images()
    shown = picture.get_array()
    assert_allclose(shown[1:4, 1:5], X[0].reshape(3, 4))
    assert_allclose(shown[6:9, 7:11], vae.reconstruct(X[[1]]).reshape(3, 4), atol=1e-6)  # below the second one
    assert display.errors.mean() == pytest.approx(reconstruction_error(vae, X[:5]))
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"{error:.2g}" for error in display.errors]
    assert_allclose(ax.get_xticks(), np.arange(5) * 6 + 2.5)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["input", "output"]
    assert display.plot() is display


def test_shape_of_the_estimator_and_colours():
    X = np.random.default_rng(0).random((30, 3, 4, 4))
    settings = {"architecture": "mlp", "hidden_layer_sizes": (8,), "max_epochs": 1}
    vae = VAEEmbedder(2, image_shape=(3, 4, 4), **settings).fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X[:2])
    assert display.images.shape == (2, 4, 4, 3)
    assert_allclose(display.images[1, :, :, 2], X[1, 2])


def test_wrong_inputs():
    X = np.zeros((3, 12))
    with pytest.raises(ValueError, match="inconsistent"):
        ReconstructionDisplay.from_predictions(X, X[:2], image_shape=(3, 4))
    with pytest.raises(ValueError, match="X_reconstructed has 6 features, but image_shape=.3, 4. has 12"):
        ReconstructionDisplay.from_predictions(X, X[:, :6], image_shape=(3, 4))


def test_channels_last_are_refused():
    X = np.random.default_rng(0).random((2, 192))
    with pytest.raises(ValueError, match=r"channels last; give image_shape=\(3, 8, 8\)"):
        ReconstructionDisplay.from_predictions(X, X, image_shape=(8, 8, 3))


def test_what_does_not_decode():
    rows = np.random.default_rng(0).normal(size=(40, 25))
    ppca, gmm = TorchPPCA(2), TorchGMM(2, random_state=0)
    pipeline = make_pipeline(StandardScaler(), ppca, gmm).fit(rows)
    with pytest.raises(TypeError, match=r"pipeline ends in a TorchGMM, which has no .* pipeline\[:-1\]"):
        ReconstructionDisplay.from_estimator(pipeline, rows)
    assert len(ReconstructionDisplay.from_estimator(pipeline[:-1], rows[:4]).errors) == 4
    with pytest.raises(TypeError, match=r"neither reconstruct nor inverse_transform; give .* such as pipeline\[:-1\]"):
        reconstruction_error(pipeline, rows)
    with pytest.raises(TypeError, match="TorchGMM has no inverse_transform; give an embedder"):
        ReconstructionDisplay.from_estimator(pipeline[-1], rows)
    one_way = make_pipeline(Normalizer(), TorchPPCA(2), TorchGMM(2, random_state=0)).fit(rows)
    for draw in (ManifoldDisplay.from_estimator, ClusterSamplesDisplay.from_estimator):
        with pytest.raises(TypeError, match=r"Steps \['Normalizer'\] of the pipeline have no inverse_transform"):
            draw(one_way)
