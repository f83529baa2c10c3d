"""Mini-batch k-means: weighted batches, steps with a learning rate for each centre, and when to stop."""

from typing import NamedTuple

import torch

from .distributed import ALONE, Alone, Deal
from .lloyd import count_distinct, distinct_rows, draw_rows, projection, seed_centers
from .nearest import assign, cluster_sums, squared_residuals, wide_dtype
from .rows import row_chunks

SCAN_BYTES = 2**20  # a chunk in float64, when all rows are visited once
REASSIGN_EVERY = 10  # steps between two looks at centres that have seen few rows
MOST_TOLD = 2**22  # rows of all processes, of each of which they tell one another a number


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
    ranks: Alone | Deal = ALONE  # the processes that have its rows


class WeightedRows:
    """Rows less their mean, from which batches are drawn with probability proportional to weight.

    Draws are made along the canonical order of the rows, so that they do not depend on where a row stands, and a row of
    weight two is drawn as two equal rows would be. For the same reason the length is the number of distinct rows. The
    rows are not copied.

    With more than four million rows of several processes, the order is that of the rows, and the length their number.

    Parameters
    ----------
    x : Tensor or StreamedRows of shape (n, d)
        Rows; streamed ones should be quick to read in any order.
    weight : Tensor of shape (n,), optional
        Nonnegative weights, not all zero; one each if not given.
    ranks : Alone or Group
        The processes that have shards of the rows.

    Attributes
    ----------
    offset : Tensor of shape (d,)
        Mean of the rows.
    total_weight : float
    """

    def __init__(self, x, weight=None, ranks=ALONE):
        self.x, self.ranks, wide = x, ranks, wide_dtype(x)
        self.weight = torch.ones(len(x), dtype=wide, device=x.device) if weight is None else weight.to(wide)
        (self.total_weight,) = ranks.totals(float(self.weight.sum()))
        self.first, n_rows = ranks.start(len(x)), sum(ranks.each(len(x)))
        self.offset, projections = self._scan()
        told = ranks.size == 1 or n_rows <= MOST_TOLD
        projections = ranks.gather(projections) if told else None
        order = projections.argsort() if told else torch.arange(n_rows, device=x.device)
        of_all = None if weight is None else ranks.gather(self.weight)
        self.order = order if weight is None else order[of_all[order] > 0]
        self.cumulative = None if weight is None else of_all[self.order].cumsum(0)
        self.n_distinct = count_distinct(projections[self.order]) if told else len(self.order)

    def __len__(self):
        return self.n_distinct

    def _scan(self):
        """Mean of the rows, and their projections on a fixed direction (n,), in one visit."""
        x, direction, projections = self.x, projection(self.x), []
        sums, reference = torch.zeros_like(direction), self.ranks.first(x[slice(0, 1)][0].to(direction))
        chunks = row_chunks(len(x), x.shape[1], n_bytes=SCAN_BYTES)
        buffer = direction.new_empty(x[chunks[0]].shape)
        for rows in chunks:
            chunk = buffer[: len(x[rows])].copy_(x[rows]).sub_(reference)
            sums += self.weight[rows] @ chunk
            projections.append(chunk @ direction)
        (sums,) = self.ranks.totals(sums)
        return (reference + sums / self.total_weight).to(x.dtype), torch.cat(projections)

    def centered(self, x):
        """Any rows less the offset, in the dtype of these."""
        return (x - self.offset.to(x)).to(self.x.dtype)

    def take(self, indices, out=None):
        """Copies of rows, less the offset."""
        if not isinstance(self.x, torch.Tensor):
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
            own, ranks = self.ranks.deal(self.order, self.first, len(self.x))
            return Batch(self.take(own), self.weight[own], ranks)
        draws = torch.rand(n_rows, dtype=torch.float64, generator=generator).to(self.weight)
        if self.cumulative is None:
            positions = (draws * len(self.order)).long()
        else:
            positions = torch.searchsorted(self.cumulative, draws * self.total_weight, right=True)
        picked = self.order[positions.clamp_(max=len(self.order) - 1)]
        own, ranks = self.ranks.deal(picked, self.first, len(self.x))
        return Batch(self.take(own, None if out is None else out[: len(own)]), None, ranks)

    def variance(self):
        """Mean over the features of the variance of the rows."""
        chunks = row_chunks(len(self.x), self.x.shape[1], n_bytes=SCAN_BYTES)
        parts = [self.weight[rows] @ (self.x[rows] - self.offset).to(self.weight).square().sum(1) for rows in chunks]
        (total,) = self.ranks.totals(float(sum(parts)))
        return total / self.total_weight / self.x.shape[1]


