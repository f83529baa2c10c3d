"""Mistakes that deep clustering elsewhere has made, where the tests of the parts do not cover them."""

import copy

import numpy as np
import pytest
import torch
from helpers import fit_quietly
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits, make_blobs
from skorch.callbacks import EarlyStopping
from torch import nn

from skvae import TorchGMM, VaDEClusterer
from skvae.fitting.net import NegativeELBO

SMALL = {
    "latent_dim": 2,
    "hidden_layer_sizes": (16,),
    "n_init": 5,
    "pretrain_epochs": 10,
    "max_epochs": 5,
    "batch_size": 64,
    "random_state": 0,
}
FROZEN = {"optimizer": "sgd", "lr": 1e-12, "max_epochs": 1, "batch_norm": False, "consistency": 0}  # as it starts
over_covariances = pytest.mark.parametrize("covariance_type", ["full", "diag"])
over_forms = pytest.mark.parametrize("responsibilities", ["exact", "sampled"])


@pytest.fixture(scope="module")
def X():
    """Groups of very different sizes."""
    return make_blobs(n_samples=[20, 60, 160], n_features=6, cluster_std=0.5, random_state=0)[0]


class Linear(nn.Linear):
    """A linear map from the beginning on."""

    def __init__(self, weight, bias):
        super().__init__(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.weight.copy_(torch.as_tensor(weight))
            self.bias.copy_(torch.as_tensor(bias))


def linear_model(covariance_type="full", responsibilities="exact"):
    """VaDE with linear networks, for which everything is known: the clusterer, rows, and the map of codes to rows."""
    rng = np.random.default_rng(0)
    weight = np.linalg.qr(rng.normal(size=(4, 2)))[0] * [2.0, 1.0]
    codes = np.concatenate([rng.normal(size=(60, 2)) * [0.3, 1.0] + mean for mean in ([3, 0], [-1, 2], [0, -3])])
    X = codes @ weight.T + rng.normal(size=(180, 4))
    encoder = Linear(np.concatenate([weight.T / 4, np.zeros((2, 4))]), np.zeros(4))
    settings = {"encoder": encoder, "decoder": Linear(weight, np.zeros(4)), "likelihood": "gaussian_fixed"}
    settings |= {"covariance_type": covariance_type, "responsibilities": responsibilities, "random_state": 0}
    vade = fit_quietly(VaDEClusterer(3, latent_dim=2, n_init=5, pretrain_epochs=0, **settings, **FROZEN), X)
    vade.module_.encoder[-1].offset[2:] += np.log(3)  # posteriors wider than the exact ones, for importance samples
    # Decoding is linear: two codes beside the origin tell which map it is.
    offset, *columns = vade.inverse_transform(np.concatenate([np.zeros((1, 2)), np.eye(2)]))
    return vade, X, np.transpose(columns) - offset[:, None], offset


def noise_of(X):
    """Variances of the likelihood "gaussian_fixed", in the units of the data."""
    return X.var(0)


def matrices(vade):
    return vade.covariances_ if vade.covariances_.ndim == 3 else np.stack([np.diag(v) for v in vade.covariances_])


@over_covariances
@over_forms
def test_bounds_stay_below_the_log_likelihood(covariance_type, responsibilities):
    """Constants of normal densities were missing or were not raised to the number of dimensions."""
    vade, X, weight, offset = linear_model(covariance_type, responsibilities)
    parts = [
        np.log(share)
        + multivariate_normal(offset + weight @ mean, weight @ covariance @ weight.T + np.diag(noise_of(X))).logpdf(X)
        for share, mean, covariance in zip(vade.weights_, vade.means_, matrices(vade), strict=True)
    ]
    exact = logsumexp(parts, axis=0)
    few, many = (
        np.mean([vade.log_likelihood(X, n, random_state=seed) for seed in range(3)], axis=0) for n in (10, 500)
    )
    assert vade.score(X) < few.mean() < many.mean() < exact.mean() + 0.01
    assert many.mean() == pytest.approx(exact.mean(), abs=0.05)


@over_covariances
def test_the_bound_has_its_absolute_value(covariance_type):
    """Everything is quadratic, so its expectation over codes is known; responsibilities are in no term too often."""
    vade, X, weight, offset = linear_model(covariance_type)
    mean, variance = vade.transform(X), vade.posterior_variance(X)
    noise = noise_of(X)
    expected_likelihood = -0.5 * (
        np.log(2 * np.pi * noise) + (X - offset - mean @ weight.T) ** 2 / noise + variance @ weight.T**2 / noise
    ).sum(1)
    expected_joint = np.transpose(
        [
            np.log(share)
            + multivariate_normal(center, covariance).logpdf(mean)
            - 0.5 * variance @ np.diag(np.linalg.inv(covariance))
            for share, center, covariance in zip(vade.weights_, vade.means_, matrices(vade), strict=True)
        ]
    )
    resp = np.exp(expected_joint - logsumexp(expected_joint, axis=1, keepdims=True))
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = np.where(resp > 0, resp * (np.log(resp) - expected_joint), 0).sum(1)
    bound = expected_likelihood - costs + entropy

    model, u = copy.deepcopy(vade.module_).double(), torch.from_numpy(X)
    points = np.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)]).double()  # exact for quadratic functions
    with torch.no_grad():
        u = model.standardize(u)
        found = torch.stack([model.elbo(u, model.posterior(u), point.expand(len(u), 2)).value for point in points])
    assert_allclose(found.mean(0), bound, rtol=1e-4, atol=1e-4)
    assert vade.score(X) == pytest.approx(bound.mean(), abs=0.3)


