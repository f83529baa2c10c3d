"""Mini-batch k-means: steps with a learning rate for each centre, reassignment of rarely used centres, convergence."""

from functools import partial
from typing import NamedTuple

import torch

from .devices import read, wide_dtype
from .lloyd import draw_distinct_rows, kmeans_plusplus, squared_shift
from .nearest import assign, cluster_sums, squared_residuals
from .weighted_rows import WeightedRows, draw_rows

REASSIGNMENT_INTERVAL = 10  # steps
# Functions (WeightedRows, n_clusters, generator) -> indices of rows (n_clusters,).
SEEDINGS = {"k-means++": kmeans_plusplus, "random": draw_distinct_rows}


class MiniBatchFit(NamedTuple):
    """Result of mini-batch k-means."""

    centers: torch.Tensor  # (k, d), less the offset of the sampler
    counts: torch.Tensor  # (k,) weight of the rows that each centre has seen
    mean_inertia: float  # running mean of the mean squared distance to the nearest centre
    n_steps: int
    batch_size: int


def rate_by_counts(masses, counts):
    """Return the learning rates that make a centre the mean of all rows it has seen (Sculley 2010)."""
    return masses / counts.clamp(min=torch.finfo(counts.dtype).tiny)


def constant_rate(learning_rate):
    """Return a function for the learning rates of gradient descent on the mean squared distance, at most 1."""

    def rates(masses, counts):
        return (2 * learning_rate * masses / masses.sum()).clamp_(max=1)

    return rates


def fit_mini_batches(
    sampler,
    centers,
    generator,
    *,
    max_iter,
    batch_size,
    rates,
    tol,
    max_no_improvement,
    reassignment_ratio,
    report=None,
):
    """Fit centres by mini-batch k-means.

    Parameters
    ----------
    sampler : BatchSampler
    centers : Tensor of shape (k, d)
        Initial centres, less the offset of the sampler.
    generator : torch.Generator
    max_iter : int
        Largest number of epochs.
    batch_size : int
        Rows in a batch. With no more distinct rows than that, each batch is all rows.
    rates : callable
        Learning rates, as for `mini_batch_step`.
    tol : float
        Stop when the squared movement of the centres in a step is at most this share of the variance of the rows; 0:
        never.
    max_no_improvement : int or None
    reassignment_ratio : float
    report : callable, optional
        Called with the step, the number of steps, the mean inertia of the batch and its running mean.

    Returns
    -------
    fit : MiniBatchFit
    """
    batch_size = min(batch_size, sampler.n_distinct)
    n_steps = max_iter * sampler.n_distinct // batch_size
    threshold = tol * sampler.variance() if tol else 0.0
    monitor = ConvergenceMonitor(batch_size / (sampler.n_distinct + 1), threshold, max_no_improvement)
    counts = torch.zeros(len(centers), dtype=wide_dtype(centers), device=centers.device)
    batches = BatchWindows(sampler, batch_size, generator, centers)
    synchronizes = report or sampler.group.size > 1  # at every step in any case
    max_window = 1 if synchronizes else max_steps_per_window(centers.device)
    n_done, reassigns, stops = 0, True, False
    while n_done < n_steps and not stops:
        n_together = min(1 if reassigns else max_window - n_done % max_window, n_steps - n_done)
        # Counts do not return to zero: after a step without reassignment, the next can only be at the interval.
        checks = reassigns or (n_done + n_together) % REASSIGNMENT_INTERVAL == 0
        condition = partial(needs_reassignment, n_done + n_together, reassignment_ratio) if checks else None
        window = run_window(batches.draw(n_together), centers, counts, rates, tol, condition)
        reassigns = window.needs_reassignment
        for index, (state, mean, shift) in enumerate(zip(window.states, window.means, window.shifts, strict=True)):
            before, (centers, counts) = centers, state
            if reassigns and index + 1 == len(window.states):
                centers, counts = reassign(window.last_batch, centers, counts, reassignment_ratio, generator)
                (shift,) = read([squared_shift(centers, before)]) if tol else (0.0,)
            stops = monitor.update(n_done, mean, shift)
            n_done += 1
            if report:
                report(n_done, n_steps, mean, monitor.mean)
            if stops:
                batches.rewind(index + 1)
                break
    return MiniBatchFit(centers, counts, mean if monitor.mean is None else monitor.mean, n_done, batch_size)


