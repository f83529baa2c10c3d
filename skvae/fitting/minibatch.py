"""Mini-batch k-means: weighted batches, steps with a learning rate for each centre, and when to stop."""

from functools import partial
from typing import NamedTuple

import torch

from .chunks import row_chunks
from .devices import read, to_device, wide_dtype
from .distributed import SINGLE_PROCESS, BatchShard, SingleProcess
from .lloyd import count_distinct, distinct_rows, draw_rows, projection, seed_centers, squared_shift
from .nearest import assign, cluster_sums, squared_residuals

SCAN_BYTES = 2**20  # a chunk in float64, when all rows are visited once
REASSIGN_EVERY = 10  # steps between two looks at centres that have seen few rows
MAX_GATHERED_ROWS = 2**22  # rows of all processes, of each of which they tell one another a number


class MiniBatchFit(NamedTuple):
    """What mini-batch k-means found."""

    centers: torch.Tensor  # (k, d), less the offset of the rows
    counts: torch.Tensor  # (k,) weight that each centre has seen
    mean_inertia: float  # running mean of the squared distance of a row to its centre
    n_steps: int
    batch_size: int


class Batch(NamedTuple):
    """Rows of a batch that a process has."""

    x: torch.Tensor  # (b, d), less the offset of the rows
    weight: torch.Tensor | None  # (b,), one each if None
    group: SingleProcess | BatchShard = SINGLE_PROCESS  # the processes that have its rows


class WeightedRows:
    """Rows less their mean, from which batches are drawn with probability proportional to weight.

    Draws are made along the canonical order of the rows, so that they do not depend on where a row stands, and a row of
    weight two is drawn as two equal rows would be. For the same reason the length is the number of distinct rows. The
    rows are not copied.

    With more than four million rows of several processes, the order is that of the rows, and the length their number.

    Parameters
    ----------
    x : Tensor or LazyRows of shape (n, d)
        Rows; streamed ones should be quick to read in any order.
    weight : Tensor of shape (n,), optional
        Nonnegative weights, not all zero; one each if not given.
    group : SingleProcess or Group
        The processes that have shards of the rows.

    Attributes
    ----------
    offset : Tensor of shape (d,)
        Mean of the rows.
    total_weight : float
    """

    def __init__(self, x, weight=None, group=SINGLE_PROCESS):
        self.x, self.group, self.held, wide = x, group, isinstance(x, torch.Tensor), wide_dtype(x)
        self.weight = torch.ones(len(x), dtype=wide, device=x.device) if weight is None else weight.to(wide)
        (self.total_weight,) = group.all_reduce_sum(float(self.weight.sum()))
        self.first, n_rows = group.row_offset(len(x)), sum(group.all_gather_int(len(x)))
        self.offset, projections = self._scan()
        told = group.size == 1 or n_rows <= MAX_GATHERED_ROWS
        projections = group.all_gather(projections) if told else None
        order = projections.argsort() if told else torch.arange(n_rows, device=x.device)
        of_all = None if weight is None else group.all_gather(self.weight)
        self.order = order if weight is None else order[of_all[order] > 0]
        self.cumulative = None if weight is None else of_all[self.order].cumsum(0)
        self.n_distinct = count_distinct(projections[self.order]) if told else len(self.order)

    def __len__(self):
        return self.n_distinct

    def _scan(self):
        """Mean of the rows, and their projections on a fixed direction (n,), in one visit."""
        x, direction, projections = self.x, projection(self.x), []
        sums, reference = torch.zeros_like(direction), self.group.broadcast(x[slice(0, 1)][0].to(direction))
        chunks = row_chunks(len(x), x.shape[1], n_bytes=SCAN_BYTES)
        buffer = direction.new_empty(x[chunks[0]].shape)
        for rows in chunks:
            chunk = buffer[: len(x[rows])].copy_(x[rows]).sub_(reference)
            sums += self.weight[rows] @ chunk
            projections.append(chunk @ direction)
        (sums,) = self.group.all_reduce_sum(sums)
        return (reference + sums / self.total_weight).to(x.dtype), torch.cat(projections)

    def centered(self, x):
        """Any rows less the offset, in the dtype of these."""
        return (x - self.offset.to(x)).to(self.x.dtype)

    def take(self, indices, out=None):
        """Copies of rows, less the offset."""
        if not self.held:
            return self.x.read(indices.cpu()).sub_(self.offset)
        return torch.index_select(self.x, 0, indices, out=out).sub_(self.offset)

    def draw(self, n_rows, generator):
        """The rows of a batch and their weights, of all processes."""
        return whole(self.batch(n_rows, generator))

    def batch(self, n_rows, generator, out=None):
        """Rows: as many as asked for, which count one each, or all if no more are distinct.

        Drawn rows are written to the buffer ``out`` (n_rows, d), if it is given.
        """
        if n_rows >= len(self):
            own, group = self.group.shard_indices(self.order, self.first, len(self.x))
            return Batch(self.take(own), self.weight[own], group)
        return self._taken(self._picked(self.draw_batch(n_rows, generator)), out)

    def draw_batch(self, n_rows, generator):
        """What a batch is made from: shares of the total weight (n_rows,), on the CPU."""
        return torch.rand(n_rows, dtype=torch.float64, generator=generator)

    def batches(self, draws, out=None):
        """Iterate over the batches of several draws, which go to the device together."""
        picked = self._picked(torch.cat(draws))
        picked = picked if self.held else picked.cpu()
        for indices in picked.split([*map(len, draws)]):
            yield self._taken(indices, out)

    def _picked(self, draws):
        """Indices of the rows at shares of the total weight."""
        shares = to_device(draws.to(self.weight.dtype), self.weight.device)
        if self.cumulative is None:
            positions = (shares * len(self.order)).long()
        else:
            positions = torch.searchsorted(self.cumulative, shares * self.total_weight, right=True)
        return self.order[positions.clamp_(max=len(self.order) - 1)]

    def _taken(self, indices, out):
        own, group = self.group.shard_indices(indices, self.first, len(self.x))
        return Batch(self.take(own, None if out is None else out[: len(own)]), None, group)

    def variance(self):
        """Mean over the features of the variance of the rows."""
        chunks = row_chunks(len(self.x), self.x.shape[1], n_bytes=SCAN_BYTES)
        parts = [self.weight[rows] @ (self.x[rows] - self.offset).to(self.weight).square().sum(1) for rows in chunks]
        (total,) = self.group.all_reduce_sum(float(sum(parts)))
        return total / self.total_weight / self.x.shape[1]


