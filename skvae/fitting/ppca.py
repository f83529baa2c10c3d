"""Probabilistic principal component analysis: in closed form from one pass over row chunks, or by EM."""

import math
from functools import partial
from typing import NamedTuple

import torch

from ..models.ppca import PPCA, evidence_of_dimension
from .devices import read_numbers

MAX_SHARED_NOISE = 1e-3  # of the variance
OVERFLOW = "The squares of the values of X overflow in its dtype; divide X by a constant, or give float64."


class Rounding(NamedTuple):
    """Variances that rounding may leave of nothing.

    Values of data are known up to the precision of their dtype, so that variances are known up to its square, or up to
    the precision of the arithmetic if this is more.
    """

    share: float  # of the largest variance
    tiny: float  # the smallest variance that the dtype holds

    @classmethod
    def of(cls, dtype, arithmetic=torch.float64):
        """That of data in a dtype with sums in another."""
        limits = torch.finfo(dtype)
        return cls(max(limits.eps**2, torch.finfo(arithmetic).eps), limits.tiny)


class ObservedFit(NamedTuple):
    """What EM found from rows with missing values."""

    model: PPCA
    total_variance: torch.Tensor  # ()
    lower_bounds: list  # mean log-likelihood of the observed values of a row before each M-step, in nats
    converged: bool


def axes_of_scatter(scatter):
    """Principal axes (d, d) and the sums of squares along them (d,), in decreasing order, float64.

    Parameters
    ----------
    scatter : Tensor of shape (d, d)
        Weighted sum of outer products of centred rows, float64.

    Raises
    ------
    ValueError
        If it is not finite.
    """
    if not scatter.isfinite().all():
        raise ValueError(OVERFLOW)
    return _spectrum(scatter)


def _spectrum(scatter):
    squares, vectors = torch.linalg.eigh(scatter)
    return squares.flip(0).clamp(min=0), _with_signs(vectors.flip(1).mT)


def axes_of_rows(columns, n_features):
    """As `axes_of_scatter`, but for fewer rows than features: axes (n, d) and sums of squares (n,).

    Parameters
    ----------
    columns : iterable of Tensor (n, b)
        Blocks of columns of centred rows, times the roots of their weights. It is gone through once here, and once for
        each time that axes are asked for.
    n_features : int
    """
    squares, vectors = axes_of_scatter(sum((block @ block.mT).to(torch.float64) for block in columns))
    return squares, RowAxes(vectors, columns, n_features)


class RowAxes:
    """Principal axes of rows (n, d), of which only those are computed that are asked for."""

    def __init__(self, vectors, columns, n_features):
        self.vectors, self.columns, self.shape = vectors, columns, (len(vectors), n_features)

    def __getitem__(self, first):
        """Axes of a slice that begins with the first (m, d)."""
        axes = torch.cat([self.vectors[first] @ block.to(torch.float64) for block in self.columns], 1)
        return _with_signs(torch.linalg.qr(axes.mT).Q.mT)


def _with_signs(axes):
    """Axes with the entry of largest size of each positive."""
    return axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()


def choose_components(n_components, variances, n_samples, rounding):
    """The number of components for an int, a share of the variance, or "mle".

    Parameters
    ----------
    n_components : int, float, "mle" or None
        A float in (0, 1) is the share of the variance to reach; "mle" is Minka's choice; None are all that the data
        determine, up to rounding. Of constant data it is one component, whichever is asked for.
    variances : Tensor of shape (m,)
        Variances along all principal axes, in decreasing order.
    n_samples : float
        Number of rows.
    rounding : Rounding
    """
    if n_components == "mle":
        spectrum = variances[variances > rounding.share * variances[0]]
        scores = [evidence_of_dimension(spectrum, k, n_samples) for k in range(1, len(spectrum))]
        best = 1 + int(torch.stack(scores).nan_to_num(nan=-math.inf).argmax()) if scores else 1
        # Among directions that vary, one of noise is as good as one more component; where others are flat, they would
        # share this noise, which then should be little.
        is_flat = len(spectrum) < len(variances) < n_samples
        is_last = best == len(spectrum) - 1 and spectrum[best:].sum() > MAX_SHARED_NOISE * spectrum.sum()
        return best + 1 if is_flat and is_last else best
    if isinstance(n_components, float):
        if not variances[0] > 2 * rounding.tiny:  # there is no share of nothing
            return 1
        shares = variances.cumsum(0) / variances.sum()
        return min(int(torch.searchsorted(shares, n_components, right=True)) + 1, len(variances))
    if n_components is None:
        return max(1, int((variances > len(variances) * rounding.share * variances[0]).sum()))
    return n_components


