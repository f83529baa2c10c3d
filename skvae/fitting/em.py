"""Expectation-maximization for Gaussian mixtures: runs that share their passes over the data, and single batches."""

import math
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import torch

from ..models.covariances import Mixture
from ..models.gaussians import align
from .devices import read_numbers
from .em_steps import MStep, checked_step, m_step, nonzero, regularize, reseed
from .squarem import ACCELERATIONS

ROUNDING = 2e-6  # of lower bounds in float32, relative: if they decrease by more, digits are missing
PRIOR_ROWS = 2  # pseudo-counts of the pooled covariance, for components of very few samples
ENOUGH = 4  # multiple of the samples that a covariance needs to be invertible: from there on, it is not shrunk


class MixtureFit(NamedTuple):
    """Result of EM."""

    mixture: Mixture
    lower_bounds: list  # mean log-likelihood before the M-step of each iteration, in nats
    converged: bool
    regularized: frozenset  # components that needed more than reg_covar in the last M-step
    n_reseeded: int  # number of times that a dead component was reseeded


class StepNumbers(NamedTuple):
    """Tensors of a step that the host reads at once; after reading, their numbers (a list for each, empty for None)."""

    n_failed: object  # blocks whose Cholesky factors do not exist
    log_likelihood: object  # of the mixture before the step
    singular: object = None  # by component
    dead: object = None  # by component
    is_accurate: object = None  # whether the rows have enough digits for the mixture after the step
    condition_number: object = None  # of this mixture
    is_finite: object = None  # whether the extrapolated mixture is
    extrapolated_condition_number: object = None


class _Proposal(NamedTuple):
    """An M-step and an extrapolation before the host has read whether to accept them."""

    before: Mixture | None
    step: MStep
    extrapolated: Mixture | None


