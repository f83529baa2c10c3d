"""Random samples of lazy rows."""

import torch

from .distributed import SINGLE_PROCESS
from .lloyd import draw_rows

SAMPLE_ROWS, SAMPLE_BYTES = 100_000, 2**26  # a sample of streamed rows has no more rows and needs no more memory
MIN_SAMPLE_PER_CLUSTER = 40  # but as many rows for each cluster or component


def sample_indices(x, n_clusters, generator, weight=None, group=SINGLE_PROCESS):
    """Ascending indices of a sample of streamed rows, large enough to find clusters in, and the weights of its rows.

    All rows of a short stream are in it, with their weights. Of others, a row is in it with a probability proportional
    to its weight, and counts one (None). Indices are on the CPU, and those of the rows of this process: the sample has
    its size in all together.
    """
    size = min(SAMPLE_ROWS, SAMPLE_BYTES // (8 * x.shape[1]))
    size = max(size, MIN_SAMPLE_PER_CLUSTER * n_clusters)
    if sum(group.all_gather_int(len(x))) <= size:
        return torch.arange(len(x)), weight
    return draw_indices(x, size, generator, weight, group), None


def draw_indices(x, size, generator, weight=None, group=SINGLE_PROCESS):
    """Ascending indices of rows (size,), one from each of as many parts of the rows of equal weight.

    Of several processes each gets those of its own rows; together they are what one would draw.
    """
    if weight is None:
        n_rows, start = sum(group.all_gather_int(len(x))), group.row_offset(len(x))
        places = torch.arange(size) + torch.rand(size, dtype=torch.float64, generator=generator)
        return group.shard_indices((places * (n_rows / size)).long().clamp_(max=n_rows - 1), start, len(x))[0]
    if group.size == 1:
        return draw_rows(torch.arange(len(x)), weight.cpu(), size, generator, stratified=True)
    cumulative = weight.cpu().double().cumsum(0)
    ends = group.all_gather(cumulative[-1:]).cumsum(0)  # of the processes
    draws = (torch.arange(size) + torch.rand(size, dtype=torch.float64, generator=generator)) / size * ends[-1]
    owner = torch.searchsorted(ends, draws, right=True).clamp_(max=group.size - 1)
    own = draws[owner == group.rank] - (ends[group.rank] - cumulative[-1])
    found = torch.searchsorted(cumulative, own.clamp_(min=0), right=True)
    return found.clamp_(max=int((weight > 0).nonzero()[-1]))  # rounding must not carry a draw behind the last row
