"""Priors over latent codes, by which the models differ."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .covariances import LOG_2PI, Mixture


class Posterior(NamedTuple):
    """Diagonal normal posterior q(z | x) of each sample."""

    mean: Tensor  # (n, k)
    log_scale: Tensor  # (n, k)

    @property
    def variance(self):
        """Variances (n, k)."""
        return (2 * self.log_scale).exp()


class Prior(Protocol):
    """Distribution p(z) of latent codes (n, k), a module; generative ones also have ``log_prob(z)`` and ``sample``.

    Priors have no random state: standard normal ``noise`` (n, k) is an argument, so that a model is a pure function.
    """

    n_statistics: int  # outputs of the encoder for each latent dimension: 1 for points, 2 for means and log-scales

    def draw(self, q: Posterior, noise: Tensor):
        """Return latent codes from the posterior, differentiable in its parameters."""

    def kl_parts(self, q: Posterior, z: Tensor):
        """Return terms (n, m) of the divergence of q from the prior in nats, one for each dimension if independent."""


class Flat(nn.Module):
    """No prior: the posterior is a point, and the variational autoencoder an autoencoder.

    Parameters
    ----------
    n_statistics : int, default=1
        Outputs of the encoder for each latent dimension. Log-scales, if there are any, are not used.
    """

    def __init__(self, n_statistics=1):
        super().__init__()
        self.n_statistics = n_statistics

    def draw(self, q, noise):
        """Return the posterior means."""
        return q.mean

    def kl_parts(self, q, z):
        """Return no terms (n, 0)."""
        return z.new_zeros(len(z), 0)


class StandardNormal(nn.Module):
    """N(0, I), the prior of the variational autoencoder (Kingma and Welling 2014)."""

    n_statistics = 2

    def draw(self, q, noise):
        """Return latent codes from the posterior, differentiable in its parameters."""
        return torch.addcmul(q.mean, q.log_scale.exp(), noise)

    def kl_parts(self, q, z):
        """Return KL(q || N(0, 1)) of each dimension in nats (n, k) (Kingma and Welling 2014, appendix B)."""
        return 0.5 * (q.mean.square() + q.variance - 1 - 2 * q.log_scale)

    def log_prob(self, z):
        """Return the log-density of latent codes in nats (n,)."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def sample(self, noise):
        """Return latent codes from the prior."""
        return noise


