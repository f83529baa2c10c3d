"""Slices of rows that fit into a cache, and lazy rows, which are read when they are needed in place of a tensor."""

import torch

from .devices import to_device

LINEAR_BYTES, RESIDUAL_BYTES = 2**21, 2**23  # a chunk and what is computed from it should stay in a cache
MIN_CHUNK = 256  # rows
BLOCK_BYTES = 2**23  # rows of a block in float64: large enough for a disk, small compared with a table


def rows_in_cache(n_columns, n_bytes=RESIDUAL_BYTES, n_least=MIN_CHUNK):
    """Return the number of rows in a chunk that fits into a cache."""
    return max(n_least, n_bytes // (8 * n_columns))


def row_chunks(n_rows, n_columns, chunk_size=None, n_bytes=RESIDUAL_BYTES):
    """Return slices that cover the rows, of a chunk size or else of as many rows as fit into a cache."""
    chunk_size = chunk_size or rows_in_cache(n_columns, n_bytes)
    return [slice(start, start + chunk_size) for start in range(0, n_rows, chunk_size)]


def chunks_within(block, *sizes, **settings):
    """Yield the `row_chunks` of the rows of a slice."""
    for rows in row_chunks(block.stop - block.start, *sizes, **settings):
        yield slice(block.start + rows.start, min(block.start + rows.stop, block.stop))


class LazyRows:
    """Rows (n, d) that are read when they are needed, and never held as a whole.

    Slices are read in blocks of neighbouring rows. The last block is cached, so that several visits of its slices cost
    one reading, and a pass over the blocks in their order reads every row once.

    Parameters
    ----------
    read : callable, slice or Tensor of int (b,) -> Tensor (b, d)
        Reads the rows of a slice, or with some indices, into new memory.
    shape : tuple of int
    dtype : torch.dtype
    device : torch.device
    block_size : int, optional
        Rows in a block; without it, as many as need 8 MB.
    run_length : int, default=1
        Number of neighbouring rows that are best read together.

    Attributes
    ----------
    blocks : list of slice
        The blocks, in order.
    """

    def __init__(self, read, shape, dtype, device="cpu", block_size=None, run_length=1):
        self.read, self.shape, self.dtype, self.device = read, torch.Size(shape), dtype, torch.device(device)
        self.run_length = run_length
        self.block_size = block_size or max(1, BLOCK_BYTES // (8 * self.shape[1]))
        self._cached, self._block = None, None

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Rows of a slice, which are not to be changed, or with some indices (b, d)."""
        if isinstance(rows, torch.Tensor):
            return self.read(rows)
        start, stop, _ = rows.indices(len(self))
        first = start - start % self.block_size
        block = slice(first, min(first + self.block_size, len(self)))
        if stop > block.stop:
            return self.read(slice(start, stop))
        if self._cached != block:
            self._cached = self._block = None  # free its memory first
            self._block = self.read(block)
            self._cached = block
        return self._block[start - block.start : stop - block.start]

    @property
    def blocks(self):  # noqa: D102
        return [slice(rows.start, min(rows.stop, len(self))) for rows in row_chunks(*self.shape, self.block_size)]

    def split(self, n_rows):
        """Return batches of so many rows, in order, as `torch.Tensor.split` does."""
        return (self.read(slice(start, min(start + n_rows, len(self)))) for start in range(0, len(self), n_rows))

    def select(self, indices):
        """Return some of the rows, in this order."""
        shape = (len(indices), *self.shape[1:])
        return LazyRows(
            lambda rows: self.read(indices[rows]), shape, self.dtype, self.device, run_length=self.run_length
        )

    def map(self, function, dtype=None):
        """Return the rows after a function, Tensor (b, d) -> new Tensor (b, d) of a dtype."""
        settings = {"block_size": self.block_size, "run_length": self.run_length}
        return LazyRows(lambda rows: function(self[rows]), self.shape, dtype or self.dtype, self.device, **settings)

    def take(self, indices, visit=None):
        """Return rows with ascending indices (m, d), read in one pass.

        Parameters
        ----------
        indices : Tensor of shape (m,)
            On the CPU.
        visit : callable, (slice, Tensor (b, d)) -> None, optional
            Called with every block; without it, only blocks with some of these rows are read.
        """
        out, blocks = torch.empty(len(indices), self.shape[1], dtype=self.dtype, device=self.device), self.blocks
        starts = torch.tensor([block.start for block in blocks[1:]], dtype=torch.int64)
        edges = [0, *torch.searchsorted(indices, starts).tolist(), len(indices)]
        for number, block in enumerate(blocks):
            first, last = edges[number], edges[number + 1]
            if visit is not None:
                visit(block, self[block])
            if last > first:
                out[first:last] = self[block][to_device(indices[first:last] - block.start, self.device)]
        return out


def is_lazy(rows):
    """Return whether rows are lazy, and not a tensor."""
    return isinstance(rows, LazyRows)


def blocks_of(rows):
    """Return slices of the rows that are in memory at once: all of a tensor, or the blocks of lazy rows."""
    return rows.blocks if is_lazy(rows) else [slice(0, len(rows))]


def select_rows(rows, indices):
    """Return some rows of a tensor or of lazy rows."""
    return rows.select(indices) if is_lazy(rows) else rows[indices.to(rows.device)]


def shuffled_indices(rows, generator, sizes):
    """Yield indices of the rows in random order, for one read after the other.

    They are drawn on the device of the generator, and are on that of the rows where these can be read in any order.
    Rows that are best read in runs are shuffled as runs of neighbours, and then among all that are read together; only
    the indices of a few runs are held, since those of all rows would need memory that grows with the dataset.

    Parameters
    ----------
    rows : Tensor or LazyRows
    generator : torch.Generator
    sizes : list of int
        Numbers of rows of the reads; they sum to the number of rows.

    Yields
    ------
    indices : Tensor of shape (size,)
    """
    source, run_length = {"generator": generator, "device": generator.device}, getattr(rows, "run_length", 1)
    if run_length == 1:
        yield from torch.randperm(len(rows), **source).to(rows.device).split(sizes)
        return
    starts = torch.randperm(-(-len(rows) // run_length), **source) * run_length
    steps, waiting = torch.arange(run_length, device=generator.device), starts[:0]
    for size in sizes:
        while len(waiting) < size:
            n_runs = -(-(size - len(waiting)) // run_length)
            runs = (starts[:n_runs, None] + steps).flatten()
            starts, waiting = starts[n_runs:], torch.cat([waiting, runs[runs < len(rows)]])
        part, waiting = waiting[:size], waiting[size:]
        yield part[torch.randperm(size, **source)]