def whole(batch):
    """The rows of a batch and their weights (None: one each), of all processes."""
    if batch.group.size == 1:
        return batch.x, batch.weight
    return batch.group.all_gather(batch.x), None if batch.weight is None else batch.group.all_gather(batch.weight)


def by_counts(masses, counts):
    """Learning rates that make a centre the mean of all rows it has seen (Sculley 2010)."""
    return masses / counts.clamp(min=torch.finfo(counts.dtype).tiny)


def constant_rate(learning_rate):
    """Learning rates of gradient descent on the mean squared distance, at most 1."""

    def rates(masses, counts):
        return (2 * learning_rate * masses / masses.sum()).clamp_(max=1)

    return rates


def mini_batch_step(x, weight, centers, counts, rates, group=SINGLE_PROCESS):
    """Move each centre towards the mean of its rows.

    ``centers + r * (means - centers)``, with a rate r for each centre that has rows.

    Parameters
    ----------
    x : Tensor of shape (b, d)
        Batch.
    weight : Tensor of shape (b,), optional
        Weights of the rows.
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
        Weight that each centre has seen before.
    rates : callable, (masses, counts) -> Tensor of shape (k,)
        Learning rates from the weight in the batch and the weight so far, the batch included.
    group : SingleProcess or BatchShard
        The processes that have the rows of the batch.

    Returns
    -------
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    mean_inertia : Tensor of shape ()
        Mean squared distance of the rows to their centres before the step; rounding can make it negative.
    """
    sums, masses = cluster_sums(x, centers, weight)
    squares = torch.linalg.vector_norm(x, dim=1).to(sums).square_()
    squares = squares.sum() if weight is None else squares @ weight.to(sums)
    sums, masses, squares = group.all_reduce_sum(sums, masses, squares)
    counts, wide = counts + masses, centers.to(sums)
    column = masses[:, None]
    moves = torch.where(column > 0, sums / column - wide, 0)
    inertia = squares - 2 * (sums * wide).sum() + masses @ wide.square().sum(1)
    moved = (wide + rates(masses, counts)[:, None] * moves).to(centers)
    return moved, counts, inertia / masses.sum()


