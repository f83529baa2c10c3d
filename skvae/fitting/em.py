"""Expectation-maximisation for Gaussian mixtures, over row chunks."""

import math
from typing import NamedTuple

import torch

from ..models.covariances import Mixture

LINEAR_BYTES, RESIDUAL_BYTES = 2**21, 2**23  # what a chunk works on should stay in a cache
MAX_SPREAD = {torch.float32: 1e3, torch.float64: 1e5}  # beyond it the linear form loses too many digits
MIN_LOG_RESP = {torch.float32: -80.0, torch.float64: -700.0}  # exp of less is denormal: nothing, and 30 times slower
MAX_FACTOR = 1e11  # the total standard deviation over that of a component: narrower is singular
FIRST_JITTER = MAX_FACTOR**-2  # in units of the total variance
MIN_ROWS = 1e-8  # a component with less than this share of a row is dead


class MixtureFit(NamedTuple):
    """What EM found, and what it had to do."""

    mixture: Mixture
    lower_bounds: list  # mean log-likelihood before each iteration's M-step, in nats
    converged: bool
    regularized: frozenset  # components that needed more than reg_covar in the last M-step
    n_reseeded: int  # times a dead component was put elsewhere


def row_chunks(n_rows, n_columns, chunk_size=None, n_bytes=RESIDUAL_BYTES):
    """Slices that cover the rows; without a chunk size, as many rows as fit into a cache."""
    chunk_size = chunk_size or max(256, n_bytes // (8 * n_columns))
    return [slice(start, start + chunk_size) for start in range(0, n_rows, chunk_size)]


def e_step(x, mixture, family):
    """Log-likelihood (n,) and log-responsibilities (n, k) of rows, in the residual form."""
    joint = mixture.log_weights + family.log_prob(x, mixture.means, mixture.factor)
    evidence = joint.logsumexp(1)
    return evidence, joint - evidence[:, None]


class WhitenedRows:
    """Rows in coordinates in which their covariance is the identity, and the sums of EM over them.

    EM does not depend on the coordinates, and in these it loses the fewest digits, whatever the units, offsets and
    correlations of the data. Sums are kept in float64.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Centred rows. They are overwritten.
    family : Covariance
    reg_covar : float
        Regularization of the covariances, in squared units of x.
    weight : Tensor of shape (n,), optional
        Weights of the rows; one each if not given.
    chunk_size : int, optional
        Rows visited at once.
    """

    def __init__(self, x, family, reg_covar, weight=None, chunk_size=None):
        self.family, self.weight, self.chunk_size = family, weight, chunk_size
        self.total_weight = float(len(x) if weight is None else weight.sum(dtype=torch.float64))
        scatter = self._scatter(x)
        regularization = family.regularization(reg_covar, family.identity(scatter, x.shape[1]))
        self.whitener = family.whitener(scatter / self.total_weight + regularization)
        self.log_scale = float(family.log_scale(self.whitener, x.shape[1]))
        self.regularization = family.regularization(reg_covar, self.whitener)
        self.x, whitener = x, self.whitener.to(x)
        for rows in self._chunks(x.shape[1]):
            x[rows] = family.whiten(x[rows], whitener)
        self.scatter = self._scatter(self.x) if family.tied else None

    def moments(self, resp_of, n_components):
        """Moments for given responsibilities, and the reference that they are about.

        Parameters
        ----------
        resp_of : callable, slice -> Tensor (b, k)
            Responsibilities of the rows of a slice.
        """
        means = self.x.new_zeros(n_components, self.x.shape[1])
        if not self._is_linear():
            return self._residual_moments(resp_of, means)
        sums, scatter = self._sums(n_components), 0.0
        for rows, features in self._features(n_components, self.x.dtype):
            resp = self._weighted(resp_of(rows), rows)
            sums += torch.mm(resp.mT, features.mT)
            # Responsibilities may sum to less than one: a start may use some rows only.
            scatter = scatter + self.family.scatter(self.x[rows], resp.sum(1)).to(sums)
        return self.family.moments_of(sums, self.x.shape[1], scatter), means

    def expect(self, mixture):
        """E-step: moments, the reference that they are about, and the summed log-likelihood."""
        spread = self.family.spread(mixture)
        for dtype in (self.x.dtype, torch.float64):
            if self._is_linear() and spread <= MAX_SPREAD[dtype]:
                return self._expect_linear(mixture, dtype)
        return self._expect_residual(mixture)

    def least_likely(self, mixture, n_rows):
        """The rows with the lowest density (n_rows, d)."""
        current = mixture.to(self.x)
        evidence = [e_step(self.x[rows], current, self.family)[0] for rows in self._chunks(len(mixture.means))]
        return self.x[torch.cat(evidence).topk(n_rows, largest=False).indices].to(mixture.means)

    def _expect_linear(self, mixture, dtype):
        natural, floor = self.family.natural(mixture).to(dtype), MIN_LOG_RESP[dtype]
        sums, total = self._sums(len(natural)), self.family.common(mixture, self.scatter)
        for rows, features in self._features(len(natural), dtype):
            resp = torch.mm(natural, features)  # (k, b), so that sums over components run along memory
            peak = resp.amax(0)
            norm = resp.sub_(peak).clamp_(min=floor).exp_().sum(0)
            evidence, scale = peak + norm.log(), norm.reciprocal()
            if self.weight is not None:
                evidence, scale = evidence * self.weight[rows], scale * self.weight[rows]
            total = total + evidence.sum(dtype=torch.float64)
            sums += torch.mm(resp.mul_(scale), features.mT)
        moments = self.family.moments_of(sums, self.x.shape[1], self.scatter)
        return moments, torch.zeros_like(mixture.means), float(total)

    def _expect_residual(self, mixture):
        current, total = mixture.to(self.x), 0.0

        def resp_of(rows):
            nonlocal total
            evidence, log_resp = e_step(self.x[rows], current, self.family)
            total = total + self._weighted(evidence[:, None], rows).sum(dtype=torch.float64)
            return log_resp.exp()

        return *self._residual_moments(resp_of, current.means), float(total)

    def _residual_moments(self, resp_of, means):
        moments = self.family.empty_moments(means)
        for rows in self._chunks(len(means)):
            self.family.accumulate(moments, self.x[rows], self._weighted(resp_of(rows), rows), means)
        return self.family.complete(moments), means.to(torch.float64)

    def _is_linear(self):
        return self.family.prefers_linear(self.x.shape[1])

    def _features(self, n_components, dtype):
        """Slices, and the features of their rows (p, b) in memory that is used again for the next."""
        n_linear = self.family.n_linear_features(self.x.shape[1])
        chunks = row_chunks(len(self.x), n_linear + n_components, self.chunk_size, LINEAR_BYTES)
        buffer = self.x.new_empty(n_linear, min(len(self.x), chunks[0].stop), dtype=dtype)
        for rows in chunks:
            x = self.x[rows].to(dtype)
            features = buffer[:, : len(x)]
            self.family.write_features(x, features)
            yield rows, features

    def _sums(self, n_components):
        n_linear = self.family.n_linear_features(self.x.shape[1])
        return self.x.new_zeros(n_components, n_linear, dtype=torch.float64)

    def _scatter(self, x):
        parts = (
            self.family.scatter(x[rows], self._weighted(x.new_ones(len(x[rows]), 1), rows).squeeze(1))
            for rows in row_chunks(len(x), x.shape[1], self.chunk_size)
        )
        return sum(part.to(torch.float64) for part in parts)

    def _weighted(self, resp, rows):
        return resp if self.weight is None else resp * self.weight[rows, None]

    def _chunks(self, n_components):
        return row_chunks(len(self.x), self.x.shape[1] + n_components, self.chunk_size)


def m_step(moments, means, rows):
    """Maximum likelihood mixture from moments about a reference.

    Returns
    -------
    mixture : Mixture
        In whitened coordinates and float64. A dead component (of no weight) has the mean it had.
    regularized : frozenset of int
        Components whose covariance was singular, and got as much more regularization as it needed.
    dead : Tensor of int
        Components without weight.
    """
    dead = (moments.weight < MIN_ROWS * rows.total_weight / len(rows.x)).nonzero().flatten()
    # Adding a tiny number, as scikit-learn does, divides by something that is not zero.
    moments = moments._replace(weight=moments.weight + 10 * torch.finfo(torch.float64).eps)
    covariances = rows.family.estimate(moments, rows.regularization)
    covariances, factor, regularized = _regularized_factor(covariances, rows)
    means = means + moments.first / moments.weight[:, None]
    return Mixture((moments.weight / moments.weight.sum()).log(), means, covariances, factor), regularized, dead


def _regularized_factor(covariances, rows):
    """Factors; where there is none, the diagonal grows until there is (the total variance is one)."""
    family, jitter, regularized = rows.family, FIRST_JITTER, frozenset()
    identity = family.regularization(1.0, family.identity(covariances, rows.x.shape[1]))
    while True:
        factor, positive = family.factor(covariances)
        sound = positive & (factor.abs().flatten(1).amax(1) <= MAX_FACTOR)
        if sound.all():
            return covariances, factor, regularized
        bad = (~sound).nonzero().flatten()
        if not torch.isfinite(covariances).all():
            raise ValueError(f"The covariances of components {bad.tolist()} are not finite; scale the input data.")
        regularized |= frozenset(bad.tolist())
        covariances = covariances.clone()
        covariances[bad] += jitter * identity
        jitter *= 10


def _reseed(mixture, dead, rows):
    """Put dead components on the rows that the mixture explains worst, as wide as the others are."""
    family, k = rows.family, len(mixture.means)
    means, log_weights = mixture.means.clone(), mixture.log_weights.clone()
    means[dead] = rows.least_likely(mixture, len(dead))
    log_weights[dead] = -math.log(len(rows.x))
    covariances = mixture.covariances.clone()
    if not family.tied:
        alive = [c for c in range(k) if c not in dead.tolist()]
        weights = log_weights[alive].softmax(0).reshape(-1, *[1] * (covariances.ndim - 1))
        covariances[dead] = (weights * covariances[alive]).sum(0)
    return Mixture(log_weights.log_softmax(0), means, covariances, family.factor(covariances)[0])


def start_mixture(rows, resp_of, n_components):
    """The mixture that responsibilities of the whitened rows imply, in the coordinates of the data."""
    mixture, _, _ = m_step(*rows.moments(resp_of, n_components), rows)
    return rows.family.unwhiten_mixture(mixture, rows.whitener)


def fit_mixture(rows, mixture, lower_bound=-math.inf, *, tol, max_iter, report=None):
    """Run EM from a mixture until the mean log-likelihood changes by less than ``tol``.

    Parameters
    ----------
    rows : WhitenedRows
    mixture : Mixture
        Where to start, in the coordinates of the data.
    lower_bound : float
        The last lower bound of an earlier fit that goes on here.
    report : callable, optional
        Called after each iteration with its number, the lower bound and its gain.

    Returns
    -------
    fit : MixtureFit
        Parameters in float64, in the coordinates of the data.
    """
    family = rows.family
    mixture = family.whiten_mixture(mixture, rows.whitener)
    lower_bounds, converged = [], False
    regularized, n_reseeded = frozenset(), 0
    while len(lower_bounds) < max_iter and not converged:
        moments, means, total = rows.expect(mixture)
        del mixture  # its memory is wanted for the next
        mixture, regularized, dead = m_step(moments, means, rows)
        del moments
        previous, lower_bound = lower_bound, total / rows.total_weight + rows.log_scale
        gain = lower_bound - previous
        lower_bounds.append(lower_bound)
        converged = abs(gain) < tol
        if len(dead) and n_reseeded < len(mixture.means):
            mixture, n_reseeded, converged = _reseed(mixture, dead, rows), n_reseeded + len(dead), False
        if report is not None:
            report(len(lower_bounds), lower_bound, gain)
    mixture = family.unwhiten_mixture(mixture, rows.whitener)
    return MixtureFit(mixture, lower_bounds, converged, regularized, n_reseeded)