@over_covariances
def test_weights_begin_as_those_of_the_mixture(covariance_type, X):
    """They were stored as logits but were weights, so that groups of unequal size became more alike."""
    settings = {"covariance_type": covariance_type}
    vade = fit_quietly(VaDEClusterer(3, **SMALL | FROZEN | settings), X)
    gmm = TorchGMM(3, n_init=5, reg_covar=1e-3, random_state=0, **settings).fit(vade.transform(X))
    order, others = vade.weights_.argsort(), gmm.weights_.argsort()
    assert vade.weights_.max() > 0.5
    for name in ("weights_", "means_", "covariances_"):
        assert_allclose(getattr(vade, name)[order], getattr(gmm, name)[others], atol=0.01, err_msg=name)


@over_covariances
@over_forms
def test_weights_stay_on_the_simplex(covariance_type, responsibilities, X):
    """Free weights became negative, and their logarithm was not a number."""
    settings = {"lr": 0.1, "max_epochs": 10, "covariance_type": covariance_type, "responsibilities": responsibilities}
    vade = fit_quietly(VaDEClusterer(3, **SMALL | settings), X)
    assert (vade.weights_ > 0).all()
    assert vade.weights_.sum() == pytest.approx(1)


@over_covariances
def test_covariances_are_covariances(covariance_type, X):
    """And no logarithms of variances: they are positive, and draws of codes have them."""
    vade = fit_quietly(VaDEClusterer(3, **SMALL | {"covariance_type": covariance_type}), X)
    assert np.linalg.eigvalsh(matrices(vade)).min() > 0
    prior, noise = vade.module_.prior, torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    for c in range(3):
        with torch.no_grad():
            z = prior.sample(noise, torch.full((20_000,), c)).double().numpy()
        scale = np.sqrt(np.diag(matrices(vade)[c]))
        assert_allclose(np.cov((z / scale).T), matrices(vade)[c] / np.outer(scale, scale), atol=0.05)
        assert_allclose((z.mean(0) - vade.means_[c]) / scale, 0, atol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_posteriors_begin_with_a_stated_variance(seed, X):
    """The layer of the log-scales began as a copy of that of the means. Here, it is a tenth of that of codes."""
    vade = fit_quietly(VaDEClusterer(3, **SMALL | FROZEN | {"random_state": seed}), X)
    ratio = vade.posterior_variance(X) / vade.transform(X).var(0)
    assert_allclose(np.exp(np.log(ratio).mean(0)), 0.1, rtol=0.05)


def test_pretraining_is_not_skipped(X):
    """Without it, all rows fell into one cluster."""
    vade = fit_quietly(VaDEClusterer(3, **SMALL), X)
    losses = [row["train_loss"] for row in vade.pretrain_history_]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert np.abs(np.corrcoef(vade.transform(X).T)[0, 1]) < 0.99
    assert vade.n_effective_clusters_ > 1.5


@pytest.mark.parametrize("consistency", [0, 3.0])
def test_loss_is_a_mean_over_rows(consistency, X):
    """One term was a sum over the batch and the other a mean, so that the batch size weighed them."""
    images = load_digits().data[:60] / 16
    settings = {"image_shape": (8, 8), "architecture": "mlp", "consistency": consistency}
    model = fit_quietly(VaDEClusterer(3, **SMALL | settings), images).module_.double()
    generator = torch.Generator().manual_seed(0)
    u = torch.from_numpy(images)
    noise = torch.randn(len(u), 2, generator=generator, dtype=torch.float64)
    view = torch.stack([u, u.flip(1)], 1) if consistency else None
    criterion, found = NegativeELBO(consistency=consistency), []
    for repeats in (1, 3):
        model.zero_grad()
        rows, codes = u.repeat(repeats, 1), noise.repeat(repeats, 1)
        loss = criterion(model(rows, codes, None if view is None else view.repeat(repeats, 1, 1)), None)
        loss.backward()
        found.append((loss.item(), [parameter.grad.clone() for parameter in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert_allclose(one, two, rtol=1e-6, atol=1e-9)


def test_early_stopping_stops(X):
    """It never did. Pretraining has none: it takes the epochs that were asked for."""
    stop = EarlyStopping(monitor="train_loss", patience=2, threshold=1e9, threshold_mode="abs")
    vade = fit_quietly(VaDEClusterer(3, callbacks=[stop], **SMALL | {"max_epochs": 50}), X)
    assert vade.n_iter_ < 5
    assert len(vade.pretrain_history_) == 10
    assert np.isfinite(vade.score(X))


def test_callbacks_are_checked_before_pretraining(monkeypatch):
    monkeypatch.setattr("skvae.estimators.vade.fit_module", lambda *args: pytest.fail("a training has begun"))
    with pytest.raises(TypeError, match="callbacks should be instances of skorch"):
        VaDEClusterer(2, callbacks=["no callback"]).fit(np.random.default_rng(0).normal(size=(40, 3)))
