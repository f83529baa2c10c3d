"""Random batches of weighted rows: drawn from all rows, or from a pool in memory."""

from abc import ABC, abstractmethod

import torch

from .devices import read, to_device, wide_dtype
from .distributed import BatchShard
from .rows import blocks_of, row_chunks
from .weighted_rows import WeightedRows, argsort, count_distinct, draw_indices, projection

SCAN_BYTES, MIN_SCANNED = 2**20, 64  # of a chunk in float64, when all rows are read once, and rows in it
MAX_GATHERED_ROWS = 2**22  # rows of all processes up to which their projections are gathered


class BatchSampler(ABC):
    """Random batches of weighted rows, less their mean.

    Attributes
    ----------
    x : Tensor or LazyRows of shape (m, d)
        The rows from which batches are drawn, which are not centred.
    weight : Tensor of shape (n,) or None
        Weights of all rows of this process.
    group : ProcessGroup
        The processes that have shards of the rows.
    offset : Tensor of shape (d,)
        Weighted mean of the rows.
    total_weight : float
    n_distinct : int
        Number of distinct rows: a batch of this size or more is all rows.
    largest : float
        Largest absolute value of the rows of this process; NaN if there is one.
    """

    def is_within(self, limit):
        """Return whether the absolute values of the rows of this process are at most a limit, and not NaN."""
        return self.largest <= limit

    @abstractmethod
    def draw(self, n_rows, generator):
        """Return the random numbers of a batch, on the CPU."""

    @abstractmethod
    def batches(self, draws, out=None):
        """Yield the batches of several draws, whose indices go to the device together.

        Parameters
        ----------
        draws : list
            Values of `draw`, all for the same number of rows.
        out : Tensor of shape (n_rows, d), optional
            Each batch is written to it, and overwritten by the next one.

        Yields
        ------
        batch : WeightedRows
            Centred rows of this process.
        """

    @abstractmethod
    def variance(self):
        """Return the mean variance of the features."""

    def batch(self, n_rows, generator, out=None):
        """Draw a batch; see `batches`."""
        return next(self.batches([self.draw(n_rows, generator)], out))

    def sample(self, n_rows, generator):
        """Draw a batch, and return the rows of all processes."""
        return self.batch(n_rows, generator).gather()

    def centered(self, x):
        """Subtract the offset from any rows; return them in the dtype of these."""
        return (x - self.offset.to(x)).to(self.x.dtype)