def fit_ppca(squares, axes, n_samples, n_components, rounding):
    """Maximum likelihood PPCA of centred rows (Tipping and Bishop 1999, equations 7 and 8).

    Variances are sums of squares over the total weight less one, as scikit-learn counts them.

    Parameters
    ----------
    squares : Tensor of shape (m,)
        Weighted sums of squares along the principal axes, in decreasing order.
    axes : Tensor or RowAxes of shape (m, d)
    n_samples : float
        Total weight of the rows.
    n_components : int, float, "mle" or None
        See `choose_components`.
    rounding : Rounding

    Returns
    -------
    model : PPCA
        In float64, with mean zero.
    total_variance : Tensor of shape ()
    """
    n_features = axes.shape[1]
    variances = squares / max(n_samples - 1, 1)
    q = choose_components(n_components, variances, n_samples, rounding)
    # Never zero: a flat direction has the width of rounding.
    floor = rounding.share * variances[0] + rounding.tiny
    rest = variances[q:].sum() / (n_features - q) if q < n_features else variances.new_zeros(())
    noise = torch.maximum(rest, floor) if q < n_features else rest
    model = PPCA(variances.new_zeros(n_features), axes[:q], torch.maximum(variances[:q], floor), noise)
    return model, variances.sum()


def fit_ppca_observed(rows, n_components, rounding, *, tol, max_iter, start=None):
    """Maximum likelihood PPCA from the observed values of rows.

    EM with the missing values alone as what is not known: the M-step is the closed form (`fit_ppca`) with the expected
    moments of the rows, so that one step solves a table without missing values. Of the codes nothing is estimated.

    Parameters
    ----------
    rows : PatternRows
        Of the full covariance type, in the units of the data but for a common factor.
    n_components : int
    rounding : Rounding
        That of the data.
    tol : float
        EM stops when the mean log-likelihood of a row gains less, in nats.
    max_iter : int
    start : PPCA, optional
        Independent values of unit variance if not given.

    Returns
    -------
    fit : ObservedFit
        Its variances count the rows less one, as `fit_ppca` does; the noise and the axes are those of the maximum.
    """
    n_features = rows.x.shape[1]
    if start is None:
        ones = rows.x.new_ones(n_features)
        start = PPCA(0 * ones, torch.eye(1, n_features, dtype=ones.dtype, device=ones.device), ones[:1], ones[0])
    fit = partial(fit_ppca, n_components=n_components, rounding=rounding)
    model, steps, bounds, converged, weight = start, _Steps(), [], False, None

    def bound_of(total):
        return total / rows.total_weight + rows.log_scale

    def falls(total):
        return steps.fallback is not None and bool(bounds) and not bound_of(total) >= bounds[-1]

    for _ in range(max_iter):
        step = _observed_step(rows, model, steps, fit, falls, weight)
        if step is None:
            model = steps.reject()
            continue
        if not step.is_finite:
            raise ValueError(OVERFLOW)
        spectrum, after, weight, bound = step.spectrum, step.model, step.weight, bound_of(step.total)
        bounds.append(bound)
        if len(bounds) > 1 and steps.fallback is None and bound - bounds[-2] < tol:
            converged = True
            break
        model = steps.propose(model, after, step.leap)
    final, total_variance = fit(*spectrum, weight)
    return ObservedFit(final._replace(mean=after.mean), total_variance, bounds, converged)


class _ObservedStep(NamedTuple):
    """A step of EM, and what the host has read of it."""

    spectrum: tuple  # sums of squares, and axes
    model: PPCA
    leap: PPCA | None  # extrapolated from the steps so far
    total: float  # log-likelihood of the rows before the step
    weight: float  # of the rows
    is_finite: bool