def whole(batch):
    """The rows of a batch and their weights (None: one each), of all processes."""
    if batch.ranks.size == 1:
        return batch.x, batch.weight
    return batch.ranks.gather(batch.x), None if batch.weight is None else batch.ranks.gather(batch.weight)


def by_counts(masses, counts):
    """Learning rates that make a centre the mean of all rows it has seen (Sculley 2010)."""
    return masses / counts.clamp(min=torch.finfo(counts.dtype).tiny)


def constant_rate(learning_rate):
    """Learning rates of gradient descent on the mean squared distance, at most 1."""

    def rates(masses, counts):
        return (2 * learning_rate * masses / masses.sum()).clamp_(max=1)

    return rates


def mini_batch_step(x, weight, centers, counts, rates, ranks=ALONE):
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
    ranks : Alone or Deal
        The processes that have the rows of the batch.

    Returns
    -------
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    mean_inertia : float
        Mean squared distance of the rows to their centres before the step.
    """
    sums, masses = cluster_sums(x, centers, weight)
    squares = torch.linalg.vector_norm(x, dim=1).to(sums).square_()
    squares = squares.sum() if weight is None else squares @ weight.to(sums)
    sums, masses, squares = ranks.totals(sums, masses, squares)
    counts, wide = counts + masses, centers.to(sums)
    moves = torch.where(masses[:, None] > 0, sums / masses[:, None] - wide, 0)
    inertia = squares - 2 * (sums * wide).sum() + masses @ wide.square().sum(1)
    moved = (wide + rates(masses, counts)[:, None] * moves).to(centers)
    return moved, counts, max(0.0, float(inertia / masses.sum()))


def reassign(x, weight, centers, counts, ratio, generator, ranks=ALONE):
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
    if not low.any() or low.all():
        return centers, counts
    mass = squared_residuals(x, centers, assign(x, centers))
    mass = ranks.gather(mass if weight is None else mass * weight)
    if not mass.any():
        return centers, counts
    rows = draw_rows(torch.arange(len(mass), device=x.device), mass, int(low.sum()), generator)
    centers, counts = centers.clone(), counts.clone()
    centers[low] = ranks.take(x, rows)
    counts[low] = counts[~low].min()
    return centers, counts


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
    all_rows = rows.batch(batch_size, generator) if batch_size == len(rows) else None
    buffer = centers.new_empty(
        batch_size, centers.shape[1]
    )  # fresh memory for every batch would cost as much as a step
    for step in range(n_steps):
        x, weight, ranks = all_rows or rows.batch(batch_size, generator, buffer)
        moved, counts, mean = mini_batch_step(x, weight, centers, counts, rates, ranks)
        if needs_look(step, counts):
            moved, counts = reassign(x, weight, moved, counts, reassignment_ratio, generator, ranks)
        shift, centers = float((moved - centers).square().sum()) if tol else 0.0, moved
        stop = patience.exhausted(step, mean, shift)
        if report:
            report(step + 1, n_steps, mean, patience.mean)
        if stop:
            break
    return MiniBatchFit(centers, counts, mean if patience.mean is None else patience.mean, step + 1, batch_size)


def needs_look(step, counts):
    """Whether to look for centres with few rows after a step: now and then, and while there are some with none."""
    return (step + 1) % REASSIGN_EVERY == 0 or not counts.all()


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
    return min(candidates, key=lambda centers: inertia(x, centers, assign(x, centers), weight))


def inertia(x, centers, labels, weight=None):
    """Weighted sum of squared distances of the rows to their centres."""
    squares = squared_residuals(x, centers, labels).to(wide_dtype(x))
    return float(squares.sum() if weight is None else squares @ weight.to(squares))
