"""Streams of batches by `partial_fit` end near fits to all samples."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
SEEDS = range(2)
NETWORK = {"hidden_layer_sizes": (64,), "likelihood": "bernoulli", "batch_size": 64}


@pytest.fixture(scope="module")
def digits():
    X = load_digits().data / 16
    return np.random.default_rng(0).permutation(X)


def streamed(estimator, X, n_rows, n_passes):
    """Return the estimator after passes over the batches."""
    for _ in range(n_passes):
        estimator.partial_fit(X[start : start + n_rows] for start in range(0, len(X), n_rows))
    return estimator


def gap(fitted, found):
    """Return the relative loss of mean scores of streams compared with fits."""
    return (np.mean(fitted) - np.mean(found)) / abs(np.mean(fitted))


@pytest.mark.parametrize(("k", "n_rows"), [(10, 200), (20, 150)])
def test_mixtures_of_a_stream(k, n_rows, digits):
    """Batches may have fewer samples for a component than features."""
    codes = TorchPPCA(10).fit(digits).transform(digits)
    X, X_test = codes[:1400], codes[1400:]
    fitted = [TorchGMM(k, random_state=seed).fit(X).score(X_test) for seed in range(6)]
    found = [streamed(TorchGMM(k, random_state=seed), X, n_rows, 5).score(X_test) for seed in range(6)]
    assert gap(fitted, found) < 0.025  # 0.27 with 20 components, if they were not met as wider ones


def test_centres_of_a_stream(digits):
    fitted = [TorchMiniBatchKMeans(10, random_state=seed).fit(digits).score(digits) for seed in SEEDS]
    found = [streamed(TorchMiniBatchKMeans(10, random_state=seed), digits, 200, 3).score(digits) for seed in SEEDS]
    assert gap(fitted, found) < 0.02


def test_networks_of_a_stream(digits):
    fitted = [VAEEmbedder(5, **NETWORK, max_epochs=5, random_state=seed).fit(digits).score(digits) for seed in SEEDS]
    found = [streamed(VAEEmbedder(5, **NETWORK, random_state=seed), digits, 200, 5).score(digits) for seed in SEEDS]
    assert gap(fitted, found) < 0.02
