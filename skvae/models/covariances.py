"""Gaussian densities and their covariance types.

Conventions
-----------
Rows ``x`` are (n, d), ``means`` (k, d), responsibilities ``resp`` (n, k). Inside the package a covariance keeps all its
axes, and an axis over which it is pooled has length 1: "tied" is (1, d, d), "spherical" is (k, 1). Broadcasting then
serves every type, and `compact` gives the shapes that scikit-learn publishes. The ``factor`` of a covariance S is what
whitens a residual: the upper triangular F with ``F F' = inv(S)``, or one over the standard deviation.

Each type has its density in two forms. The residual form (`log_prob`, `moments`) subtracts the means first and is as
accurate as the data allow. The linear form writes the log-density as an inner product of ``features`` of a row with the
``natural`` parameters of a component, so that an E-step and its sums are two matrix products for all components at
once; it loses digits when clusters are narrow for their distance from the origin (`spread` says how much).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .moments import Moments

LOG_2PI = math.log(2 * math.pi)
MAX_SQUARED_DISTANCE = 1e8  # of a mean from zero, in variances of its component: float32 moves it by 1e-3 of their root
MAX_COLLINEARITY = 1e6  # variance of a feature over what the others leave unexplained of it
MAX_STACKED = 2**20  # numbers that are copied to another device in one piece


def moved(tensors, device):
    """Tensors of one dtype on a device.

    They go there in one copy, unless they are large: the host waits for an accelerator at each copy.
    """
    if tensors[0].device == torch.device(device):
        return list(tensors)
    sizes = [tensor.numel() for tensor in tensors]
    if sum(sizes) > MAX_STACKED:
        return [tensor.to(device) for tensor in tensors]
    parts = torch.cat([tensor.flatten() for tensor in tensors]).to(device).split(sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class Mixture(NamedTuple):
    """Parameters of a Gaussian mixture: a value, with no memory of how it was found."""

    log_weights: Tensor  # (k,)
    means: Tensor  # (k, d)
    covariances: Tensor  # (k or 1, d, d) or (k or 1, d or 1)
    factor: Tensor  # as covariances

    def to(self, device, dtype=None):
        """The mixture on another device and in another dtype."""
        return Mixture(*(part.to(dtype or part.dtype) for part in moved(self, device)))


class Conditional(NamedTuple):
    """What the observed values of rows say about the missing ones, for each component.

    Rows are in blocks (p, b, d): p patterns of missing values, each with b rows. Every pattern lacks m values.
    """

    log_prob: Tensor  # (k, p, b): of the observed values; zero where there are none
    residual: Tensor  # (k, p, b, d): expected rows less the means
    spread: Tensor  # covariances of the missing values (k or 1, p, m, m), or variances, zero if observed (k or 1, p, d)


@dataclass(frozen=True)
class Covariance:
    """A covariance type: a kernel (matrix or axis-aligned) and the axes over which it is pooled."""

    pooled: tuple = ()  # 0: over components (tied); 1: over features (spherical)

    @property
    def tied(self):
        """Whether all components share their covariance."""
        return 0 in self.pooled

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

    def estimate(self, moments, regularization):
        """Maximum likelihood covariances from moments about any reference, plus a regularization."""
        weight = moments.weight.reshape(-1, *[1] * (moments.second.ndim - 1))
        covariances = self._squares(moments.first / moments.weight.sqrt()[:, None])  # explained by the means
        if self.tied:
            weight = weight.sum(0, keepdim=True)
        # In place: for many features these are the largest tensors of all.
        return covariances.neg_().add_(moments.second).div_(weight).add_(regularization)

    def moments_from(self, mixture, regularization, frame=None):
        """Moments per unit of weight, about its means, of rows that `estimate` would give this mixture."""
        weight, means = mixture.log_weights.exp(), mixture.means
        weights = weight.sum() if self.tied else weight.reshape(-1, *[1] * (mixture.covariances.ndim - 1))
        covariances = self.framed_covariances(mixture, frame) - self.in_frame(regularization, frame)
        return Moments(weight, torch.zeros_like(means), weights * covariances)

    # Frames: the coordinates in which a component has unit covariance, for types with correlations.

    def frame(self, mixture):
        """The factors, if residuals that they whiten have products with more digits; else None."""
        return None

    def in_frame(self, value, frame):
        """A regularization in a frame."""
        return value

    def out_of_frame(self, residual, frame):
        """Residuals (k, d) in the coordinates of the rows."""
        return residual

    def framed_covariances(self, mixture, frame):
        """Covariances of a mixture in a frame."""
        return mixture.covariances

    def factor_of(self, covariances, frame):
        """Covariances in the coordinates of the rows, their factors, and whether each is positive."""
        return covariances, *self.factor(covariances)

    def shift(self, moments, means, reference):
        """Moments about another reference (k, d)."""
        weight = moments.weight[:, None].clamp(min=torch.finfo(moments.weight.dtype).tiny)
        first = moments.first + moments.weight[:, None] * (means - reference)
        change = self._squares(first / weight.sqrt()) - self._squares(moments.first / weight.sqrt())
        return Moments(moments.weight, first, moments.second + change)

    def total(self, mixture):
        """Covariance of the whole mixture about its mean, in the form of one component."""
        weight = mixture.log_weights.exp()
        center = (weight @ mixture.means)[None]
        moments = self.shift(self.moments_from(mixture, 0.0), mixture.means, center.expand_as(mixture.means))
        return moments.second.sum(0, keepdim=True)

    def spread(self, mixture):
        """Largest squared distance of a mean from the origin, in squared standard deviations of its component.

        The linear form loses as many digits as this number has.
        """
        return self._whitened(mixture.means, mixture.factor).square().sum(-1).max()

    def fits_float32(self, mixture):
        """Whether the mixture in float32 gives densities with the precision of float32.

        It does not where a component is narrow for the distance of its mean from zero, or features are nearly collinear
        in it.
        """
        precisions = self._precision_diagonals(mixture.factor)
        means, collinearity = mixture.means.square() * precisions, self.variances(mixture.covariances) * precisions
        return bool(means.amax() < MAX_SQUARED_DISTANCE and collinearity.amax() < MAX_COLLINEARITY)

    def moments(self, x, resp, means):
        """Moments of the rows about the means, weighted by responsibilities, in float64."""
        moments = self.empty_moments(means)
        self.accumulate(moments, x, resp, means)
        return self.complete(moments)

    def _n_free(self, n_components):
        return 1 if self.tied else n_components

    def _observed_log_prob(self, log_det, squares, observed):
        """Log-density of observed values, from that of their whitener (k, p) and squared lengths (k, p, b)."""
        n_observed = observed.sum(-1)[:, None].to(squares)  # an integer times a number would be float32
        log_prob = log_det[:, :, None] - 0.5 * (_finite(squares) + n_observed * LOG_2PI)
        return torch.where(n_observed > 0, log_prob, 0.0)

    def _constants(self, mixture):
        """Log-density of each component at the origin, plus its log-weight (k,)."""
        squares = self._whitened(mixture.means, mixture.factor).square().sum(-1)
        return mixture.log_weights + self._log_det(mixture) - 0.5 * (squares + mixture.means.shape[1] * LOG_2PI)


class MatrixCovariance(Covariance):
    """Covariances with correlations: "full" and "tied"."""

    def log_prob(self, x, means, factor):
        """Log-density of each row under each component, in nats, from whitened residuals (n, k)."""
        xt, squares = x.mT.contiguous(), x.new_zeros(len(means), len(x))  # as columns, the products are faster
        for c, matrix in enumerate(factor.expand(len(means), -1, -1)):
            residual = xt - means[c, :, None]
            for block in _blocks(len(xt)):  # the factor is zero below its diagonal
                squares[c] += (matrix[: block.stop, block].mT @ residual[: block.stop]).square_().sum(0)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return log_det - 0.5 * (_finite(squares).mT + x.shape[1] * LOG_2PI)

    def expected_log_prob(self, x, variance, means, factor):
        """Expectation of `log_prob` over rows with independent normal noise of this variance (n, d) (n, k).

        All components are one matrix product, which is what gradient steps on few features want.
        """
        k, d = means.shape
        columns = factor.transpose(0, 1).reshape(d, k * d)
        offsets = (means[:, None] @ factor)[:, 0]  # (k, d)
        squares = ((x @ columns).unflatten(1, (k, d)) - offsets).square().sum(-1) + variance @ factor.square().sum(2).T
        return factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * (_bounded(squares) + d * LOG_2PI)

    def condition_number(self, mixture):
        """Largest second moment of a component over its smallest variance: digits that products of features lose.

        Products of correlated features are as accurate as the largest of them, and a direction in which a component is
        narrow has only what is left.
        """
        precisions = self._precision_diagonals(mixture.factor)
        moments = self.variances(mixture.covariances).amax(1) + mixture.means.square().sum(1)
        return (precisions.amax(1) * moments).amax()

    def tolerance(self, covariances, factor):
        """Smallest share of a feature's variance that the features before it leave unexplained (k or 1,)."""
        return 1 / (factor.diagonal(dim1=1, dim2=2).square() * self.variances(covariances)).amax(1)

    def empty_moments(self, means):
        """Moments of no rows, to `accumulate` into: float64."""
        k, d = means.shape
        zeros = means.new_zeros(k, d, dtype=torch.float64)
        return Moments(zeros.sum(1), zeros, zeros.new_zeros(self._n_free(k), d, d))

    def frame(self, mixture):
        """The factors: residuals that they whiten have products with more digits."""
        return mixture.factor

    def in_frame(self, value, frame):
        """A regularization in a frame."""
        return value if frame is None else frame.mT @ value @ frame

    def out_of_frame(self, residual, frame):
        """Residuals (k, d) in the coordinates of the rows."""
        if frame is None:
            return residual
        return torch.linalg.solve_triangular(frame, residual[:, None], upper=True, left=False)[:, 0]

    def framed_covariances(self, mixture, frame):
        """Covariances of a mixture in a frame."""
        if frame is None:
            return mixture.covariances
        root = torch.linalg.solve_triangular(mixture.factor, frame, upper=True)
        return root.mT @ root

    def factor_of(self, covariances, frame):
        """Covariances in the coordinates of the rows, their factors, and whether each is positive."""
        factor, positive = self.factor(covariances)
        if frame is None:
            return covariances, factor, positive
        factor = torch.where(positive[:, None, None], frame @ factor, frame)
        return self.covariances(factor), factor, positive

    def accumulate(self, moments, x, resp, means, frame=None):
        """Add rows to moments about the means, in place, on and above the diagonal only (see `complete`)."""
        moments.weight.add_(resp.sum(0))
        for c, mean in enumerate(means):
            rows, weight = _rows_that_count(x, resp[:, c])
            residual = rows - mean
            if frame is not None:
                residual = residual @ frame[0 if self.tied else c]
            moments.first[c] += weight @ residual
            _add_gram(moments.second[0 if self.tied else c], residual, weight)

    def complete(self, moments):
        """Moments whose second part is symmetric again."""
        for second in moments.second:
            second += second.triu(1).mT
        return moments

    # Missing values.

    def condition(self, x, observed, missing, means, factor, failures=None):
        """Marginal density of the observed values and moments of the missing ones given them.

        With the factor F of a covariance, the expected missing residuals are the r_m that make the length of
        ``F_o' r_o + F_m' r_m`` least. The square of that length is in the exponent of the marginal density, and the
        inverse of ``F_m F_m'`` is the conditional covariance. Only matrices as large as what is missing are decomposed.

        Parameters
        ----------
        x : Tensor of shape (p, b, d)
            Blocks of b rows that lack the same values; any finite number stands for them.
        observed : Tensor of shape (p, d), bool
        missing : Tensor of shape (p, m)
            Indices of the other features, in increasing order.
        means : Tensor of shape (k, d)
        factor : Tensor
        failures : list, optional
            See `_gram_root`.

        Returns
        -------
        conditional : Conditional
        """
        residual = (x - means[:, None, None]) * observed[:, None]  # (k, p, b, d)
        whitened = (residual.flatten(1, 2) @ factor).view_as(residual)
        columns = factor[:, missing]  # F_m (k, p, m, d)
        root = _gram_root(columns, failures)
        for _ in range(2):  # the second time takes back the rounding of the first
            step = torch.cholesky_solve(columns @ whitened.mT, root)  # (k, p, m, b)
            whitened = whitened - step.mT @ columns
            residual.scatter_add_(3, missing[:, None].expand(*residual.shape[:3], -1), -step.mT)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        log_det = log_det - root.diagonal(dim1=2, dim2=3).abs().log().sum(2)
        log_prob = self._observed_log_prob(log_det, whitened.square().sum(-1), observed)
        # `cholesky_inverse` raises where there is no root, and waits for the device to know.
        spread = torch.cholesky_inverse(root) if failures is None else _inverse_of_root(root)
        return Conditional(log_prob, residual, spread)

    def accumulate_conditional(self, moments, found, missing, resp):
        """Add expected moments of rows about the means to moments, in place, as `accumulate` does.

        Parameters
        ----------
        moments : Moments
        found : Conditional
        missing : Tensor of shape (p, m)
        resp : Tensor of shape (k, p, b)
        """
        n_features, pooled = found.residual.shape[-1], self.tied
        residual = found.residual.flatten(1, 2)
        weighted = residual * resp.flatten(1)[:, :, None]
        moments.weight.add_(resp.sum((1, 2)))
        moments.first.add_(weighted.sum(1))
        one, two = (part.flatten(0, 1)[None] if pooled else part for part in (weighted, residual))
        moments.second.add_((one.mT @ two).triu_())

        share = resp.sum(2)[:, :, None, None]  # (k, p, 1, 1)
        spread = ((share.sum(0, keepdim=True) if pooled else share) * found.spread).triu_()
        places = missing[:, :, None] * n_features + missing[:, None, :]  # (p, m, m), in a matrix laid out in a line
        places = places + n_features**2 * torch.arange(len(spread), device=places.device)[:, None, None, None]
        moments.second.view(-1).index_add_(0, places.flatten(), spread.flatten())

    def variances(self, covariances):
        """Variances of the features (k or 1, d)."""
        return covariances.diagonal(dim1=1, dim2=2)

    def axis_whitener(self, variances):
        """The whitener that brings features of these variances (d,) to unit variance and leaves their correlations."""
        return _inverse_scales(variances).diag()

    def factor(self, covariances):
        """Precision Cholesky factor of each covariance, and whether each is positive definite."""
        lower, info = torch.linalg.cholesky_ex(covariances)
        return torch.linalg.solve_triangular(lower, _identity_like(lower), upper=False).mT, info == 0

    def factor_from_precisions(self, precisions):
        """Factor of given precisions, and whether each is positive definite."""
        # Reversed in both axes, the lower Cholesky factor of a matrix is the upper one that is wanted.
        lower, info = torch.linalg.cholesky_ex(precisions.flip(-1, -2))
        return lower.flip(-1, -2), info == 0

    def log_factor(self, factor):
        """The factor with the logarithm of its diagonal: any upper triangle is one."""
        return factor.triu(1) + factor.diagonal(dim1=-2, dim2=-1).log().diag_embed()

    def exp_factor(self, log_factor):
        """The factor of which `log_factor` is given."""
        return log_factor.triu(1) + log_factor.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def precisions(self, factor):
        """Precisions of a factor."""
        return factor @ factor.mT

    def covariances(self, factor):
        """Covariances of a factor."""
        root = torch.linalg.solve_triangular(factor, _identity_like(factor), upper=True)
        return root.mT @ root

    def color(self, noise, factor):
        """Give standard normal rows the covariance of one component."""
        return torch.linalg.solve_triangular(factor, noise, upper=True, left=False)

    def n_parameters(self, n_components, n_features):
        """Number of free parameters."""
        return self._n_free(n_components) * n_features * (n_features + 1) // 2

    # The linear form.

    def scatter(self, x, weight=None):
        """Weighted sum of outer products of rows (1, d, d)."""
        out = x.new_zeros(x.shape[1], x.shape[1])
        _add_gram(out, x, weight)
        return (out + out.triu(1).mT)[None]

    def prefers_linear(self, n_features):
        """Whether the linear form is the faster one: products x_i x_j of many features cost more than residuals."""
        return self.tied or n_features <= 50

    def n_linear_features(self, n_features):
        """Number of features of a row in the linear form."""
        return 1 + n_features + (0 if self.tied else n_features * (n_features + 1) // 2)

    def split_features(self, x):
        """Features of rows (n, d) in parts that need no copy of the rows: there are none."""
        return None

    def write_features(self, out, n_features):
        """Complete the features (p, n) of rows, which hold x: 1, x, and for "full" the products x_i x_j, i <= j."""
        out[0] = 1
        xt, products = out[1 : n_features + 1], out[n_features + 1 :]
        if not self.tied:
            for i, rows in enumerate(products.split(list(range(n_features, 0, -1)))):
                torch.mul(xt[i], xt[i:], out=rows)

    def natural(self, mixture):
        """Natural parameters (k, p): the log-density plus log-weight is ``natural @ features`` (see `common`)."""
        linear = self._whitened(mixture.means, mixture.factor)[:, None, :] @ mixture.factor.mT
        parts = [self._constants(mixture)[:, None], linear.squeeze(1)]
        if not self.tied:
            precisions = self.precisions(mixture.factor)
            i, j = torch.triu_indices(*precisions.shape[1:], device=precisions.device)
            parts.append(torch.where(i == j, -0.5, -1.0).to(precisions) * precisions[:, i, j])
        return torch.cat(parts, 1)

    def common(self, mixture, scatter):
        """Sum over all rows of the part of the log-density that components share and `natural` leaves out."""
        if not self.tied:
            return 0.0
        total = 0.0
        for block in _blocks(mixture.means.shape[1]):  # the factor is zero below its diagonal
            columns = mixture.factor[0, : block.stop, block]
            total = total + ((scatter[0, : block.stop, : block.stop] @ columns) * columns).sum()
        return -0.5 * total

    def moments_of(self, sums, n_features, scatter):
        """Moments about the origin from weighted sums of features (k, p)."""
        weight, first = sums[:, 0], sums[:, 1 : n_features + 1]
        if self.tied:
            return Moments(weight, first, scatter)
        i, j = torch.triu_indices(n_features, n_features, device=sums.device)
        second = sums.new_empty(len(sums), n_features, n_features)
        second[:, i, j] = second[:, j, i] = sums[:, n_features + 1 :]
        return Moments(weight, first, second)

    # Coordinates.

    def identity(self, like, n_features):
        """The whitener that changes nothing."""
        return torch.eye(n_features, dtype=like.dtype, device=like.device)

    def whitener(self, covariance, min_tolerance=0.0):
        """Upper triangular W such that rows ``x @ W`` have unit covariance, or None.

        There is none if a feature has less than this share of its variance that the features before it leave
        unexplained.
        """
        factor, positive = self.factor(covariance)
        sound = positive & (self.tolerance(covariance, factor) > min_tolerance)
        return factor[0] if sound.all() & torch.isfinite(factor).all() else None

    def whiten(self, x, whitener, out):
        """Write rows (n, d) in whitened coordinates; ``out`` may be the rows themselves."""
        # The whitener is zero below its diagonal. From the end, because a block needs the columns before it.
        for block in reversed(_blocks(len(whitener))):
            out[:, block] = (whitener[: block.stop, block].mT @ x[:, : block.stop].mT).mT

    def whiten_mixture(self, mixture, whitener):
        """The mixture in whitened coordinates."""
        factor = torch.linalg.solve_triangular(whitener, mixture.factor, upper=True)
        covariances = self.whiten_covariances(mixture.covariances, whitener)
        return Mixture(mixture.log_weights, mixture.means @ whitener, covariances, factor)

    def whiten_covariances(self, covariances, whitener):
        """Covariances in whitened coordinates."""
        return whitener.mT @ covariances @ whitener

    def unwhiten_mixture(self, mixture, whitener):
        """The mixture in the coordinates of the rows."""
        root = torch.linalg.solve_triangular(whitener, _identity_like(whitener), upper=True)
        covariances = root.mT @ mixture.covariances @ root
        return Mixture(mixture.log_weights, mixture.means @ root, covariances, whitener @ mixture.factor)

    def log_scale(self, whitener, n_features):
        """Log of the volume that whitening gives a unit of volume."""
        return whitener.diagonal().log().sum()

    def regularization(self, reg_covar, whitener):
        """``reg_covar`` times the identity, in whitened coordinates."""
        return reg_covar * whitener.mT @ whitener

    def _precision_diagonals(self, factor):
        return factor.square().sum(2)

    def _whitened(self, means, factor):
        return (means[:, None, :] @ factor).squeeze(1)

    def _log_det(self, mixture):
        return mixture.factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def _shape(self, n_components, n_features):
        return self._n_free(n_components), n_features, n_features

    def _squares(self, shift):
        """Outer products of vectors (k, d) with themselves, or their sum if the type is tied."""
        return (shift.mT @ shift)[None] if self.tied else shift[:, :, None] * shift[:, None, :]


class AxisCovariance(Covariance):
    """Covariances without correlations: "diag", "spherical" and their tied forms."""

    def log_prob(self, x, means, factor):
        """Log-density of each row under each component, in nats, from whitened residuals (n, k)."""
        squares = x.new_empty(len(x), len(means))
        for c, scale in enumerate(factor.expand(len(means), -1)):
            squares[:, c] = ((x - means[c]) * scale).square_().sum(1)
        log_det = factor.log().expand(-1, x.shape[1]).sum(1)
        return log_det - 0.5 * (_finite(squares) + x.shape[1] * LOG_2PI)

    def expected_log_prob(self, x, variance, means, factor):
        """Expectation of `log_prob` over rows with independent normal noise of this variance (n, d) (n, k)."""
        squares = ((x[:, None] - means) * factor).square().sum(-1) + variance @ factor.square().T
        return factor.log().sum(1) - 0.5 * (_bounded(squares) + means.shape[1] * LOG_2PI)

    def condition_number(self, mixture):
        """Largest second moment of a feature of a component over its variance: digits that squares lose."""
        moments = mixture.covariances + self._pool(mixture.means.square())
        return (self._precision_diagonals(mixture.factor) * moments).amax()

    def tolerance(self, covariances, factor):
        """Smallest share of a feature's variance that the features before it leave unexplained (k or 1,)."""
        return covariances.new_ones(len(covariances))

    def empty_moments(self, means):
        """Moments of no rows, to `accumulate` into: float64."""
        zeros = torch.zeros_like(means, dtype=torch.float64)
        return Moments(zeros.sum(1), zeros, zeros.clone())

    def accumulate(self, moments, x, resp, means, frame=None):
        """Add rows to moments about the means, in place, for every feature and component (see `complete`)."""
        moments.weight.add_(resp.sum(0))
        for c, mean in enumerate(means):
            residual = x - mean
            moments.first[c] += resp[:, c] @ residual
            moments.second[c] += resp[:, c] @ residual.square_()

    def complete(self, moments):
        """Moments whose second part is pooled."""
        second = moments.second.sum(0, keepdim=True) if self.tied else moments.second
        return moments._replace(second=self._pool(second))

    # Missing values.

    def condition(self, x, observed, missing, means, factor, failures=None):
        """Marginal density of the observed values and moments of the missing ones, which are those without them.

        Parameters
        ----------
        x : Tensor of shape (p, b, d)
            Blocks of b rows that lack the same values; any finite number stands for them.
        observed : Tensor of shape (p, d), bool
        missing : Tensor of shape (p, m)
            Indices of the other features.
        means : Tensor of shape (k, d)
        factor : Tensor
        failures : list, optional
            Of no use here: there are no decompositions.

        Returns
        -------
        conditional : Conditional
        """
        residual = (x - means[:, None, None]) * observed[:, None]  # (k, p, b, d)
        squares = (residual * factor[:, None, None]).square_().sum(-1)
        log_det = factor.log().expand(-1, x.shape[-1]) @ observed.mT.to(factor)
        spread = (~observed) * self.covariances(factor)[:, None]
        return Conditional(self._observed_log_prob(log_det, squares, observed), residual, spread)

    def accumulate_conditional(self, moments, found, missing, resp):
        """Add expected moments of rows about the means to moments, in place, as `accumulate` does.

        Parameters
        ----------
        moments : Moments
        found : Conditional
        missing : Tensor of shape (p, m)
        resp : Tensor of shape (k, p, b)
        """
        weighted = found.residual * resp[..., None]
        moments.weight.add_(resp.sum((1, 2)))
        moments.first.add_(weighted.sum((1, 2)))
        moments.second.add_(weighted.mul_(found.residual).sum((1, 2)))
        moments.second.add_((resp.sum(2)[:, :, None] * found.spread).sum(1))

    def variances(self, covariances):
        """Variances of the features, or their mean (k or 1, d or 1)."""
        return covariances

    def axis_whitener(self, variances):
        """The whitener that brings features of these variances (d,) to unit variance, or unit mean variance."""
        return _inverse_scales(self._pool(variances[None])[0])

    def factor(self, covariances):
        """One over the standard deviations, and whether each component's variances are positive."""
        return covariances.rsqrt(), (covariances > 0).all(-1)

    def factor_from_precisions(self, precisions):
        """Factor of given precisions, and whether each component's precisions are positive."""
        return precisions.sqrt(), (precisions > 0).all(-1)

    def log_factor(self, factor):
        """The logarithm of the factor."""
        return factor.log()

    def exp_factor(self, log_factor):
        """The factor of which `log_factor` is given."""
        return log_factor.exp()

    def precisions(self, factor):
        """Precisions of a factor."""
        return factor.square()

    def covariances(self, factor):
        """Covariances of a factor."""
        return 1 / factor.square()

    def color(self, noise, factor):
        """Give standard normal rows the covariance of one component."""
        return noise / factor

    def n_parameters(self, n_components, n_features):
        """Number of free parameters."""
        return math.prod(self._shape(n_components, n_features))

    # The linear form.

    def scatter(self, x, weight=None):
        """Weighted sum of squared rows (1, d), or of their mean over features (1, 1)."""
        if weight is None:  # without a copy of the rows
            return self._pool(torch.linalg.vector_norm(x, dim=0).square()[None])
        return self._pool((weight @ x.square())[None])

    def prefers_linear(self, n_features):
        """Whether the linear form is the faster one: always."""
        return True

    def n_linear_features(self, n_features):
        """Number of features of a row in the linear form."""
        return 1 + n_features + (0 if self.tied else self._shape(1, n_features)[1])

    def split_features(self, x):
        """Features of rows (n, d) in parts (p_i, n) that need no copy of the rows."""
        ones = x.new_ones(1, len(x))
        return [ones, x.mT] if self.tied else [ones, x.mT, self._pool(x.square()).mT]

    def write_features(self, out, n_features):
        """Complete the features (p, n) of rows, which hold x: 1, x, and unless tied the squares or their mean."""
        out[0] = 1
        xt, squares = out[1 : n_features + 1], out[n_features + 1 :]
        if self.tied:
            return
        if 1 in self.pooled:
            torch.mean(xt.square(), 0, keepdim=True, out=squares)
        else:
            torch.mul(xt, xt, out=squares)

    def natural(self, mixture):
        """Natural parameters (k, p): the log-density plus log-weight is ``natural @ features`` (see `common`)."""
        precisions = self.precisions(mixture.factor)
        parts = [self._constants(mixture)[:, None], precisions * mixture.means]
        if not self.tied:
            parts.append(-0.5 * precisions * (mixture.means.shape[1] // precisions.shape[1]))
        return torch.cat(parts, 1)

    def common(self, mixture, scatter):
        """Sum over all rows of the part of the log-density that components share and `natural` leaves out."""
        if not self.tied:
            return 0.0
        precisions = self.precisions(mixture.factor)
        return -0.5 * (precisions * scatter).sum() * (mixture.means.shape[1] // precisions.shape[1])

    def moments_of(self, sums, n_features, scatter):
        """Moments about the origin from weighted sums of features (k, p)."""
        return Moments(sums[:, 0], sums[:, 1 : n_features + 1], scatter if self.tied else sums[:, n_features + 1 :])

    # Coordinates.

    def identity(self, like, n_features):
        """The whitener that changes nothing."""
        return like.new_ones(self._shape(1, n_features)[1])

    def whitener(self, covariance, min_tolerance=0.0):
        """Factors such that rows ``x * w`` have unit variances, or unit mean variance."""
        return _inverse_scales(covariance[0])

    def whiten(self, x, whitener, out):
        """Write rows (n, d) in whitened coordinates; ``out`` may be the rows themselves."""
        torch.mul(x, whitener, out=out)

    def whiten_mixture(self, mixture, whitener):
        """The mixture in whitened coordinates."""
        covariances = self.whiten_covariances(mixture.covariances, whitener)
        return Mixture(mixture.log_weights, mixture.means * whitener, covariances, mixture.factor / whitener)

    def whiten_covariances(self, covariances, whitener):
        """Covariances in whitened coordinates."""
        return covariances * whitener**2

    def unwhiten_mixture(self, mixture, whitener):
        """The mixture in the coordinates of the rows."""
        return self.whiten_mixture(mixture, 1 / whitener)

    def log_scale(self, whitener, n_features):
        """Log of the volume that whitening gives a unit of volume."""
        return whitener.log().sum() * (n_features // len(whitener))

    def regularization(self, reg_covar, whitener):
        """``reg_covar``, in whitened coordinates."""
        return reg_covar * whitener**2

    def _pool(self, squares):
        """Mean over features, if the type is pooled over them."""
        return squares.mean(1, keepdim=True) if 1 in self.pooled else squares

    def _precision_diagonals(self, factor):
        return factor.square()

    def _whitened(self, means, factor):
        return means * factor

    def _log_det(self, mixture):
        return mixture.factor.log().expand(-1, mixture.means.shape[1]).sum(1)

    def _shape(self, n_components, n_features):
        return self._n_free(n_components), 1 if 1 in self.pooled else n_features

    def _squares(self, shift):
        """Squares of vectors (k, d), or their sum if the type is tied."""
        squares = self._pool(shift.square())
        return squares.sum(0, keepdim=True) if self.tied else squares


def _inverse_scales(variances):
    """One over the standard deviations, one where there is no variance."""
    return torch.where(variances > 0, variances, 1.0).rsqrt()


def _finite(squares):
    """Squared distances, those beyond the range of the dtype as large as it allows (also after inf - inf)."""
    largest = torch.finfo(squares.dtype).max / 4
    return squares.nan_to_num_(nan=largest, posinf=largest).clamp_(max=largest)


def _bounded(squares):
    """`_finite`, with a gradient."""
    largest = torch.finfo(squares.dtype).max / 4
    return squares.nan_to_num(nan=largest, posinf=largest).clamp(max=largest)


def _identity_like(matrix):
    """The identity as large as a matrix (..., d, d), in its dtype and on its device."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _gram_root(rows, failures=None):
    """Lower triangles L (..., m, m) with ``L L' = rows rows'`` for rows (..., m, d) without linear dependences.

    Parameters
    ----------
    rows : Tensor of shape (..., m, d)
    failures : list, optional
        Gets whether rounding leaves no Cholesky factor (), bool, and then the result is of no use. Without the list
        there is a result in any case, but the host waits for the device here.
    """
    root, info = torch.linalg.cholesky_ex(rows @ rows.mT)
    if failures is not None:
        failures.append(info.any())
        return root
    if info.any():  # the products have lost what tells the rows apart
        return torch.linalg.qr(rows.mT, mode="r").R.mT.contiguous()
    return root


def _inverse_of_root(root):
    """The inverse of ``L L'`` for lower triangles L (..., m, m)."""
    inverse = torch.linalg.solve_triangular(root, _identity_like(root), upper=False)
    return inverse.mT @ inverse


def _rows_that_count(x, weight):
    """The rows whose weight is above rounding for their sum, with their weights; in many dimensions most are not.

    On an accelerator they are all rows, because to choose some it has to be waited for.
    """
    if x.device.type != "cpu":
        return x, weight
    counts = weight > torch.finfo(weight.dtype).eps ** 2 * weight.sum()
    if 2 * counts.sum() > len(x):
        return x, weight
    rows = counts.nonzero().squeeze(1)
    return x[rows], weight[rows]


def _add_gram(out, residual, weight):
    """Add the blocks on and above the diagonal of ``residual' diag(weight) residual``."""
    weighted = (residual if weight is None else residual * weight[:, None]).mT
    for block in _blocks(len(out)):
        # Of the block on the diagonal itself, only the upper triangle: the rest is mirrored at the end.
        out[block, block.start :] += (weighted[block] @ residual[:, block.start :]).triu_()


def _blocks(n_features):
    """Slices in which a triangular product is computed: about half of the square one, in a few large pieces."""
    size = max(48, n_features // 6)
    return [slice(start, min(start + size, n_features)) for start in range(0, n_features, size)]


COVARIANCES = {
    "full": MatrixCovariance(),
    "tied": MatrixCovariance(pooled=(0,)),
    "diag": AxisCovariance(),
    "spherical": AxisCovariance(pooled=(1,)),
    "tied_diag": AxisCovariance(pooled=(0,)),
    "tied_spherical": AxisCovariance(pooled=(0, 1)),
}
