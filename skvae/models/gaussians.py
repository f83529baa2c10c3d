"""Gaussian mixtures, their sufficient statistics, and what all covariance types share."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_STACKED = 2**20  # numbers that are copied to another device in one piece


def copy_to_device(tensors, device):
    """Return tensors of one dtype on a device, None in place of None.

    They are copied in one piece, unless they are large: the host waits for an accelerator at each copy.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not present or present[0].device == torch.device(device):
        return list(tensors)
    sizes = [tensor.numel() for tensor in present]
    if sum(sizes) > MAX_STACKED:
        copies = iter([tensor.to(device) for tensor in present])
    else:
        copies = iter(torch.cat([tensor.flatten() for tensor in present]).to(device).split(sizes))
    return [None if tensor is None else next(copies).view(tensor.shape) for tensor in tensors]


LOG_2PI = math.log(2 * math.pi)
MAX_BATCHED = 2**14  # residuals that are computed for all components at once: more of them leave the cache
MAX_SQUARED_DISTANCE = 1e8  # of a mean from zero, in variances of its component: float32 moves it by 1e-3 of their root
MAX_COLLINEARITY = 1e6  # variance of a feature over what the others leave unexplained of it


class Mixture(NamedTuple):
    """Parameters of a Gaussian mixture."""

    log_weights: Tensor  # (k,)
    means: Tensor  # (k, d)
    covariances: Tensor  # (k or 1, d, d) or (k or 1, d or 1)
    factor: Tensor  # as covariances

    def to(self, device, dtype=None):
        """Return the mixture on another device and in another dtype."""
        parts = copy_to_device(self, device)
        return Mixture(*(parts if dtype is None else [part.to(dtype) for part in parts]))


class Moments(NamedTuple):
    """Sufficient statistics of a mixture: weighted sums of residuals about a reference, for each component.

    With weights ``r`` (n, k) and a reference ``m`` (k, d) they are ``sum r``, ``sum r (x - m)`` and
    ``sum r (x - m)(x - m)'`` (or only its diagonal). Moments of disjoint rows about the same reference add,
    so that chunks, files and processes need no algorithm of their own.
    """

    weight: Tensor  # (k,)
    first: Tensor  # (k, d)
    second: Tensor  # (k, d, d) or (k, d)

    def merge(self, other):
        """Return the moments of the rows of both."""
        return Moments(*(one + two for one, two in zip(self, other, strict=True)))


def align(values, covariances):
    """Return values (k,) with as many trailing axes as broadcasting against covariances needs."""
    return values.reshape(-1, *[1] * (covariances.ndim - 1))


class Conditional(NamedTuple):
    """Marginal density of observed values and conditional distribution of missing ones, for each component.

    Rows are in blocks (p, b, d): p patterns of missing values, each with b rows. Every pattern lacks m values.
    """

    log_prob: Tensor  # (k, p, b): of the observed values; zero where there are none
    residual: Tensor  # (k, p, b, d): conditional means of the rows less the means of the components
    covariance: Tensor  # of the missing values (k or 1, p, m, m), or variances, zero if observed (k or 1, p, d)


