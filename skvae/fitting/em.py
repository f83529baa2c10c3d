"""Expectation-maximisation for Gaussian mixtures: M-step, iterations, restarts, batches."""

import math
from typing import NamedTuple

import torch

from ..models.covariances import Mixture
from .squarem import ACCELERATIONS

MAX_FACTOR = 1e11  # the total standard deviation over that of a component: narrower is singular
REGULAR_TOLERANCE = 1e-11  # that singular covariances are brought to: they should not be now singular and now not
FIRST_JITTER = MAX_FACTOR**-2  # in units of the total variance
START_JITTER = 1e-6  # for components that start from one row: they take the rows nearest to it
ROUNDING = 2e-6  # of lower bounds in float32, as a share: if they fall by more, digits are missing
PRIOR_ROWS = 2  # of the covariance within components, with which a batch meets covariances of next to no rows
ENOUGH = 4  # times as many rows as a covariance needs to have an inverse: from there on it is taken as it is
MIN_ROWS = 1e-8  # a component with less than this share of a row is dead


class MixtureFit(NamedTuple):
    """What EM found, and what it had to do."""

    mixture: Mixture
    lower_bounds: list  # mean log-likelihood before each iteration's M-step, in nats
    converged: bool
    regularized: frozenset  # components that needed more than reg_covar in the last M-step
    n_reseeded: int  # times a dead component was put elsewhere


def m_step(expected, rows, regularized=frozenset()):
    """Maximum likelihood mixture from the sums of an E-step.

    Parameters
    ----------
    expected : Expected
    rows : WhitenedRows or PatternRows
    regularized : frozenset of int
        Components whose covariance was singular in the last step.

    Returns
    -------
    mixture : Mixture
        In whitened coordinates and float64. A dead component (of no weight) has the mean it had.
    regularized : frozenset of int
        Components whose covariance was singular, and got as much more regularization as it needed.
    dead : Tensor of int
        Components without weight.
    """
    family, moments, frame = rows.family, expected.moments, expected.frame
    dead = (moments.weight < MIN_ROWS * rows.total_weight / rows.n_rows).nonzero().flatten()
    # Adding a tiny number, as scikit-learn does, divides by something that is not zero.
    moments = moments._replace(weight=moments.weight + 10 * torch.finfo(torch.float64).eps)
    covariances = family.estimate(moments, family.in_frame(rows.regularization, frame))
    covariances, factor, regularized = _regularized_factor(covariances, rows, frame, regularized)
    means = expected.reference + family.out_of_frame(moments.first / moments.weight[:, None], frame)
    return Mixture((moments.weight / moments.weight.sum()).log(), means, covariances, factor), regularized, dead


def _regularized_factor(covariances, rows, frame, before):
    """Covariances out of a frame, and factors; where there is none, the diagonal grows until there is.

    (The total variance is one.)
    """
    family, jitter, regularized = rows.family, FIRST_JITTER, frozenset()
    while True:
        whole, factor, positive = family.factor_of(covariances, frame)
        limits = [REGULAR_TOLERANCE if c in before | regularized else rows.min_tolerance for c in range(len(factor))]
        sound = positive & (factor.abs().flatten(1).amax(1) <= MAX_FACTOR)
        sound &= family.tolerance(whole, factor) >= torch.tensor(limits).to(factor)
        if sound.all():
            return whole, factor, regularized
        bad = (~sound).nonzero().flatten()
        if not torch.isfinite(covariances).all():
            raise ValueError(f"The covariances of components {bad.tolist()} are not finite; scale the input data.")
        regularized |= frozenset(bad.tolist())
        added = family.in_frame(family.regularization(jitter, family.identity(covariances, rows.n_features)), frame)
        covariances = covariances.clone()
        covariances[bad] += added[bad] if frame is not None else added
        jitter *= 10


def _reseed(mixture, dead, rows):
    """Put dead components on the rows that the mixture explains worst, as wide as the others are."""
    family, k = rows.family, len(mixture.means)
    means, log_weights = mixture.means.clone(), mixture.log_weights.clone()
    means[dead] = rows.least_likely(mixture, len(dead))
    log_weights[dead] = -math.log(rows.n_rows)
    covariances = mixture.covariances.clone()
    if not family.tied:
        alive = [c for c in range(k) if c not in dead.tolist()]
        weights = log_weights[alive].softmax(0).reshape(-1, *[1] * (covariances.ndim - 1))
        covariances[dead] = (weights * covariances[alive]).sum(0)
    return Mixture(log_weights.log_softmax(0), means, covariances, family.factor(covariances)[0])


