"""Priors over latent codes: the one attribute in which the models differ.

Conventions
-----------
A posterior ``q`` is a diagonal normal for each row, codes ``z`` are (n, k). Priors draw nothing themselves: standard
normal ``noise`` (n, k) is an argument, so that a model is a pure function and its caller owns the randomness.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .covariances import LOG_2PI


class Posterior(NamedTuple):
    """Diagonal normal posterior q(z | x) of each row."""

    mean: Tensor  # (n, k)
    log_scale: Tensor  # (n, k)

    @property
    def variance(self):
        """Variances (n, k)."""
        return (2 * self.log_scale).exp()


class Flat(nn.Module):
    """No prior: the posterior is a point, and the variational autoencoder an autoencoder."""

    n_statistics = 1  # that the encoder gives for each latent dimension

    def draw(self, q, noise):
        """The codes themselves."""
        return q.mean

    def kl_parts(self, q, z):
        """None (n, 0): there is no prior to differ from."""
        return z.new_zeros(len(z), 0)


class StandardNormal(nn.Module):
    """N(0, I), the prior of the variational autoencoder (Kingma and Welling 2014)."""

    n_statistics = 2

    def draw(self, q, noise):
        """Codes from the posterior, differentiable in its parameters."""
        return torch.addcmul(q.mean, q.log_scale.exp(), noise)

    def kl_parts(self, q, z):
        """KL(q || N(0, 1)) of each dimension in nats, in closed form (Kingma and Welling 2014, appendix B) (n, k)."""
        return 0.5 * (q.mean.square() + q.variance - 1 - 2 * q.log_scale)

    def log_prob(self, z):
        """Log-density of codes in nats (n,)."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def sample(self, noise):
        """Codes from the prior."""
        return noise
