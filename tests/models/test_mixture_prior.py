"""The Gaussian mixture as a prior: densities, divergences, responsibilities and what views agree on."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.mixture import GaussianMixture
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.testing import assert_close

from skvae import TorchGMM
from skvae.models import COVARIANCES, GaussianMixturePrior, Mixture, Posterior, StandardNormal

N, K, D = 30, 4, 3
KINDS = ["full", "diag"]
over_kinds = pytest.mark.parametrize("kind", KINDS)
over_forms = pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_mixture(kind, generator, n_components=K, spread=2.0):
    """A mixture of unequal weights and shapes."""
    weights = (normal(generator, n_components)).softmax(0)
    means = spread * normal(generator, n_components, D)
    if kind == "full":
        root = normal(generator, n_components, D, D)
        covariances = root @ root.mT + 0.2 * torch.eye(D)
    else:
        covariances = normal(generator, n_components, D).exp()
    return Mixture(weights.log(), means, covariances, COVARIANCES[kind].factor(covariances)[0])


def make_prior(kind, generator, n_mixtures=1, **settings):
    mixtures = [make_mixture(kind, generator) for _ in range(n_mixtures)]
    return GaussianMixturePrior(mixtures, COVARIANCES[kind], **settings), mixtures


def matrices(mixture):
    covariances = mixture.covariances
    return covariances if covariances.ndim == 3 else covariances.diag_embed()


def log_joint(mixture, z):
    """log p(z, c) of each row and component, by torch.distributions (n, k)."""
    return mixture.log_weights + MultivariateNormal(mixture.means, matrices(mixture)).log_prob(z[:, None])


def expected_log_joint(mixture, q):
    """E_q log p(z, c): densities are quadratic, for which points at distance sqrt(D) along each axis are exact."""
    points = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).double()
    return sum(log_joint(mixture, q.mean + q.variance.sqrt() * point) for point in points) / len(points)


def make_posterior(generator, n_rows=N):
    return Posterior(2 * normal(generator, n_rows, D), 0.5 * normal(generator, n_rows, D) - 0.5)


def far_codes(mixture, generator):
    """Codes a thousand standard deviations from all means."""
    direction = normal(generator, N, D)
    return mixture.means[0] + 1e3 * direction / direction.norm(dim=1, keepdim=True)


@over_kinds
@over_forms
def test_one_standard_component_is_the_standard_normal(kind, sampled, generator):
    covariances = torch.eye(D).double()[None] if kind == "full" else torch.ones(1, D).double()
    mixture = Mixture(torch.zeros(1).double(), torch.zeros(1, D).double(), covariances, covariances)
    prior, twin = GaussianMixturePrior([mixture], COVARIANCES[kind], sampled), StandardNormal()
    q, noise = make_posterior(generator), normal(generator, N, D)
    z = prior.draw(q, noise)
    assert_close(z, twin.draw(q, noise), rtol=0, atol=0)
    assert_close(prior.kl_parts(q, z).sum(1), twin.kl_parts(q, z).sum(1), rtol=0, atol=1e-12)
    assert_close(prior.log_prob(z), twin.log_prob(z), rtol=0, atol=1e-12)


@over_kinds
def test_expected_log_prob_without_noise_is_the_density(kind, generator):
    mixture, x = make_mixture(kind, generator), 3 * normal(generator, N, D)
    found = COVARIANCES[kind].expected_log_prob(x, torch.zeros_like(x), mixture.means, mixture.factor)
    assert_close(found, log_joint(mixture, x) - mixture.log_weights)
    assert_close(found, COVARIANCES[kind].log_prob(x, mixture.means, mixture.factor))


@over_kinds
def test_expected_log_prob_with_noise(kind, generator):
    """As by exact points, and as by drawing."""
    mixture, q = make_mixture(kind, generator), make_posterior(generator)
    found = COVARIANCES[kind].expected_log_prob(q.mean, q.variance, mixture.means, mixture.factor)
    assert_close(found, expected_log_joint(mixture, q) - mixture.log_weights)
    noise = normal(generator, 4_000, D)
    rows = q.mean[:1] + q.variance[:1].sqrt() * noise
    drawn = log_joint(mixture, rows) - mixture.log_weights
    assert ((drawn.mean(0) - found[0]).abs() < 5 * drawn.std(0) / math.sqrt(len(noise))).all()


def test_full_with_diagonal_factors_is_diag(generator):
    mixture, q = make_mixture("diag", generator), make_posterior(generator)
    full = mixture._replace(covariances=mixture.covariances.diag_embed(), factor=mixture.factor.diag_embed())
    one, two = (GaussianMixturePrior([parts], COVARIANCES[kind]) for parts, kind in ((full, "full"), (mixture, "diag")))
    z = one.draw(q, normal(generator, N, D))
    assert_close(one.kl_parts(q, z), two.kl_parts(q, z))
    assert_close(one.log_responsibilities(z), two.log_responsibilities(z))
    noise, components = normal(generator, N, D), torch.arange(N) % K
    assert_close(one.sample(noise, components), two.sample(noise, components))


@over_kinds
@over_forms
def test_kl_is_the_sum_over_components(kind, sampled, generator):
    """Of the responsibilities times what each component costs (Jiang et al. 2017, equation 12)."""
    prior, (mixture,) = make_prior(kind, generator, sampled=sampled)
    q = make_posterior(generator)
    z = prior.draw(q, normal(generator, N, D))
    expected = expected_log_joint(mixture, q)
    resp = (log_joint(mixture, z) if sampled else expected).softmax(1)
    entropy = Independent(Normal(q.mean, q.variance.sqrt()), 1).entropy()
    assert_close(prior.kl_parts(q, z)[:, 0], (resp * (resp.log() - expected)).sum(1) - entropy)


@over_kinds
def test_exact_responsibilities_make_the_bound_largest(kind, generator):
    mixture, q = make_mixture(kind, generator), make_posterior(generator)
    exact, sampled = (GaussianMixturePrior([mixture], COVARIANCES[kind], form) for form in (False, True))
    for scale in (0.0, 1.0, 10.0):
        z = q.mean + scale * normal(generator, N, D)
        assert (exact.kl_parts(q, z) <= sampled.kl_parts(q, z) + 1e-12).all()
        assert_close(exact.kl_parts(q, z), exact.kl_parts(q, q.mean), msg="it depends on the draw")


@over_kinds
def test_kl_is_an_upper_bound_of_the_divergence(kind, generator):
    """It is that of codes and components together. For narrow posteriors the two are nearly the same."""
    prior, _ = make_prior(kind, generator)
    for shift in (0.0, -4.0):
        q = make_posterior(generator)
        q = q._replace(log_scale=q.log_scale + shift)
        noise = normal(generator, 4_000, N, D)
        z = q.mean + q.variance.sqrt() * noise
        log_q = Normal(q.mean, q.variance.sqrt()).log_prob(z).sum(-1)
        draws = log_q - prior.log_prob(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        gap = prior.kl_parts(q, q.mean)[:, 0] - draws.mean(0)
        error = draws.std(0) / math.sqrt(len(noise))
        assert (gap > -5 * error).all()
        assert gap.max() > 0.05 if shift == 0 else gap.abs().mean() < 0.1


def sklearn_twin(mixture, kind):
    twin = GaussianMixture(len(mixture.means), covariance_type=kind)
    twin.weights_, twin.means_ = mixture.log_weights.exp().numpy(), mixture.means.numpy()
    twin.covariances_, twin.precisions_cholesky_ = mixture.covariances.numpy(), mixture.factor.numpy()
    return twin


@over_kinds
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_densities_are_those_of_gaussian_mixtures(kind, far, generator):
    """Of scikit-learn, of ours and of torch, also where every component's density is zero in any precision."""
    prior, (mixture,) = make_prior(kind, generator)
    z = far_codes(mixture, generator) if far else 3 * normal(generator, N, D)
    with torch.no_grad():
        density, log_resp = prior.log_prob(z), prior.log_responsibilities(z)[:, 0]
    parts = mixture.log_weights.exp().numpy(), mixture.means.numpy(), mixture.covariances.numpy()
    for twin in (sklearn_twin(mixture, kind), TorchGMM.from_parameters(*parts, covariance_type=kind)):
        assert_allclose(density, twin.score_samples(z.numpy()), rtol=1e-9)
        assert_allclose(log_resp.exp(), twin.predict_proba(z.numpy()), atol=1e-7 if far else 1e-10)
        assert_array_equal(log_resp.argmax(1), twin.predict(z.numpy()))
    joint = log_joint(mixture, z)
    assert_close(log_resp, joint - joint.logsumexp(1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(log_resp).all()
    assert_close(log_resp.exp().sum(1), torch.ones(N).double())


@over_kinds
@over_forms
def test_far_codes_have_finite_gradients_in_single_precision(kind, sampled, generator):
    prior, (mixture,) = make_prior(kind, generator, sampled=sampled)
    prior, mean = prior.float(), far_codes(mixture, generator).float().requires_grad_()
    kl = prior.kl_parts(Posterior(mean, torch.zeros(N, D)), mean).sum(1)
    kl.mean().backward()
    assert torch.isfinite(kl).all()
    for value in (mean, *prior.parameters()):
        assert torch.isfinite(value.grad).all()


@over_kinds
def test_parameters_are_those_given(kind, generator):
    prior, (mixture,) = make_prior(kind, generator)
    for found, given in zip(prior.mixture, mixture, strict=True):
        assert_close(found.detach(), given)


@over_kinds
def test_large_gradient_steps_leave_a_mixture(kind, generator):
    """Weights on the simplex, covariances positive definite."""
    prior, _ = make_prior(kind, generator)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.3)
    for _ in range(50):
        q = make_posterior(generator)
        optimizer.zero_grad()
        prior.kl_parts(q, q.mean).mean().backward()
        optimizer.step()
        weights, covariances = prior.mixture.log_weights.exp(), matrices(prior.mixture)
        assert (weights > 0).all()
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        assert torch.linalg.eigvalsh(covariances.detach()).min() > 0
        assert_close(covariances, covariances.mT)


@over_kinds
@over_forms
def test_of_several_mixtures_the_divergence_is_the_mean(kind, sampled, generator):
    prior, mixtures = make_prior(kind, generator, n_mixtures=3, sampled=sampled)
    q = make_posterior(generator)
    z = prior.draw(q, normal(generator, N, D))
    alone = [GaussianMixturePrior([mixture], COVARIANCES[kind], sampled) for mixture in mixtures]
    parts = prior.kl_parts(q, z)
    assert parts.shape == (N, 3)
    assert_close(3 * parts, torch.cat([one.kl_parts(q, z) for one in alone], 1))
    assert_close(parts.sum(1), torch.stack([one.kl_parts(q, z)[:, 0] for one in alone]).mean(0))
    assert_close(prior.log_responsibilities(z), torch.cat([one.log_responsibilities(z) for one in alone], 1))
    assert_close(prior.log_prob(z), alone[0].log_prob(z))
    agreed = torch.cat([one.agreement(z, q.mean) for one in alone])
    assert_close(prior.agreement(z, q.mean), agreed)


@over_kinds
def test_keep_chooses(kind, generator):
    prior, mixtures = make_prior(kind, generator, n_mixtures=4)
    before = dict(prior.named_parameters())
    replaced = prior.keep(torch.tensor([2, 0]))
    after = dict(prior.named_parameters())
    assert list(after) == list(before)
    for name, old in before.items():
        assert replaced[old] is after[name]
        assert_close(after[name], old[[2, 0]])
        assert after[name].requires_grad
        assert after[name].is_leaf
    z = normal(generator, N, D)
    assert_close(prior.log_prob(z), log_joint(mixtures[2], z).logsumexp(1))
    prior.keep(torch.tensor([1]))
    assert_close(prior.log_prob(z), log_joint(mixtures[0], z).logsumexp(1))


@over_kinds
def test_extend_adds_after_those_that_are_there(kind, generator):
    prior, mixtures = make_prior(kind, generator, n_mixtures=3)
    prior.keep(torch.tensor([1]))
    before = dict(prior.named_parameters())
    replaced = prior.extend([mixtures[2], mixtures[0]])
    after = dict(prior.named_parameters())
    for name, old in before.items():
        assert replaced[old] is after[name]
        assert_close(after[name][:1], old)
        assert after[name].is_leaf
        assert after[name].dtype == old.dtype
    z = normal(generator, N, D)
    for index, mixture in enumerate([mixtures[1], mixtures[2], mixtures[0]]):
        assert_close(prior.log_responsibilities(z)[:, index], log_joint(mixture, z).log_softmax(1))


def crisp_prior(n_components=K):
    """Components so far apart that codes at their means belong to no other."""
    means = 100 * torch.arange(n_components)[:, None] * torch.ones(D).double()
    scales = torch.ones(n_components, D).double()
    weights = torch.full((n_components,), -math.log(n_components)).double()
    return GaussianMixturePrior([Mixture(weights, means, scales, scales)], COVARIANCES["diag"]), means


def test_agreement_of_balanced_views_without_doubt_is_the_logarithm_of_their_number():
    prior, means = crisp_prior()
    z = means.repeat(5, 1)
    assert prior.agreement(z, z).item() == pytest.approx(math.log(K), abs=1e-6)


def test_agreement_of_independent_views_is_zero():
    prior, means = crisp_prior()
    one, other = means.repeat_interleave(K, 0), means.repeat(K, 1)  # every pair once
    assert prior.agreement(one, other).item() == pytest.approx(0, abs=1e-6)
    assert prior.agreement(means[:1], means[:1]).item() == pytest.approx(0, abs=1e-6), "one cluster for all"


@over_kinds
def test_agreement_is_a_mutual_information(kind, generator):
    """Between zero and the logarithm of the number of components, the same in both directions, less with more noise."""
    prior, _ = make_prior(kind, generator, n_mixtures=3)
    z = 3 * normal(generator, 500, D)
    noise, found = normal(generator, 500, D), []
    for scale in (0.0, 1.0, 5.0, 50.0):
        agreed = prior.agreement(z, z + scale * noise)
        assert agreed.shape == (3,)
        assert (agreed > -1e-6).all()
        assert (agreed < math.log(K)).all()
        assert_close(agreed, prior.agreement(z + scale * noise, z))
        found.append(agreed.mean().item())
    assert found == sorted(found, reverse=True)


def test_one_component_agrees_on_nothing(generator):
    mixture = make_mixture("full", generator, n_components=1)
    z = normal(generator, N, D)
    agreed = GaussianMixturePrior([mixture], COVARIANCES["full"]).agreement(z, -z)
    assert agreed.item() == pytest.approx(0, abs=1e-9)


@over_kinds
def test_samples_have_the_moments_of_their_component(kind, generator):
    prior, (mixture,) = make_prior(kind, generator)
    components = torch.randint(K, (40_000,), generator=generator)
    with torch.no_grad():
        z = prior.sample(normal(generator, 40_000, D), components)
    for c in range(K):
        rows, covariance = z[components == c].numpy(), matrices(mixture)[c].numpy()
        scale = np.sqrt(np.diag(covariance))
        assert_allclose(rows.mean(0) / scale, mixture.means[c].numpy() / scale, atol=0.06)
        assert_allclose(np.cov(rows.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.08)