def reassign(x, weight, centers, counts, ratio, generator, group=SINGLE_PROCESS):
    """Move centres whose count is below a share of the largest one to rows of the batch.

    Rows are drawn with probability proportional to weight times squared distance to the nearest centre; if all rows
    coincide with centres, none moves. A centre that moved gets the lowest count of those that did not, so that it does
    not move again at once.

    Returns
    -------
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    """
    low = counts < ratio * counts.max()  # none for a ratio of 0
    n_low = int(low.sum())
    if n_low in (0, len(low)):
        return centers, counts
    mass = squared_residuals(x, centers, assign(x, centers))
    mass = group.all_gather(mass if weight is None else mass * weight)
    if not mass.any():
        return centers, counts
    rows = group.take_global(x, draw_rows(torch.arange(len(mass), device=x.device), mass, n_low, generator))
    places = (low.cumsum(0) - 1).clamp_(min=0)  # of the rows that the centres get
    lowest = torch.where(low, torch.inf, counts).min()
    return torch.where(low[:, None], rows[places], centers), torch.where(low, lowest, counts)


class Patience:
    """Says when to stop: the centres do not move any more, or the running mean of the inertia has stopped to fall.

    Parameters
    ----------
    share : float
        Share of the rows that is in a batch.
    threshold : float
        Squared movement of the centres at which to stop; 0: never.
    max_no_improvement : int or None
        Steps without a new lowest mean inertia after which to stop; None: never.
    """

    def __init__(self, share, threshold, max_no_improvement):
        self.decay, self.threshold, self.max_no_improvement = min(1.0, 2 * share), threshold, max_no_improvement
        self.mean, self.lowest, self.n_no_improvement = None, float("inf"), 0

    def exhausted(self, step, inertia, shift):
        """Count a step; the inertia of the first is that of the start, and is not counted."""
        if step == 0:
            return False
        self.mean = inertia if self.mean is None else self.mean + self.decay * (inertia - self.mean)
        if self.threshold > 0 and shift <= self.threshold:
            return True
        self.n_no_improvement = 0 if self.mean < self.lowest else self.n_no_improvement + 1
        self.lowest = min(self.lowest, self.mean)
        return self.max_no_improvement is not None and self.n_no_improvement >= self.max_no_improvement


def fit_mini_batches(
    rows, centers, generator, *, max_iter, batch_size, rates, tol, max_no_improvement, reassignment_ratio, report=None
):
    """Mini-batch k-means from given centres.

    Parameters
    ----------
    rows : WeightedRows
    centers : Tensor of shape (k, d)
        Where to start, less the offset of the rows.
    generator : torch.Generator
    max_iter : int
        Largest number of passes over the rows.
    batch_size : int
        Rows in a batch. With no more distinct rows than that, each batch is all rows.
    rates : callable
        Learning rates, as for `mini_batch_step`.
    tol : float
        Stops when the squared movement of the centres in a step is at most this share of the variance of the rows; 0:
        never.
    max_no_improvement : int or None
    reassignment_ratio : float
    report : callable, optional
        Called with the step, the number of steps, the mean inertia of the batch and its running mean.

    Returns
    -------
    fit : MiniBatchFit
    """
    batch_size = min(batch_size, len(rows))
    n_steps = max_iter * len(rows) // batch_size
    patience = Patience(batch_size / (len(rows) + 1), tol * rows.variance() if tol else 0.0, max_no_improvement)
    counts = torch.zeros(len(centers), dtype=wide_dtype(centers), device=centers.device)
    batches = Batches(rows, batch_size, generator, centers)
    single = report or rows.group.size > 1  # a report, or another process, waits for each step in any case
    longest = 1 if single else steps_together(centers.device)
    n_done, looks, stop = 0, True, False
    while n_done < n_steps and not stop:
        n_together = min(1 if looks else longest - n_done % longest, n_steps - n_done)
        # Counts do not become zero again: after a step that needs no look, none does before the next that is due.
        checks = looks or is_due(n_done + n_together)
        look = partial(should_reassign, n_done + n_together, reassignment_ratio) if checks else None
        window = take_steps(batches.draw(n_together), centers, counts, rates, tol, look)
        looks = window.looks
        for index, (state, mean, shift) in enumerate(zip(window.states, window.means, window.shifts, strict=True)):
            before, (centers, counts) = centers, state
            if looks and index + 1 == len(window.states):
                x, weight, group = window.batch
                centers, counts = reassign(x, weight, centers, counts, reassignment_ratio, generator, group)
                (shift,) = read([squared_shift(centers, before)]) if tol else (0.0,)
            stop = patience.exhausted(n_done, mean, shift)
            n_done += 1
            if report:
                report(n_done, n_steps, mean, patience.mean)
            if stop:
                batches.go_back(index + 1)
                break
    return MiniBatchFit(centers, counts, mean if patience.mean is None else patience.mean, n_done, batch_size)


