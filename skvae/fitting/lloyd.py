"""k-means: seeding, and Lloyd's algorithm on growing samples."""

import math
from functools import partial

import torch

from .devices import read, to_device
from .nearest import HamerlySums, assign, cluster_sums, squared_residuals
from .weighted_rows import MIN_SAMPLE_PER_CLUSTER, WeightedRows, count_distinct, draw_rows, project, rows_at_quantiles

MIN_BOUNDED_SCORES = 100_000  # scores in an iteration from which bounds save more than they cost, on a CPU
SAMPLE_GROWTH = 4  # of the samples of `kmeans`, from one to the next
N_SEEDINGS, SEEDING_ITERATIONS = 3, 8  # of the smallest sample
MAX_DRAWS = 20  # attempts to draw distinct rows


def kmeans_plusplus(rows, n_clusters, generator, global_order=None):
    """Choose rows far from one another as centres, by greedy k-means++ (Arthur and Vassilvitskii 2007).

    Each new centre is the best of ``2 + log(n_clusters)`` candidates drawn with probability proportional to the
    squared distance to the nearest centre, times the weight of the row. A row of zero weight is never chosen.

    Parameters
    ----------
    rows : WeightedRows
        Best centred.
    n_clusters : int
    generator : torch.Generator
    global_order : tuple of Tensor, optional
        Result of `WeightedRows.global_order`, if it is known.

    Returns
    -------
    indices : Tensor of shape (n_clusters,)
        Among the rows of all processes.
    """
    x, group, n_trials = rows.x, rows.group, 2 + int(math.log(n_clusters))
    order, global_weight, _ = global_order or rows.global_order()
    weight = rows.wide_weight()
    global_weight = global_weight.to(weight)
    squares = torch.linalg.vector_norm(x, dim=1).square_()
    noise = 8 * torch.finfo(x.dtype).eps * squares  # a distance below this is rounding
    sizes = [1] + [n_trials] * (n_clusters - 1)
    draws = torch.cat([torch.rand(size, dtype=torch.float64, generator=generator) for size in sizes])
    first, *others = to_device(draws.to(weight.dtype), x.device).split(sizes)
    chosen = [rows_at_quantiles(order, global_weight, first)]
    nearest = _distances_with(x, squares, rows.take_global(chosen[0]), torch.full_like(squares, torch.inf))[0]
    for quantiles in others:
        mass = group.all_gather(torch.where(nearest > noise, nearest, 0) * weight)
        mass = torch.where(mass.any(), mass, global_weight)  # every row coincides with a centre
        candidates = rows_at_quantiles(order, mass, quantiles)
        distances = _distances_with(x, squares, rows.take_global(candidates), nearest)
        (inertias,) = group.all_reduce_sum(distances.to(weight) @ weight)
        best = inertias.argmin(0, keepdim=True)
        chosen.append(candidates.index_select(0, best))
        nearest = distances.index_select(0, best).squeeze(0)
    return torch.cat(chosen)


def _distances_with(x, squares, candidates, nearest):
    """Compute squared distances of the rows to their nearest centres with each of c candidates added (c, n)."""
    distances = torch.addmm(candidates.square().sum(1, keepdim=True), candidates, x.T, alpha=-2).add_(squares)
    return torch.minimum(distances.clamp_(min=0), nearest, out=distances)


def draw_distinct_rows(rows, n_clusters, generator):
    """Draw rows with probability proportional to weight (n_clusters,), distinct ones if there are enough.

    Parameters
    ----------
    rows : WeightedRows
    n_clusters : int
    generator : torch.Generator

    Returns
    -------
    indices : Tensor of shape (n_clusters,)
        Among the rows of all processes.
    """
    order, weight, _ = rows.global_order()
    drawn = draw_rows(order, weight, n_clusters, generator)
    for _ in range(MAX_DRAWS):
        positions = _first_occurrences(rows.take_global(drawn).cpu())
        distinct = drawn[to_device(positions[:n_clusters], drawn.device)]
        if len(positions) >= n_clusters:
            return distinct
        drawn = torch.cat([distinct, draw_rows(order, weight, n_clusters, generator)])
    return drawn[:n_clusters]


def _first_occurrences(x):
    """Return the ascending positions of the first occurrence of each distinct row."""
    positions = {}
    for position, label in enumerate(x.unique(dim=0, return_inverse=True)[1].tolist()):
        positions.setdefault(label, position)
    return torch.tensor([*positions.values()])


def lloyd(rows, centers, *, max_iter=300, tol=1e-4):
    """Improve centres by Lloyd's algorithm (Lloyd 1982).

    The centre of an empty cluster moves to the row that is farthest from all centres. The rows nearest to it leave
    other clusters in the next iteration.

    Parameters
    ----------
    rows : WeightedRows
        Best centred.
    centers : Tensor of shape (k, d)
        Initial centres.
    max_iter : int
        Largest number of iterations.
    tol : float
        Stop when the squared movement of the centres is at most this share of the mean variance of the features.

    Returns
    -------
    centers : Tensor of shape (k, d)
    labels : Tensor of shape (n,)
    """
    centers, label = _lloyd(rows, centers, max_iter=max_iter, tol=tol)
    return centers, label(centers)