def partial_fit_step(sampler, centers, counts, generator, *, n_done, rates, reassignment_ratio):
    """Make a step of mini-batch k-means with all rows of a sampler as the batch.

    Returns
    -------
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    mean_inertia : float
        Before the step.
    """
    batch = sampler.batch(sampler.n_distinct, generator)
    centers, counts, mean = mini_batch_step(batch, centers, counts, rates)
    mean, reassigns = read([mean, needs_reassignment(n_done + 1, reassignment_ratio, counts)])
    if reassigns:
        centers, counts = reassign(batch, centers, counts, reassignment_ratio, generator)
    return centers, counts, max(0.0, mean)


def mini_batch_step(batch, centers, counts, rates):
    """Move each centre towards the mean of its rows.

    ``centers + r * (means - centers)``, with a rate r for each centre that has rows.

    Parameters
    ----------
    batch : WeightedRows
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
        Weight of the rows that each centre has seen before.
    rates : callable, (masses, counts) -> Tensor of shape (k,)
        Learning rates from the weights in the batch and in all batches, this one included.

    Returns
    -------
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    mean_inertia : Tensor of shape ()
        Mean squared distance of the rows to their centres before the step; rounding can make it negative.
    """
    x, weight, group = batch
    sums, masses = cluster_sums(x, centers, weight)
    squares = torch.linalg.vector_norm(x, dim=1).to(sums).square_()
    squares = squares.sum() if weight is None else squares @ weight.to(sums)
    sums, masses, squares = group.all_reduce_sum(sums, masses, squares)
    counts, wide = counts + masses, centers.to(sums)
    center_squares = torch.linalg.vector_norm(wide, dim=1).square_()
    inertia = squares - 2 * sums.flatten().dot(wide.flatten()) + masses @ center_squares
    # Without rows, the sum and the rate are zero. In place, because fresh memory would cost more than the work.
    means = sums.div_(torch.where(masses > 0, masses, 1)[:, None])
    moved = means.sub_(wide).mul_(rates(masses, counts)[:, None]).add_(wide).to(centers)
    return moved, counts, inertia / masses.sum()


def needs_reassignment(n_done, ratio, counts):
    """Return whether a count is at most a share of the largest, or zero between intervals, Tensor of shape ()."""
    ratio = ratio if n_done % REASSIGNMENT_INTERVAL == 0 else 0.0
    return (counts <= ratio * counts.max()).any()


