"""k-means: seeding and Lloyd's iterations."""

import math

import torch

from .em import row_chunks


def squared_distances(x, centers):
    """Squared Euclidean distances (n, k), never negative; x should be centred."""
    squares = x.square().sum(1, keepdim=True)
    return torch.addmm(squares, x, centers.T, alpha=-2).add_(centers.square().sum(1)).clamp_(min=0)


def seed_centers(x, n_clusters, generator):
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): indices of rows far from one another (n_clusters,).

    Each new centre is the best of ``2 + log(n_clusters)`` candidates drawn with probability proportional to the
    squared distance to the nearest centre.
    """
    n_trials = 2 + int(math.log(n_clusters))
    chosen = [int(torch.randint(len(x), (), generator=generator))]
    nearest = squared_distances(x, x[chosen])[:, 0]
    while len(chosen) < n_clusters:
        candidates = _draw_proportionally(nearest, n_trials, generator)
        distances = torch.minimum(squared_distances(x, x[candidates]), nearest[:, None])
        best = int(distances.sum(0, dtype=torch.float64 if x.device.type != "mps" else None).argmin())
        chosen.append(int(candidates[best]))
        nearest = distances[:, best]
    return torch.tensor(chosen, device=x.device)


def _draw_proportionally(weights, n_draws, generator):
    """Row indices, drawn with replacement with probability proportional to weights on any device."""
    cumulative = weights.double().cumsum(0) if weights.device.type != "mps" else weights.cumsum(0)
    draws = torch.rand(n_draws, dtype=torch.float64, generator=generator).to(cumulative)
    total = cumulative[-1]
    if total == 0:  # every row coincides with a centre
        return (draws * len(weights)).long()
    return torch.searchsorted(cumulative, draws * total, right=True).clamp_(max=len(weights) - 1)


def lloyd(x, centers, *, max_iter=300, tol=1e-4):
    """Lloyd's algorithm from given centres.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Rows, best centred.
    centers : Tensor of shape (k, d)
    tol : float
        Stops when the squared movement of the centres is below this share of the mean variance of the features.

    Returns
    -------
    centers : Tensor of shape (k, d)
    labels : Tensor of shape (n,)
    """
    threshold = tol * x.var(0, correction=0).mean()
    for _ in range(max_iter):
        labels, distances = assign(x, centers)
        moved = _means(x, labels, distances, centers)
        shift, centers = (moved - centers).square().sum(), moved
        if shift <= threshold:
            break
    return centers, assign(x, centers)[0]


def assign(x, centers):
    """Nearest centre of each row and its squared distance, (n,) each."""
    parts = [squared_distances(x[rows], centers).min(1) for rows in row_chunks(len(x), len(centers))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _means(x, labels, distances, centers):
    """Mean of the rows of each centre; an empty one moves to the row farthest from its centre."""
    counts = torch.bincount(labels, minlength=len(centers))
    components, sums = torch.arange(len(centers), device=x.device), torch.zeros_like(centers)
    for rows in row_chunks(len(x), len(centers)):
        # A product, because adding by index would sum in random order on a GPU.
        sums += (labels[rows] == components[:, None]).to(x.dtype) @ x[rows]
    empty = (counts == 0).nonzero().flatten()
    if len(empty):
        farthest = distances.topk(len(empty)).indices
        counts -= torch.bincount(labels[farthest], minlength=len(centers))
        sums -= (labels[farthest] == components[:, None]).to(x.dtype) @ x[farthest]
        counts[empty], sums[empty] = 1, x[farthest]
    return torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
