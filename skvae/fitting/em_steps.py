"""Steps of EM for Gaussian mixtures: the interface of samples, sums of an E-step, the M-step."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.covariances import Mixture, Moments
from ..models.gaussians import align, copy_to_device
from .devices import read_numbers
from .rows import row_chunks, rows_in_cache

# Share of a feature's variance that the others leave unexplained, below which a component is singular: rounding leaves
# as much.
MIN_TOLERANCE = 1e-13
MAX_FACTOR = 1e11  # the total standard deviation over that of a component: narrower is singular
REGULAR_TOLERANCE = 1e-11  # for covariances that were singular in the last step: they should not alternate
FIRST_JITTER = MAX_FACTOR**-2  # in units of the total variance
MIN_LOG_RESP = {torch.float32: -80.0, torch.float64: -700.0}  # exp of less is denormal: zero, and 30 times slower
E_STEP_BYTES, E_STEP_ROWS = 2**19, 2**10  # rows and their joint densities that stay in the cache of a core; at least
MIN_ROWS = 1e-8  # in mean weights of rows: a component with less is dead


class EStepSums(NamedTuple):
    """Sums of an E-step, from which the M-step computes the next mixture."""

    moments: Moments
    reference: Tensor  # (k, d): the moments are about it
    log_likelihood: Tensor | None = None  # of the samples (); None for fixed responsibilities
    frame: Tensor | None = None  # factor (k or 1, d, d): moments are those of whitened residuals, ``(x - m) @ frame``
    n_failed: Tensor | None = None  # blocks in which a matrix root does not exist (): if any, all sums are invalid

    def to(self, device):
        """Return the sums on another device."""
        weight, first, second, *others = copy_to_device([*self.moments, *self[1:]], device)
        return EStepSums(Moments(weight, first, second), *others)


class EMRows(ABC):
    """Samples in coordinates in which features have unit variance, and the sums of EM over them.

    Attributes
    ----------
    family : Covariance
    group : ProcessGroup
        The processes that hold shards of the samples; sums are over all of them.
    x : Tensor or LazyRows of shape (n, d)
    n_features : int
    n_rows : int
        Of all processes.
    total_weight : float
        Of all processes.
    whitener : Tensor
        From the coordinates of the data to these.
    log_scale : float
        Mean log-determinant of whitening, by which a mean log-likelihood is larger in the coordinates of the data.
    regularization : Tensor
        ``reg_covar`` in these coordinates.
    can_refine : bool
        Whether there is a form that keeps more digits (see `refine`).
    min_tolerance : float
        Share of a feature's variance that others leave unexplained, below which a component is singular.
    """

    can_refine, min_tolerance = False, MIN_TOLERANCE

    @abstractmethod
    def sums_from_resp(self, resp_of, n_components, mixture=None):
        """Return the sums for fixed responsibilities.

        Parameters
        ----------
        resp_of : callable, slice -> Tensor (b, k)
            Responsibilities of the rows of a slice.
        n_components : int
        mixture : Mixture, optional
            Result of an M-step with the same responsibilities. Residuals from its means have sums with more digits.

        Returns
        -------
        sums : EStepSums
        """

    @abstractmethod
    def e_step_sums(self, mixtures, condition_numbers):
        """Return the sums of an E-step of several mixtures; the host does not wait for the device.

        Parameters
        ----------
        mixtures : list of Mixture
        condition_numbers : list of float
            `linear_condition_number` of each.

        Returns
        -------
        sums : list of EStepSums
        """

    @abstractmethod
    def least_likely(self, mixture, n_rows):
        """Return the rows with the lowest density (n_rows, d)."""

    def lower_bound(self, log_likelihood):
        """Return the mean log-likelihood of a sample in the coordinates of the data, from the sum in these."""
        return log_likelihood / self.total_weight + self.log_scale

    def n_together(self, n_components):
        """Return the number of mixtures for which it pays to share an E-step."""
        return 1

    def linear_condition_number(self, mixture):
        """Return the number that decides on the form of the E-step of a mixture (): zero where there is one form."""
        return mixture.means.new_zeros(())

    def is_accurate_for(self, mixture):
        """Return whether products of these rows keep the digits that a mixture needs ()."""
        return mixture.means.new_ones(())

    def needs_residuals(self, condition_number):
        """Return whether sums about the origin lose too many digits for a mixture of this condition number."""
        return False

    def refine(self):
        """Convert the rows to a form that keeps more digits, in new coordinates; return whether there is one."""
        return False

    def check_roots(self):
        """Check from now on that Cholesky factors exist, and compute others if not; the host waits for the device."""
        self.checks_roots = True


def e_step(x, mixture, family):
    """Return log-likelihood (n,) and log-responsibilities (n, k) of rows, in the residual form."""
    n_columns = x.shape[1] + len(mixture.means)
    n_rows = rows_in_cache(n_columns, E_STEP_BYTES, E_STEP_ROWS) if x.device.type == "cpu" else len(x)
    if len(x) <= n_rows:
        return _e_step(x, mixture, family)
    log_likelihoods, log_resp = x.new_empty(len(x)), x.new_empty(len(mixture.means), len(x)).mT
    for rows in row_chunks(len(x), n_columns, n_rows):
        log_likelihoods[rows], log_resp[rows] = _e_step(x[rows], mixture, family)
    return log_likelihoods, log_resp


def _e_step(x, mixture, family):
    joint = mixture.log_weights + family.log_prob(x, mixture.means, mixture.factor)
    peak = joint.amax(1, keepdim=True)
    joint -= peak  # far from all components, the differences would be lost in rounding
    norm = joint.clamp(min=MIN_LOG_RESP[x.dtype]).exp_().sum(1, keepdim=True).log_()
    return (peak + norm)[:, 0], joint.sub_(norm)


def lowest_of_all(values, rows, group):
    """Return the rows with the lowest values of all processes, from those of each: values (m,) and rows (m, d)."""
    if group.size == 1:
        return rows
    n_rows, values, rows = max(group.all_gather_int(len(values))), group.all_gather(values), group.all_gather(rows)
    return rows[values.topk(n_rows, largest=False).indices]


class MStep(NamedTuple):
    """A maximum likelihood mixture, before the host has read whether its covariances are regular."""

    mixture: Mixture  # in whitened coordinates and float64; a dead component retains its mean
    dead: Tensor  # (k,) bool: components of no weight
    singular: Tensor  # (k or 1,) bool: covariances without a usable factor
    covariances: Tensor  # in the frame
    frame: Tensor | None


def m_step(sums, rows, regularized=frozenset()):
    """Compute the maximum likelihood mixture from the sums of an E-step; the host does not wait for the device.

    Parameters
    ----------
    sums : EStepSums
    rows : EMRows
    regularized : frozenset of int
        Components whose covariance was singular in the last step.

    Returns
    -------
    step : MStep
    """
    family, moments, frame = rows.family, sums.moments, sums.frame
    dead = moments.weight < MIN_ROWS * rows.total_weight / rows.n_rows
    # Adding a tiny number, as scikit-learn does, avoids a division by zero.
    moments = moments._replace(weight=moments.weight + 10 * torch.finfo(torch.float64).eps)
    covariances = family.estimate(moments, family.in_frame(rows.regularization, frame))
    unframed, factor, singular = _factored(covariances, rows, frame, regularized)
    means = sums.reference + family.out_of_frame(moments.first / moments.weight[:, None], frame)
    mixture = Mixture((moments.weight / moments.weight.sum()).log(), means, unframed, factor)
    return MStep(mixture, dead, singular, covariances, frame)


def _factored(covariances, rows, frame, regularized):
    """Return covariances out of a frame, their factors, and whether they are singular.

    Components that have been regularized are compared with `REGULAR_TOLERANCE`, the higher limit.
    """
    unframed, factor, positive = rows.family.factor_of(covariances, frame)
    tolerance, limits = rows.family.tolerance(unframed, factor), rows.min_tolerance
    if regularized:
        limits = torch.full_like(tolerance, limits)
        limits[list(regularized)] = REGULAR_TOLERANCE
    regular = positive & (factor.flatten(1).abs().amax(1) <= MAX_FACTOR) & (tolerance >= limits)
    return unframed, factor, ~regular


def regularize(step, are_singular, rows, regularized=frozenset()):
    """Add growing numbers to the diagonals of singular covariances until they are regular.

    (The total variance is one.)

    Parameters
    ----------
    step : MStep
    are_singular : list of float
        The numbers of ``step.singular``.
    rows : EMRows
    regularized : frozenset of int
        Components whose covariance was singular in the last step.

    Returns
    -------
    mixture : Mixture
    regularized : frozenset of int
        Components whose covariance was singular in this step.

    Raises
    ------
    ValueError
        If a covariance is not finite.
    """
    (mixture, _, singular, covariances, frame), new = step, frozenset()
    family, jitter, indices = rows.family, FIRST_JITTER, nonzero(are_singular)
    while indices:
        if not torch.isfinite(covariances).all():
            raise ValueError(f"The covariances of components {indices} are not finite; scale the input data.")
        new |= frozenset(indices)
        added = family.in_frame(family.regularization(jitter, family.identity(covariances, rows.n_features)), frame)
        covariances = torch.where(align(singular, covariances), covariances + added, covariances)
        unframed, factor, singular = _factored(covariances, rows, frame, regularized | new)
        mixture = mixture._replace(covariances=unframed, factor=factor)
        indices, jitter = nonzero(*read_numbers(singular)), 10 * jitter
    return mixture, new


def nonzero(flags):
    """Return the indices of flags that are not zero."""
    return [index for index, flag in enumerate(flags) if flag]


class CheckedStep(NamedTuple):
    """A regularized M-step, with the numbers that the host has read."""

    mixture: Mixture
    regularized: frozenset  # components whose covariance was singular
    dead: list  # components of no weight
    log_likelihood: list  # of the samples, one number; none for fixed responsibilities
    checks: list  # the numbers of each check


def checked_step(compute_sums, rows, *checks):
    """Compute an M-step and checks of its mixture; the host waits for the device once, if no covariance is singular.

    Parameters
    ----------
    compute_sums : callable, () -> EStepSums
    rows : EMRows
    *checks : callable, Mixture -> Tensor

    Returns
    -------
    step : CheckedStep
    """
    sums = compute_sums()
    step = m_step(sums, rows)
    tensors = sums.n_failed, sums.log_likelihood, step.singular, step.dead, *(check(step.mixture) for check in checks)
    n_failed, log_likelihood, are_singular, are_dead, *numbers = read_numbers(*tensors)
    if any(n_failed):
        rows.check_roots()
        return checked_step(compute_sums, rows, *checks)
    mixture, regularized = regularize(step, are_singular, rows)
    if regularized and checks:
        numbers = read_numbers(*(check(mixture) for check in checks))
    return CheckedStep(mixture, regularized, nonzero(are_dead), log_likelihood, numbers)


def reseed(mixture, dead, rows):
    """Move dead components to the rows of lowest density, with the mean covariance of the others.

    Parameters
    ----------
    mixture : Mixture
    dead : list of int
    rows : EMRows

    Returns
    -------
    mixture : Mixture
    """
    log_weights, means, covariances = (part.clone() for part in mixture[:3])
    means[dead] = rows.least_likely(mixture, len(dead))
    log_weights[dead] = -math.log(rows.n_rows)
    if not rows.family.tied:
        alive = [c for c in range(len(means)) if c not in dead]
        covariances[dead] = (align(log_weights[alive].softmax(0), covariances) * covariances[alive]).sum(0)
    return Mixture(log_weights.log_softmax(0), means, covariances, rows.family.factor(covariances)[0])