def reassign(batch, centers, counts, ratio, generator):
    """Move centres whose count is below a share of the largest to rows of the batch.

    Rows are drawn with probability proportional to weight times squared distance to the nearest centre; if all rows
    coincide with centres, none moves. A centre that moves gets the lowest count of those that do not, so that it does
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
    mass = squared_residuals(batch.x, centers, assign(batch.x, centers))
    mass = batch.group.all_gather(mass if batch.weight is None else mass * batch.weight)
    if not mass.any():
        return centers, counts
    rows = batch.take_global(draw_rows(torch.arange(len(mass), device=mass.device), mass, n_low, generator))
    positions = (low.cumsum(0) - 1).clamp_(min=0)  # of the rows for the centres
    lowest = torch.where(low, torch.inf, counts).min()
    return torch.where(low[:, None], rows[positions], centers), torch.where(low, lowest, counts)


class ConvergenceMonitor:
    """Early stopping: the centres have stopped moving, or the running mean of the inertia has stopped falling.

    Parameters
    ----------
    batch_share : float
        Rows in a batch over all rows.
    threshold : float
        Squared movement of the centres at which to stop; 0: never.
    max_no_improvement : int or None
        Steps without a new lowest mean inertia after which to stop; None: never.
    """

    def __init__(self, batch_share, threshold, max_no_improvement):
        self.decay, self.threshold, self.max_no_improvement = min(1.0, 2 * batch_share), threshold, max_no_improvement
        self.mean, self.lowest, self.n_no_improvement = None, float("inf"), 0

    def update(self, step, inertia, shift):
        """Record a step; return whether to stop. The inertia of step 0 is that of the initial centres, and ignored."""
        if step == 0:
            return False
        self.mean = inertia if self.mean is None else self.mean + self.decay * (inertia - self.mean)
        if self.threshold > 0 and shift <= self.threshold:
            return True
        self.n_no_improvement = 0 if self.mean < self.lowest else self.n_no_improvement + 1
        self.lowest = min(self.lowest, self.mean)
        return self.max_no_improvement is not None and self.n_no_improvement >= self.max_no_improvement


class BatchWindows:
    """Batches for the steps of a fit, drawn in windows of a few.

    Parameters
    ----------
    sampler : BatchSampler
    batch_size : int
        If it is the number of distinct rows, each batch is all rows.
    generator : torch.Generator
    centers : Tensor of shape (k, d)
        The batches are on their device, in their dtype.
    """

    def __init__(self, sampler, batch_size, generator, centers):
        self.sampler, self.batch_size, self.generator = sampler, batch_size, generator
        self.all_rows = sampler.batch(batch_size, generator) if batch_size == sampler.n_distinct else None
        # Fresh memory for every batch would cost as much as a step.
        self.buffer = centers.new_empty(batch_size, centers.shape[1])

    def draw(self, n_batches):
        """Draw a window of batches, and iterate over them; each is overwritten by the next."""
        if self.all_rows:
            return [self.all_rows] * n_batches
        self.n_drawn, self.state = n_batches, self.generator.get_state() if n_batches > 1 else None
        return self.sampler.batches(self._draws(n_batches), self.buffer)

    def rewind(self, n_batches):
        """Set the generator as if only the first batches of the last window had been drawn."""
        if not self.all_rows and n_batches < self.n_drawn:
            self.generator.set_state(self.state)
            self._draws(n_batches)

    def _draws(self, n_batches):
        return [self.sampler.draw(self.batch_size, self.generator) for _ in range(n_batches)]


class Window(NamedTuple):
    """Consecutive steps of mini-batch k-means, of which the host reads all statistics at once."""

    states: list  # centres and counts after each step
    means: list  # mean inertia of each batch
    shifts: list  # squared movement of the centres in each step; 0 if there is no tolerance
    needs_reassignment: bool  # after the last step
    last_batch: WeightedRows


def max_steps_per_window(device):
    """Return the steps in a window: on an accelerator, all between two reassignments."""
    return 1 if device.type == "cpu" else REASSIGNMENT_INTERVAL


def run_window(batches, centers, counts, rates, tol, condition=None):
    """Make a step with each batch, and read their statistics once.

    Parameters
    ----------
    batches : iterable of WeightedRows
    centers : Tensor of shape (k, d)
    counts : Tensor of shape (k,)
    rates : callable
        Learning rates, as for `mini_batch_step`.
    tol : float
    condition : callable, Tensor (k,) -> Tensor of shape (), optional
        Whether the counts after the last step need a reassignment.

    Returns
    -------
    window : Window
    """
    states, means, shifts = [], [], []
    for batch in batches:
        moved, counts, mean = mini_batch_step(batch, centers, counts, rates)
        means.append(mean)
        if tol:
            shifts.append(squared_shift(moved, centers))
        centers = moved
        states.append((centers, counts))
    values, n_steps = read(means + shifts + ([condition(counts)] if condition else [])), len(states)
    reassigns = bool(values.pop()) if condition else False
    means = [max(0.0, value) for value in values[:n_steps]]
    return Window(states, means, values[n_steps:] or [0.0] * n_steps, reassigns, batch)


def best_initialization(sampler, initialize, n_init, init_size, generator):
    """Return the initial centres with the lowest inertia on a sample.

    Parameters
    ----------
    sampler : BatchSampler
    initialize : callable, WeightedRows -> Tensor of shape (k, d)
        Chooses centres from a sample.
    n_init : int
        Number of initializations, each from a sample of its own.
    init_size : int
        Rows in a sample.
    generator : torch.Generator
    """
    if n_init == 1:
        return initialize(sampler.sample(init_size, generator))
    sample = sampler.sample(init_size, generator)
    candidates = [initialize(sampler.sample(init_size, generator)) for _ in range(n_init)]
    inertias = read([inertia(sample, centers, assign(sample.x, centers)) for centers in candidates])
    return candidates[inertias.index(min(inertias))]


def inertia(rows, centers, labels):
    """Return the weighted sum of squared distances of the rows to the centres of their labels, Tensor of shape ()."""
    squares = squared_residuals(rows.x, centers, labels).to(wide_dtype(rows.x))
    return squares.sum() if rows.weight is None else squares @ rows.weight.to(squares)
