"""Numbers of waits of the host for an accelerator, counted by the stand-in.

While the host waits, the device runs out of work: on a real GPU each wait costs tens of microseconds, as much as many
kernels. Waits are counted by iteration, step or epoch, as the difference of a long and a short fit.
"""

import numpy as np
import pytest
import standin
import torch

from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder
from skvae.fitting.lloyd import draw_distinct_rows, kmeans_plusplus, lloyd
from skvae.fitting.weighted_rows import WeightedRows

pytestmark = pytest.mark.usefixtures("short_embedding")
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(400, 6)) + shift for shift in (0, 1, 2)])
FEW = X[::8]
MISSING = np.where(RNG.uniform(size=FEW[:80].shape) < 0.05, np.nan, FEW[:80])
WIDE = np.tile(RNG.normal(size=(60, 40)), (3, 1)) + RNG.normal(size=(180, 40))
IMAGES = RNG.uniform(size=(128, 64))
COUNTS = RNG.poisson(abs(FEW))
SMALL = {"hidden_layer_sizes": (8,), "random_state": 0}
VADE = SMALL | {"latent_dim": 2, "pretrain_epochs": 1, "n_init": 2, "batch_size": 64}
VIEWS = {"image_shape": (8, 8), "architecture": "mlp", "augment": "affine", "consistency": 1.0, "init": "random"}


@pytest.fixture(autouse=True)
def _counted(device):
    if standin.ACTIVE is None:
        pytest.skip("Waits of a real device are not counted.")


def waits_of(function, *arguments):
    """Return the waits of a call by reason and line."""
    with standin.ACTIVE.counting() as waits:
        function(*arguments)
    return dict(waits)


def check(function, few, many, at_most):
    """Raise if the waits between ``few`` and ``many`` iterations exceed a number for each."""
    short, long = waits_of(function, few), waits_of(function, many)
    more = {key: long[key] - short.get(key, 0) for key in long if long[key] > short.get(key, 0)}
    assert sum(more.values()) <= at_most * (many - few), more


