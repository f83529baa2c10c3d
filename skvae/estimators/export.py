"""Predictions of fitted estimators as torch modules, of which `skvae.to_onnx` makes graphs.

Conventions
-----------
Modules take samples (n, d) in the dtype of the graph. ``outputs`` names what they return: ``codes``, ``probabilities``
or ``distances`` for what the estimator's ``transform`` returns, which is passed to the next step of a pipeline.
"""

import copy

import numpy as np
import torch
from torch import nn


class Encoder(nn.Module):
    """Posterior means of a latent variable model, which is computed in the given dtype."""

    outputs = ("codes",)

    def __init__(self, model, dtype):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(dtype).eval()

    def forward(self, x):
        """Return latent codes (n, k)."""
        return self.model.posterior(self.model.standardize(x)).mean


class EncoderWithClusters(Encoder):
    """An encoder and the mixture over its latent codes, which is computed in float64."""

    outputs = ("labels", "probabilities", "codes")

    def __init__(self, model, dtype):
        super().__init__(model, dtype)
        self.prior, self.model.prior = self.model.prior.double(), NoPrior()

    def forward(self, x):
        """Return clusters (n,), their probabilities (n, k), latent codes (n, d)."""
        z = super().forward(x)
        log_resp = self.prior.log_responsibilities(z.double())[:, 0]
        return log_resp.argmax(1), log_resp.exp().to(x.dtype), z


class NoPrior(nn.Module):
    """The part of a prior that encoders need: the number of statistics for each latent dimension."""

    n_statistics = 2


class MixtureModel(nn.Module):
    """A Gaussian mixture, computed in float64.

    Parameters
    ----------
    mixture : Mixture
        In float64.
    family : Covariance
    """

    outputs = ("labels", "probabilities", "log_likelihood")

    def __init__(self, mixture, family):
        super().__init__()
        peaks = family.log_prob(mixture.means, mixture.means, mixture.factor).diagonal() + mixture.log_weights
        for name, value in {"means": mixture.means, "factor": mixture.factor, "peaks": peaks}.items():
            self.register_buffer(name, value)

    def forward(self, x):
        """Return components (n,), their probabilities (n, k), log-likelihoods (n,)."""
        residual = x.double() - self.means[:, None]  # (k, n, d)
        white = residual @ self.factor if self.factor.ndim == 3 else residual * self.factor[:, None]
        log_joint = (self.peaks[:, None] - 0.5 * white.square().sum(-1)).mT  # (n, k)
        evidence = log_joint.logsumexp(1)
        resp = (log_joint - evidence[:, None]).exp()
        return log_joint.argmax(1), resp.to(x.dtype), evidence.to(x.dtype)


class Centers(nn.Module):
    """Centres of clusters, computed in float64."""

    outputs = ("labels", "distances")

    def __init__(self, centers):
        super().__init__()
        self.register_buffer("centers", torch.from_numpy(np.array(centers, np.float64)))

    def forward(self, x):
        """Return nearest centres (n,), distances to all (n, k)."""
        squares = (x.double()[:, None] - self.centers).square().sum(-1)
        return squares.argmin(1), squares.sqrt().to(x.dtype)


class LinearEncoder(nn.Module):
    """An affine map from samples to latent codes, computed in float64.

    Parameters
    ----------
    transform : callable, ndarray (n, d) -> ndarray (n, k)
    mean : ndarray of shape (d,)
        A sample at which the map is accurate.
    """

    outputs = ("codes",)

    def __init__(self, transform, mean):
        super().__init__()
        mean = mean.astype(np.float64)
        offset, *rows = transform(np.concatenate([mean[None], mean + np.eye(len(mean))]))
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("matrix", torch.from_numpy(np.array(rows, np.float64) - offset))

    def forward(self, x):
        """Return latent codes (n, k)."""
        return ((x.double() - self.mean) @ self.matrix).to(x.dtype)
