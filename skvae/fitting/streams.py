"""Rows that are read in blocks, one after another, and never held all at once."""

import torch

from .chunks import row_chunks
from .devices import to_device

BLOCK_BYTES = 2**23  # rows of a block in float64: large enough for a disk, small beside what else is held


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
