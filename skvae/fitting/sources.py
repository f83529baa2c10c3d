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


def shuffled(rows, generator, n_together):
    """Indices of the rows in random order, on the device of the generator.

    Rows that are best read in runs are shuffled as runs of neighbours, and then among all that are read together.

    Parameters
    ----------
    rows : Tensor or RowSource
    generator : torch.Generator
    n_together : int
        Rows that are read at a time.
    """
    source = {"generator": generator, "device": generator.device}
    run_length = getattr(rows, "run_length", 1)
    if run_length == 1:
        return torch.randperm(len(rows), **source)
    runs = torch.arange(len(rows), device=generator.device).split(run_length)
    order = torch.cat([runs[i] for i in torch.randperm(len(runs), **source).tolist()])
    parts = order.split(n_together)
    return torch.cat([part[torch.randperm(len(part), **source)] for part in parts])