class DirectBatchSampler(BatchSampler):
    """Batches drawn from all rows, with replacement and with probability proportional to weight.

    Draws are made along the canonical order of the rows, so that they do not depend on the order in which rows come,
    and a row of weight two is drawn as two equal rows would be. The rows are not copied.

    With more than four million rows of several processes, the order is that of the rows, and all count as distinct.

    Parameters
    ----------
    rows : WeightedRows
        Streamed ones should be fast to read in any order.
    """

    def __init__(self, rows):
        self.x, weight, self.group = rows
        self._in_memory, self.weight = isinstance(self.x, torch.Tensor), rows.wide_weight()
        (self.total_weight,) = self.group.all_reduce_sum(float(self.weight.sum()))
        self._row_offset, n_rows = self.group.row_offset(len(self.x)), sum(self.group.all_gather_int(len(self.x)))
        self.offset, projections, self._bound = self._scan()
        is_sorted = self.group.size == 1 or n_rows <= MAX_GATHERED_ROWS
        projections = self.group.all_gather(projections) if is_sorted else None
        order = argsort(projections) if is_sorted else torch.arange(n_rows, device=self.x.device)
        global_weight = None if weight is None else self.group.all_gather(self.weight)
        self._order = order if weight is None else order[global_weight[order] > 0]
        self._cumulative = None if weight is None else global_weight[self._order].cumsum(0)
        self.n_distinct = count_distinct(projections[self._order]) if is_sorted else len(self._order)

    def _scan(self):
        """Compute the mean, projections on a fixed direction (n,), and a bound of absolute values, in one pass."""
        x, direction, projections, squares = self.x, projection(self.x), [], 0.0
        sums, reference = torch.zeros_like(direction), self.group.broadcast(x[slice(0, 1)][0].to(direction))
        chunks = row_chunks(*x.shape, max(MIN_SCANNED, SCAN_BYTES // (8 * x.shape[1])))
        buffer = direction.new_empty(x[chunks[0]].shape)
        for rows in chunks:
            part = x[rows]
            chunk = buffer[: len(part)].copy_(part).sub_(reference)
            squares = squares + chunk.flatten().dot(chunk.flatten())
            sums += self.weight[rows] @ chunk
            projections.append(chunk @ direction)
        (sums,), (bound,) = self.group.all_reduce_sum(sums), read([reference.abs().max() + squares.sqrt()])
        return (reference + sums / self.total_weight).to(x.dtype), torch.cat(projections), bound

    @property
    def largest(self):
        ends = torch.stack([torch.stack(torch.aminmax(self.x[block])) for block in blocks_of(self.x)])
        (largest,) = read([ends.abs().amax()])
        return largest

    def is_within(self, limit):
        return self._bound <= limit or super().is_within(limit)

    def batch(self, n_rows, generator, out=None):
        """Draw a batch, whose rows count one each; or return all rows with their weights, if no more are distinct."""
        if n_rows < self.n_distinct:
            return super().batch(n_rows, generator, out)
        own, shard = self.group.shard_indices(self._order, self._row_offset, len(self.x))
        return WeightedRows(self._take(own), self.weight[own], shard)

    def draw(self, n_rows, generator):
        return torch.rand(n_rows, dtype=torch.float64, generator=generator)  # quantiles of the weight

    def batches(self, draws, out=None):
        quantiles = to_device(torch.cat(draws).to(self.weight.dtype), self.weight.device)
        if self._cumulative is None:
            positions = (quantiles * len(self._order)).long()
        else:
            positions = torch.searchsorted(self._cumulative, quantiles * self.total_weight, right=True)
        drawn = self._order[positions.clamp_(max=len(self._order) - 1)]
        drawn = drawn if self._in_memory else drawn.cpu()
        for indices in drawn.split([*map(len, draws)]):
            own, shard = self.group.shard_indices(indices, self._row_offset, len(self.x))
            yield WeightedRows(self._take(own, None if out is None else out[: len(own)]), None, shard)

    def _take(self, indices, out=None):
        """Copy rows, less the offset."""
        if not self._in_memory:
            return self.x.read(indices.cpu()).sub_(self.offset)
        return torch.index_select(self.x, 0, indices, out=out).sub_(self.offset)

    def variance(self):
        chunks = row_chunks(len(self.x), self.x.shape[1], n_bytes=SCAN_BYTES)
        parts = [self.weight[rows] @ (self.x[rows] - self.offset).to(self.weight).square().sum(1) for rows in chunks]
        (total,) = self.group.all_reduce_sum(float(sum(parts)))
        return total / self.total_weight / self.x.shape[1]


class PooledBatchSampler(BatchSampler):
    """Batches of streamed rows, drawn from a pool in memory.

    The pool is initialized with a random sample of all rows. Batches are drawn from it, with replacement. After each,
    the oldest rows of the pool, as many as the batch has, are replaced by runs of neighbouring rows from random places.
    So a disk is read in runs, and a batch has rows from many of them. Rows enter the pool with probability proportional
    to their weights, and count one each in it. All rows of positive weight count as distinct.

    Parameters
    ----------
    rows : WeightedRows
        Streamed. Each process has a pool of its own, and a share of each batch.
    size : int
        Rows in the pool, at most n.
    run_length : int
        Rows in a run.
    generator : torch.Generator
    """

    def __init__(self, rows, size, run_length, generator):
        x, weight, self.group = rows
        self._stream, self.weight = x, weight
        self._run_length, generator = run_length, self.group.rank_generator(generator)
        self._cumulative = None if weight is None else weight.cpu().double().cumsum(0)
        self._own_weight = float(len(x) if weight is None else self._cumulative[-1])
        n_counted = len(x) if weight is None else int((weight > 0).sum())
        self.n_distinct, self.total_weight = self.group.all_reduce_sum(n_counted, self._own_weight)
        self._rank_weights = self.group.all_gather(torch.tensor([self._own_weight], dtype=torch.float64))
        self._sums = torch.zeros(x.shape[1], dtype=wide_dtype(x), device=x.device)
        self._reference = self.group.broadcast(x[slice(0, 1)][0].clone())
        self._largest = self._reference.new_zeros(())
        self.x = x.take(draw_indices(WeightedRows(x, weight), size, generator), self._visit)
        (self.largest,), (sums,) = read([self._largest]), self.group.all_reduce_sum(self._sums)
        self.offset = (self._reference.to(sums) + sums / self.total_weight).to(self.x)
        self._order, self._next = torch.randperm(size, generator=generator), 0

    def _visit(self, block, x):
        low, high = torch.aminmax(x)
        self._largest = torch.maximum(self._largest, torch.maximum(-low, high))
        x = x.to(self._sums.dtype) - self._reference
        self._sums += x.sum(0) if self.weight is None else self.weight[block].to(x) @ x

    def draw(self, n_rows, generator):
        """Draw positions in the pool, and indices of the rows that replace the oldest ones."""
        n_own, generator = int(self._rank_sizes(n_rows)[self.group.rank]), self.group.rank_generator(generator)
        positions = torch.randint(len(self.x), (n_own,), generator=generator)
        n_runs = -(-min(n_own, len(self.x)) // self._run_length)
        return n_rows, positions, self._draw_runs(n_runs, generator).flatten()[: len(self.x)]

    def batches(self, draws, out=None):
        oldest = [self._pop_oldest(len(new)) for _, _, new in draws]
        positions = to_device(torch.cat([*(positions for _, positions, _ in draws), *oldest]), self.x.device)
        n_own, n_new = len(draws[0][1]), len(oldest[0])
        parts = positions.split([n_own] * len(draws) + [n_new] * len(draws))
        for (n_rows, _, new), own, old in zip(draws, parts[: len(draws)], parts[len(draws) :], strict=True):
            drawn = torch.index_select(self.x, 0, own, out=None if out is None else out[:n_own]).sub_(self.offset)
            self.x[old] = self._stream.read(new)
            yield self._with_weight(drawn, n_rows)

    def _pop_oldest(self, n_rows):
        """Return the positions of the oldest rows in the pool, which become the newest."""
        positions = self._order[(self._next + torch.arange(n_rows)) % len(self._order)]
        self._next = (self._next + n_rows) % len(self._order)
        return positions

    def _rank_shares(self, n_rows):
        """Return the share of each process in a batch, in rows."""
        return n_rows * self._rank_weights / self.total_weight

    def _rank_sizes(self, n_rows):
        return self._rank_shares(n_rows).round().long().clamp(1, n_rows)

    def _with_weight(self, drawn, n_rows):
        """Return a batch, in which the weights of the processes make up for the rounding of their shares."""
        if self.group.size == 1:
            return WeightedRows(drawn)
        sizes, rank = self._rank_sizes(n_rows), self.group.rank
        first = int(sizes[:rank].sum())
        shard = BatchShard(self.group, torch.arange(first, first + len(drawn), device=drawn.device), int(sizes.sum()))
        weight = self._sums.new_full((len(drawn),), float(self._rank_shares(n_rows)[rank]) / len(drawn))
        return WeightedRows(drawn, weight, shard)

    def _draw_runs(self, n_runs, generator):
        """Draw indices of rows in runs (n_runs, run_length): all rows of a run or, if they have weights, by these."""
        draws = torch.rand(n_runs, dtype=torch.float64, generator=generator)
        steps = torch.arange(self._run_length) + torch.rand(n_runs, 1, dtype=torch.float64, generator=generator)
        total = torch.tensor(self._own_weight, dtype=torch.float64)
        first = self._row_at(draws * total, total) // self._run_length * self._run_length
        last = (first + self._run_length).clamp_(max=len(self._stream))
        low, high = self._weight_before(first), self._weight_before(last)
        return self._row_at(low[:, None] + (high - low)[:, None] * steps / self._run_length, high[:, None])

    def _weight_before(self, indices):
        """Return the cumulative weight of all previous rows."""
        if self._cumulative is None:
            return indices.double()
        return torch.where(indices > 0, self._cumulative[indices - 1], 0.0)

    def _row_at(self, weight, limit):
        """Return the rows at which the cumulative weight passes values, which rounding may have carried to a limit."""
        weight = torch.minimum(weight, torch.nextafter(limit, torch.zeros_like(limit)))
        return weight.long() if self._cumulative is None else torch.searchsorted(self._cumulative, weight, right=True)

    def variance(self):
        parts = []
        for block in self._stream.blocks:
            squares = (self._stream[block] - self.offset).to(self._sums).square().sum(1)
            parts.append(squares.sum() if self.weight is None else self.weight[block].to(squares) @ squares)
        total = 0.0
        for part in read(parts):
            total += part  # `sum` of floats is compensated from Python 3.12 on, and its last bits differ
        (total,) = self.group.all_reduce_sum(total)
        return total / self.total_weight / self.x.shape[1]
