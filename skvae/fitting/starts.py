"""Ways to start EM: responsibilities of the rows before there is a mixture."""

from typing import NamedTuple

import torch

from ..models.covariances import moved
from .devices import to_device
from .distributed import SINGLE_PROCESS, Group, SingleProcess
from .lloyd import draw_distinct_rows, kmeans, kmeans_plusplus
from .nearest import NearestCenters
from .weighted_rows import WeightedRows, sample_indices

MAX_GATHERED_ROWS = (
    2**22
)  # rows of all processes, of each of which they tell one another a number; of more, of a sample only
FREQUENCY = 1e3  # of random responsibilities: rows this share of a standard deviation apart have nothing in common


def from_labels(labels, n_components, dtype):
    """Responsibilities of rows with one component each (-1: none)."""
    return lambda rows: _members(labels[rows], n_components, dtype)


def _members(labels, n_components, dtype):
    return (labels[:, None] == torch.arange(n_components, device=labels.device)).to(dtype)


class Sample(NamedTuple):
    """The rows in which a start is looked for."""

    x: torch.Tensor  # (m, d)
    weight: torch.Tensor | None  # (m,), one each if None
    indices: torch.Tensor | None  # (m,) places among all rows; None: these are all
    start: int = 0  # place of the first row of this process among all
    group: SingleProcess | Group = SINGLE_PROCESS

    @property
    def owners(self):
        """The processes that have parts of the sample."""
        return self.group if self.indices is None else SINGLE_PROCESS


def _sample(x, n_components, generator, weight, group):
    """All rows of tensors, or some of streamed ones, which are on all processes."""
    held, start = isinstance(x, torch.Tensor), group.row_offset(len(x))
    if all(group.all_gather_int(held)) and (group.size == 1 or sum(group.all_gather_int(len(x))) <= MAX_GATHERED_ROWS):
        return Sample(x, weight, None, start, group)
    indices, weight = sample_indices(WeightedRows(x, weight, group), n_components, generator)
    rows = group.all_gather(x[to_device(indices, x.device)] if held else x.take(indices))
    weight = None if weight is None else group.all_gather(weight)
    return Sample(rows, weight, group.all_gather(indices + start), start, group)


def draw_starts(name, n_starts, x, n_components, generator, weight=None, group=SINGLE_PROCESS):
    """Responsibilities to start from, drawn a number of times.

    Parameters
    ----------
    name : str
        One of `STARTS`.
    n_starts : int
    x : Tensor or StreamedRows of shape (n, d)
        Centred rows. A start is looked for in all rows of a tensor, and in a random sample of streamed ones, or of more
        than four million rows of several processes.
    n_components : int
    generator : torch.Generator
    weight : Tensor of shape (n,), optional
        Weights of the rows.
    group : SingleProcess or Group
        The processes that have shards of the rows.

    Yields
    ------
    resp_of : callable, slice -> Tensor (b, k)
        Responsibilities of the rows of a slice. A tensor of rows is not needed for them, and may be overwritten.
    """
    sample = _sample(x, n_components, generator, weight, group)
    for _ in range(n_starts):
        yield STARTS[name](x, sample, n_components, generator, weight)


def _kmeans_labels(x, sample, n_components, generator, weight):
    centers, labels = kmeans(WeightedRows(sample.x, sample.weight, sample.owners), n_components, generator)
    if sample.indices is None:
        return from_labels(labels, n_components, x.dtype)
    nearest = NearestCenters(sample.group.broadcast(centers))
    return lambda rows: _members(nearest(x[rows]), n_components, x.dtype)


def _from_seeds(choose):
    """Responsibilities that give each component the one row chosen for it, whatever the weight of that row."""

    def start(x, sample, n_components, generator, weight):
        seeds = choose(WeightedRows(sample.x, sample.weight, sample.owners), n_components, generator)
        seeds = seeds if sample.indices is None else to_device(sample.indices, seeds.device)[seeds]
        seeds = sample.group.broadcast(seeds) - sample.start
        # One row starts one component: equal components would stay equal for ever.
        seeds = seeds.where(~(seeds[:, None] == seeds).triu(1).any(1), -1)
        size, kind = len(x), {"dtype": x.dtype, "device": x.device}  # the rows themselves are not kept

        def resp_of(rows):
            first, stop, _ = rows.indices(size)
            n_rows, inside = stop - first, (seeds >= first) & (seeds < stop)
            places = torch.where(inside, seeds - first, n_rows)  # those of other slices in a row that is cut off
            resp = torch.zeros(n_rows + 1, n_components, **kind).scatter_(0, places[None], 1)[:n_rows]
            return resp if weight is None else resp / weight[rows, None]

        return resp_of

    return start


def _random_responsibilities(x, sample, n_components, generator, weight):
    """Random responsibilities, uniform before they are normalized.

    They are a function of the row, of a very high frequency: equal rows have equal ones, in any order and any chunks.
    """
    draws = {"dtype": torch.float64, "generator": generator}
    squares, theirs = sample.x.square(), sample.weight
    mass = float(len(squares)) if theirs is None else theirs.sum()
    sums, mass = sample.owners.all_reduce_sum(squares.sum(0) if theirs is None else theirs @ squares, mass)
    scale = (sums / mass).sqrt()
    drawn = [torch.randn(x.shape[1], **draws), torch.randn(n_components, **draws), torch.rand(n_components, **draws)]
    direction, frequencies, phases = (part.to(sample.x) for part in moved(drawn, sample.x.device))
    direction = direction / torch.where(scale > 0, scale, 1.0)
    epsilon = torch.finfo(x.dtype).eps

    def responsibilities(places):
        resp = (places[:, None] * (FREQUENCY * frequencies) + phases).remainder(1.0) + epsilon
        return resp / resp.sum(1, keepdim=True)

    if sample.indices is None:
        places = x @ direction  # the rows themselves will be overwritten
        return lambda rows: responsibilities(places[rows])
    return lambda rows: responsibilities(x[rows] @ direction)


# Each gives, for rows x, a sample of them, and weights (or None), a function from a slice to responsibilities.
STARTS = {
    "kmeans": _kmeans_labels,
    "k-means++": _from_seeds(kmeans_plusplus),
    "random": _random_responsibilities,
    "random_from_data": _from_seeds(draw_distinct_rows),
}
