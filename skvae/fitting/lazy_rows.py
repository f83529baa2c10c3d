"""Rows for training that are read when they are needed, and the order in which they are."""

import torch


class RowSource:
    """Rows on the CPU that are not held as a whole; what training asks of a tensor of rows, it can ask of them.

    Parameters
    ----------
    n_rows : int
    read : callable, slice or ndarray of int -> Tensor (b, d)
        Reads rows.
    run_length : int
        How many neighbouring rows are best read together.
    """

    device = torch.device("cpu")

    def __init__(self, n_rows, read, run_length=1):
        self.n_rows, self.read, self.run_length = n_rows, read, run_length

    def __len__(self):
        return self.n_rows

    def __getitem__(self, rows):
        return self.read(rows.numpy() if isinstance(rows, torch.Tensor) else rows)

    def split(self, n_rows):
        """Blocks of so many rows, one after the other."""
        return (self[start : start + n_rows] for start in range(0, len(self), n_rows))

    def select(self, indices):
        """Some of the rows, in this order."""
        return RowSource(len(indices), lambda rows: self[indices[rows]], self.run_length)


def select_rows(rows, indices):
    """Some rows of a tensor or of a source."""
    return rows.select(indices) if isinstance(rows, RowSource) else rows[indices.to(rows.device)]


def shuffled(rows, generator, sizes):
    """Indices of the rows in random order, as many at a time as ``sizes`` says.

    They are drawn on the device of the generator, and are on that of the rows where these can be read in any order.

    Rows that are best read in runs are shuffled as runs of neighbours, and then among all that are read together. Of
    these, a few are known at a time: the indices of all rows would need memory that grows with the table.

    Parameters
    ----------
    rows : Tensor or RowSource
    generator : torch.Generator
    sizes : list of int
        How many rows are read at a time; together, all.

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
            found = (starts[:n_runs, None] + steps).flatten()
            starts, waiting = starts[n_runs:], torch.cat([waiting, found[found < len(rows)]])
        part, waiting = waiting[:size], waiting[size:]
        yield part[torch.randperm(size, **source)]
