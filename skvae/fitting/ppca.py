"""Maximum likelihood of probabilistic PCA: in closed form, or by EM where values are missing."""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import NamedTuple

import scipy.linalg
import torch
from torch import Tensor

from ..models.ppca import PPCA, log_evidence
from .devices import read_numbers
from .squarem import Coordinates, Squarem

MAX_SHARED_NOISE = 1e-3  # of the variance
MIN_FEATURES, FEW_AXES = 256, 1 / 16  # from which so few of the axes, as a share of all, are faster without the others
OVERFLOW = "The squares of the values of X overflow in its dtype; divide X by a constant, or give float64."


class VarianceFloor(NamedTuple):
    """Smallest variances that differ from rounding errors.

    Values are accurate to the precision of their dtype, so that variances are accurate to its square, or to the
    precision of the arithmetic if this is more.
    """

    share: float  # of the largest variance
    tiny: float  # smallest variance that the dtype represents

    @classmethod
    def of(cls, dtype):
        """Return the floor for data in a dtype whose squares are summed in float64."""
        limits = torch.finfo(dtype)
        return cls(max(limits.eps**2, torch.finfo(torch.float64).eps), limits.tiny)


class Spectrum(NamedTuple):
    """Principal axes and the sums of squares along them, in decreasing order and float64."""

    squares: Tensor  # (m,)
    first_axes: Callable  # int q -> Tensor (q, d), orthonormal
    n_features: int
    rest: Tensor | float = 0.0  # sum of the squares along the other axes, if some are left out


def scatter_spectrum(scatter, n_components=None):
    """Return the spectrum of samples from their scatter matrix.

    Parameters
    ----------
    scatter : Tensor of shape (d, d)
        Weighted sum of outer products of centred samples, float64.
    n_components : int, float, "mle" or None
        With an int, squares and axes may be left out except for so many.

    Raises
    ------
    ValueError
        If it is not finite.
    """
    if not scatter.isfinite().all():
        raise ValueError(OVERFLOW)
    n_features = len(scatter)
    has_few = isinstance(n_components, Integral) and n_components <= FEW_AXES * n_features
    if has_few and n_features >= MIN_FEATURES and scatter.device.type == "cpu":
        try:
            return _leading_spectrum(scatter, n_components)
        except scipy.linalg.LinAlgError:  # it did not converge
            pass
    return _spectrum(scatter)


def _leading_spectrum(scatter, n_axes):
    """Return the spectrum of a scatter matrix on a CPU, of the leading axes alone."""
    n_features = len(scatter)
    subset = n_features - n_axes, n_features - 1
    squares, vectors = scipy.linalg.eigh(scatter.numpy(), subset_by_index=subset, driver="evr", check_finite=False)
    squares, axes = torch.from_numpy(squares).flip(0).clamp(min=0), torch.from_numpy(vectors).mT.flip(0)
    rest = (scatter.trace() - squares.sum()).clamp(min=0)
    return Spectrum(squares, lambda n_components: _with_signs(axes[:n_components]), n_features, rest)


def _spectrum(scatter):
    squares, vectors = torch.linalg.eigh(scatter)
    axes = vectors.mT.flip(0)
    return Spectrum(squares.flip(0).clamp(min=0), lambda n_components: _with_signs(axes[:n_components]), len(axes))


def gram_spectrum(columns, n_features):
    """Return the spectrum of fewer samples than features from their Gram matrix.

    Parameters
    ----------
    columns : callable, () -> iterable of Tensor (n, b)
        Blocks of columns of centred samples, times the roots of their weights. It is called once here, and once
        whenever axes are computed.
    n_features : int
    """
    gram = scatter_spectrum(sum((block @ block.mT).to(torch.float64) for block in columns()))

    def first_axes(n_components):
        vectors = gram.first_axes(n_components)
        axes = torch.cat([vectors @ block.to(torch.float64) for block in columns()], 1)
        return _with_signs(torch.linalg.qr(axes.mT).Q.mT)

    return Spectrum(gram.squares, first_axes, n_features)


def _with_signs(axes):
    """Return the axes with signs such that the largest entry of each in absolute value is positive."""
    return axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()


