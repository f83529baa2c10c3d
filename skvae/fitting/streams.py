"""Rows that are read in blocks, one after another, and never held all at once."""

import torch

from .chunks import row_chunks
from .devices import to_device
from .distributed import SINGLE_PROCESS
from .lloyd import draw_rows

BLOCK_BYTES = 2**23  # rows of a block in float64: large enough for a disk, small beside what else is held
SAMPLE_ROWS, SAMPLE_BYTES = 100_000, 2**26  # a sample of streamed rows has no more rows and needs no more memory
MIN_SAMPLE_PER_CLUSTER = 40  # but as many rows for each cluster or component


class StreamedRows:
    """Rows that are read when they are asked for, in place of a tensor (n, d).

    They are read in blocks of neighbours. The last block is kept: several visits of its slices cost one reading, and a
    pass over the blocks in their order reads every row once.

    Parameters
    ----------
    read : callable, slice or Tensor of int (b,) -> Tensor (b, d)
        Gives the rows of a slice, or with some indices, in new memory.
    shape : tuple of int
    dtype : torch.dtype
    device : torch.device
    block_size : int, optional
        Rows in a block; without it, as many as need 8 MB.

    Attributes
    ----------
    blocks : list of slice
        What is read at a time.
    """

    def __init__(self, read, shape, dtype, device, block_size=None):
        self.read, self.shape, self.dtype, self.device = read, torch.Size(shape), dtype, torch.device(device)
        self.block_size = block_size or max(1, BLOCK_BYTES // (8 * self.shape[1]))
        chunks = row_chunks(*self.shape, self.block_size)
        self.blocks = [slice(rows.start, min(rows.stop, len(self))) for rows in chunks]
        self._held, self._block = None, None

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Rows of a slice (b, d), which are not to be changed."""
        start, stop, _ = rows.indices(len(self))
        block = self.blocks[min(start // self.block_size, len(self.blocks) - 1)]
        if stop > block.stop:
            return self.read(slice(start, stop))
        if self._held != block:
            self._held = self._block = None  # its memory is wanted
            self._block = self.read(block)
            self._held = block
        return self._block[start - block.start : stop - block.start]

    def then(self, function):
        """These rows after a function, Tensor (b, d) -> new Tensor (b, d), of each block; they are read in slices."""
        return StreamedRows(
            lambda rows: function(self[rows]), self.shape, self.dtype, self.device, block_size=self.block_size
        )

    def take(self, indices, visit=None):
        """Rows with ascending indices (m, d), found in one pass.

        Parameters
        ----------
        indices : Tensor of shape (m,)
            On the CPU.
        visit : callable, (slice, Tensor (b, d)) -> None, optional
            Called with every block; without it, only those with rows that are wanted are read.
        """
        out = torch.empty(len(indices), self.shape[1], dtype=self.dtype, device=self.device)
        starts = torch.tensor([block.start for block in self.blocks[1:]], dtype=torch.int64)
        edges = [0, *torch.searchsorted(indices, starts).tolist(), len(indices)]
        for number, block in enumerate(self.blocks):
            first, last = edges[number], edges[number + 1]
            if visit is not None:
                visit(block, self[block])
            if last > first:
                out[first:last] = self[block][to_device(indices[first:last] - block.start, self.device)]
        return out


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