def _observed_step(rows, model, steps, fit, falls, weight=None):
    """One step of EM, or None where the likelihood falls: beside decompositions, the host waits for the device once.

    Parameters
    ----------
    rows : PatternRows
    model : PPCA
    steps : _Steps
    fit : callable
        `fit_ppca` of given squares, axes and weight.
    falls : callable, float -> bool
        Whether the model is to be rejected for this log-likelihood.
    weight : float, optional
        That of the rows, which is the same in all steps; it is read if not given.
    """
    moments, means, total, _, failed = rows.e_step_sums([model.as_mixture()])[0]
    if total.device.type == "cpu" and not failed and falls(float(total)):  # where reading costs nothing
        return None
    weight = float(moments.weight[0]) if weight is None else weight
    shift = moments.first[0] / moments.weight[0]
    scatter = moments.second[0] - weight * shift.outer(shift)
    is_finite = scatter.isfinite().all()
    spectrum = _spectrum(torch.where(is_finite, scatter, 0.0))
    # All rows count while EM runs.
    after = fit(*spectrum, weight + 1)[0]._replace(mean=means[0] + shift)
    leap, is_usable = steps.leap(model, after) or (None, None)
    (total,), (failed,), (is_finite,), is_usable = read_numbers(total, failed, is_finite, is_usable)
    if failed:
        rows.check_roots()
        return _observed_step(rows, model, steps, fit, falls)
    if falls(total):
        return None
    return _ObservedStep(spectrum, after, leap if any(is_usable) else None, total, weight, is_finite)


class _Steps:
    """Squared extrapolation of EM steps (Varadhan and Roland 2008, scheme S3) on means and logarithms of covariances.

    After two steps of EM a third is leapt to; if the likelihood is lower there, EM goes on from where it was.
    """

    def __init__(self):
        self.path, self.fallback = [], None

    def reject(self):
        """Give up the leap: the model that EM had reached."""
        model, self.fallback, self.path = self.fallback, None, []
        return model

    def propose(self, before, after, leap):
        """The model to go on from after a step of EM; ``leap`` is the extrapolated one, if it can be used."""
        path = self._extended(before, after)
        self.path, self.fallback = (path, None) if len(path) < 3 else ([], after if leap else None)
        return leap or after

    def _extended(self, before, after):
        return [*(self.path or [before]), after]

    def leap(self, before, after):
        """The extrapolated model, and whether it can be used (), where a step of EM completes a path; else None."""
        path = self._extended(before, after)
        if len(path) < 3:
            return None
        zero, one, two = (torch.cat([model.mean[None], _log_covariance(model)]) for model in path)
        step, curve = one - zero, two - 2 * one + zero
        scale = (step.norm() / curve.norm()).clamp(min=1.0)
        leap = zero + 2 * scale * step + scale**2 * curve
        is_finite = torch.isfinite(scale) & torch.isfinite(leap).all()
        logs, vectors = torch.linalg.eigh(torch.where(is_finite, leap[1:], 0.0))
        variances, n_components = logs.exp().flip(0), len(after.variances)
        rest = variances[n_components:]
        noise = rest.mean() if len(rest) else after.noise_variance
        model = PPCA(leap[0], vectors.flip(1).mT[:n_components], variances[:n_components], noise)
        return model, is_finite & torch.isfinite(variances).all() & (variances[-1] > 0)


def _log_covariance(model):
    """Logarithm of the covariance of a model (d, d)."""
    ratios = model.variances.log()
    if len(model.axes) < model.axes.shape[1]:
        noise, n_features = model.noise_variance.log(), model.axes.shape[1]
        identity = torch.eye(n_features, dtype=noise.dtype, device=noise.device)
        return (model.axes.mT * (ratios - noise)) @ model.axes + noise * identity
    return (model.axes.mT * ratios) @ model.axes


def choose_observed(rows, n_components, rounding, *, tol, max_iter):
    """As `choose_components`, from the maximum likelihood covariance of rows with missing values, and that fit.

    Parameters
    ----------
    rows : PatternRows
    n_components : float or None
    rounding : Rounding
    tol : float
    max_iter : int
    """
    n_features = rows.x.shape[1]
    full = fit_ppca_observed(rows, n_features, rounding, tol=tol, max_iter=max_iter)
    return choose_components(n_components, full.model.variances, rows.total_weight, rounding), full