def choose_components(n_components, variances, n_samples, floor):
    """Return the number of components for an int, a share of the variance, or "mle".

    Parameters
    ----------
    n_components : int, float, "mle" or None
        A float in (0, 1) is the share of the variance to reach; "mle" is Minka's choice; None are all components with
        a variance above rounding errors. Except for an int, it is one component for constant data.
    variances : Tensor of shape (m,)
        Variances along all principal axes, in decreasing order.
    n_samples : float
    floor : VarianceFloor
    """
    if n_components == "mle":
        spectrum = variances[variances > floor.share * variances[0]]
        scores = [log_evidence(spectrum, k, n_samples) for k in range(1, len(spectrum))]
        best = 1 + int(torch.stack(scores).nan_to_num(nan=-math.inf).argmax()) if scores else 1
        # If all directions vary, the last may be noise or a component. If others are flat, they would share its
        # variance as noise, which must then be small.
        is_flat = len(spectrum) < len(variances) < n_samples
        is_last = best == len(spectrum) - 1 and spectrum[best:].sum() > MAX_SHARED_NOISE * spectrum.sum()
        return best + 1 if is_flat and is_last else best
    if isinstance(n_components, float):
        if not variances[0] > 2 * floor.tiny:  # shares of a total of zero are undefined
            return 1
        shares = variances.cumsum(0) / variances.sum()
        return min(int(torch.searchsorted(shares, n_components, right=True)) + 1, len(variances))
    if n_components is None:
        return max(1, int((variances > len(variances) * floor.share * variances[0]).sum()))
    return n_components


def fit_ppca(spectrum, n_samples, n_components, floor):
    """Fit PPCA to centred samples in closed form (Tipping and Bishop 1999, equations 7 and 8).

    Variances are sums of squares over the total weight less one, as in scikit-learn.

    Parameters
    ----------
    spectrum : Spectrum
    n_samples : float
        Total weight of the samples.
    n_components : int, float, "mle" or None
        See `choose_components`.
    floor : VarianceFloor

    Returns
    -------
    model : PPCA
        In float64, with mean zero.
    total_variance : Tensor of shape ()
    """
    n_features, divisor = spectrum.n_features, max(n_samples - 1, 1)
    variances, rest = spectrum.squares / divisor, spectrum.rest / divisor
    q = choose_components(n_components, variances, n_samples, floor)
    # Never zero: a flat direction has the width of rounding errors.
    smallest = floor.share * variances[0] + floor.tiny
    noise = variances.new_zeros(())
    if q < n_features:
        noise = torch.maximum((variances[q:].sum() + rest) / (n_features - q), smallest)
    mean = variances.new_zeros(n_features)
    return PPCA(mean, spectrum.first_axes(q), torch.maximum(variances[:q], smallest), noise), variances.sum() + rest


class EMFit(NamedTuple):
    """Result of EM with missing values."""

    model: PPCA
    total_variance: Tensor  # ()
    lower_bounds: list  # mean log-likelihood of the observed values of a sample before each M-step, in nats
    converged: bool
    n_iter: int  # also those that determined the number of components


def fit_ppca_em(rows, n_components, floor, *, tol, max_iter, init=None):
    """Fit PPCA to samples with missing values by EM.

    The missing values alone are the latent variables: the M-step is the closed form (`fit_ppca`) with the expected
    moments of the samples, so that EM solves complete data in one step.

    Parameters
    ----------
    rows : PatternRows
        Of the full covariance type, with the same scale for all features.
    n_components : int, float or None
        A share of the variance, and None, are determined by a fit with all components.
    floor : VarianceFloor
    tol : float
        EM stops when the mean log-likelihood of a sample increases by less, in nats.
    max_iter : int
        Largest number of iterations of each fit.
    init : PPCA, optional
        By default, independent features of unit variance.

    Returns
    -------
    fit : EMFit
        Variances are over the number of samples less one, as in `fit_ppca`.
    """
    n_features = rows.x.shape[1]
    if not isinstance(n_components, Integral):
        full = fit_ppca_em(rows, n_features, floor, tol=tol, max_iter=max_iter)
        n_components = choose_components(n_components, full.model.variances, rows.total_weight, floor)
        fit = fit_ppca_em(rows, n_components, floor, tol=tol, max_iter=max_iter, init=full.model)
        return fit._replace(n_iter=full.n_iter + fit.n_iter)

    run, model = _EMRun(rows, n_components, floor, tol), init
    if model is None:
        ones = rows.x.new_ones(n_features)
        model = PPCA(0 * ones, torch.eye(1, n_features, dtype=ones.dtype, device=ones.device), ones[:1], ones[0])
    for _ in range(max_iter):
        model = run.step(model)
        if run.converged:
            break
    return run.result()


