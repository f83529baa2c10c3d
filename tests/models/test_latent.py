"""Likelihoods, priors, networks and the bound that they make."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from skvae.models import (
    ACTIVATIONS,
    LIKELIHOODS,
    NETWORKS,
    Flat,
    LatentModel,
    Posterior,
    StandardNormal,
)
from skvae.models.networks import NetworkConfig

D, K, N = 6, 2, 50


def make_likelihood(name):
    mean, scale, maximum = torch.linspace(0.5, 5, D), torch.linspace(0.1, 10, D), torch.arange(1.0, D + 1)
    return LIKELIHOODS[name].from_data(SimpleNamespace(mean=mean, scale=scale, maximum=maximum))


def make_model(likelihood, prior, generator, **settings):
    settings = {"hidden_layer_sizes": (8,), "activation": "tanh", "batch_norm": False} | settings
    sizes, settings = (
        (likelihood.n_inputs(D), K, likelihood.n_outputs(D)),
        {"n_statistics": prior.n_statistics} | settings,
    )
    nets = NETWORKS["mlp"](*sizes, NetworkConfig(generator=generator, **settings))
    return LatentModel(*nets, likelihood, prior)


def test_bernoulli_is_torchs(generator):
    logits = torch.randn(N, D, generator=generator)
    x = torch.rand(N, D, generator=generator).round()
    likelihood = make_likelihood("bernoulli")
    assert_close(likelihood.log_prob(x, logits), Bernoulli(logits=logits).log_prob(x).sum(1))
    assert_close(likelihood.mean(logits), logits.sigmoid())


def test_gaussian_is_torchs_in_the_units_of_the_data(generator):
    likelihood = make_likelihood("gaussian")
    x = 10 * torch.randn(N, D, generator=generator)
    params = torch.randn(N, D, generator=generator)
    scale = likelihood.feature_scale * likelihood.log_scale.exp()
    twin = Normal(likelihood.mean(params), scale)
    assert_close(likelihood.log_prob(likelihood.standardize(x), params), twin.log_prob(x).sum(1))


def test_gaussian_noise_has_a_floor():
    likelihood = make_likelihood("gaussian")
    assert likelihood.log_scale.item() == pytest.approx(0.0, abs=1e-2)
    with torch.no_grad():
        likelihood.raw_log_scale.fill_(-100.0)
    assert likelihood.log_scale.item() == pytest.approx(math.log(likelihood.min_scale))


def test_standard_normal_kl_is_torchs(generator):
    q = Posterior(torch.randn(N, K, generator=generator), torch.randn(N, K, generator=generator))
    twin = kl_divergence(Normal(q.mean, q.log_scale.exp()), Normal(0.0, 1.0)).sum(1)
    prior = StandardNormal()
    noise = torch.randn(N, K, generator=generator)
    assert_close(prior.kl_parts(q, prior.draw(q, noise)).sum(1), twin)
    assert_close(prior.draw(q, noise), q.mean + q.variance.sqrt() * noise)


def test_flat_is_a_point(generator):
    q = Posterior(torch.randn(N, K, generator=generator), torch.zeros(N, K))
    z = Flat().draw(q, torch.randn(N, K, generator=generator))
    assert_close(z, q.mean)
    assert_close(Flat().kl_parts(q, z).sum(1), torch.zeros(N))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", [Flat, StandardNormal])
def test_elbo_has_a_value_for_each_row(likelihood, prior, generator):
    model = make_model(make_likelihood(likelihood), prior(), generator)
    u, noise = torch.rand(N, D, generator=generator), torch.randn(N, K, generator=generator)
    elbo = model(u, noise)
    assert elbo.log_likelihood.shape == elbo.kl.shape == (N,)
    rows = model(u[10:20], noise[10:20])
    assert_close(rows.log_likelihood, elbo.log_likelihood[10:20])
    assert_close(rows.kl, elbo.kl[10:20])


def linear_model(generator):
    """x = W z + m + noise with the exact posterior as its encoder: the ELBO must be the evidence."""
    likelihood = make_likelihood("gaussian").double()
    model = make_model(likelihood, StandardNormal(), generator, hidden_layer_sizes=()).double()
    with torch.no_grad():
        weight, noise = model.decoder[0].weight, likelihood.log_scale.exp()
        weight.copy_(torch.linalg.qr(weight).Q * 2)  # orthogonal columns: the posterior is diagonal
        precision = 1 + weight.square().sum(0) / noise**2
        model.encoder[0].weight[:K] = weight.T / noise**2 / precision[:, None]
        model.encoder[0].bias[:K] = -(model.encoder[0].weight[:K] @ model.decoder[0].bias)
        model.encoder[0].weight[K:] = 0
        model.encoder[0].bias[K:] = 10 * torch.atanh(-0.5 * precision.log() / 10)
        covariance = weight @ weight.T + noise**2 * torch.eye(D, dtype=torch.float64)
    return model, MultivariateNormal(model.decoder[0].bias.detach(), covariance.detach())


def test_elbo_of_the_exact_posterior_is_the_evidence(generator):
    model, marginal = linear_model(generator)
    scale, mean = model.likelihood.feature_scale, model.likelihood.feature_mean
    u = torch.randn(N, D, dtype=torch.float64, generator=generator)
    x = u * scale + mean
    evidence = marginal.log_prob(u) - scale.log().sum()
    assert_close(model.likelihood.standardize(x), u)
    # Points at distance sqrt(K) along each axis have the moments of a normal up to the third: exact for a quadratic.
    points = math.sqrt(K) * torch.cat([torch.eye(K), -torch.eye(K)]).double()
    terms = [model(u, point.expand(N, K)) for point in points]
    bound = torch.stack([term.log_likelihood - term.kl for term in terms]).mean(0)
    assert_close(bound, evidence)


def test_elbo_never_exceeds_the_evidence(generator):
    """A worse encoder can only lower the bound."""
    model, marginal = linear_model(generator)
    u = torch.randn(N, D, dtype=torch.float64, generator=generator)
    evidence = marginal.log_prob(u) - model.likelihood.feature_scale.log().sum()
    with torch.no_grad():
        model.encoder[0].bias[:K] += 0.5
    points = math.sqrt(K) * torch.cat([torch.eye(K), -torch.eye(K)]).double()
    terms = [model(u, point.expand(N, K)) for point in points]
    assert (torch.stack([term.log_likelihood - term.kl for term in terms]).mean(0) < evidence).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_shapes_of_networks(activation, batch_norm, generator):
    config = NetworkConfig(activation, generator, hidden_layer_sizes=(7, 5), batch_norm=batch_norm)
    encoder, decoder = NETWORKS["mlp"](D, K, 2 * D, config)
    codes = encoder(torch.rand(N, D))
    assert codes.shape == (N, 2 * K)
    assert decoder(codes[:, :K]).shape == (N, 2 * D)
    widths = [layer.out_features for net in (encoder, decoder) for layer in net if isinstance(layer, torch.nn.Linear)]
    assert widths == [7, 5, 2 * K, 5, 7, 2 * D]
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in encoder) == 2 * batch_norm


def test_networks_are_initialized_as_in_torch():
    """Same distribution as torch's own layers, from a private generator."""
    config = NetworkConfig("relu", torch.Generator().manual_seed(0), hidden_layer_sizes=(300,))
    encoder, _ = NETWORKS["mlp"](400, 2, 400, config)
    bound = 1 / math.sqrt(400)
    assert encoder[0].weight.abs().max() <= bound
    assert encoder[0].weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_posterior_scale_cannot_overflow(generator):
    model = make_model(make_likelihood("bernoulli"), StandardNormal(), generator)
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e6)
    elbo = model(torch.rand(N, D), torch.randn(N, K))
    assert torch.isfinite(elbo.kl).all()


def test_independent_rows_add_up(generator):
    """The log-likelihood is the sum over features, not their mean."""
    likelihood = make_likelihood("bernoulli")
    logits = torch.zeros(N, D)
    assert_close(likelihood.log_prob(torch.ones(N, D), logits), torch.full((N,), -D * math.log(2)))
    twin = Independent(Bernoulli(logits=logits), 1)
    assert_close(likelihood.log_prob(torch.ones(N, D), logits), twin.log_prob(torch.ones(N, D)))
