"""k-means: order and draws of rows, seeding, Lloyd's iterations."""

import math
from functools import partial

import torch

from .chunks import row_chunks
from .devices import read, to_device, wide_dtype
from .distributed import SINGLE_PROCESS
from .nearest import BoundedRows, assign, cluster_sums, squared_residuals

PROJECT_BYTES = 2**20  # rows that are projected at once, in float64
BOUNDS_FROM = 100_000  # scores in a pass from which bounds save more than they cost, on a CPU
GROWTH, MIN_SAMPLE_PER_CLUSTER = 4, 40  # samples of `kmeans`: from one to the next, and rows for each cluster
N_STARTS, START_ITERATIONS = 3, 8  # starts that it tries with the smallest sample
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}  # share of the projections that can tell no rows apart
MAX_DRAWS = 20  # times that more rows are drawn to find distinct ones


def projection(x):
    """A fixed direction (d,), on which distinct rows hardly ever have the same projection."""
    generator = torch.Generator().manual_seed(0)
    return to_device(torch.randn(x.shape[1], dtype=torch.float64, generator=generator).to(wide_dtype(x)), x.device)


def project(x, unit=1.0):
    """Projections of the rows, in units of each feature, on the fixed direction, (n,)."""
    direction = projection(x) / unit
    chunks = row_chunks(len(x), x.shape[1], n_bytes=PROJECT_BYTES)
    return torch.cat([x[rows].to(direction) @ direction for rows in chunks])


def canonical_order(x, weight=None, unit=1.0):
    """Indices of the rows that count, in an order that depends on the rows and not on where they stand.

    With units of the features, (d,), it does not depend on how they are scaled either.

    Rows are sorted by their projection on a fixed direction, so that equal rows are neighbours. Rows of zero weight are
    left out. What is drawn along this order with probability proportional to the weights is the same for a row of
    weight two and for a row that is there twice.
    """
    return _order(project(x, unit), weight)


def _order(projections, weight):
    order = projections.argsort()
    return order if weight is None else order[weight[order] > 0]


def count_distinct(projections):
    """Number of rows that are told apart by their sorted projections (m,)."""
    rounding = ROUNDING[projections.dtype] * projections.abs().max()
    return 1 + int((projections.diff() > rounding).sum())


def draw_rows(order, mass, n_draws, generator, *, stratified=False):
    """Draw rows with replacement, with probability proportional to mass: their indices (n_draws,).

    Parameters
    ----------
    order : Tensor of shape (m,)
        Canonical order of the rows that can be drawn.
    mass : Tensor of shape (n,)
        Nonnegative; not all are zero along the order.
    n_draws : int
    generator : torch.Generator
    stratified : bool
        One draw from each of n_draws parts of the order of equal mass.
    """
    draws = torch.rand(n_draws, dtype=torch.float64, generator=generator)
    draws = (torch.arange(n_draws) + draws) / n_draws if stratified else draws
    return _rows_at(order, mass, to_device(draws.to(wide_dtype(mass)), mass.device))


def _rows_at(order, mass, shares):
    """Rows at which the cumulative mass along the order passes shares of the total (m,), in the wide dtype."""
    cumulative = mass[order].to(shares).cumsum(0)
    total = cumulative[-1]
    # Rounding must not carry a draw to the very end, behind the last row that has any mass.
    draws = torch.minimum(shares * total, torch.nextafter(total, torch.zeros_like(total)))
    return order[torch.searchsorted(cumulative, draws, right=True).clamp_(max=len(order) - 1)]


def rows_of_all(x, weight=None, group=SINGLE_PROCESS):
    """Canonical order of the rows of all processes, their weights, and their projections."""
    projections = group.all_gather(project(x))
    if weight is None:
        mass = torch.ones(len(projections), dtype=wide_dtype(x), device=x.device)
        return _order(projections, None), mass, projections
    mass = group.all_gather(weight)
    return _order(projections, mass), mass, projections


