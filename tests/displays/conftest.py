import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from skvae import TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.callbacks import LatentSnapshots

SMALL = {"hidden_layer_sizes": (32,), "batch_size": 16, "random_state": 0}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def images():
    """Rows of 3 x 4 pixels in three groups."""
    rng = np.random.default_rng(0)
    return np.clip(rng.random((3, 12))[np.arange(120) % 3] + 0.1 * rng.normal(size=(120, 12)), 0, 1)


@pytest.fixture(scope="session")
def vade(images):
    """Fitted to the images, in four dimensions."""
    watching = [LatentSnapshots(images, epochs=range(5))]
    settings = SMALL | {"max_epochs": 4, "pretrain_epochs": 40, "callbacks": watching}
    return VaDEClusterer(3, latent_dim=4, **settings).fit(images)


@pytest.fixture(scope="session")
def pipeline(images):
    """A variational autoencoder with a mixture over its codes."""
    vae = VAEEmbedder(4, callbacks=[LatentSnapshots(images, every=8)], max_epochs=40, lr=5e-3, beta=0.3, **SMALL)
    return Pipeline([("vae", vae), ("gmm", TorchGMM(3, reg_covar=1e-2, random_state=0))]).fit(images)