class GaussianMixturePrior(nn.Module):
    """A Gaussian mixture over latent codes, the prior of VaDE (Jiang et al. 2017), or several candidates.

    With several mixtures, the divergence is the mean over mixtures, `keep` selects some of them, `extend` adds others,
    and ``mixture``, ``log_prob`` and ``sample`` are those of the first.

    Parameters
    ----------
    mixtures : list of Mixture
        Initial values, all of the same size.
    family : Covariance
        An entry of ``COVARIANCES`` that pools nothing.
    sampled : bool, default=False
        Whether components are weighted by their probabilities at the latent code that was drawn, as in the paper
        (equation 16), and not by those that maximize the ELBO.
    """

    n_statistics = 2

    def __init__(self, mixtures, family, sampled=False):
        super().__init__()
        self.family, self.sampled = family, sampled
        self.logits = nn.Parameter(torch.stack([mixture.log_weights for mixture in mixtures]))  # (h, k)
        self.means = nn.Parameter(torch.stack([mixture.means for mixture in mixtures]))  # (h, k, d)
        self.log_factors = nn.Parameter(torch.stack([family.log_factor(mixture.factor) for mixture in mixtures]))

    @property
    def mixture(self):
        """The first mixture, as a `Mixture`."""
        factor = self.family.exp_factor(self.log_factors[0])
        return Mixture(self.logits[0].log_softmax(-1), self.means[0], self.family.covariances(factor), factor)

    def keep(self, indices):
        """Drop all mixtures but these, whose parameters are replaced by new ones.

        Returns
        -------
        replaced : dict of Parameter to Parameter
            The new parameter for each old one.
        """
        replaced = {}
        for name, old in list(self.named_parameters()):
            replaced[old] = nn.Parameter(old.detach()[indices].clone())
            setattr(self, name, replaced[old])
        return replaced

    def extend(self, mixtures):
        """Add mixtures after those that there are; all get new parameters.

        Returns
        -------
        replaced : dict of Parameter to Parameter
            The new parameter for each old one.
        """
        replaced, added = {}, GaussianMixturePrior(mixtures, self.family)
        for (name, old), new in zip(list(self.named_parameters()), added.parameters(), strict=True):
            replaced[old] = nn.Parameter(torch.cat([old.detach(), new.detach().to(old)]))
            setattr(self, name, replaced[old])
        return replaced

    def draw(self, q, noise):
        """Return latent codes from the posterior, differentiable in its parameters."""
        return torch.addcmul(q.mean, q.log_scale.exp(), noise)

    def kl_parts(self, q, z):
        """Return the divergence of q(z, c | x) from p(z, c) under each mixture in nats, divided by their number (n, h).

        With the exact responsibilities, which are proportional to ``pi_c exp(E_q log N_c)``, the sum over components
        of Jiang et al. 2017 (equations 12 and 16) is ``-logsumexp_c(log pi_c + E_q log N_c)``.
        """
        expected = self._log_joint(q.mean, q.variance)  # (n, h, k)
        if self.sampled:
            log_resp = self._log_joint(z, torch.zeros_like(z)).log_softmax(-1)
            cost = (log_resp.exp() * (log_resp - expected)).sum(-1)
        else:
            cost = -expected.logsumexp(-1)
        entropy = (q.log_scale + 0.5 * (1 + LOG_2PI)).sum(-1, keepdim=True)
        return (cost - entropy) / cost.shape[1]

    def log_prob(self, z):
        """Return the log-density of latent codes in nats (n,)."""
        return self._log_joint(z, torch.zeros_like(z))[:, 0].logsumexp(-1)

    def log_responsibilities(self, z):
        """Return log-probabilities of the components at latent codes, for each mixture (n, h, k)."""
        return self._log_joint(z, torch.zeros_like(z)).log_softmax(-1)

    def agreement(self, one, other):
        """Return the `mutual_information` of components between the latent codes of pairs, for each mixture (h,)."""
        return mutual_information(*(self.log_responsibilities(z).exp() for z in (one, other)))

    def sample(self, noise, components):
        """Return latent codes of components (n,), from standard normal noise (n, d)."""
        z, mixture = noise.clone(), self.mixture
        for c in components.unique().tolist():
            rows = components == c
            z[rows] = mixture.means[c] + self.family.color(noise[rows], mixture.factor[c])
        return z

    def _log_joint(self, mean, variance):
        """Return the expectation of log p(z, c) over normal latent codes, under each mixture (n, h, k)."""
        n_mixtures, n_components, _ = self.means.shape
        factors = self.family.exp_factor(self.log_factors)
        log_prob = self.family.expected_log_prob(mean, variance, self.means.flatten(0, 1), factors.flatten(0, 1))
        return log_prob.unflatten(1, (n_mixtures, n_components)) + self.logits.log_softmax(-1)


def mutual_information(resp, other):
    """Return the mutual information of components between the two sides of pairs in nats, for each mixture (h,).

    Its maximum is the logarithm of the number of components, where both sides agree with certainty on components of
    equal size (Ji et al. 2019, equation 3).

    Parameters
    ----------
    resp, other : Tensor of shape (n, h, k)
        Responsibilities of the first and of the second side.
    """
    return information(torch.einsum("nhi,nhj->hij", resp, other) / len(resp))


def information(joint):
    """Return the mutual information of joint distributions (h, k, k), made symmetric, in nats (h,)."""
    joint = ((joint + joint.mT) / 2).clamp(min=1e-9)
    return (joint * _log_ratio(joint)).sum((1, 2))


def pointwise_information(joint):
    """Return the mutual information of each entry of joint distributions (h, k, k), made symmetric, in nats."""
    return _log_ratio(((joint + joint.mT) / 2).clamp(min=1e-9))


def _log_ratio(joint):
    """Return the logarithms of symmetric joint probabilities over the products of their margins (h, k, k)."""
    log_margin = joint.sum(-1).log()
    return joint.log() - log_margin[:, :, None] - log_margin[:, None]