class _EMRun:
    """A run of EM; besides in decompositions, the host waits for the device once in a step."""

    def __init__(self, rows, n_components, floor, tol):
        self.rows, self.tol = rows, tol
        self.m_step = partial(fit_ppca, n_components=n_components, floor=floor)
        self.accelerator, self.lower_bounds, self.converged = Squarem(PPCACoordinates()), [], False
        self.total_weight = None  # the same in all steps, and read in the first

    def step(self, model):
        """Return the model after an EM step, or after the previous one if the likelihood is lower."""
        sums = self.rows.e_step_sums([model.as_mixture()])[0]
        log_likelihood, n_failed, (weight, first, second) = sums.log_likelihood, sums.n_failed, sums.moments
        if log_likelihood.device.type == "cpu" and not n_failed and self._is_worse(float(log_likelihood)):
            return self.accelerator.reject()  # early, where reading is free
        if self.total_weight is None:
            self.total_weight = float(weight[0])
        shift = first[0] / weight[0]
        scatter = second[0] - self.total_weight * shift.outer(shift)
        is_finite = scatter.isfinite().all()
        spectrum = _spectrum(torch.where(is_finite, scatter, 0.0))
        # During EM, variances are over the number of samples.
        after = self.m_step(spectrum, self.total_weight + 1)[0]._replace(mean=sums.reference[0] + shift)
        extrapolated, is_valid = self.accelerator.extrapolate(model, after) or (None, None)
        numbers = read_numbers(log_likelihood, n_failed, is_finite, is_valid)
        (log_likelihood,), (n_failed,), (is_finite,), is_valid = numbers
        if n_failed:
            self.rows.check_roots()
            self.total_weight = None
            return self.step(model)
        if self._is_worse(log_likelihood):
            return self.accelerator.reject()
        if not is_finite:
            raise ValueError(OVERFLOW)
        self.spectrum, self.mean = spectrum, after.mean
        self.lower_bounds.append(self.rows.lower_bound(log_likelihood))
        gain = math.inf if len(self.lower_bounds) == 1 else self.lower_bounds[-1] - self.lower_bounds[-2]
        if gain < self.tol and not self.accelerator.is_extrapolated:
            self.converged = True
            return after
        return self.accelerator.propose(model, after, extrapolated if any(is_valid) else None)

    def _is_worse(self, log_likelihood):
        """Return whether the model was extrapolated and its likelihood is lower than that before."""
        return self.accelerator.is_extrapolated and not self.rows.lower_bound(log_likelihood) >= self.lower_bounds[-1]

    def result(self):
        """Return the fit, with variances over the number of samples less one."""
        model, total_variance = self.m_step(self.spectrum, self.total_weight)
        model, n_iter = model._replace(mean=self.mean), len(self.lower_bounds)
        return EMFit(model, total_variance, self.lower_bounds, self.converged, n_iter)


class PPCACoordinates(Coordinates):
    """The mean and the logarithm of the covariance, as one tensor (d + 1, d)."""

    def of(self, model):
        """See `Coordinates`."""
        axes, logs = model.axes, model.variances.log()
        if len(axes) == axes.shape[1]:
            log_covariance = (axes.mT * logs) @ axes
        else:
            noise = model.noise_variance.log()
            identity = torch.eye(axes.shape[1], dtype=noise.dtype, device=noise.device)
            log_covariance = (axes.mT * (logs - noise)) @ axes + noise * identity
        return [torch.cat([model.mean[None], log_covariance])]

    def model_at(self, coordinates, template):
        """See `Coordinates`; the model has as many components as the template."""
        (stacked,), n_components = coordinates, len(template.variances)
        is_finite = torch.isfinite(stacked).all()
        logs, vectors = torch.linalg.eigh(torch.where(is_finite, stacked[1:], 0.0))
        variances = logs.exp().flip(0)
        noise = variances[n_components:].mean() if n_components < len(variances) else template.noise_variance
        model = PPCA(stacked[0], vectors.flip(1).mT[:n_components], variances[:n_components], noise)
        return model, is_finite & torch.isfinite(variances).all() & (variances[-1] > 0)

    def curvature(self, start, middle, end):
        """See `Coordinates`."""
        return end - 2 * middle + start

    def norm(self, tensors):
        """See `Coordinates`."""
        return tensors[0].norm()
