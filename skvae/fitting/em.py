"""Expectation-maximisation for Gaussian mixtures, over row chunks."""

from functools import reduce
from typing import NamedTuple

import torch

from ..models.covariances import Mixture
from ..models.moments import Moments

CHUNK_ELEMENTS = 2**21  # about 16 MiB of float64 for the rows or the responsibilities of a chunk


class MixtureFit(NamedTuple):
    """What EM found: the parameters, the lower bound after each iteration, and whether it settled."""

    mixture: Mixture
    lower_bounds: list
    converged: bool


def row_chunks(n_rows, n_columns, chunk_size=None):
    """Slices that cover the rows; without a chunk size, as many rows as make a chunk of moderate size."""
    chunk_size = chunk_size or max(256, CHUNK_ELEMENTS // n_columns)
    return [slice(start, start + chunk_size) for start in range(0, n_rows, chunk_size)]


def e_step(x, mixture, family):
    """Log-likelihood (n,) and log-responsibilities (n, k) of rows."""
    joint = mixture.log_weights + family.log_prob(x, mixture.means, mixture.factor)
    evidence = joint.logsumexp(1)
    return evidence, joint - evidence[:, None]


def gather_moments(x, resp_of, means, family, chunks):
    """Moments of all rows about the means, summed over chunks in float64.

    Parameters
    ----------
    resp_of : callable, slice -> Tensor (b, k)
        Responsibilities of the rows in a slice.
    """
    parts = (family.moments(x[rows], resp_of(rows), means).to(_statistics(x)) for rows in chunks)
    return reduce(Moments.merge, parts)


def m_step(moments, means, family, reg_covar):
    """Maximum likelihood mixture from moments about the means of the last one.

    Raises
    ------
    ValueError
        If a covariance is not positive definite.
    """
    # An empty component keeps its mean, and divides by a number that is not zero.
    tiny = 10 * torch.finfo(moments.weight.dtype).eps
    moments = moments._replace(weight=moments.weight + tiny)
    covariances = family.estimate(moments, reg_covar)
    factor, positive = family.factor(covariances)
    if not positive.all():
        components = (~positive).nonzero().flatten().tolist()
        raise ValueError(
            f"The covariances of components {components} are not positive definite: too few distinct rows, or linearly "
            "dependent features, for this many components. Increase reg_covar, decrease n_components, use a simpler "
            "covariance_type, or scale the input data."
        )
    return Mixture(
        (moments.weight / moments.weight.sum()).log(),
        means.to(moments.first) + moments.first / moments.weight[:, None],
        covariances,
        factor,
    )


def start_mixture(x, resp_of, n_components, family, reg_covar, chunk_size=None):
    """The mixture that responsibilities imply: an M-step from the mean of the data."""
    chunks = row_chunks(*_sizes(x, n_components), chunk_size)
    means = x.new_zeros(n_components, x.shape[1])
    return m_step(gather_moments(x, resp_of, means, family, chunks), means, family, reg_covar)


def fit_mixture(x, mixture, family, *, tol, max_iter, reg_covar, chunk_size=None, report=None):
    """Run EM from a mixture until the mean log-likelihood gains less than ``tol``.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Rows, best centred.
    mixture : Mixture
        Where to start.
    report : callable, optional
        Called after each iteration with its number, the lower bound and its gain.

    Returns
    -------
    fit : MixtureFit
        Parameters in float64. A lower bound is the mean log-likelihood of a row before its iteration's M-step, as
        scikit-learn counts it.
    """
    chunks = row_chunks(*_sizes(x, len(mixture.means)), chunk_size)
    lower_bounds, previous, converged = [], -torch.inf, False
    while len(lower_bounds) < max_iter and not converged:
        current, total = mixture.to(x), 0.0

        def resp_of(rows, current=current):
            nonlocal total
            evidence, log_resp = e_step(x[rows], current, family)
            total = total + evidence.sum(dtype=_statistics(x).dtype)
            return log_resp.exp()

        moments = gather_moments(x, resp_of, current.means, family, chunks)
        mixture = m_step(moments, current.means, family, reg_covar)
        lower_bound = float(total) / len(x)
        gain, previous = lower_bound - previous, lower_bound
        lower_bounds.append(lower_bound)
        converged = abs(gain) < tol
        if report is not None:
            report(len(lower_bounds), lower_bound, gain)
    return MixtureFit(mixture, lower_bounds, converged)


def _sizes(x, n_components):
    return len(x), max(x.shape[1], n_components)


def _statistics(x):
    """An empty tensor like those of sums: float64, on the CPU where the device of x has no float64."""
    return torch.empty(0, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