class Batches:
    """Batches for the steps of a fit, of which a window is drawn at a time.

    Parameters
    ----------
    rows : WeightedRows or PooledRows
    batch_size : int
        As many as there are distinct rows: each batch is all of them.
    generator : torch.Generator
    centers : Tensor of shape (k, d)
        The batches are on their device, in their dtype.
    """

    def __init__(self, rows, batch_size, generator, centers):
        self.rows, self.batch_size, self.generator = rows, batch_size, generator
        self.all_rows = rows.batch(batch_size, generator) if batch_size == len(rows) else None
        # Fresh memory for every batch would cost as much as a step.
        self.buffer = centers.new_empty(batch_size, centers.shape[1])

    def draw(self, n_batches):
        """Draw a window of batches, and iterate over them; each is overwritten by the next."""
        if self.all_rows:
            return [self.all_rows] * n_batches
        self.n_drawn = n_batches
        if n_batches == 1:
            return [self.rows.batch(self.batch_size, self.generator, self.buffer)]
        self.state = self.generator.get_state()
        return self.rows.batches(self._draws(n_batches), self.buffer)

    def go_back(self, n_batches):
        """Leave the generator as if only so many batches of the last window had been drawn."""
        if not self.all_rows and n_batches < self.n_drawn:
            self.generator.set_state(self.state)
            self._draws(n_batches)

    def _draws(self, n_batches):
        return [self.rows.draw_batch(self.batch_size, self.generator) for _ in range(n_batches)]


class Window(NamedTuple):
    """Steps of mini-batch k-means one after another, whose decisions are read together."""

    states: list  # centres and counts after each step
    means: list  # mean inertia of each batch
    shifts: list  # squared movement of the centres in each step; 0 if there is no tolerance
    looks: bool  # whether the last step needs a look at centres with few rows
    batch: Batch  # of the last step


def steps_together(device):
    """Steps whose decisions are read together, at most: on an accelerator, all between two looks at centres."""
    return 1 if device.type == "cpu" else REASSIGN_EVERY


def take_steps(batches, centers, counts, rates, tol, look=None):
    """Make a step with each batch, and read once what they are to be judged by.

    Parameters
    ----------
    batches : iterable of Batch
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    rates : callable
        Learning rates, as for `mini_batch_step`.
    tol : float
    look : callable, Tensor (k,) -> Tensor of shape (), optional
        Whether the counts after the last step need a look.

    Returns
    -------
    window : Window
    """
    states, means, shifts = [], [], []
    for batch in batches:
        moved, counts, mean = mini_batch_step(batch.x, batch.weight, centers, counts, rates, batch.group)
        means.append(mean)
        if tol:
            shifts.append(squared_shift(moved, centers))
        centers = moved
        states.append((centers, counts))
    values, n_steps = read(means + shifts + ([look(counts)] if look else [])), len(states)
    looks = bool(values.pop()) if look else False
    means = [max(0.0, value) for value in values[:n_steps]]
    return Window(states, means, values[n_steps:] or [0.0] * n_steps, looks, batch)


def is_due(n_done):
    """Whether centres that have seen few rows are looked for after so many steps."""
    return n_done % REASSIGN_EVERY == 0


def should_reassign(n_done, ratio, counts):
    """Whether a count is at most a share of the largest one, or zero if no look is due, Tensor of shape ()."""
    return (counts <= (ratio if is_due(n_done) else 0.0) * counts.max()).any()


# Each gives indices of n_clusters rows of a sample: (x, n_clusters, generator, weight) -> (n_clusters,).
SEEDINGS = {"k-means++": seed_centers, "random": distinct_rows}


def start_centers(rows, starts, init_size, generator):
    """The best of several starts, by the inertia of a sample of the rows.

    Parameters
    ----------
    rows : WeightedRows
    starts : list of callable, (x, weight) -> Tensor of shape (k, d)
        Each gives centres from a sample of its own.
    init_size : int
        Rows in a sample.
    generator : torch.Generator
    """
    if len(starts) == 1:
        return starts[0](*rows.draw(init_size, generator))
    x, weight = rows.draw(init_size, generator)
    candidates = [start(*rows.draw(init_size, generator)) for start in starts]
    inertias = read([inertia(x, centers, assign(x, centers), weight) for centers in candidates])
    return candidates[inertias.index(min(inertias))]


def inertia(x, centers, labels, weight=None):
    """Weighted sum of squared distances of the rows to their centres, Tensor of shape ()."""
    squares = squared_residuals(x, centers, labels).to(wide_dtype(x))
    return squares.sum() if weight is None else squares @ weight.to(squares)
