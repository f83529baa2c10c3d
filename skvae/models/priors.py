"""Priors over latent codes: the one attribute in which the models differ.

Conventions
-----------
A posterior ``q`` is a diagonal normal for each row, codes ``z`` are (n, k). Priors draw nothing themselves: standard
normal ``noise`` (n, k) is an argument, so that a model is a pure function and its caller owns the randomness.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


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

    def draw(self, q, noise):
        """The codes themselves."""
        return q.mean

    def kl(self, q, z):
        """Zero for every row (n,)."""
        return z.new_zeros(len(z))


class StandardNormal(nn.Module):
    """N(0, I), the prior of the variational autoencoder (Kingma and Welling 2014)."""

    def draw(self, q, noise):
        """Codes from the posterior, differentiable in its parameters."""
        return torch.addcmul(q.mean, q.log_scale.exp(), noise)

    def kl(self, q, z):
        """KL(q || N(0, I)) in nats, in closed form (Kingma and Welling 2014, appendix B) (n,)."""
        return 0.5 * (q.mean.square() + q.variance - 1 - 2 * q.log_scale).sum(-1)

    def sample(self, noise):
        """Codes from the prior."""
        return noise