def start_mixture(rows, resp_of, n_components):
    """The mixture that responsibilities of the whitened rows imply, in the coordinates of the data.

    Rows are refined if it needs more digits than they have.
    """
    family = rows.family
    while True:
        mixture, regularized, _ = m_step(rows.moments(resp_of, n_components), rows)
        if rows.wants_residuals(mixture):
            mixture, regularized, _ = m_step(rows.moments(resp_of, n_components, mixture), rows)
        # Whether a point has a covariance of exactly zero is chance: rounding gives it one.
        points = family.variances(mixture.covariances).amax(1) < START_JITTER
        if points.any():
            covariances = mixture.covariances.clone()
            covariances[points] += family.regularization(START_JITTER, family.identity(covariances, rows.n_features))
            mixture = mixture._replace(covariances=covariances, factor=family.factor(covariances)[0])
        is_singular = not regularized <= set(points.nonzero().flatten().tolist())
        if (rows.is_accurate_for(mixture) and not is_singular) or not rows.refine():
            return family.unwhiten_mixture(mixture, rows.whitener)


class _Run:
    """One EM run among those that share their passes over the rows."""

    def __init__(self, rows, mixture, lower_bound, settings, index):
        self.rows, self.settings, self.index = rows, settings, index
        self.mixture = rows.family.whiten_mixture(mixture, rows.whitener)
        self.lower_bound, self.lower_bounds, self.converged = lower_bound, [], False
        self.regularized, self.n_reseeded, self.floor = frozenset(), 0, -math.inf
        self.accelerator = ACCELERATIONS[settings["acceleration"]](rows.family)

    def update(self, expected):
        """M-step, or the rejection of an extrapolated mixture that made the likelihood fall.

        Returns
        -------
        is_accurate : bool
            Whether the rows have the digits that the step needs: the bound does not fall, and no component is singular
            or too narrow.
        """
        rows = self.rows
        lower_bound = expected.total / rows.total_weight + rows.log_scale
        plain = not self.accelerator.is_extrapolated
        if not plain and not lower_bound >= self.lower_bound:
            self.mixture = self.accelerator.reject()
            return True
        before, self.mixture = self.mixture if self.accelerator.keeps_path else None, None  # memory is wanted
        self.mixture, self.regularized, dead = m_step(expected, rows, self.regularized)
        gain, self.lower_bound = lower_bound - self.lower_bound, lower_bound
        self.lower_bounds.append(lower_bound)
        is_accurate = rows.is_accurate_for(self.mixture) and not self.regularized
        if rows.x.dtype != torch.float64:  # in which only regularization can make the bound fall
            is_accurate &= lower_bound >= self.floor - ROUNDING * max(1.0, abs(lower_bound))
        self.floor = lower_bound
        self.converged = plain and abs(gain) < self.settings["tol"]
        if len(dead) and self.n_reseeded < len(self.mixture.means):
            self.mixture, self.n_reseeded = _reseed(self.mixture, dead, rows), self.n_reseeded + len(dead)
            self.converged, before, self.floor = False, None, -math.inf
        if not self.converged:
            self.mixture = self.accelerator.propose(before, self.mixture)
        if self.settings["report"] is not None:
            self.settings["report"](self.index, len(self.lower_bounds), lower_bound, gain)
        return is_accurate

    def result(self):
        """The mixture, in the coordinates of the data, and how it was found."""
        mixture = self.accelerator.reject() if self.accelerator.is_extrapolated else self.mixture
        mixture = self.rows.family.unwhiten_mixture(mixture, self.rows.whitener)
        return MixtureFit(mixture, self.lower_bounds, self.converged, self.regularized, self.n_reseeded)


