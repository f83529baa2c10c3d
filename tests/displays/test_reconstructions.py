import matplotlib.pyplot as plt
import numpy as np
from numpy.testing import assert_allclose

from skvae import VAEEmbedder
from skvae.displays import ReconstructionDisplay


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
    assert display.plot() is display
