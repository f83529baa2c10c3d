"""Initialization of EM: responsibilities, and the mixture that they imply."""

from functools import partial
from typing import NamedTuple

import torch

from ..models.covariances import Mixture
from ..models.gaussians import align, copy_to_device
from .devices import to_device
from .distributed import SINGLE_PROCESS, Collectives
from .em_steps import checked_step, nonzero
from .lloyd import draw_distinct_rows, kmeans, kmeans_plusplus
from .nearest import NearestCenters
from .rows import is_lazy
from .weighted_rows import WeightedRows, sample_indices

MAX_GATHERED_ROWS = 2**22  # of all processes, to exchange a number for each; of more rows, a sample is used
FREQUENCY = 1e3  # of random responsibilities: they are unrelated for rows this share of a standard deviation apart
INIT_JITTER = 1e-6  # variances of components that start from one row: they claim the rows nearest to it


def initial_mixture(rows, resp_of, n_components, params=(None,) * 4):
    """Compute the mixture that EM starts from, in the coordinates of the data.

    Parameters
    ----------
    rows : EMRows
    resp_of : callable, slice -> Tensor (b, k), or None
        Responsibilities of the rows of a slice; None where there are all parameters.
    n_components : int
    params : tuple of Tensor or None
        Log-weights, means, covariances and factor that replace those of the responsibilities.

    Returns
    -------
    mixture : Mixture
    """
    if resp_of is None:
        return Mixture(*params).to(rows.x.device)
    implied = mixture_from_resp(rows, resp_of, n_components)
    pairs = zip(params, implied, strict=True)
    return Mixture(*[default if param is None else param.to(default.device) for param, default in pairs])


def mixture_from_resp(rows, resp_of, n_components):
    """Compute the mixture that responsibilities imply, in the coordinates of the data.

    Rows are refined if it needs more digits than they have.
    """
    family = rows.family

    def is_point(mixture):  # but for rounding
        return family.variances(mixture.covariances).amax(1) < INIT_JITTER

    checks = rows.linear_condition_number, rows.is_accurate_for, is_point
    while True:
        step = checked_step(partial(rows.sums_from_resp, resp_of, n_components), rows, *checks)
        if rows.needs_residuals(step.checks[0][0]):
            step = checked_step(partial(rows.sums_from_resp, resp_of, n_components, step.mixture), rows, *checks)
        mixture, (_, (is_accurate,), are_points) = step.mixture, step.checks
        # Whether the covariance of a point is exactly zero depends on rounding.
        if any(are_points):
            covariances = mixture.covariances
            added = family.regularization(INIT_JITTER, family.identity(covariances, rows.n_features))
            covariances = torch.where(align(is_point(mixture), covariances), covariances + added, covariances)
            mixture = mixture._replace(covariances=covariances, factor=family.factor(covariances)[0])
            is_accurate = rows.is_accurate_for(mixture)
        is_singular = not step.regularized <= set(nonzero(are_points))
        if (is_accurate and not is_singular) or not rows.refine():
            return family.unwhiten_mixture(mixture, rows.whitener)


def one_hot(labels, n_components, dtype):
    """Return responsibilities (n, k) of samples in one component each (-1: none)."""
    return (labels[:, None] == torch.arange(n_components, device=labels.device)).to(dtype)


class Sample(NamedTuple):
    """The rows from which responsibilities are drawn."""

    rows: WeightedRows  # (m, d)
    indices: torch.Tensor | None  # (m,) among the rows of all processes; None: these are all rows
    offset: int = 0  # index of the first row of this process among those of all
    group: Collectives = SINGLE_PROCESS  # the processes that have shards of all rows


