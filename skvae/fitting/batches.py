"""Batches of rows: how many there are, shuffled for training, in order for validation."""

import math

import torch
from torch.utils.data import Dataset

from .devices import MAX_PINNED
from .distributed import SINGLE_PROCESS
from .rows import is_lazy, select_rows, shuffled_indices

MAX_BLOCK = 64  # batches that are copied to the device together if the rows are too large for it
BLOCK_BYTES = 2**22  # of such a block, if rows can be read in any order; a block has at least one batch
POOL_BYTES = 2**25  # of rows that are read in runs together, so that many runs are mixed


class RowDataset(Dataset):
    """Rows, a tensor or lazy, as the dataset that skorch passes on to the iterators."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class TrainingBatches:
    """Shuffled batches of rows and the noise for their codes.

    Batches have nearly equal sizes, so that no row is dropped and no batch has a single row (which batch normalization
    could not use). Rows are on the device of the generator, or are copied there a block of batches at a time.

    In a process group, all processes have the same number of batches, each a part of a batch of all rows. The target
    of a batch is then the weight of its loss, otherwise it is empty; a process without rows left yields a placeholder
    of two rows and weight 0.

    With ``neighbors``, ``view_of`` is also called with a neighbour of each row, drawn anew.
    """

    def __init__(
        self,
        dataset,
        batch_size,
        noise_shape,
        generator,
        standardize,
        view_of=None,
        n_block=None,
        group=SINGLE_PROCESS,
        neighbors=None,
    ):
        self.rows = dataset.rows
        n_rows = group.all_gather_int(len(self.rows))
        self.n_batches = count_steps(n_rows, batch_size)
        self.sizes = batch_sizes(len(self.rows), self.n_batches).tolist()
        self.weights = step_weights(n_rows, self.n_batches, group)
        self.noise_shape, self.generator = noise_shape, generator
        self.standardize, self.view_of, self.neighbors = standardize, view_of, neighbors
        is_on_device = not is_lazy(self.rows) and self.rows.device.type == generator.device.type
        self.n_block = n_block or (1 if is_on_device else batches_per_block(self.rows, batch_size))

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        generator, device = self.generator, self.generator.device
        sizes = [self.sizes[first : first + self.n_block] for first in range(0, self.n_batches, self.n_block)]
        step = 0
        for block_sizes, indices in zip(sizes, shuffled_indices(self.rows, generator, [*map(sum, sizes)]), strict=True):
            block = _copied_rows(self.rows, indices, device)
            parts = block.split(block_sizes)
            for part, rows in zip(parts, indices.split(block_sizes), strict=True):
                # The last bits of sums depend on where memory begins: batches of a block are copied as single ones are.
                stored = part if len(parts) == 1 else part.clone()
                u = self.standardize(stored if len(stored) else self.rows[:2].to(block.device))
                batch = {
                    "u": u,
                    "noise": torch.randn(len(u), *self.noise_shape, generator=generator, device=device),
                }
                if self.view_of is not None:
                    batch["view"] = self.view_of(u, *self._neighbors_of(rows), generator)
                yield batch, u[:0] if self.weights is None else self.weights[step]
                step += 1
            del block, parts, part, stored  # before the next block is read

    def _neighbors_of(self, rows):
        """Return a neighbour of each row of a batch, in a list; an empty list if rows are not paired."""
        if self.neighbors is None:
            return []
        rows = rows if len(rows) else torch.arange(2)
        drawn = self.neighbors.draw(rows, self.generator)
        return [self.standardize(_copied_rows(self.rows, drawn, self.generator.device))]


class ValidationBatches:
    """Batches of validation rows in order, each with the same noise, so that epochs can be compared."""

    def __init__(self, dataset, batch_size, points, standardize):
        self.rows = dataset.rows
        self.batch_size, self.points, self.standardize = batch_size, points, standardize

    def __len__(self):
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self):
        for stored in self.rows.split(self.batch_size):
            u = self.standardize(stored.to(self.points.device))
            yield {"u": u, "noise": self.points.expand(len(u), *self.points.shape)}, u[:0]


def count_batches(n_rows, batch_size):
    """Return the number of batches of about this size, none with a single row unless there is only one."""
    return max(1, min(math.ceil(n_rows / batch_size), n_rows // 2))


def count_steps(n_rows, batch_size):
    """Return the number of steps in an epoch of processes with so many rows each.

    There are no more than one of the processes has batches for.
    """
    return min(count_batches(sum(n_rows), batch_size), max(max(1, n // 2) for n in n_rows))


def batch_sizes(n_rows, n_steps):
    """Return the rows of a process in each step (n_steps,): at least two, or none in some steps if they are few."""
    n_parts = min(n_steps, max(1, n_rows // 2))
    parts, sizes = torch.arange(n_parts), torch.zeros(n_steps, dtype=torch.int64)
    sizes[parts * n_steps // n_parts] = n_rows // n_parts + (parts < n_rows % n_parts).long()
    return sizes


def step_weights(n_rows, n_steps, group):
    """Return the weight of a process's mean loss in each step, so that the mean over processes is that over rows.

    None for one process.
    """
    if group.size == 1:
        return None
    sizes = [batch_sizes(n, n_steps) for n in n_rows]
    return group.size * sizes[group.rank] / sum(sizes)


def is_placeholder(batch):
    """Return whether a batch stands in for the rows that its process does not have left for a step."""
    weight = batch[1]
    return weight.ndim == 0 and not weight


def standardized(model, rows):
    """Return rows as the model takes them: whole numbers, which are stored as they are, are standardized here."""
    return rows if rows.is_floating_point() else model.standardize(rows)


def subsample(rows, max_rows):
    """Return every m-th row of a tensor or of lazy rows, at most ``max_rows``."""
    return select_rows(rows, torch.arange(0, len(rows), math.ceil(len(rows) / max_rows)))


def row_bytes(rows):
    """Return the bytes of a row."""
    return math.prod(rows.shape[1:]) * torch.empty((), dtype=rows.dtype).element_size()


def batches_per_block(rows, batch_size):
    """Return how many batches are copied to the device together, of rows that are not on it."""
    n_bytes = batch_size * row_bytes(rows)
    if not is_lazy(rows):
        return max(1, min(MAX_BLOCK, MAX_PINNED // n_bytes))
    if rows.run_length == 1:
        return max(1, min(MAX_BLOCK, BLOCK_BYTES // n_bytes))
    return max(1, POOL_BYTES // n_bytes)


def _copied_rows(rows, indices, device):
    """Return some rows of a tensor or of lazy rows, on a device.

    Rows of a tensor on the CPU are copied to a GPU through pinned memory: the host need not wait for the copy.
    """
    to_gpu = not is_lazy(rows) and rows.device.type == "cpu" and device.type == "cuda"
    if not to_gpu or len(indices) * row_bytes(rows) > MAX_PINNED:
        return rows[indices.to(rows.device)].to(device)
    pinned = torch.empty((len(indices), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
    return torch.index_select(rows, 0, indices.to("cpu"), out=pinned).to(device, non_blocking=True)