class _Run:
    """One EM run among those that share their passes over the rows.

    A step has two parts, so that the host waits for the device once in a pass: `advance` computes what nearly always
    follows, and `accept` decides by the numbers that were read in between.
    """

    def __init__(self, rows, mixture, lower_bound, tol, acceleration, report):
        self.rows, self.tol, self.report = rows, tol, report
        self.mixture = rows.family.whiten_mixture(mixture, rows.whitener)
        # Linear condition numbers of the mixture, and of the one to return to if an extrapolation is rejected.
        self.condition_number = self.fallback_condition_number = None
        self.lower_bound, self.lower_bounds, self.converged = lower_bound, [], False
        self.regularized, self.n_reseeded, self.previous_bound = frozenset(), 0, -math.inf
        self.accelerator = ACCELERATIONS[acceleration](rows.family)

    def advance(self, sums):
        """Compute the M-step and the extrapolation; return the `StepNumbers`, as tensors."""
        if self.accelerator.is_extrapolated and sums.log_likelihood.device.type == "cpu":  # where reading is free
            n_failed, log_likelihood = read_numbers(sums.n_failed, sums.log_likelihood)
            if not any(n_failed) and self._is_worse(*log_likelihood):
                return StepNumbers(sums.n_failed, sums.log_likelihood)
        is_needed = self.accelerator.keeps_path or sums.n_failed is not None
        before, self.mixture = self.mixture if is_needed else None, None  # frees memory
        step = m_step(sums, self.rows, self.regularized)
        extrapolated, tensors = self._extrapolate(before, step.mixture)
        self.proposal = _Proposal(before, step, extrapolated)
        is_accurate = self.rows.is_accurate_for(step.mixture)
        return StepNumbers(sums.n_failed, sums.log_likelihood, step.singular, step.dead, is_accurate, *tensors)

    def _is_worse(self, log_likelihood):
        """Return whether the mixture was extrapolated and its likelihood is lower than that before."""
        return self.accelerator.is_extrapolated and not self.rows.lower_bound(log_likelihood) >= self.lower_bound

    def _extrapolate(self, before, after):
        """Return an extrapolated mixture or None, and the last three tensors of `StepNumbers`."""
        mixture, is_finite = self.accelerator.extrapolate(before, after) or (None, None)
        condition_number = self.rows.linear_condition_number
        return mixture, (condition_number(after), is_finite, None if mixture is None else condition_number(mixture))

    def accept(self, numbers):
        """Take the step, or reject an extrapolated mixture whose likelihood is lower.

        Parameters
        ----------
        numbers : StepNumbers
            As read by the host.

        Returns
        -------
        is_accurate : bool
            Whether the precision of the rows is enough for the step: the lower bound does not decrease, and no
            component is singular or too narrow.
        """
        rows, is_plain = self.rows, not self.accelerator.is_extrapolated
        if any(numbers.n_failed):
            rows.check_roots()
            self.mixture = self.proposal.before
            (sums,) = rows.e_step_sums([self.mixture], [self.condition_number])
            return self.accept(StepNumbers(*read_numbers(*self.advance(sums))))
        if self._is_worse(*numbers.log_likelihood):
            self.proposal, self.mixture = None, self.accelerator.reject()
            self.condition_number = self.fallback_condition_number
            return True
        (before, step, extrapolated), self.proposal = self.proposal, None
        lower_bound = rows.lower_bound(*numbers.log_likelihood)
        mixture, self.regularized = regularize(step, numbers.singular, rows, self.regularized)
        gain, self.lower_bound = lower_bound - self.lower_bound, lower_bound
        self.lower_bounds.append(lower_bound)
        is_accurate = all(numbers.is_accurate) and not self.regularized
        if rows.x.dtype != torch.float64:  # in which only regularization can decrease the lower bound
            is_accurate &= lower_bound >= self.previous_bound - ROUNDING * max(1.0, abs(lower_bound))
        self.previous_bound, dead = lower_bound, nonzero(numbers.dead)
        self.converged = is_plain and abs(gain) < self.tol
        reseeds = bool(dead) and self.n_reseeded < len(mixture.means)
        if reseeds:
            mixture, self.n_reseeded = reseed(mixture, dead, rows), self.n_reseeded + len(dead)
            self.converged, before, self.previous_bound = False, None, -math.inf
        if self.regularized or reseeds:  # the mixture has changed
            extrapolated, tensors = self._extrapolate(before, mixture)
            numbers = StepNumbers(*numbers[:5], *read_numbers(*tensors))
        (self.condition_number,) = numbers.condition_number
        self.mixture = mixture
        if not self.converged:
            self.mixture = self.accelerator.propose(before, mixture, extrapolated if any(numbers.is_finite) else None)
        if self.accelerator.is_extrapolated:
            self.fallback_condition_number = self.condition_number
            (self.condition_number,) = numbers.extrapolated_condition_number
        if self.report is not None:
            self.report(len(self.lower_bounds), lower_bound, gain)
        return is_accurate

    def result(self):
        """Return the fit, in the coordinates of the data."""
        mixture = self.accelerator.reject() if self.accelerator.is_extrapolated else self.mixture
        mixture = self.rows.family.unwhiten_mixture(mixture, self.rows.whitener)
        return MixtureFit(mixture, self.lower_bounds, self.converged, self.regularized, self.n_reseeded)


def fit_best_mixture(rows, inits, n_components, *, report=None, **settings):
    """Run EM from each initialization, several in the same passes; return the fit with the highest lower bound.

    Parameters are those of `fit_mixtures`.
    """
    fits, n_together = [], min(rows.group.all_gather_int(rows.n_together(n_components)))
    for first in range(0, len(inits), n_together):
        report_part = report and partial(report, first)
        fits += fit_mixtures(rows, inits[first : first + n_together], report=report_part, **settings)
        fits = [max(fits, key=lambda fit: fit.lower_bounds[-1:])]  # frees memory
    return fits[0]


def fit_mixtures(rows, inits, *, tol, max_iter, lower_bound=-math.inf, acceleration=None, report=None):
    """Run EM from each initialization until its mean log-likelihood changes by less than ``tol``.

    If the rows have too few digits for a mixture, they are refined, and EM starts again: a fit in float32 ends where
    one in float64 does.

    Parameters
    ----------
    rows : EMRows
    inits : list of callable, EMRows -> Mixture
        Return the mixtures to start from, in the coordinates of the data. All runs share their passes over the rows.
    tol : float
    max_iter : int
    lower_bound : float
        The last lower bound of an earlier fit that is continued.
    acceleration : {None, "squarem"}
        Whether steps are extrapolated.
    report : callable, optional
        Called after each iteration with the indices of the run and the iteration, the lower bound and its gain.

    Returns
    -------
    fits : list of MixtureFit
        Parameters in float64, in the coordinates of the data.
    """
    while True:
        mixtures, runs = [init(rows) for init in inits], []
        while mixtures:  # frees memory
            report_run = report and partial(report, len(runs))
            runs.append(_Run(rows, mixtures.pop(0), lower_bound, tol, acceleration, report_run))
        condition_numbers = read_numbers(*[rows.linear_condition_number(run.mixture) for run in runs])
        for run, (condition_number,) in zip(runs, condition_numbers, strict=True):
            run.condition_number = condition_number
        if _iterate(rows, runs, max_iter):
            return [run.result() for run in runs]
        rows.refine()