def _lloyd(rows, centers, *, max_iter=300, tol=1e-4):
    """Return the centres of `lloyd`, and a function for the labels of the rows from these centres."""
    x, weight, group = rows
    threshold = tol * _mean_variance(rows) if tol else 0.0
    bounded = x.device.type == "cpu" and len(x) * len(centers) >= MIN_BOUNDED_SCORES
    sums_of = HamerlySums(x, weight) if bounded else partial(cluster_sums, x, weight=weight)
    for _ in range(max_iter):
        sums, counts = group.all_reduce_sum(*sums_of(centers))
        moved = torch.where(counts[:, None] > 0, (sums / counts[:, None]).to(centers), centers)
        has_converged, has_empty = read([squared_shift(moved, centers) <= threshold, ~(counts > 0).all()])
        if has_empty:
            moved = _move_empty_centers(rows, moved, counts == 0)
            (has_converged,) = read([squared_shift(moved, centers) <= threshold])
        centers = moved
        if has_converged:
            break
    return centers, sums_of.assign if bounded else partial(assign, x)


def squared_shift(moved, centers):
    """Return the squared movement of the centres."""
    return (moved - centers).square().sum()


def kmeans(rows, n_clusters, generator):
    """Cluster by k-means++ and Lloyd's algorithm, first on samples of the rows and then on all of them.

    The samples grow by a factor, and each is initialized with the centres of the previous one; the smallest is seeded a
    few times. The result is a fixed point of Lloyd's algorithm on all rows, to its tolerance, but most iterations are
    made with few rows.

    Parameters
    ----------
    rows : WeightedRows
        Best centred. Every process has the smallest sample, and its share of the others.
    n_clusters : int
    generator : torch.Generator

    Returns
    -------
    centers : Tensor of shape (k, d)
    labels : Tensor of shape (n,)
    """
    x, _, group = rows
    order, weight, projections = global_order = rows.global_order()
    # Equal rows count once, as one row with their weight would.
    sizes, size = [], count_distinct(projections[order]) // SAMPLE_GROWTH
    while size >= MIN_SAMPLE_PER_CLUSTER * n_clusters:
        sizes, size = [size, *sizes], size // SAMPLE_GROWTH
    if not sizes:
        return lloyd(rows, rows.take_global(kmeans_plusplus(rows, n_clusters, generator, global_order)))
    weight = None if rows.weight is None else weight
    sample = rows.take_global(draw_rows(order, weight, sizes[0], generator, stratified=True))
    centers, _ = _lloyd(WeightedRows(sample), _best_seeding(WeightedRows(sample), n_clusters, generator))
    centers, offset = group.broadcast(centers), group.row_offset(len(x))
    for size in sizes[1:]:
        own, _ = group.shard_indices(draw_rows(order, weight, size, generator, stratified=True), offset, len(x))
        sample = WeightedRows(x.index_select(0, own), None, group)
        if not len(own):  # a row of zero weight is a placeholder
            sample = WeightedRows(x[:1], projections.new_zeros(1), group)
        centers, _ = _lloyd(sample, centers)
    return lloyd(rows, centers)


def _best_seeding(rows, n_clusters, generator):
    """Return the centres with the lowest inertia after a few iterations from each of a few seedings."""
    candidates, inertias, global_order = [], [], rows.global_order()
    for _ in range(N_SEEDINGS):
        seeds = rows.x[kmeans_plusplus(rows, n_clusters, generator, global_order)]
        centers, labels = lloyd(rows, seeds, max_iter=SEEDING_ITERATIONS)
        candidates.append(centers)
        inertias.append(squared_residuals(rows.x, centers, labels).sum())
    inertias = read(inertias)
    return candidates[inertias.index(min(inertias))]


def _mean_variance(rows):
    """Return the mean variance of the features of centred rows."""
    x, weight = rows.x, rows.wide_weight()
    squares, sums, total = rows.group.all_reduce_sum(
        torch.linalg.vector_norm(x, dim=1).square_().to(weight) @ weight, (weight.to(x) @ x).to(weight), weight.sum()
    )
    squares, mean = squares / total, sums / total
    variances = squares - mean.square().sum()
    return torch.where(variances > 0, variances, 0) / x.shape[1]


def _move_empty_centers(rows, centers, empty):
    """Move the centres of empty clusters, one after another, to the row that is farthest from all centres.

    Rows that are equally far up to rounding are told apart by their projections, so that the choice does not depend on
    their order. A centre stays where it is when every row coincides with a centre.
    """
    x, weight, group = rows
    centers, distances = centers.clone(), squared_residuals(x, centers, assign(x, centers))
    noise = torch.linalg.vector_norm(x, dim=1).mul_(8 * torch.finfo(x.dtype).eps).square_()
    counted = torch.ones_like(distances, dtype=torch.bool) if weight is None else weight > 0
    projections = project(x)
    for cluster in empty.nonzero().flatten().tolist():
        distances = torch.where(counted & (distances > noise), distances, 0)
        largest = group.all_gather(distances.max()[None]).max()
        if not largest > 0:
            break
        scores = torch.where(distances >= largest * (1 - 1e-6), projections, -torch.inf)
        candidate = scores.argmax()  # of this process
        best = group.all_gather(scores[candidate, None]).argmax()
        centers[cluster] = group.all_gather(x[candidate, None])[best]
        to_center = squared_residuals(x, centers[cluster, None], torch.zeros_like(projections).long())
        distances = torch.minimum(distances, to_center)
    return centers
