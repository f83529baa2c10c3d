"""Ways to start EM: responsibilities of the rows before there is a mixture."""

import torch

from .lloyd import distinct_rows, kmeans, seed_centers

FREQUENCY = 1e3  # of random responsibilities: rows this share of a standard deviation apart have nothing in common


def _kmeans_labels(x, n_components, generator, weight):
    return from_labels(kmeans(x, n_components, generator, weight)[1], n_components, x.dtype)


def from_labels(labels, n_components, dtype):
    """Responsibilities of rows with one component each (-1: none)."""
    components = torch.arange(n_components, device=labels.device)
    return lambda rows: (labels[rows, None] == components).to(dtype)


def _from_seeds(choose):
    """Responsibilities that give each component the one row chosen for it, whatever the weight of that row."""

    def start(x, n_components, generator, weight):
        seeds = choose(x, n_components, generator, weight)
        labels = torch.full((len(x),), -1, device=x.device)
        labels[seeds] = torch.arange(n_components, device=x.device)
        resp_of = from_labels(labels, n_components, x.dtype)
        return resp_of if weight is None else lambda rows: resp_of(rows) / weight[rows, None]

    return start


def _random_responsibilities(x, n_components, generator, weight):
    """Random responsibilities, uniform before they are normalized.

    They are a function of the row, of a very high frequency: equal rows have equal ones, in any order and any chunks.
    """
    draws = {"dtype": torch.float64, "generator": generator}
    scale = x.square().mean(0).sqrt() if weight is None else (weight @ x.square() / weight.sum()).sqrt()
    direction = torch.randn(x.shape[1], **draws).to(x) / torch.where(scale > 0, scale, 1.0)
    places = x @ direction  # the rows themselves will be overwritten
    frequencies, phases = FREQUENCY * torch.randn(n_components, **draws).to(x), torch.rand(n_components, **draws).to(x)

    def resp_of(rows):
        resp = (places[rows, None] * frequencies + phases).remainder(1.0) + torch.finfo(x.dtype).eps
        return resp / resp.sum(1, keepdim=True)

    return resp_of


# Each gives, for rows x and their weights (or None), a function from a slice to the responsibilities of its rows.
STARTS = {
    "kmeans": _kmeans_labels,
    "k-means++": _from_seeds(seed_centers),
    "random": _random_responsibilities,
    "random_from_data": _from_seeds(distinct_rows),
}
