"""k-means: seeding, Lloyd's iterations, and the sums that they are made of."""

import math

import torch

from .rows import row_chunks

CHUNK_BYTES = 2**20  # scores of a chunk, (k, b), should stay in a cache
DEVICE_CHUNK_BYTES = 2**27  # on an accelerator, few large products
MAX_PRODUCT = 32  # with more clusters than this a CPU adds rows by index, which is less work
MIN_SAMPLE_PER_CLUSTER = 100  # rows for each cluster in the smallest subsample that `kmeans` begins with


def squared_distances(x, centers):
    """Squared Euclidean distances (n, k), never negative; x should be centred."""
    squares = x.square().sum(1, keepdim=True)
    return torch.addmm(squares, x, centers.T, alpha=-2).add_(centers.square().sum(1)).clamp_(min=0)


def canonical_order(x, weight=None):
    """Indices of the rows that count, in an order that depends on the rows and not on where they stand.

    Rows are sorted by their projection on a fixed direction, so that equal rows are neighbours. Rows of zero weight are
    left out. What is drawn along this order with probability proportional to the weights is the same for a row of
    weight two and for a row that is there twice.
    """
    order = _projections(x).argsort()
    return order if weight is None else order[weight[order] > 0]


def _projections(x):
    """Projections of the rows on a fixed direction, (n,), in float64 so that hardly any rows coincide by rounding."""
    dtype = _wide(x)
    direction = torch.randn(x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = direction.to(x.device, dtype)
    return torch.cat([x[rows].to(dtype) @ direction for rows in row_chunks(len(x), x.shape[1], n_bytes=CHUNK_BYTES)])


def draw_rows(order, mass, n_draws, generator):
    """Draw rows with replacement, with probability proportional to mass: their indices (n_draws,).

    Parameters
    ----------
    order : Tensor of shape (m,)
        Canonical order of the rows that can be drawn.
    mass : Tensor of shape (n,)
        Nonnegative; not all are zero along the order.
    """
    cumulative = mass[order].to(_wide(mass)).cumsum(0)
    draws = torch.rand(n_draws, dtype=torch.float64, generator=generator).to(cumulative) * cumulative[-1]
    # Rounding must not carry a draw to the very end, behind the last row that has any mass.
    draws = torch.minimum(draws, torch.nextafter(cumulative[-1], torch.zeros_like(cumulative[-1])))
    return order[torch.searchsorted(cumulative, draws, right=True).clamp_(max=len(order) - 1)]


def seed_centers(x, n_clusters, generator, weight=None):
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
    """
    n_trials = 2 + int(math.log(n_clusters))
    weight = x.new_ones(len(x)) if weight is None else weight.to(x)
    order = canonical_order(x, weight)
    squares = torch.linalg.vector_norm(x, dim=1).square_()
    noise = 8 * torch.finfo(x.dtype).eps * squares  # a distance below this is rounding
    chosen = draw_rows(order, weight, 1, generator)
    nearest = _nearer(x, squares, x[chosen], torch.full_like(squares, torch.inf))[0]
    while len(chosen) < n_clusters:
        nearest = torch.where(nearest > noise, nearest, 0)
        mass = nearest * weight
        mass = mass if mass.any() else weight  # every row coincides with a centre
        candidates = draw_rows(order, mass, n_trials, generator)
        distances = _nearer(x, squares, x[candidates], nearest)
        best = int((distances.to(_wide(x)) @ weight.to(_wide(x))).argmin())
        chosen, nearest = torch.cat([chosen, candidates[best : best + 1]]), distances[best]
    return chosen


def _nearer(x, squares, candidates, nearest):
    """Squared distance to the nearest centre (c, n) after each candidate would have become one."""
    offsets = candidates.square().sum(1, keepdim=True)
    products = torch.addmm(offsets, candidates, x.T, alpha=-2)
    return torch.minimum(products.add_(squares).clamp_(min=0), nearest)


def lloyd(x, centers, *, max_iter=300, tol=1e-4, weight=None):
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

    Returns
    -------
    centers : Tensor of shape (k, d)
    labels : Tensor of shape (n,)
    """
    threshold = tol * mean_variance(x, weight) if tol else 0.0
    for _ in range(max_iter):
        sums, counts = cluster_sums(x, centers, weight)
        moved = torch.where(counts[:, None] > 0, (sums / counts[:, None]).to(centers), centers)
        if not (counts > 0).all():
            moved = relocate(x, moved, counts == 0, weight)
        shift, centers = float((moved - centers).square().sum()), moved
        if shift <= threshold:
            break
    return centers, assign(x, centers)[0]


def mean_variance(x, weight=None):
    """Mean over the features of the variance of the rows, which are centred."""
    weight = x.new_ones(len(x)) if weight is None else weight.to(x)
    total = weight.sum(dtype=_wide(x))
    squares = torch.linalg.vector_norm(x, dim=1).square_().mul_(weight).sum(dtype=_wide(x)) / total
    return max(0.0, float((squares - ((weight @ x) / total).square().sum()) / x.shape[1]))


def assign(x, centers):
    """Nearest centre of each row and its squared distance, (n,) each."""
    parts = [squared_distances(x[rows], centers).min(1) for rows in row_chunks(len(x), len(centers))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def cluster_sums(x, centers, weight=None):
    """Weighted sum of the rows nearest to each centre (k, d), and their weight (k,), in float64 where there is one."""
    half_squares = centers.square().sum(1, keepdim=True) / 2
    sums, counts = torch.zeros_like(centers, dtype=_wide(x)), torch.zeros(len(centers), dtype=_wide(x), device=x.device)
    for rows in row_chunks(len(x), len(centers), n_bytes=CHUNK_BYTES if x.device.type == "cpu" else DEVICE_CHUNK_BYTES):
        add_rows(x[rows], None if weight is None else weight[rows].to(x), centers, half_squares, sums, counts)
    return sums, counts


def add_rows(x, weight, centers, half_squares, sums, counts):
    """Add each row of a chunk to the sum, and its weight to the count, of the nearest centre; return the labels."""
    labels = nearest(x, centers, half_squares)
    if x.device.type == "cpu":
        weighted = x if weight is None else x * weight[:, None]
        sums += torch.zeros_like(centers).index_add_(0, labels, weighted)
        counts += torch.bincount(labels, weight, minlength=len(centers))
    else:  # adding by index has no fixed order on an accelerator
        members = (labels == torch.arange(len(centers), device=x.device)[:, None]).to(x.dtype)
        members = members if weight is None else members.mul_(weight)
        sums += members @ x
        counts += members.sum(1)
    return labels


def nearest(x, centers, half_squares):
    """Index of the nearest centre of each row (b,)."""
    # |x - c|^2 / 2 without the part that is the same for every centre
    scores = torch.addmm(half_squares, centers, x.T, alpha=-1)  # (k, b)
    if x.device.type != "cpu":
        return scores.argmin(0)
    # On a CPU the index of a minimum is slow to find. It is the product of all indices with the ones at the minima.
    lowest = torch.le(scores, scores.amin(0), out=torch.empty_like(scores))
    ones = scores.new_ones(len(centers))
    indices, n_lowest = torch.stack([ones.cumsum(0) - 1, ones]) @ lowest
    return indices.long() if n_lowest.sum() == len(x) else scores.argmin(0)


def relocate(x, centers, empty, weight=None):
    """Move empty centres, one after another, to the row that is farthest from all centres.

    Rows that are equally far but for rounding are told apart by their projection, so that the choice does not depend on
    the order of the rows. A centre stays where it is when every row coincides with a centre.
    """
    centers, (labels, distances) = centers.clone(), assign(x, centers)
    distances = (x - centers[labels]).square().sum(1)  # without the rounding of a difference of squares
    noise = (8 * torch.finfo(x.dtype).eps) ** 2 * x.square().sum(1)
    counted = distances.new_ones(len(x), dtype=torch.bool) if weight is None else weight > 0
    projections = _projections(x)
    for cluster in empty.nonzero().flatten():
        distances = torch.where(counted & (distances > noise), distances, 0)
        if not distances.any():
            break
        farthest = distances >= distances.max() * (1 - 1e-6)
        row = torch.where(farthest, projections, -torch.inf).argmax()
        centers[cluster] = x[row]
        distances = torch.minimum(distances, (x - x[row]).square().sum(1))
    return centers


def kmeans(x, n_clusters, generator, weight=None):
    """k-means++ and Lloyd's algorithm: centres (k, d) and labels (n,)."""
    return lloyd(x, x[seed_centers(x, n_clusters, generator, weight)], weight=weight)


def _wide(x):
    """The dtype for sums: float64, but mps has none."""
    return torch.float32 if x.device.type == "mps" else torch.float64