def _iterate(rows, runs, max_iter):
    """Iterate until all runs have converged; return False, early, if rows have too few digits and can be refined."""
    for _ in range(max_iter):
        active = [run for run in runs if not run.converged]
        if not active:
            break
        sums = rows.e_step_sums([run.mixture for run in active], [run.condition_number for run in active])
        tensors = [run.advance(sums.pop(0)) for run in active]
        numbers = iter(read_numbers(*chain.from_iterable(tensors)))
        are_accurate = [run.accept(StepNumbers(*islice(numbers, len(StepNumbers._fields)))) for run in active]
        if rows.can_refine and not all(are_accurate):
            return False
    return True


def step_mixture(rows, mixture, weight_seen, decay):
    """Compute a step of stepwise EM (Cappe and Moulines 2009) with a batch.

    The sums that a mixture came from follow from its parameters. They stand for the samples seen so far, and the sums
    of the batch enter with the step ``(weight_seen / weight of the batch + 1) ** -decay``. Responsibilities of the
    batch are those of a mixture whose components are wider where they come from too few samples.

    Parameters
    ----------
    rows : EMRows
        The batch. It is refined if the step needs more digits than it has.
    mixture : Mixture
        In the coordinates of the data. The M-step is computed on its device, that of the whitener of the rows.
    weight_seen : float
        Total weight of the samples of earlier batches.
    decay : float
        In (0.5, 1]; with one, all samples count the same for ever.

    Returns
    -------
    fit : MixtureFit
    """
    before, step_size = mixture, (weight_seen / rows.total_weight + 1) ** -decay
    while True:
        mixture = rows.family.whiten_mixture(before, rows.whitener)
        step = checked_step(partial(_mixed_sums, rows, mixture, weight_seen, step_size), rows, rows.is_accurate_for)
        if (all(step.checks[0]) and not step.regularized) or not rows.refine():
            break
    mixture = reseed(step.mixture, step.dead, rows) if step.dead else step.mixture
    mixture = rows.family.unwhiten_mixture(mixture, rows.whitener)
    return MixtureFit(mixture, [rows.lower_bound(*step.log_likelihood)], False, step.regularized, len(step.dead))


def _mixed_sums(rows, mixture, weight_seen, step_size):
    """Return sums of an E-step with a batch, mixed with the sums that a mixture in whitened coordinates came from."""
    family = rows.family
    smoothed = _shrink_covariances(mixture, rows.total_weight / step_size, family) if weight_seen else mixture
    condition_number = float(rows.linear_condition_number(smoothed))
    (sums,) = rows.e_step_sums([smoothed.to(rows.x.device)], [condition_number])
    sums = sums.to(mixture.means.device)
    earlier = family.moments_from(mixture, rows.regularization, sums.frame)
    if sums.frame is None:
        earlier = family.shift(earlier, mixture.means, sums.reference)
    share, pairs = (1 - step_size) * rows.total_weight, zip(earlier, sums.moments, strict=True)
    return sums._replace(moments=type(earlier)(*[share * old + step_size * new for old, new in pairs]))


def _shrink_covariances(mixture, n_samples, family):
    """Shrink covariances of components with few samples towards the pooled covariance.

    The covariance of a few samples is too narrow for others: components that begin with these would lose all samples to
    the widest of them. Components with fewer samples than `ENOUGH` get up to `PRIOR_ROWS` more, whose covariance is the
    mean over the components, as by an inverse Wishart prior.
    """
    if family.tied:
        return mixture
    weights = align(mixture.log_weights.exp(), mixture.covariances)
    pooled = (weights * mixture.covariances).sum(0)
    n_samples = weights * n_samples
    added = PRIOR_ROWS * (1 - n_samples / (ENOUGH * family.min_samples(mixture.means.shape[1]))).clamp(min=0)
    if not added.any():
        return mixture
    covariances = mixture.covariances + added / (n_samples + added) * (pooled - mixture.covariances)
    return mixture._replace(covariances=covariances, factor=family.factor(covariances)[0])
