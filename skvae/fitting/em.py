"""Expectation-maximisation for Gaussian mixtures: M-step, iterations, restarts, batches."""

import math
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.covariances import Mixture
from .rows import read_numbers
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


class MStep(NamedTuple):
    """A maximum likelihood mixture, before the host knows whether its covariances are regular (see `finish`)."""

    mixture: Mixture  # in whitened coordinates and float64; a dead component has the mean it had
    dead: Tensor  # (k,) bool: components of no weight
    singular: Tensor  # (k or 1,) bool: covariances without a usable factor
    covariances: Tensor  # in the frame
    frame: Tensor | None


def m_step(expected, rows, regularized=frozenset()):
    """Maximum likelihood mixture from the sums of an E-step; the host does not wait for the device.

    Parameters
    ----------
    expected : Expected
    rows : WhitenedRows or PatternRows
    regularized : frozenset of int
        Components whose covariance was singular in the last step.

    Returns
    -------
    step : MStep
    """
    family, moments, frame = rows.family, expected.moments, expected.frame
    dead = moments.weight < MIN_ROWS * rows.total_weight / rows.n_rows
    # Adding a tiny number, as scikit-learn does, divides by something that is not zero.
    moments = moments._replace(weight=moments.weight + 10 * torch.finfo(torch.float64).eps)
    covariances = family.estimate(moments, family.in_frame(rows.regularization, frame))
    whole, factor, singular = _factored(covariances, rows, frame, regularized)
    means = expected.reference + family.out_of_frame(moments.first / moments.weight[:, None], frame)
    mixture = Mixture((moments.weight / moments.weight.sum()).log(), means, whole, factor)
    return MStep(mixture, dead, singular, covariances, frame)


def _factored(covariances, rows, frame, regularized):
    """Covariances out of a frame, their factors, and whether they are singular, by the higher bar if they have been."""
    whole, factor, positive = rows.family.factor_of(covariances, frame)
    tolerance = rows.family.tolerance(whole, factor)
    limits = torch.full_like(tolerance, rows.min_tolerance)
    for component in regularized:
        limits[component] = REGULAR_TOLERANCE
    sound = positive & (factor.abs().flatten(1).amax(1) <= MAX_FACTOR) & (tolerance >= limits)
    return whole, factor, ~sound


def finish(step, are_singular, rows, before=frozenset()):
    """The mixture of an M-step, the diagonals of singular covariances growing until these are regular.

    (The total variance is one.)

    Parameters
    ----------
    step : MStep
    are_singular : list of float
        The numbers of ``step.singular``.
    rows : WhitenedRows or PatternRows
    before : frozenset of int
        Components whose covariance was singular in the last step.

    Returns
    -------
    mixture : Mixture
    regularized : frozenset of int
        Components whose covariance was singular, and got as much more regularization as it needed.

    Raises
    ------
    ValueError
        If a covariance is not finite.
    """
    (mixture, _, singular, covariances, frame), regularized = step, frozenset()
    family, jitter, bad = rows.family, FIRST_JITTER, _places(are_singular)
    while bad:
        if not torch.isfinite(covariances).all():
            raise ValueError(f"The covariances of components {bad} are not finite; scale the input data.")
        regularized |= frozenset(bad)
        added = family.in_frame(family.regularization(jitter, family.identity(covariances, rows.n_features)), frame)
        covariances = _regularized(covariances, singular, added)
        whole, factor, singular = _factored(covariances, rows, frame, before | regularized)
        mixture = mixture._replace(covariances=whole, factor=factor)
        bad, jitter = _places(*read_numbers(singular)), 10 * jitter
    return mixture, regularized


def _regularized(covariances, singular, added):
    """Covariances plus a regularization where they are singular (k or 1,)."""
    return torch.where(singular.reshape(-1, *[1] * (covariances.ndim - 1)), covariances + added, covariances)


def _places(flags):
    """Places of flags that are not zero."""
    return [place for place, flag in enumerate(flags) if flag]


class CheckedStep(NamedTuple):
    """A whole M-step, with what the host has read."""

    mixture: Mixture
    regularized: frozenset  # components whose covariance was singular
    dead: list  # components of no weight
    total: list  # the log-likelihood of the rows, if the sums have one
    checks: list  # the numbers of each check


def checked_step(expect, rows, *checks):
    """M-step and checks of its mixture; the host waits for the device once, unless a covariance is singular.

    Parameters
    ----------
    expect : callable, () -> Expected
    rows : WhitenedRows or PatternRows
    *checks : callable, Mixture -> Tensor

    Returns
    -------
    step : CheckedStep
    """
    expected = expect()
    step = m_step(expected, rows)
    of_step = expected.failed, expected.total, step.singular, step.dead
    failed, total, are_singular, are_dead, *numbers = read_numbers(*of_step, *(check(step.mixture) for check in checks))
    if any(failed):
        rows.check_roots()
        return checked_step(expect, rows, *checks)
    mixture, regularized = finish(step, are_singular, rows)
    if regularized and checks:
        numbers = read_numbers(*(check(mixture) for check in checks))
    return CheckedStep(mixture, regularized, _places(are_dead), total, numbers)