def seed_centers(x, n_clusters, generator, weight=None, group=SINGLE_PROCESS):
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): indices of rows far from one another (n_clusters,).

    Each new centre is the best of ``2 + log(n_clusters)`` candidates drawn with probability proportional to the
    squared distance to the nearest centre, times the weight of the row. A row of zero weight is never chosen.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Rows, best centred.
    n_clusters : int
    generator : torch.Generator
    weight : Tensor of shape (n,), optional
        Nonnegative weights of the rows, not all zero; an integer weight is as many equal rows.
    group : SingleProcess or Group
        The processes that have shards of the rows; indices are those among the rows of all.
    """
    n_trials, wide = 2 + int(math.log(n_clusters)), wide_dtype(x)
    order, of_all, _ = rows_of_all(x, weight, group)
    of_all = of_all.to(wide)
    weight = torch.ones(len(x), dtype=wide, device=x.device) if weight is None else weight.to(wide)
    squares = torch.linalg.vector_norm(x, dim=1).square_()
    noise = 8 * torch.finfo(x.dtype).eps * squares  # a distance below this is rounding
    sizes = [1] + [n_trials] * (n_clusters - 1)
    draws = torch.cat([torch.rand(size, dtype=torch.float64, generator=generator) for size in sizes])
    first, *others = to_device(draws.to(wide), x.device).split(sizes)
    chosen = [_rows_at(order, of_all, first)]
    nearest = _distances_with(x, squares, group.take_global(x, chosen[0]), torch.full_like(squares, torch.inf))[0]
    for shares in others:
        mass = group.all_gather(torch.where(nearest > noise, nearest, 0) * weight)
        mass = torch.where(mass.any(), mass, of_all)  # every row coincides with a centre
        candidates = _rows_at(order, mass, shares)
        distances = _distances_with(x, squares, group.take_global(x, candidates), nearest)
        (left,) = group.all_reduce_sum(distances.to(wide) @ weight)
        best = left.argmin(0, keepdim=True)
        chosen.append(candidates.index_select(0, best))
        nearest = distances.index_select(0, best).squeeze(0)
    return torch.cat(chosen)


def _distances_with(x, squares, candidates, nearest):
    """Squared distance of each row to the nearest centre if a candidate became one, (c, n) for c candidates."""
    distances = torch.addmm(candidates.square().sum(1, keepdim=True), candidates, x.T, alpha=-2).add_(squares)
    return torch.minimum(distances.clamp_(min=0), nearest, out=distances)


def distinct_rows(x, n_clusters, generator, weight=None, group=SINGLE_PROCESS):
    """Indices of rows drawn with probability proportional to weight (n_clusters,), distinct if that many are found."""
    order, mass, _ = rows_of_all(x, weight, group)
    drawn = draw_rows(order, mass, n_clusters, generator)
    for _ in range(MAX_DRAWS):
        firsts = _first_places(group.take_global(x, drawn).cpu())
        distinct = drawn[to_device(firsts[:n_clusters], drawn.device)]
        if len(firsts) >= n_clusters:
            return distinct
        drawn = torch.cat([distinct, draw_rows(order, mass, n_clusters, generator)])
    return drawn[:n_clusters]


def _first_places(x):
    """Where each distinct row is for the first time, ascending."""
    places = {}
    for place, kind in enumerate(x.unique(dim=0, return_inverse=True)[1].tolist()):
        places.setdefault(kind, place)
    return torch.tensor([*places.values()])


def lloyd(x, centers, *, max_iter=300, tol=1e-4, weight=None, group=SINGLE_PROCESS):
    """Lloyd's algorithm from given centres (Lloyd 1982).

    A centre that no row is nearest to moves to the row that is farthest from all centres. The rows that it then takes
    from others leave them in the next iteration.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Rows, best centred.
    centers : Tensor of shape (k, d)
    max_iter : int
        Largest number of iterations.
    tol : float
        Stops when the squared movement of the centres is at most this share of the mean variance of the features.
    weight : Tensor of shape (n,), optional
        Nonnegative weights of the rows, not all zero; an integer weight is as many equal rows.
    group : SingleProcess or Group
        The processes that have shards of the rows.

    Returns
    -------
    centers : Tensor of shape (k, d)
    labels : Tensor of shape (n,)
    """
    threshold = tol * _mean_variance(x, weight, group) if tol else 0.0
    bounded = x.device.type == "cpu" and len(x) * len(centers) >= BOUNDS_FROM
    sums_of = BoundedRows(x, weight).sums if bounded else partial(cluster_sums, x, weight=weight)
    for _ in range(max_iter):
        sums, counts = group.all_reduce_sum(*sums_of(centers))
        moved = torch.where(counts[:, None] > 0, (sums / counts[:, None]).to(centers), centers)
        stops, has_empty = read([squared_shift(moved, centers) <= threshold, ~(counts > 0).all()])
        if has_empty:
            moved = _relocate(x, moved, counts == 0, weight, group)
            (stops,) = read([squared_shift(moved, centers) <= threshold])
        centers = moved
        if stops:
            break
    return centers, assign(x, centers)


def squared_shift(moved, centers):
    """Squared movement of the centres."""
    return (moved - centers).square().sum()


def kmeans(x, n_clusters, generator, weight=None, group=SINGLE_PROCESS):
    """k-means++ and Lloyd's algorithm, first on samples of the rows and then on all of them.

    The samples grow by a factor, and each starts from the centres of the one before; the smallest one tries a few
    seedings. The result is a fixed point of Lloyd's algorithm on all rows, to its tolerance, but most iterations are
    made with few rows.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Rows, best centred.
    n_clusters : int
    generator : torch.Generator
    weight : Tensor of shape (n,), optional
        Nonnegative weights of the rows, not all zero; an integer weight is as many equal rows.
    group : SingleProcess or Group
        The processes that have shards of the rows. All have the smallest sample, and parts of the others.

    Returns
    -------
    centers : Tensor of shape (k, d)
    labels : Tensor of shape (n,)
    """
    order, mass, projections = rows_of_all(x, weight, group)
    sizes, size = [], count_distinct(projections[order]) // GROWTH  # equal rows count once, as one with a weight would
    while size >= MIN_SAMPLE_PER_CLUSTER * n_clusters:
        sizes, size = [size, *sizes], size // GROWTH
    if not sizes:
        chosen = seed_centers(x, n_clusters, generator, weight, group)
        return lloyd(x, group.take_global(x, chosen), weight=weight, group=group)
    sample = group.take_global(x, draw_rows(order, mass, sizes[0], generator, stratified=True))
    centers, _ = lloyd(sample, _best_start(sample, n_clusters, generator))
    centers, start = group.broadcast(centers), group.row_offset(len(x))
    for size in sizes[1:]:
        drawn, _ = group.shard_indices(draw_rows(order, mass, size, generator, stratified=True), start, len(x))
        own = {} if len(drawn) else {"weight": mass.new_zeros(1)}  # a row of no weight stands for none
        centers, _ = lloyd(x.index_select(0, drawn) if len(drawn) else x[:1], centers, group=group, **own)
    return lloyd(x, centers, weight=weight, group=group)


def _best_start(x, n_clusters, generator):
    """Centres after a few iterations from the best of a few seedings."""
    starts, inertias = [], []
    for _ in range(N_STARTS):
        centers, labels = lloyd(x, x[seed_centers(x, n_clusters, generator)], max_iter=START_ITERATIONS)
        starts.append(centers)
        inertias.append(squared_residuals(x, centers, labels).sum())
    inertias = read(inertias)
    return starts[inertias.index(min(inertias))]


def _mean_variance(x, weight=None, group=SINGLE_PROCESS):
    """Mean over the features of the variance of the rows, which are centred."""
    weight = torch.ones(len(x), dtype=wide_dtype(x), device=x.device) if weight is None else weight.to(wide_dtype(x))
    squares, sums, total = group.all_reduce_sum(
        torch.linalg.vector_norm(x, dim=1).square_().to(weight) @ weight, (weight.to(x) @ x).to(weight), weight.sum()
    )
    squares, mean = squares / total, sums / total
    variances = squares - mean.square().sum()
    return torch.where(variances > 0, variances, 0) / x.shape[1]


def _relocate(x, centers, empty, weight=None, group=SINGLE_PROCESS):
    """Move empty centres, one after another, to the row that is farthest from all centres.

    Rows that are equally far but for rounding are told apart by their projection, so that the choice does not depend on
    the order of the rows. A centre stays where it is when every row coincides with a centre.
    """
    centers, distances = centers.clone(), squared_residuals(x, centers, assign(x, centers))
    noise = torch.linalg.vector_norm(x, dim=1).mul_(8 * torch.finfo(x.dtype).eps).square_()
    counted = torch.ones_like(distances, dtype=torch.bool) if weight is None else weight > 0
    projections = project(x)
    for cluster in empty.nonzero().flatten().tolist():
        distances = torch.where(counted & (distances > noise), distances, 0)
        largest = group.all_gather(distances.max()[None]).max()
        if not largest > 0:
            break
        places = torch.where(distances >= largest * (1 - 1e-6), projections, -torch.inf)
        row = places.argmax()  # the candidate of this process
        best = group.all_gather(places[row, None]).argmax()
        found = group.all_gather(x[row, None])[best]
        centers[cluster] = found
        distances = torch.minimum(distances, squared_residuals(x, found[None], torch.zeros_like(projections).long()))
    return centers
