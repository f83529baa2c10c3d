"""Covariances without correlations."""

import math

import torch

from .gaussians import LOG_2PI, MAX_BATCHED, Conditional, Covariance, Mixture, Moments, bounded, finite, inverse_scales


class AxisCovariance(Covariance):
    """Covariances without correlations: "diag", "spherical" and their tied forms."""

    requirement = "positive"

    def log_prob(self, x, means, factor):
        """Return the log-density of each row under each component (n, k), in nats, from whitened residuals."""
        if len(x) * means.numel() <= MAX_BATCHED:
            squares = ((x[:, None] - means) * factor).square_().sum(2)
        else:
            squares = x.new_empty(len(x), len(means))
            for c, scale in enumerate(factor.expand(len(means), -1)):
                squares[:, c] = ((x - means[c]) * scale).square_().sum(1)
        log_det = factor.log().expand(-1, x.shape[1]).sum(1)
        return torch.sub(log_det, finite(squares) + x.shape[1] * LOG_2PI, alpha=0.5)

    def expected_log_prob(self, x, variance, means, factor):
        """Return the expectation of `log_prob` (n, k) over rows with independent normal noise of variance (n, d)."""
        squares = ((x[:, None] - means) * factor).square().sum(-1) + variance @ factor.square().T
        return factor.log().sum(1) - 0.5 * (bounded(squares) + means.shape[1] * LOG_2PI)

    def condition_number(self, mixture):
        """Return the largest second moment of a feature of a component over its variance: digits that squares lose."""
        moments = mixture.covariances + self._pool(mixture.means.square())
        return (self._precision_diagonals(mixture.factor) * moments).amax()

    def min_samples(self, n_features):
        """Return the number of samples that variances need to be positive."""
        return 2

    def is_symmetric(self, matrices):
        """Return whether all matrices are symmetric, which diagonals are."""
        return True

    def tolerance(self, covariances, factor):
        """Return the smallest share of a feature's variance that the features before it leave unexplained (k or 1,)."""
        return covariances.new_ones(len(covariances))

    def empty_moments(self, means):
        """Return moments of no rows in float64, for `accumulate`."""
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
        """Pool the second moments."""
        second = moments.second.sum(0, keepdim=True) if self.tied else moments.second
        return moments._replace(second=self._pool(second))

    # Missing values.

    def condition(self, x, observed, missing, means, factor, failures=None):
        """Return the marginal density of the observed values and moments of the missing ones, which are independent.

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
            Ignored: nothing is decomposed.

        Returns
        -------
        conditional : Conditional
        """
        residual = (x - means[:, None, None]) * observed[:, None]  # (k, p, b, d)
        squares = (residual * factor[:, None, None]).square_().sum(-1)
        log_det = factor.log().expand(-1, x.shape[-1]) @ observed.mT.to(factor)
        covariance = (~observed) * self.covariances(factor)[:, None]
        return Conditional(self._observed_log_prob(log_det, squares, observed), residual, covariance)

    def accumulate_conditional(self, moments, conditional, missing, resp):
        """Add expected moments of rows about the means to moments, in place, as `accumulate` does.

        Parameters
        ----------
        moments : Moments
        conditional : Conditional
        missing : Tensor of shape (p, m)
        resp : Tensor of shape (k, p, b)
        """
        weighted = conditional.residual * resp[..., None]
        moments.weight.add_(resp.sum((1, 2)))
        moments.first.add_(weighted.sum((1, 2)))
        moments.second.add_(weighted.mul_(conditional.residual).sum((1, 2)))
        moments.second.add_((resp.sum(2)[:, :, None] * conditional.covariance).sum(1))

    def variances(self, covariances):
        """Return the variances of the features, or their mean (k or 1, d or 1)."""
        return covariances

    def axis_whitener(self, variances):
        """Return the whitener that scales features of these variances (d,) to unit variance, or unit mean variance."""
        return inverse_scales(self._pool(variances[None])[0])

    def factor(self, covariances):
        """Return reciprocals of standard deviations, and whether the variances of each component are positive."""
        return covariances.rsqrt(), (covariances > 0).all(-1)

    def factor_from_precisions(self, precisions):
        """Return the factor of precisions, and whether the precisions of each component are positive."""
        return precisions.sqrt(), (precisions > 0).all(-1)

    def log_factor(self, factor):
        """Return the logarithm of the factor."""
        return factor.log()

    def exp_factor(self, log_factor):
        """Return the factor from its logarithm (see `log_factor`)."""
        return log_factor.exp()

    def precisions(self, factor):
        """Return the precisions of a factor."""
        return factor.square()

    def covariances(self, factor):
        """Return the covariances of a factor."""
        return 1 / factor.square()

    def color(self, noise, factor):
        """Transform standard normal rows to the covariance of one component."""
        return noise / factor

    def n_parameters(self, n_components, n_features):
        """Return the number of free parameters."""
        return math.prod(self._shape(n_components, n_features))

    # The linear form.

    def scatter(self, x, weight=None):
        """Return the weighted sum of squared rows (1, d), or of their mean over features (1, 1)."""
        if weight is None:  # without a copy of the rows
            return self._pool(torch.linalg.vector_norm(x, dim=0).square()[None])
        return self._pool((weight @ x.square())[None])

    def prefers_linear(self, n_features):
        """Return whether the linear form is the faster one: always."""
        return True

    def n_linear_features(self, n_features):
        """Return the number of features of a row in the linear form."""
        return 1 + n_features + (0 if self.tied else self._shape(1, n_features)[1])

    def split_features(self, x):
        """Return features of rows (n, d) in parts (p_i, n), without a copy of the rows."""
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
        """Return natural parameters (k, p): log-density plus log-weight is ``natural @ features`` (see `common`)."""
        precisions = self.precisions(mixture.factor)
        whitened = self._whitened(mixture.means, mixture.factor)
        parts = [self._constants(mixture, whitened)[:, None], precisions * mixture.means]
        if not self.tied:
            parts.append(-0.5 * precisions * (mixture.means.shape[1] // precisions.shape[1]))
        return torch.cat(parts, 1)

    def common(self, mixture, scatter):
        """Return the sum over all rows of the part of the log-density that components share and `natural` omits."""
        if not self.tied:
            return 0.0
        precisions = self.precisions(mixture.factor)
        return -0.5 * (precisions * scatter).sum() * (mixture.means.shape[1] // precisions.shape[1])

    def moments_of(self, sums, n_features, scatter):
        """Return moments about the origin from weighted sums of features (k, p)."""
        return Moments(sums[:, 0], sums[:, 1 : n_features + 1], scatter if self.tied else sums[:, n_features + 1 :])

    # Coordinates.

    def identity(self, like, n_features):
        """Return the whitener that changes nothing."""
        return like.new_ones(self._shape(1, n_features)[1])

    def whitener(self, covariance, min_tolerance=0.0):
        """Return factors w such that rows ``x * w`` have unit variances, or unit mean variance."""
        return inverse_scales(covariance[0])

    def whiten(self, x, whitener, out):
        """Write rows (n, d) in whitened coordinates; ``out`` may be the rows themselves."""
        torch.mul(x, whitener, out=out)

    def whiten_mixture(self, mixture, whitener):
        """Return the mixture in whitened coordinates."""
        covariances = self.whiten_covariances(mixture.covariances, whitener)
        return Mixture(mixture.log_weights, mixture.means * whitener, covariances, mixture.factor / whitener)

    def whiten_covariances(self, covariances, whitener):
        """Return covariances in whitened coordinates."""
        return covariances * whitener**2

    def unwhiten_mixture(self, mixture, whitener):
        """Return the mixture in the coordinates of the rows."""
        return self.whiten_mixture(mixture, 1 / whitener)

    def log_scale(self, whitener, n_features):
        """Return the log-determinant of whitening."""
        return whitener.log().sum() * (n_features // len(whitener))

    def regularization(self, reg_covar, whitener):
        """Return ``reg_covar`` in whitened coordinates."""
        return reg_covar * whitener**2

    def _pool(self, squares):
        """Return the mean over features if the type is pooled over them."""
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
        """Return squares of vectors (k, d), or their sum if the type is tied."""
        squares = self._pool(shift.square())
        return squares.sum(0, keepdim=True) if self.tied else squares