def _reseed(mixture, dead, rows):
    """Put dead components on the rows that the mixture explains worst, as wide as the others are."""
    family, k = rows.family, len(mixture.means)
    means, log_weights = mixture.means.clone(), mixture.log_weights.clone()
    means[dead] = rows.least_likely(mixture, len(dead))
    log_weights[dead] = -math.log(rows.n_rows)
    covariances = mixture.covariances.clone()
    if not family.tied:
        alive = [c for c in range(k) if c not in dead]
        weights = log_weights[alive].softmax(0).reshape(-1, *[1] * (covariances.ndim - 1))
        covariances[dead] = (weights * covariances[alive]).sum(0)
    return Mixture(log_weights.log_softmax(0), means, covariances, family.factor(covariances)[0])


def start_mixture(rows, resp_of, n_components):
    """The mixture that responsibilities of the whitened rows imply, in the coordinates of the data.

    Rows are refined if it needs more digits than they have.
    """
    family = rows.family

    def narrow(mixture):  # components that are points, but for rounding
        return family.variances(mixture.covariances).amax(1) < START_JITTER

    while True:
        expect = partial(rows.moments, resp_of, n_components)
        found = checked_step(expect, rows, rows.spread, rows.is_accurate_for, narrow)
        if rows.wants_residuals(found.checks[0][0]):
            expect = partial(rows.moments, resp_of, n_components, found.mixture)
            found = checked_step(expect, rows, rows.spread, rows.is_accurate_for, narrow)
        mixture, (_, (is_accurate,), are_points) = found.mixture, found.checks
        # Whether a point has a covariance of exactly zero is chance: rounding gives it one.
        if any(are_points):
            covariances = mixture.covariances
            added = family.regularization(START_JITTER, family.identity(covariances, rows.n_features))
            covariances = _regularized(covariances, narrow(mixture), added)
            mixture = mixture._replace(covariances=covariances, factor=family.factor(covariances)[0])
            is_accurate = rows.is_accurate_for(mixture)
        is_singular = not found.regularized <= set(_places(are_points))
        if (is_accurate and not is_singular) or not rows.refine():
            return family.unwhiten_mixture(mixture, rows.whitener)


class _Proposal(NamedTuple):
    """A step of a run before the host knows whether it counts."""

    before: Mixture | None
    step: MStep
    leap: Mixture | None


