"""Ways to start EM: responsibilities of the rows before there is a mixture."""

import torch

from .lloyd import lloyd, seed_centers


def _kmeans_labels(x, n_components, generator):
    return lloyd(x, x[seed_centers(x, n_components, generator)])[1]


def _seeds_only(choose):
    """Responsibilities that give each component the one row chosen for it."""

    def start(x, n_components, generator):
        labels = torch.full((len(x),), -1, device=x.device)
        labels[choose(x, n_components, generator)] = torch.arange(n_components, device=x.device)
        return labels

    return start


def _from_labels(label):
    """Responsibilities of rows with one component each (-1: none)."""

    def start(x, n_components, generator):
        labels, components = label(x, n_components, generator), torch.arange(n_components, device=x.device)
        return lambda rows: (labels[rows, None] == components).to(x.dtype)

    return start


def _random_responsibilities(x, n_components, generator):
    """Uniform responsibilities, drawn when they are asked for: every row once, in order."""
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator().manual_seed(seed)

    def resp_of(rows):
        resp = torch.rand(len(x[rows]), n_components, generator=own, dtype=torch.float64)
        return (resp / resp.sum(1, keepdim=True)).to(x)

    return resp_of


def _random_rows(x, n_components, generator):
    return torch.randperm(len(x), generator=generator)[:n_components].to(x.device)


# Each gives, for rows x, a function from a slice to the responsibilities of its rows.
STARTS = {
    "kmeans": _from_labels(_kmeans_labels),
    "k-means++": _from_labels(_seeds_only(seed_centers)),
    "random": _random_responsibilities,
    "random_from_data": _from_labels(_seeds_only(_random_rows)),
}