@dataclass(frozen=True)
class Covariance:
    """A covariance type, called ``family`` in code: a kernel (matrix or axis-aligned), and the axes of its pooling."""

    pooled: tuple = ()  # 0: over components (tied); 1: over features (spherical)

    @property
    def tied(self):
        """Return whether all components share one covariance."""
        return 0 in self.pooled

    def compact(self, value):
        """Drop the pooled axes, as in the attributes of scikit-learn."""
        return value.squeeze(self.pooled) if self.pooled else value

    def expand(self, value):
        """Put the pooled axes back."""
        for axis in self.pooled:
            value = value.unsqueeze(axis)
        return value

    def compact_shape(self, n_components, n_features):
        """Return the shape of the compact form."""
        shape = self._shape(n_components, n_features)
        return tuple(size for axis, size in enumerate(shape) if axis not in self.pooled)

    def estimate(self, moments, regularization):
        """Maximum likelihood covariances from moments about any reference, plus a regularization."""
        weight = align(moments.weight, moments.second)
        covariances = self._squares(moments.first / moments.weight.sqrt()[:, None])  # explained by the means
        if self.tied:
            weight = weight.sum(0, keepdim=True)
        # In place: for many features these are the largest tensors of all.
        return covariances.neg_().add_(moments.second).div_(weight).add_(regularization)

    def moments_from(self, mixture, regularization, frame=None):
        """Return moments about the means, per unit of weight, for which `estimate` gives this mixture."""
        weight, means = mixture.log_weights.exp(), mixture.means
        weights = weight.sum() if self.tied else align(weight, mixture.covariances)
        covariances = self.framed_covariances(mixture, frame) - self.in_frame(regularization, frame)
        return Moments(weight, torch.zeros_like(means), weights * covariances)

    # Frames: the coordinates in which a component has unit covariance, for types with correlations.

    def frame(self, mixture):
        """Return the factors if products of residuals whitened by them keep more digits; else None."""
        return None

    def in_frame(self, value, frame):
        """Return a regularization in a frame."""
        return value

    def out_of_frame(self, residual, frame):
        """Return residuals (k, d) in the coordinates of the rows."""
        return residual

    def framed_covariances(self, mixture, frame):
        """Return the covariances of a mixture in a frame."""
        return mixture.covariances

    def factor_of(self, covariances, frame):
        """Return covariances in the coordinates of the rows, their factors, and whether each is positive definite."""
        return covariances, *self.factor(covariances)

    def shift(self, moments, means, reference):
        """Return moments about another reference (k, d)."""
        weight = moments.weight[:, None].clamp(min=torch.finfo(moments.weight.dtype).tiny)
        first = moments.first + moments.weight[:, None] * (means - reference)
        change = self._squares(first / weight.sqrt()) - self._squares(moments.first / weight.sqrt())
        return Moments(moments.weight, first, moments.second + change)

    def total(self, mixture):
        """Return the covariance of the whole mixture about its mean, in the form of one component."""
        weight = mixture.log_weights.exp()
        center = (weight @ mixture.means)[None]
        moments = self.shift(self.moments_from(mixture, 0.0), mixture.means, center.expand_as(mixture.means))
        return moments.second.sum(0, keepdim=True)

    def linear_condition_number(self, mixture):
        """Return the largest squared Mahalanobis distance of a mean from the origin, in terms of its component ().

        The linear form of the density loses as many digits as this number has.
        """
        return self._whitened(mixture.means, mixture.factor).square().sum(-1).max()

    def fits_float32(self, mixture):
        """Return whether parameters in float32 give densities with the precision of float32.

        They do not where a component is narrow for the distance of its mean from zero, or features are nearly collinear
        in it.
        """
        precisions = self._precision_diagonals(mixture.factor)
        means, collinearity = mixture.means.square() * precisions, self.variances(mixture.covariances) * precisions
        return bool(means.amax() < MAX_SQUARED_DISTANCE and collinearity.amax() < MAX_COLLINEARITY)

    def moments(self, x, resp, means):
        """Return moments of rows about the means, weighted by responsibilities, in float64."""
        moments = self.empty_moments(means)
        self.accumulate(moments, x, resp, means)
        return self.complete(moments)

    def _n_free(self, n_components):
        return 1 if self.tied else n_components

    def _observed_log_prob(self, log_det, squares, observed):
        """Return the log-density of observed values, from log-determinants (k, p) and squared distances (k, p, b)."""
        n_observed = observed.sum(-1)[:, None].to(squares)  # an integer times a number would be float32
        log_prob = log_det[:, :, None] - 0.5 * (finite(squares) + n_observed * LOG_2PI)
        return torch.where(n_observed > 0, log_prob, 0.0)

    def _constants(self, mixture, whitened):
        """Return the log-density of each component at the origin plus its log-weight (k,), from the whitened means."""
        squares = whitened.square().sum(-1)
        return (mixture.log_weights + self._log_det(mixture)).sub_(
            squares + mixture.means.shape[1] * LOG_2PI, alpha=0.5
        )


def inverse_scales(variances):
    """Return the reciprocals of standard deviations, one where there is no variance."""
    return torch.where(variances > 0, variances, 1.0).rsqrt()


def finite(squares):
    """Clip squared distances in place to the range of the dtype (NaN, from inf - inf, too)."""
    largest = torch.finfo(squares.dtype).max / 4
    return squares.nan_to_num_(nan=largest, posinf=largest).clamp_(max=largest)


def bounded(squares):
    """Clip squared distances as `finite` does, differentiably."""
    largest = torch.finfo(squares.dtype).max / 4
    return squares.nan_to_num(nan=largest, posinf=largest).clamp(max=largest)