def fit_mixtures(rows, starts, lower_bound=-math.inf, *, tol, max_iter, acceleration=None, report=None):
    """Run EM from each start until its mean log-likelihood changes by less than ``tol``.

    If the rows turn out to have too few digits for what EM finds, they are refined, and EM starts again: a fit in
    float32 ends where one in float64 does.

    Parameters
    ----------
    rows : WhitenedRows
    starts : list of callable, WhitenedRows -> Mixture
        Give the mixtures to start from, in the coordinates of the data. All are brought on in the same passes over the
        rows.
    lower_bound : float
        The last lower bound of an earlier fit that goes on here.
    acceleration : {None, "squarem"}
        Whether steps are extrapolated.
    report : callable, optional
        Called after each iteration with the number of the start, that of the iteration, the lower bound and its gain.

    Returns
    -------
    fits : list of MixtureFit
        Parameters in float64, in the coordinates of the data.
    """
    settings = {"tol": tol, "acceleration": acceleration, "report": report}
    while True:
        mixtures, runs = [start(rows) for start in starts], []
        while mixtures:  # their memory is wanted
            runs.append(_Run(rows, mixtures.pop(0), lower_bound, settings, len(runs)))
        if _iterate(rows, runs, max_iter):
            return [run.result() for run in runs]
        rows.refine()


def _iterate(rows, runs, max_iter):
    """Run EM until all runs have converged; whether the rows had the digits for it, or have no more to give."""
    for _ in range(max_iter):
        active = [run for run in runs if not run.converged]
        if not active:
            break
        expected = rows.expect([run.mixture for run in active])
        are_accurate = [run.update(expected.pop(0)) for run in active]
        if rows.can_refine and not all(are_accurate):
            return False
    return True


def step_mixture(rows, mixture, weight_seen, decay):
    """One step of stepwise EM (Cappe and Moulines 2009) with the rows of a batch.

    A mixture is as good as the moments that it came from: they are those of the rows seen so far, and the moments of
    the batch enter with the step ``(weight_seen / weight of the batch + 1) ** -decay``. Responsibilities of its rows
    are those of a mixture whose components are wider where they come from too few rows.

    Parameters
    ----------
    rows : WhitenedRows
        The batch. They are refined if the step needs more digits than they have.
    mixture : Mixture
        In the coordinates of the data.
    weight_seen : float
        Total weight of the rows of earlier batches.
    decay : float
        In (0.5, 1]; with one, all rows count the same for ever.

    Returns
    -------
    fit : MixtureFit
    """
    family, before = rows.family, mixture
    step = (weight_seen / rows.total_weight + 1) ** -decay
    while True:
        mixture = family.whiten_mixture(before, rows.whitener)
        met = _widened(mixture, rows.total_weight / step, family) if weight_seen else mixture
        expected = rows.expect([met])[0]
        earlier = family.moments_from(mixture, rows.regularization, expected.frame)
        if expected.frame is None:
            earlier = family.shift(earlier, mixture.means, expected.reference)
        share, pairs = (1 - step) * rows.total_weight, zip(earlier, expected.moments, strict=True)
        moments = type(earlier)(*(share * mine + step * theirs for mine, theirs in pairs))
        mixture, regularized, dead = m_step(expected._replace(moments=moments), rows)
        if (rows.is_accurate_for(mixture) and not regularized) or not rows.refine():
            break
    if len(dead):
        mixture = _reseed(mixture, dead, rows)
    lower_bound = expected.total / rows.total_weight + rows.log_scale
    mixture = family.unwhiten_mixture(mixture, rows.whitener)
    return MixtureFit(mixture, [lower_bound], False, regularized, len(dead))


def _widened(mixture, n_rows, family):
    """The mixture as rows should meet it that had no part in it, when it comes from so many.

    The covariance of a few rows is too narrow for others: components that begin with such ones would lose all rows to
    the widest of them. Components that have fewer rows than `ENOUGH` are met as if up to `PRIOR_ROWS` more had been
    seen whose covariance is the mean over the components, as by an inverse Wishart prior.
    """
    if family.tied:
        return mixture
    is_full = mixture.covariances.ndim == 3
    weights = mixture.log_weights.exp().reshape(-1, *[1] * (mixture.covariances.ndim - 1))
    pooled = (weights * mixture.covariances).sum(0)
    enough = ENOUGH * (mixture.means.shape[1] + 1 if is_full else 2)
    n_rows = weights * n_rows
    added = PRIOR_ROWS * (1 - n_rows / enough).clamp(min=0)
    if not added.any():
        return mixture
    share = added / (n_rows + added)
    covariances = mixture.covariances + share * (pooled - mixture.covariances)
    return mixture._replace(covariances=covariances, factor=family.factor(covariances)[0])
