"""Probabilistic principal component analysis (Tipping and Bishop 1999).

``x = W z + mean + noise`` with z ~ N(0, I) and noise ~ N(0, noise_variance I). The columns of W are the principal axes
times ``sqrt(variances - noise_variance)``, so that x has the variance ``variances`` along them.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .covariances import LOG_2PI, Mixture


class PPCA(NamedTuple):
    """Parameters of probabilistic PCA."""

    mean: Tensor  # (d,)
    axes: Tensor  # (q, d), orthonormal
    variances: Tensor  # (q,), along the axes, including noise
    noise_variance: Tensor  # ()

    @property
    def loadings(self):
        """Transposed loading matrix W' (q, d)."""
        return (self.variances - self.noise_variance).clamp(min=0).sqrt()[:, None] * self.axes

    @property
    def posterior_variance(self):
        """Variances of p(z | x) (q,), the same for every sample: noise_variance / variances."""
        return self.noise_variance / self.variances

    def posterior_mean(self, x):
        """Return E[z | x] (n, q), Tipping and Bishop 1999, equation 13."""
        return (x - self.mean) @ (self.loadings / self.variances[:, None]).mT

    def decode(self, z):
        """Return E[x | z] (n, d)."""
        return z @ self.loadings + self.mean

    def log_prob(self, x):
        """Return the log-density of samples in nats (n,), Tipping and Bishop 1999, equation 6."""
        n_components, n_features = self.axes.shape
        residual = x - self.mean
        along = residual @ self.axes.mT
        squares = (along.square() / self.variances).sum(1)
        log_det = self.variances.log().sum()
        if n_components < n_features:
            squares = squares + (residual - along @ self.axes).square().sum(1) / self.noise_variance
            log_det = log_det + (n_features - n_components) * self.noise_variance.log()
        return -0.5 * (squares + log_det + n_features * LOG_2PI)

    def as_mixture(self):
        """Return the density of x as a mixture of one component with a full covariance.

        Its factor is computed from the axes, so that it is accurate where the noise is small.
        """
        n_components, n_features = self.axes.shape
        basis = torch.linalg.qr(self.axes.mT, mode="complete").Q  # the axes and their orthogonal complement
        noise = self.noise_variance.expand(n_features - n_components)
        variances = torch.cat([self.variances, noise])
        # Rows of noise first: the decomposition is accurate for small rows after large ones.
        root = (basis * variances.rsqrt()).flip(0, 1)
        lower = torch.linalg.qr(root.mT, mode="r").R.mT  # the required triangle, reversed in both axes
        factor = (lower * lower.diagonal().sign()).flip(0, 1)
        covariance = (basis * variances) @ basis.mT
        return Mixture(self.mean.new_zeros(1), self.mean[None], covariance[None], factor[None])

    def sample(self, noise_z, noise_x):
        """Return samples (n, d) from standard normal noise (n, q) and (n, d)."""
        return self.decode(noise_z) + self.noise_variance.sqrt() * noise_x


def log_evidence(spectrum, n_components, n_samples):
    """Return Laplace's approximation to the log-evidence of a number of components (Minka 2000, equation 30).

    Parameters
    ----------
    spectrum : Tensor of shape (d,)
        Eigenvalues of the covariance, in decreasing order, all positive.
    n_components : int
        Between 1 and d - 1.
    n_samples : float
    """
    d, k = len(spectrum), n_components
    noise = spectrum[k:].mean()
    half = (d - torch.arange(k, dtype=spectrum.dtype)) / 2
    log_volume = (half.lgamma() - half * math.log(math.pi)).sum() - k * math.log(2)  # of the Stiefel manifold
    n_parameters = d * k - k * (k + 1) / 2
    smoothed = torch.cat([spectrum[:k], noise.expand(d - k)])
    i, j = torch.triu_indices(d, d, offset=1)
    i, j = i[i < k], j[i < k]
    curvature = (
        (1 / smoothed[j] - 1 / smoothed[i]).log() + (spectrum[i] - spectrum[j]).log() + math.log(n_samples)
    ).sum()
    fit = -0.5 * n_samples * (spectrum[:k].log().sum() + (d - k) * noise.log())
    return log_volume + fit + 0.5 * ((n_parameters + k) * LOG_2PI - curvature - k * math.log(n_samples))