class _Run:
    """One EM run among those that share their passes over the rows.

    A step has two parts, so that the host waits for the device once in a pass: `advance` computes what nearly always
    comes next, and `accept` decides by the numbers that were read in between.
    """

    def __init__(self, rows, mixture, lower_bound, settings, index):
        self.rows, self.settings, self.index = rows, settings, index
        self.mixture = rows.family.whiten_mixture(mixture, rows.whitener)
        self.spread = self.fallback_spread = None  # of the mixture, and of the one that a leap may be rejected for
        self.lower_bound, self.lower_bounds, self.converged = lower_bound, [], False
        self.regularized, self.n_reseeded, self.floor = frozenset(), 0, -math.inf
        self.accelerator = ACCELERATIONS[settings["acceleration"]](rows.family)

    def advance(self, expected):
        """M-step and extrapolation; return the tensors of the numbers that `accept` takes."""
        if self.accelerator.is_extrapolated and expected.total.device.type == "cpu":  # where reading costs nothing
            failed, total = read_numbers(expected.failed, expected.total)
            if not any(failed) and self._falls(*total):
                return expected.failed, expected.total, *[None] * 6
        is_wanted = self.accelerator.keeps_path or expected.failed is not None
        before, self.mixture = self.mixture if is_wanted else None, None  # memory is wanted
        step = m_step(expected, self.rows, self.regularized)
        leap, numbers = self._leap(before, step.mixture)
        self.proposal = _Proposal(before, step, leap)
        is_accurate = self.rows.is_accurate_for(step.mixture)
        return expected.failed, expected.total, step.singular, step.dead, is_accurate, *numbers

    def _bound(self, total):
        return total / self.rows.total_weight + self.rows.log_scale

    def _falls(self, total):
        """Whether the mixture was extrapolated, and the likelihood is lower there."""
        return self.accelerator.is_extrapolated and not self._bound(total) >= self.lower_bound

    def _leap(self, before, after):
        """Extrapolated mixture or None; the spread after the step, whether the leap is finite, and its spread."""
        leap, is_finite = self.accelerator.extrapolate(before, after) or (None, None)
        return leap, (self.rows.spread(after), is_finite, None if leap is None else self.rows.spread(leap))

    def accept(self, failed, total, are_singular, are_dead, is_accurate, *numbers):
        """Take the step, or reject an extrapolated mixture that made the likelihood fall.

        Returns
        -------
        is_accurate : bool
            Whether the rows have the digits that the step needs: the bound does not fall, and no component is singular
            or too narrow.
        """
        rows, plain = self.rows, not self.accelerator.is_extrapolated
        if any(failed):
            rows.check_roots()
            self.mixture = self.proposal.before
            return self.accept(*read_numbers(*self.advance(rows.expect([self.mixture], [self.spread])[0])))
        if self._falls(*total):
            self.proposal, self.mixture, self.spread = None, self.accelerator.reject(), self.fallback_spread
            return True
        (before, step, leap), self.proposal = self.proposal, None
        lower_bound = self._bound(*total)
        mixture, self.regularized = finish(step, are_singular, rows, self.regularized)
        gain, self.lower_bound = lower_bound - self.lower_bound, lower_bound
        self.lower_bounds.append(lower_bound)
        is_accurate = all(is_accurate) and not self.regularized
        if rows.x.dtype != torch.float64:  # in which only regularization can make the bound fall
            is_accurate &= lower_bound >= self.floor - ROUNDING * max(1.0, abs(lower_bound))
        self.floor, dead = lower_bound, _places(are_dead)
        self.converged = plain and abs(gain) < self.settings["tol"]
        reseeds = bool(dead) and self.n_reseeded < len(mixture.means)
        if reseeds:
            mixture, self.n_reseeded = _reseed(mixture, dead, rows), self.n_reseeded + len(dead)
            self.converged, before, self.floor = False, None, -math.inf
        if self.regularized or reseeds:  # the mixture is another one
            leap, numbers = self._leap(before, mixture)
            numbers = read_numbers(*numbers)
        self._go_on(before, mixture, leap, *numbers)
        if self.settings["report"] is not None:
            self.settings["report"](self.index, len(self.lower_bounds), lower_bound, gain)
        return is_accurate

    def _go_on(self, before, after, leap, spread, is_finite, leap_spread):
        """Set the mixture of the next pass."""
        self.mixture, (self.spread,) = after, spread
        if not self.converged:
            self.mixture = self.accelerator.propose(before, after, leap if any(is_finite) else None)
        if self.accelerator.is_extrapolated:
            self.fallback_spread, (self.spread,) = self.spread, leap_spread

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
        for run, (spread,) in zip(runs, read_numbers(*(rows.spread(run.mixture) for run in runs)), strict=True):
            run.spread = spread
        if _iterate(rows, runs, max_iter):
            return [run.result() for run in runs]
        rows.refine()


def _iterate(rows, runs, max_iter):
    """Run EM until all runs have converged; whether the rows had the digits for it, or have no more to give."""
    for _ in range(max_iter):
        active = [run for run in runs if not run.converged]
        if not active:
            break
        expected = rows.expect([run.mixture for run in active], [run.spread for run in active])
        wanted = [run.advance(expected.pop(0)) for run in active]
        numbers = iter(read_numbers(*chain.from_iterable(wanted)))
        are_accurate = [run.accept(*islice(numbers, len(own))) for run, own in zip(active, wanted, strict=True)]
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
        In the coordinates of the data. The M-step is made on its device, that of the whitener of the rows.
    weight_seen : float
        Total weight of the rows of earlier batches.
    decay : float
        In (0.5, 1]; with one, all rows count the same for ever.

    Returns
    -------
    fit : MixtureFit
    """
    before, step = mixture, (weight_seen / rows.total_weight + 1) ** -decay
    while True:
        mixture = rows.family.whiten_mixture(before, rows.whitener)
        found = checked_step(partial(_mixed_sums, rows, mixture, weight_seen, step), rows, rows.is_accurate_for)
        if (all(found.checks[0]) and not found.regularized) or not rows.refine():
            break
    mixture, (total,) = found.mixture, found.total
    if found.dead:
        mixture = _reseed(mixture, found.dead, rows)
    lower_bound = total / rows.total_weight + rows.log_scale
    mixture = rows.family.unwhiten_mixture(mixture, rows.whitener)
    return MixtureFit(mixture, [lower_bound], False, found.regularized, len(found.dead))


def _mixed_sums(rows, mixture, weight_seen, step):
    """Sums of an E-step with a batch, mixed with those that a mixture in whitened coordinates came from."""
    family = rows.family
    met = _widened(mixture, rows.total_weight / step, family) if weight_seen else mixture
    (expected,) = rows.expect([met.to(rows.x.device)], [float(rows.spread(met))])
    expected = expected.to(mixture.means.device)
    earlier = family.moments_from(mixture, rows.regularization, expected.frame)
    if expected.frame is None:
        earlier = family.shift(earlier, mixture.means, expected.reference)
    share, pairs = (1 - step) * rows.total_weight, zip(earlier, expected.moments, strict=True)
    return expected._replace(moments=type(earlier)(*(share * mine + step * theirs for mine, theirs in pairs)))


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
