"""Gaussian densities and their covariance types.

Conventions
-----------
Data ``x`` is (n, d), ``means`` (k, d), responsibilities ``resp`` (n, k). Inside the package a covariance keeps all
its axes, and an axis over which it is pooled has length 1: "tied" is (1, d, d), "spherical" is (k, 1). Broadcasting
then serves every type, and `compact` gives the shapes that scikit-learn publishes. The ``factor`` of a covariance S
is what whitens a residual: the upper triangular F with ``F F' = inv(S)``, or one over the standard deviation.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .moments import Moments

LOG_2PI = math.log(2 * math.pi)


class Mixture(NamedTuple):
    """Parameters of a Gaussian mixture: a value, with no memory of how it was found."""

    log_weights: Tensor  # (k,)
    means: Tensor  # (k, d)
    covariances: Tensor  # (k or 1, d, d) or (k or 1, d or 1)
    factor: Tensor  # as covariances

    def to(self, *args, **kwargs):
        """The mixture on another device or in another dtype."""
        return Mixture(*(part.to(*args, **kwargs) for part in self))


@dataclass(frozen=True)
class Covariance:
    """A covariance type: a kernel (matrix or axis-aligned) and the axes over which it is pooled."""

    pooled: tuple = ()  # 0: over components (tied); 1: over features (spherical)

    def compact(self, value):
        """Drop the pooled axes: the shape that scikit-learn publishes."""
        return value.squeeze(self.pooled) if self.pooled else value

    def expand(self, value):
        """Put the pooled axes back."""
        for axis in self.pooled:
            value = value.unsqueeze(axis)
        return value

    def compact_shape(self, n_components, n_features):
        """Shape that scikit-learn publishes for this type."""
        shape = self._shape(n_components, n_features)
        return tuple(size for axis, size in enumerate(shape) if axis not in self.pooled)

    def estimate(self, moments, reg_covar):
        """Maximum likelihood covariances from moments about any reference, ``reg_covar`` added to the diagonal."""
        weight = moments.weight.reshape(-1, *[1] * (moments.second.ndim - 1))
        shift = moments.first / moments.weight[:, None]
        covariances = moments.second / weight - self._square(shift)
        if 0 in self.pooled:
            covariances = (weight * covariances).sum(0, keepdim=True) / weight.sum()
        if 1 in self.pooled:
            covariances = covariances.mean(1, keepdim=True)
        return self._regularize(covariances, reg_covar)

    def _n_free(self, n_components):
        return 1 if 0 in self.pooled else n_components


class MatrixCovariance(Covariance):
    """Covariances with correlations: "full" and "tied"."""

    def log_prob(self, x, means, factor):
        """Log-density of each row under each component, in nats, from whitened residuals (n, k)."""
        squares = x.new_empty(len(x), len(means))
        for c, matrix in enumerate(factor.expand(len(means), -1, -1)):
            squares[:, c] = ((x - means[c]) @ matrix).square().sum(1)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return log_det - 0.5 * (squares + x.shape[1] * LOG_2PI)

    def moments(self, x, resp, means):
        """Moments of the rows about the means, weighted by responsibilities."""
        first, second = torch.empty_like(means), means.new_empty(*means.shape, means.shape[1])
        for c, mean in enumerate(means):
            residual = x - mean
            weighted = residual * resp[:, c, None]
            first[c], second[c] = weighted.sum(0), weighted.mT @ residual
        return Moments(resp.sum(0), first, second)

    def factor(self, covariances):
        """Precision Cholesky factor of each covariance, and whether each is positive definite."""
        lower, info = torch.linalg.cholesky_ex(covariances)
        eye = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False).mT, info == 0

    def factor_from_precisions(self, precisions):
        """Factor of given precisions, and whether each is positive definite."""
        # Reversed in both axes, the lower Cholesky factor of a matrix is the upper one that is wanted.
        lower, info = torch.linalg.cholesky_ex(precisions.flip(-1, -2))
        return lower.flip(-1, -2), info == 0

    def from_factor(self, factor):
        """Covariances and precisions of a factor."""
        precisions = factor @ factor.mT
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        root = torch.linalg.solve_triangular(factor, eye, upper=True)
        return root.mT @ root, precisions

    def color(self, noise, factor):
        """Give standard normal rows the covariance of one component."""
        return torch.linalg.solve_triangular(factor, noise, upper=True, left=False)

    def n_parameters(self, n_components, n_features):
        """Number of free parameters."""
        return self._n_free(n_components) * n_features * (n_features + 1) // 2

    def _shape(self, n_components, n_features):
        return self._n_free(n_components), n_features, n_features

    def _square(self, shift):
        return shift[:, :, None] * shift[:, None, :]

    def _regularize(self, covariances, reg_covar):
        covariances.diagonal(dim1=-2, dim2=-1).add_(reg_covar)
        return covariances


class AxisCovariance(Covariance):
    """Covariances without correlations: "diag", "spherical" and their tied forms."""

    def log_prob(self, x, means, factor):
        """Log-density of each row under each component, in nats, from whitened residuals (n, k)."""
        squares = x.new_empty(len(x), len(means))
        for c, scale in enumerate(factor.expand(len(means), -1)):
            squares[:, c] = ((x - means[c]) * scale).square().sum(1)
        log_det = factor.log().expand(-1, x.shape[1]).sum(1)
        return log_det - 0.5 * (squares + x.shape[1] * LOG_2PI)

    def moments(self, x, resp, means):
        """Moments of the rows about the means, weighted by responsibilities."""
        first, second = torch.empty_like(means), torch.empty_like(means)
        for c, mean in enumerate(means):
            residual = x - mean
            first[c], second[c] = resp[:, c] @ residual, resp[:, c] @ residual.square()
        return Moments(resp.sum(0), first, second)

    def factor(self, covariances):
        """One over the standard deviations, and whether each component's variances are positive."""
        return covariances.rsqrt(), (covariances > 0).all(-1)

    def factor_from_precisions(self, precisions):
        """Factor of given precisions, and whether each component's precisions are positive."""
        return precisions.sqrt(), (precisions > 0).all(-1)

    def from_factor(self, factor):
        """Covariances and precisions of a factor."""
        precisions = factor.square()
        return 1 / precisions, precisions

    def color(self, noise, factor):
        """Give standard normal rows the covariance of one component."""
        return noise / factor

    def n_parameters(self, n_components, n_features):
        """Number of free parameters."""
        return math.prod(self._shape(n_components, n_features))

    def _shape(self, n_components, n_features):
        return self._n_free(n_components), 1 if 1 in self.pooled else n_features

    def _square(self, shift):
        return shift.square()

    def _regularize(self, covariances, reg_covar):
        return covariances + reg_covar


COVARIANCES = {
    "full": MatrixCovariance(),
    "tied": MatrixCovariance(pooled=(0,)),
    "diag": AxisCovariance(),
    "spherical": AxisCovariance(pooled=(1,)),
    "tied_diag": AxisCovariance(pooled=(0,)),
    "tied_spherical": AxisCovariance(pooled=(0, 1)),
}
