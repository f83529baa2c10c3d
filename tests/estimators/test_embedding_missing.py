"""Missing values in autoencoders: out of the likelihood, and a mask for the encoder."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits

from skvae import AutoencoderEmbedder, TorchPPCA, VaDEClusterer, VAEEmbedder
from skvae.models import LIKELIHOODS, MaskedLikelihood

FeatureSummary = namedtuple("FeatureSummary", "mean scale maximum")

SMALL = {"hidden_layer_sizes": (16,), "random_state": 0, "max_epochs": 4}
EMBEDDERS = [
    VAEEmbedder(2, **SMALL),
    AutoencoderEmbedder(2, **SMALL),
    VaDEClusterer(2, latent_dim=2, n_init=2, pretrain_epochs=2, **SMALL),
]
over_embedders = pytest.mark.parametrize("embedder", EMBEDDERS, ids=lambda embedder: type(embedder).__name__)


@pytest.fixture
def X():
    """Two features for each of two hidden ones, and noise."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(400, 2))
    return np.concatenate([Z, 2 * Z], axis=1) @ np.diag([1.0, 5.0, 1.0, 0.1]) + 0.05 * rng.normal(size=(400, 4))


def with_holes(X, share=0.2, seed=1):
    holes = np.random.default_rng(seed).random(X.shape) < share
    return np.where(holes, np.nan, X), holes


def rows_for(name, rng):
    """Rows that a likelihood can produce."""
    if name in ("bernoulli", "continuous_bernoulli"):
        return rng.random((30, 4))
    if name.startswith("gaussian"):
        return rng.normal(size=(30, 4))
    return rng.integers(0, 4, (30, 4)).astype(float)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_feature_log_probs_are_parts_of_the_log_prob(name):
    rng = np.random.default_rng(0)
    X = torch.tensor(rows_for(name, rng))
    likelihood = LIKELIHOODS[name].from_data(FeatureSummary(X.mean(0), X.std(0), X.amax(0)))
    u = likelihood.standardize(X)
    params = torch.tensor(rng.normal(size=(30, likelihood.n_outputs(4))))
    parts = likelihood.feature_log_prob(u, params)
    assert parts.shape == (30, 4)
    torch.testing.assert_close(parts.sum(-1), likelihood.log_prob(u, params))
    torch.testing.assert_close(MaskedLikelihood(likelihood).log_prob(u, params), likelihood.log_prob(u, params))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_missing_values_are_left_out(name):
    rng = np.random.default_rng(0)
    X = torch.tensor(rows_for(name, rng))
    likelihood = LIKELIHOODS[name].from_data(FeatureSummary(X.mean(0), X.std(0), X.amax(0)))
    u, params = likelihood.standardize(X), torch.tensor(rng.normal(size=(30, likelihood.n_outputs(4))))
    parts, observed = likelihood.feature_log_prob(u, params), MaskedLikelihood(likelihood)
    params.requires_grad_()
    holes = torch.tensor(rng.random(X.shape) < 0.4)
    found = observed.log_prob(u.masked_fill(holes, torch.nan), params)
    torch.testing.assert_close(found, parts.masked_fill(holes, 0).sum(-1))
    found.sum().backward()
    assert params.grad.isfinite().all()
    inputs = observed.inputs(u.masked_fill(holes, torch.nan))
    assert inputs.shape == (30, observed.n_inputs(4))
    assert inputs.isfinite().all()
    assert torch.equal(inputs[:, -4:].bool(), ~holes)


@over_embedders
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_trains_with_missing_values(embedder, likelihood):
    X, holes = with_holes(np.tile(rows_for(likelihood, np.random.default_rng(0)), (4, 1)))
    embedder = clone(embedder).set_params(likelihood=likelihood).fit(X)
    assert np.isfinite(embedder.transform(X)).all()
    assert np.isfinite(embedder.score_samples(X)).all()
    filled = embedder.impute(X)
    assert np.isfinite(filled).all()
    assert_array_equal(filled[~holes], X[~holes])
    assert embedder.likelihood_ == likelihood


@over_embedders
def test_rows_without_missing_values_train_as_ever(embedder, X):
    """The mask is there only if it is needed."""
    assert not isinstance(clone(embedder).fit(X).module_.likelihood, MaskedLikelihood)
    assert isinstance(clone(embedder).fit(with_holes(X)[0]).module_.likelihood, MaskedLikelihood)


@pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples")  # there are none in these data
@over_embedders
def test_imputed_values_are_nearer_than_means(embedder, X):
    holed, holes = with_holes(X)
    embedder = clone(embedder).set_params(max_epochs=100, batch_size=64)
    if isinstance(embedder, VaDEClusterer):
        embedder.set_params(pretrain_epochs=100)
    filled = embedder.fit(holed).impute(holed)
    scale = X.std(axis=0)
    means = np.where(holes, np.nanmean(holed, axis=0), X)
    error, of_means = (np.sqrt(np.mean(((found - X) / scale)[holes] ** 2)) for found in (filled, means))
    best = np.sqrt(np.mean(((TorchPPCA(2).fit(X).inverse_transform(TorchPPCA(2).fit_transform(X)) - X) / scale) ** 2))
    assert error < 0.7 * of_means  # a fifth of the partners are missing too
    assert best < error


def test_imputation_by_a_linear_model_is_the_conditional_mean(X):
    """With linear networks the model is probabilistic PCA, whose conditional means are known."""
    holed, holes = with_holes(X, 0.15)
    settings = {"hidden_layer_sizes": (), "likelihood": "gaussian", "max_epochs": 600, "lr": 1e-2, "batch_size": 100}
    vae = VAEEmbedder(2, random_state=0, lr_schedule="cosine", **settings).fit(holed)
    filled = vae.impute(holed, n_importance_samples=4000)
    model = vae.module_
    with torch.inference_mode():
        W = torch.stack([model.decode(z[None])[0] for z in torch.eye(2)]) - model.decode(torch.zeros(1, 2))
        mean = model.decode(torch.zeros(1, 2))[0].numpy()
    noise = (model.likelihood.likelihood.log_scale.exp() * model.likelihood.likelihood.feature_scale).detach().numpy()
    covariance = W.numpy().T @ W.numpy() + np.diag(noise**2)
    for row in np.flatnonzero(holes.any(axis=1) & ~holes.all(axis=1))[:20]:
        gone, seen = holes[row], ~holes[row]
        weights = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, gone)])
        expected = mean[gone] + (holed[row, seen] - mean[seen]) @ weights
        assert_allclose(
            (filled[row, gone] - expected) / X.std(axis=0)[gone], 0, atol=0.15
        )  # the encoder does not know all patterns


@over_embedders
def test_missing_values_that_training_never_saw_are_an_error(embedder, X):
    embedder = clone(embedder).fit(X)
    for method in ("transform", "score_samples", "impute", "reconstruct"):
        with pytest.raises(ValueError, match="was fitted to rows without missing values"):
            getattr(embedder, method)(with_holes(X)[0])
    embedder.set_params(warm_start=True)
    with pytest.raises(ValueError, match="have no mask of them"):
        embedder.fit(with_holes(X)[0])
    assert_array_equal(embedder.impute(X), X)


@over_embedders
def test_a_feature_without_any_value_is_an_error(embedder, X):
    X[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"All values of feature\(s\) \[2\] of X are missing \(NaN\); leave them out"):
        clone(embedder).fit(X)


@over_embedders
@pytest.mark.parametrize("architecture", ["conv", "hybrid"])
def test_images_with_missing_pixels(embedder, architecture):
    images, _holes = with_holes(load_digits().images[:200].reshape(200, -1) / 16)
    settings = {"image_shape": (8, 8), "architecture": architecture, "channels": (4,), "hidden_layer_sizes": ()}
    embedder = clone(embedder).set_params(**settings).fit(images)
    assert np.isfinite(embedder.impute(images)).all()
    assert np.isfinite(embedder.score_samples(images)).all()
    assert_array_equal(embedder.transform(images.reshape(-1, 8, 8)), embedder.transform(images))


def test_pretrained_networks_have_a_mask_or_not(X):
    embedder = AutoencoderEmbedder(2, **SMALL).fit(X)
    settings = {"latent_dim": 2, "n_init": 2, "max_epochs": 2, "random_state": 0}
    with pytest.raises(ValueError, match="pretrained was fitted to rows without any"):
        VaDEClusterer(2, pretrained=embedder, **settings).fit(with_holes(X)[0])
    embedder.fit(with_holes(X)[0])
    vade = VaDEClusterer(2, pretrained=embedder, **settings)
    assert np.isfinite(vade.fit(with_holes(X)[0]).impute(with_holes(X)[0])).all()
    assert np.isfinite(vade.fit(X).transform(with_holes(X)[0])).all()


def test_a_likelihood_of_the_users_needs_parts(X):
    class Plain(LIKELIHOODS["gaussian"]):
        feature_log_prob = property()  # looks as if it were not there

    with pytest.raises(TypeError, match="has no feature_log_prob"):
        VAEEmbedder(2, likelihood=Plain, **SMALL).fit(with_holes(X)[0])
