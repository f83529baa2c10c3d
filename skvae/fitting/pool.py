"""Batches of streamed rows, by way of a pool in memory."""

import torch

from .devices import read, to_device, wide_dtype
from .distributed import SINGLE_PROCESS, BatchShard
from .minibatch import Batch, whole
from .streams import draw_indices


class PooledRows:
    """Streamed rows less their mean, from which batches are drawn by way of a pool that is held in memory.

    The pool begins as a random sample of all rows. Batches are drawn from it, with replacement. After each, as many
    rows as it had, those that have been in the pool for longest, give way to runs of neighbouring rows from random
    places. So a disk is read in runs, and a batch has rows from many of them. Rows come into the pool with probability
    proportional to their weights, and count one each in it.

    Parameters
    ----------
    x : LazyRows of shape (n, d)
    weight : Tensor of shape (n,) or None
        Nonnegative weights, not all zero; one each if None.
    size : int
        Rows in the pool, at most n.
    run_length : int
        Rows in a run.
    generator : torch.Generator
    group : SingleProcess or Group
        The processes that have shards of the rows. Each has a pool of its own, and a share of each batch.

    Attributes
    ----------
    offset : Tensor of shape (d,)
        Mean of the rows.
    total_weight : float
    largest : float
        Largest absolute value of any row.
    x : Tensor of shape (size, d)
        The pool, whose rows are not centred.
    """

    def __init__(self, x, weight, size, run_length, generator, group=SINGLE_PROCESS):
        self.stream, self.weight, self.run_length, self.group = x, weight, run_length, group
        generator = group.rank_generator(generator)
        self.cumulative = None if weight is None else weight.cpu().double().cumsum(0)
        self.own_weight = float(len(x) if weight is None else self.cumulative[-1])
        n_counted = len(x) if weight is None else int((weight > 0).sum())
        self.n_counted, self.total_weight = group.all_reduce_sum(n_counted, self.own_weight)
        self.weights = group.all_gather(torch.tensor([self.own_weight], dtype=torch.float64))  # of the processes' rows
        self._sums = torch.zeros(x.shape[1], dtype=wide_dtype(x), device=x.device)
        self._reference = group.broadcast(x[slice(0, 1)][0].clone())
        self._largest = self._reference.new_zeros(())
        self.x = x.take(draw_indices(x, size, generator, weight), self._visit)
        (self.largest,), (sums,) = read([self._largest]), group.all_reduce_sum(self._sums)
        self.offset = (self._reference.to(sums) + sums / self.total_weight).to(self.x)
        self._order, self._next = torch.randperm(size, generator=generator), 0

    def __len__(self):
        return self.n_counted

    def _visit(self, rows, x):
        low, high = torch.aminmax(x)
        self._largest = torch.maximum(self._largest, torch.maximum(-low, high))
        x = x.to(self._sums.dtype) - self._reference
        self._sums += x.sum(0) if self.weight is None else self.weight[rows].to(x) @ x

    def centered(self, x):
        """Any rows less the offset, in the dtype of these."""
        return (x - self.offset.to(x)).to(self.x.dtype)

    def draw(self, n_rows, generator):
        """The rows of a batch and their weights, of all processes."""
        return whole(self.batch(n_rows, generator))

    def batch(self, n_rows, generator, out=None):
        """Rows of the pool, which is renewed by as many.

        Of several processes, each has as many as it has a share of all rows. Drawn rows are written to the buffer
        ``out`` (n_rows, d), if it is given.
        """
        return next(self.batches([self.draw_batch(n_rows, generator)], out))

    def draw_batch(self, n_rows, generator):
        """What `batches` makes a batch from: places in the pool, and indices of the rows that renew it, on the CPU."""
        n_own, generator = int(self._sizes(n_rows)[self.group.rank]), self.group.rank_generator(generator)
        places = torch.randint(len(self.x), (n_own,), generator=generator)
        n_runs = -(-min(n_own, len(self.x)) // self.run_length)
        return n_rows, places, self._runs(n_runs, generator).flatten()[: len(self.x)]

    def batches(self, draws, out=None):
        """Iterate over the batches of several draws, whose places go to the device together."""
        oldest = [self._oldest(len(new)) for _, _, new in draws]
        places = to_device(torch.cat([*(places for _, places, _ in draws), *oldest]), self.x.device)
        n_own, n_new = len(draws[0][1]), len(oldest[0])
        parts = places.split([n_own] * len(draws) + [n_new] * len(draws))
        for (n_rows, _, new), own, old in zip(draws, parts[: len(draws)], parts[len(draws) :], strict=True):
            drawn = torch.index_select(self.x, 0, own, out=None if out is None else out[:n_own]).sub_(self.offset)
            self.x[old] = self.stream.read(new)
            yield self._dealt(drawn, n_rows)

    def _oldest(self, n_rows):
        """Places of the rows that have been in the pool for longest, which are so no more."""
        places = self._order[(self._next + torch.arange(n_rows)) % len(self._order)]
        self._next = (self._next + n_rows) % len(self._order)
        return places

    def _shares(self, n_rows):
        """Shares of the processes in a batch, in rows."""
        return n_rows * self.weights / self.total_weight

    def _sizes(self, n_rows):
        return self._shares(n_rows).round().long().clamp(1, n_rows)

    def _dealt(self, drawn, n_rows):
        """A batch of the rows of this process."""
        if self.group.size == 1:
            return Batch(drawn, None)
        sizes, own = self._sizes(n_rows), self.group.rank
        first = int(sizes[:own].sum())
        dealt = BatchShard(self.group, torch.arange(first, first + len(drawn), device=drawn.device), int(sizes.sum()))
        # The weight makes up for the rounding of shares.
        weight = self._sums.new_full((len(drawn),), float(self._shares(n_rows)[own]) / len(drawn))
        return Batch(drawn, weight, dealt)

    def _runs(self, n_runs, generator):
        """Indices of the rows of runs (n_runs, run_length): as they stand or, if they have weights, drawn by these."""
        draws = torch.rand(n_runs, dtype=torch.float64, generator=generator)
        steps = torch.arange(self.run_length) + torch.rand(n_runs, 1, dtype=torch.float64, generator=generator)
        total = torch.tensor(self.own_weight, dtype=torch.float64)
        first = self._row_at(draws * total, total) // self.run_length * self.run_length
        last = (first + self.run_length).clamp_(max=len(self.stream))
        low, high = self._weight_before(first), self._weight_before(last)
        return self._row_at(low[:, None] + (high - low)[:, None] * steps / self.run_length, high[:, None])

    def _weight_before(self, rows):
        """Weight of all rows before the given ones."""
        if self.cumulative is None:
            return rows.double()
        return torch.where(rows > 0, self.cumulative[rows - 1], 0.0)

    def _row_at(self, weights, limit):
        """The row at which the sum of weights passes a number, which rounding must not have carried to its limit."""
        weights = torch.minimum(weights, torch.nextafter(limit, torch.zeros_like(limit)))
        return weights.long() if self.cumulative is None else torch.searchsorted(self.cumulative, weights, right=True)

    def variance(self):
        """Mean over the features of the variance of the rows, found in a pass."""
        parts = []
        for rows in self.stream.blocks:
            squares = (self.stream[rows] - self.offset).to(self._sums).square().sum(1)
            parts.append(squares.sum() if self.weight is None else self.weight[rows].to(squares) @ squares)
        total = 0.0
        for part in read(parts):
            total += part  # as `sum` adds floats from Python 3.12 on, it has other last bits
        (total,) = self.group.all_reduce_sum(total)
        return total / self.total_weight / self.x.shape[1]
