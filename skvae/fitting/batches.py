"""Rows in batches: shuffled for training, in order for validation."""

import math

import torch
from torch.utils.data import Dataset

from .devices import MAX_PINNED
from .distributed import SINGLE_PROCESS
from .lazy_rows import RowSource, select_rows, shuffled
from .parallel import count_steps, dealt_sizes, step_weights

BLOCK = 64  # batches that go to the device at a time if the rows are too large for it
BLOCK_BYTES = 2**22  # but no more than this, or one, of rows that can be read in any order
POOL_BYTES = 2**25  # of rows that are read in runs together, so that many runs are mixed


class Rows(Dataset):
    """Rows, a tensor or a source, in the form in which skorch passes data on."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class RowBatches:
    """Shuffled batches of rows and the noise for their codes, sliced from one tensor.

    The rows are dealt to batches of nearly equal size, so that none is dropped and none has a single row (which
    batch normalisation could not use). They lie on the device of the generator, or are brought there a block of
    batches at a time.

    Of several processes, all have as many batches, which are parts of those of all rows. With them comes the weight of
    their loss, where otherwise there is nothing; two rows that count nothing stand for none.
    """

    def __init__(
        self, dataset, batch_size, noise_shape, generator, standardize, view_of=None, n_block=None, group=SINGLE_PROCESS
    ):
        self.rows = dataset.rows
        n_rows = group.all_gather_int(len(self.rows))
        self.n_batches = count_steps(n_rows, batch_size)
        self.sizes = dealt_sizes(len(self.rows), self.n_batches).tolist()
        self.weights = step_weights(n_rows, self.n_batches, group)
        self.noise_shape, self.generator = noise_shape, generator
        self.standardize, self.view_of = standardize, view_of
        held = isinstance(self.rows, torch.Tensor) and self.rows.device.type == generator.device.type
        self.n_block = n_block or (1 if held else batches_together(self.rows, batch_size))

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        source = {"generator": self.generator, "device": self.generator.device}
        firsts = range(0, self.n_batches, self.n_block)
        sizes = [self.sizes[first : first + self.n_block] for first in firsts]
        blocks = shuffled(self.rows, self.generator, [*map(sum, sizes)])
        for first, indices, dealt in zip(firsts, blocks, sizes, strict=True):
            block = taken(self.rows, indices, self.generator.device)
            parts = block.split(dealt)
            for step, part in enumerate(parts, first):
                # Where memory begins decides the last bits of sums: batches of a block have their own, as single ones.
                stored = part if len(parts) == 1 else part.clone()
                u = self.standardize(stored if len(stored) else self.rows[:2].to(block.device))
                batch = {"u": u, "noise": torch.randn(len(u), *self.noise_shape, **source)}
                if self.view_of is not None:
                    batch["view"] = self.view_of(u, self.generator)
                yield batch, u[:0] if self.weights is None else self.weights[step]
            del block, parts, part, stored  # before the next ones are read


def taken(rows, indices, device):
    """Some rows of a tensor or a source, on a device.

    Those of a tensor on the CPU go to a GPU through pinned memory: the host need not wait for the copy.
    """
    to_gpu = isinstance(rows, torch.Tensor) and rows.device.type == "cpu" and device.type == "cuda"
    if not to_gpu or len(indices) * rows[:1].nbytes > MAX_PINNED:
        return rows[indices.to(rows.device)].to(device)
    pinned = torch.empty((len(indices), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
    return torch.index_select(rows, 0, indices.to("cpu"), out=pinned).to(device, non_blocking=True)


class FixedBatches:
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


def batches_together(rows, batch_size):
    """How many batches of rows that are not on the device go there at a time."""
    if not isinstance(rows, RowSource):
        return max(1, min(BLOCK, MAX_PINNED // (batch_size * rows[:1].nbytes)))
    n_batches = (BLOCK_BYTES if rows.run_length == 1 else POOL_BYTES) // (batch_size * rows[:1].nbytes)
    return max(1, min(BLOCK, n_batches) if rows.run_length == 1 else n_batches)


def standardized(model, rows):
    """What the model works on: the rows themselves, or if they are whole numbers, their standardised form."""
    return rows if rows.is_floating_point() else model.standardize(rows)


def some_rows(rows, n_rows):
    """Every so many-th row of a tensor or a source, at most ``n_rows``."""
    return select_rows(rows, torch.arange(0, len(rows), math.ceil(len(rows) / n_rows)))
