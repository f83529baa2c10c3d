"""Rows with weights: their canonical order, and draws with probability proportional to the weights."""

from typing import NamedTuple

import torch

from .devices import to_device, wide_dtype
from .distributed import SINGLE_PROCESS, Collectives
from .rows import row_chunks

PROJECTION_BYTES = 2**20  # rows that are projected at once, in float64
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}  # differences of projections, as a share of the largest
MAX_SAMPLE_ROWS, MAX_SAMPLE_BYTES = 100_000, 2**26  # limits of a sample of streamed rows
MIN_SAMPLE_PER_CLUSTER = 40  # which nevertheless has so many rows for each cluster or component


class WeightedRows(NamedTuple):
    """Rows and their weights, and the processes that have shards of them."""

    x: torch.Tensor  # (n, d); LazyRows where these are allowed
    weight: torch.Tensor | None = None  # (n,), nonnegative and not all zero; an integer weight is as many equal rows
    group: Collectives = SINGLE_PROCESS

    def wide_weight(self):
        """Return the weights in the wide dtype (n,), ones if there are none."""
        wide = wide_dtype(self.x)
        if self.weight is None:
            return torch.ones(len(self.x), dtype=wide, device=self.x.device)
        return self.weight.to(wide)

    def gather(self):
        """Return the rows of all processes."""
        if self.group.size == 1:
            return self
        weight = None if self.weight is None else self.group.all_gather(self.weight)
        return WeightedRows(self.group.all_gather(self.x), weight)

    def take_global(self, indices):
        """Return rows (b, d) by their indices among the rows of all processes."""
        return self.group.take_global(self.x, indices)

    def global_order(self):
        """Return the canonical order of the rows of all processes, their weights, and their projections."""
        projections = self.group.all_gather(project(self.x))
        if self.weight is None:
            weight = torch.ones(len(projections), dtype=wide_dtype(self.x), device=self.x.device)
            return argsort(projections), weight, projections
        weight = self.group.all_gather(self.weight)
        return _order(projections, weight), weight, projections


def projection(x):
    """Return a fixed direction (d,) along which distinct rows almost surely differ."""
    generator = torch.Generator().manual_seed(0)
    return to_device(torch.randn(x.shape[1], dtype=torch.float64, generator=generator).to(wide_dtype(x)), x.device)


def project(x, unit=1.0):
    """Project the rows, in units of each feature, on the fixed direction (n,)."""
    direction = projection(x) / unit
    chunks = row_chunks(len(x), x.shape[1], n_bytes=PROJECTION_BYTES)
    return torch.cat([x[rows].to(direction) @ direction for rows in chunks])


def canonical_order(x, weight=None, unit=1.0):
    """Return the indices of the rows of positive weight, in an order that does not depend on that of the rows.

    With units of the features, (d,), it does not depend on the scale of the features either.

    Rows are sorted by their projection on a fixed direction, so that equal rows are neighbours. A draw along this order
    with probability proportional to weight is the same for a row of weight two as for two equal rows.
    """
    return _order(project(x, unit), weight)


def argsort(values):
    """Return the indices (n,) that sort values (n,), equal ones in any order."""
    if values.device.type == "cpu":  # NumPy is faster on many CPUs
        return torch.from_numpy(values.numpy().argsort())
    return values.argsort()


def _order(projections, weight):
    order = argsort(projections)
    return order if weight is None else order[weight[order] > 0]


def count_distinct(projections):
    """Count the distinct values among sorted projections (m,), up to rounding."""
    rounding = ROUNDING[projections.dtype] * projections.abs().max()
    return 1 + int((projections.diff() > rounding).sum())


def draw_rows(order, weight, n_draws, generator, *, stratified=False):
    """Draw the indices of rows (n_draws,), with replacement and with probability proportional to weight.

    Parameters
    ----------
    order : Tensor of shape (m,)
        Canonical order of the rows.
    weight : Tensor of shape (n,) or None
        Nonnegative, and positive somewhere along the order; None: all one.
    n_draws : int
    generator : torch.Generator
    stratified : bool
        Draw one row from each of n_draws parts of the order of equal weight.
    """
    quantiles = torch.rand(n_draws, dtype=torch.float64, generator=generator)
    quantiles = (torch.arange(n_draws) + quantiles) / n_draws if stratified else quantiles
    return rows_at_quantiles(order, weight, to_device(quantiles.to(wide_dtype(order)), order.device))


def rows_at_quantiles(order, weight, quantiles):
    """Return the rows (m,) at which the cumulative weight along the order passes quantiles (m,), in the wide dtype."""
    if weight is None:
        return order[(quantiles * len(order)).long().clamp_(max=len(order) - 1)]
    cumulative = weight.index_select(0, order).to(quantiles).cumsum(0)
    total = cumulative[-1]
    # Rounding must not carry a draw to the very end, beyond the last row of positive weight.
    draws = torch.minimum(quantiles * total, torch.nextafter(total, torch.zeros_like(total)))
    return order.index_select(0, torch.searchsorted(cumulative, draws, right=True).clamp_(max=len(order) - 1))


def sample_indices(rows, n_clusters, generator):
    """Draw the ascending indices of a sample of rows that is large enough for clustering.

    Parameters
    ----------
    rows : WeightedRows
        May be streamed.
    n_clusters : int
    generator : torch.Generator

    Returns
    -------
    indices : Tensor of shape (m,)
        On the CPU, those of the rows of this process: the samples of all processes together have the size.
    weight : Tensor of shape (m,) or None
        Weights of the sample. None where rows are drawn with probability proportional to weight: each counts one.
    """
    size = min(MAX_SAMPLE_ROWS, MAX_SAMPLE_BYTES // (8 * rows.x.shape[1]))
    size = max(size, MIN_SAMPLE_PER_CLUSTER * n_clusters)
    if sum(rows.group.all_gather_int(len(rows.x))) <= size:
        return torch.arange(len(rows.x)), rows.weight
    return draw_indices(rows, size, generator), None


def draw_indices(rows, size, generator):
    """Draw the ascending indices of rows (size,), one from each of ``size`` parts of equal weight.

    Each of several processes gets those of its own rows; together they are the draws of a single process.
    """
    x, weight, group = rows
    if weight is None:
        n_rows, offset = sum(group.all_gather_int(len(x))), group.row_offset(len(x))
        positions = torch.arange(size) + torch.rand(size, dtype=torch.float64, generator=generator)
        return group.shard_indices((positions * (n_rows / size)).long().clamp_(max=n_rows - 1), offset, len(x))[0]
    if group.size == 1:
        return draw_rows(torch.arange(len(x)), weight.cpu(), size, generator, stratified=True)
    cumulative = weight.cpu().double().cumsum(0)
    ends = group.all_gather(cumulative[-1:]).cumsum(0)  # cumulative weight of the processes
    draws = (torch.arange(size) + torch.rand(size, dtype=torch.float64, generator=generator)) / size * ends[-1]
    ranks = torch.searchsorted(ends, draws, right=True).clamp_(max=group.size - 1)
    own = draws[ranks == group.rank] - (ends[group.rank] - cumulative[-1])
    indices = torch.searchsorted(cumulative, own.clamp_(min=0), right=True)
    # Rounding must not carry a draw beyond the last row of positive weight.
    return indices.clamp_(max=int((weight > 0).nonzero()[-1]))