MIXTURES = {
    **{
        kind: ({"covariance_type": kind}, X)
        for kind in ("full", "tied", "diag", "spherical", "tied_diag", "tied_spherical")
    },
    "float32": ({}, X.astype(np.float32)),
    "several starts": ({"n_init": 3, "init_params": "random"}, X),
    "squarem": ({"acceleration": "squarem"}, X),
    "many features": ({}, WIDE),
    "missing values": ({}, MISSING),
    "missing values, diag": ({"covariance_type": "diag"}, MISSING),
    "missing values, squarem": ({"acceleration": "squarem"}, MISSING),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", [*MIXTURES, "full, weighted", "missing values, weighted"])
def test_an_iteration_of_em(name, device):
    if device == "mps":
        pytest.skip("mps has no float64.")
    params, data = MIXTURES[name.removesuffix(", weighted")]
    weight = np.arange(len(data)) % 3 if "weighted" in name else None

    def fit(n_iterations):
        settings = {"tol": 0, "max_iter": n_iterations, "device": device, "random_state": 0}
        TorchGMM(3, **settings, **params).fit(data, sample_weight=weight)

    check(fit, 3, 9, at_most=1)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_iteration_of_ppca_with_missing_values(device):
    if device == "mps":
        pytest.skip("mps has no float64.")
    # The decomposition of the covariance waits itself, and once more where steps are extrapolated.
    check(lambda n: TorchPPCA(2, tol=0, max_iter=n, device=device).fit(MISSING), 3, 7, at_most=2.5)


@pytest.mark.parametrize("n_steps_read", [1, 2], ids=["cuda", "mps"])
@pytest.mark.parametrize("params", [{"max_no_improvement": None}, {"max_no_improvement": None, "tol": 1e-12}, {}])
def test_ten_steps_of_mini_batch_k_means(params, n_steps_read, device):
    if (device == "mps") != (n_steps_read == 2):
        pytest.skip("The other device.")

    def fit(n_epochs):  # of ten steps
        settings = {"batch_size": 120, "max_iter": n_epochs, "device": device, "random_state": 0}
        TorchMiniBatchKMeans(3, **settings, **params).fit(X.astype(np.float32))

    check(fit, 1, 2 if not params else 4, at_most=n_steps_read)  # besides what is read, mps copies the draws


def test_k_means(device):
    rows = WeightedRows(torch.tensor(X, dtype=torch.float32, device=device))
    check(lambda n: lloyd(rows, rows.x[:4] + 3, max_iter=n, tol=0), 2, 8, at_most=1)
    check(lambda n: kmeans_plusplus(rows, n, torch.Generator().manual_seed(0)), 4, 14, at_most=0)
    check(lambda n: draw_distinct_rows(rows, n, torch.Generator().manual_seed(0)), 4, 14, at_most=0)


EPOCHS = {
    "gaussian": (VAEEmbedder(2, **SMALL), FEW),
    "bernoulli": (VAEEmbedder(2, likelihood="bernoulli", **SMALL), (FEW > 0) * 1.0),
    "poisson": (VAEEmbedder(2, likelihood="poisson", **SMALL), COUNTS),
    "negative_binomial": (VAEEmbedder(2, likelihood="negative_binomial", **SMALL), COUNTS),
    "categorical": (VAEEmbedder(2, likelihood="categorical", **SMALL), COUNTS.clip(0, 3)),
    "bytes": (VAEEmbedder(2, **SMALL), (FEW * 20 + 100).clip(0, 255).astype(np.uint8)),
    "missing values": (VAEEmbedder(2, **SMALL), MISSING),
    "early stopping and more": (
        VAEEmbedder(
            2,
            early_stopping=True,
            n_iter_no_change=50,
            max_grad_norm=1.0,
            lr_schedule="cosine",
            batch_norm=True,
            **SMALL,
        ),
        FEW,
    ),
    "views": (VAEEmbedder(2, image_shape=(8, 8), architecture="mlp", augment="affine", **SMALL), IMAGES),
    "VaDE": (VaDEClusterer(3, init="gmm", **VADE), FEW),
    "VaDE, two views": (VaDEClusterer(3, **VADE, **VIEWS), IMAGES),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "data"), EPOCHS.values(), ids=EPOCHS)
def test_an_epoch(estimator, data, device):
    def fit(n_epochs):
        estimator.set_params(device=device, max_epochs=n_epochs).fit(data)

    check(fit, 2, 4, at_most=1)  # the losses and the terms of the ELBO are read together


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_epoch_with_several_initializations(device, monkeypatch):
    """Every choice among mixtures waits, but there are as many in longer trainings, without splits and merges."""
    monkeypatch.setattr("skvae.estimators.vade.N_ROUNDS", 0)
    check(lambda n: VaDEClusterer(3, device=device, max_epochs=n, **VADE).fit(FEW), 2, 4, at_most=1)


def test_an_epoch_of_samples_larger_than_the_device(device, monkeypatch):
    if device == "mps":
        pytest.skip("Only CUDA says how much memory is free.")
    monkeypatch.setattr(standin.ACTIVE, "free_bytes", 1000)
    check(lambda n: VAEEmbedder(2, max_epochs=n, device=device, **SMALL).fit(FEW), 2, 4, at_most=2)  # and the order


def test_methods_of_an_array(device):
    """The array goes to the device, and the result comes back."""
    kmeans = TorchMiniBatchKMeans(3, device=device, random_state=0).fit(X.astype(np.float32))
    assert sum(waits_of(kmeans.predict, X.astype(np.float32)).values()) <= (2 if device == "cuda" else 3)
    if device == "mps":  # the others compute on the CPU
        return
    gmm, vae = TorchGMM(3, device=device, random_state=0).fit(X), VAEEmbedder(2, max_epochs=1, device=device).fit(X)
    for method in (gmm.predict_proba, gmm.predict, gmm.score_samples, vae.transform):
        assert sum(waits_of(method, X).values()) <= 2, method