def draw_responsibilities(name, n_init, rows, n_components, generator):
    """Draw responsibilities for EM to start from, a number of times.

    Parameters
    ----------
    name : str
        One of `INIT_METHODS`.
    n_init : int
    rows : WeightedRows
        Centred. All rows of a tensor are used, but a random sample of lazy ones, or of more than four million rows of
        several processes.
    n_components : int
    generator : torch.Generator

    Returns
    -------
    resp_of : list of callable, slice -> Tensor (b, k)
        Responsibilities of the rows of a slice. A tensor of rows is not needed for them, and may be overwritten.
    """
    x, _, group = rows
    in_memory, offset = not is_lazy(x), group.row_offset(len(x))
    n_rows = sum(group.all_gather_int(len(x)))
    if all(group.all_gather_int(in_memory)) and (group.size == 1 or n_rows <= MAX_GATHERED_ROWS):
        sample = Sample(rows, None, offset, group)
    else:  # the same in all processes
        indices, weight = sample_indices(rows, n_components, generator)
        x = group.all_gather(x[to_device(indices, x.device)] if in_memory else x.take(indices))
        weight = None if weight is None else group.all_gather(weight)
        sample = Sample(WeightedRows(x, weight), group.all_gather(indices + offset), offset, group)
    return [INIT_METHODS[name](rows, sample, n_components, generator) for _ in range(n_init)]


def _kmeans_responsibilities(rows, sample, n_components, generator):
    """Return responsibilities for k-means clusters."""
    centers, labels = kmeans(sample.rows, n_components, generator)
    dtype = rows.x.dtype
    if sample.indices is None:
        return lambda chunk: one_hot(labels[chunk], n_components, dtype)
    nearest = NearestCenters(sample.group.broadcast(centers))
    return lambda chunk: one_hot(nearest(rows.x[chunk]), n_components, dtype)


def _seed_responsibilities(choose, rows, sample, n_components, generator):
    """Return responsibilities that assign one row to each component, whatever the weight of that row."""
    seeds = choose(sample.rows, n_components, generator)
    seeds = seeds if sample.indices is None else to_device(sample.indices, seeds.device)[seeds]
    seeds = sample.group.broadcast(seeds) - sample.offset
    # A row is assigned to one component: equal components would stay equal for ever.
    seeds = seeds.where(~(seeds[:, None] == seeds).triu(1).any(1), -1)
    size, dtype, device = len(rows.x), rows.x.dtype, rows.x.device  # not x itself, whose memory should be freed
    weight = rows.weight

    def resp_of(chunk):
        first, stop, _ = chunk.indices(size)
        n_rows, inside = stop - first, (seeds >= first) & (seeds < stop)
        indices = torch.where(inside, seeds - first, n_rows)  # those of other slices in a row that is cut off
        resp = torch.zeros(n_rows + 1, n_components, dtype=dtype, device=device).scatter_(0, indices[None], 1)[:n_rows]
        return resp if weight is None else resp / weight[chunk, None]

    return resp_of


def _random_responsibilities(rows, sample, n_components, generator):
    """Return random responsibilities, uniform before they are normalized.

    They are a function of the row, of a very high frequency: equal rows have equal ones, in any order and any chunks.
    """
    draws, x, n_features = {"dtype": torch.float64, "generator": generator}, rows.x, rows.x.shape[1]
    sampled, weight, owners = sample.rows
    squares, mass = sampled.square(), float(len(sampled)) if weight is None else weight.sum()
    sums, mass = owners.all_reduce_sum(squares.sum(0) if weight is None else weight @ squares, mass)
    scale = (sums / mass).sqrt()
    drawn = [torch.randn(n_features, **draws), torch.randn(n_components, **draws), torch.rand(n_components, **draws)]
    direction, frequencies, phases = (part.to(sampled) for part in copy_to_device(drawn, sampled.device))
    direction = direction / torch.where(scale > 0, scale, 1.0)
    epsilon = torch.finfo(x.dtype).eps

    def responsibilities(positions):
        resp = (positions[:, None] * (FREQUENCY * frequencies) + phases).remainder(1.0) + epsilon
        return resp / resp.sum(1, keepdim=True)

    if sample.indices is None:
        positions = x @ direction  # the rows themselves will be overwritten
        return lambda chunk: responsibilities(positions[chunk])
    return lambda chunk: responsibilities(x[chunk] @ direction)


# Each returns, for rows and a sample of them, a function from a slice to responsibilities.
INIT_METHODS = {
    "kmeans": _kmeans_responsibilities,
    "k-means++": partial(_seed_responsibilities, kmeans_plusplus),
    "random": _random_responsibilities,
    "random_from_data": partial(_seed_responsibilities, draw_distinct_rows),
}
