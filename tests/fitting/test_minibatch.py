"""The steps of mini-batch k-means, against their definitions."""

import pytest
import torch
from helpers import generator
from torch.testing import assert_close

from skvae.fitting import minibatch
from skvae.fitting.batch_samplers import DirectBatchSampler, PooledBatchSampler
from skvae.fitting.lloyd import lloyd
from skvae.fitting.minibatch import (
    REASSIGNMENT_INTERVAL,
    ConvergenceMonitor,
    best_initialization,
    constant_rate,
    fit_mini_batches,
    inertia,
    mini_batch_step,
    needs_reassignment,
    rate_by_counts,
    reassign,
)
from skvae.fitting.nearest import assign
from skvae.fitting.rows import LazyRows
from skvae.fitting.weighted_rows import WeightedRows


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def test_count_rates_make_centres_the_mean_of_all_rows_seen():
    x = normal(90, 2) + 10 * torch.tensor([[1.0, 0], [0, 1], [-1, -1]]).repeat(30, 1)
    centers, counts = x[:3], torch.zeros(3, dtype=torch.float64)
    for batch in x.split(30):
        centers, counts, _ = mini_batch_step(WeightedRows(batch), centers, counts, rate_by_counts)
    assert_close(centers, torch.stack([x[c::3].mean(0) for c in range(3)]))
    assert counts.tolist() == [30, 30, 30]


def test_full_step_is_one_of_lloyd():
    x, weight = normal(200, 3), torch.rand(200, dtype=torch.float64, generator=generator())
    start, counts = x[:4], torch.zeros(4, dtype=torch.float64)
    centers, counts, mean = mini_batch_step(WeightedRows(x, weight), start, counts, rate_by_counts)
    assert_close(centers, lloyd(WeightedRows(x, weight), start, max_iter=1)[0])
    assert_close(counts.sum(), weight.sum())
    assert_close(mean, inertia(WeightedRows(x, weight), start, assign(x, start)) / weight.sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_constant_rate_is_gradient_descent_on_the_quantization_error(weighted):
    x, start = normal(100, 3), normal(5, 3, seed=1).requires_grad_()
    weight = torch.rand(100, dtype=torch.float64, generator=generator()) if weighted else torch.ones(100).double()
    error = (torch.cdist(x, start).square().min(1).values * weight).sum() / weight.sum()
    error.backward()
    counts = torch.zeros(5, dtype=torch.float64)
    rows = WeightedRows(x, weight if weighted else None)
    moved, _, mean = mini_batch_step(rows, start.detach(), counts, constant_rate(0.05))
    assert_close(moved, (start - 0.05 * start.grad).detach())
    assert_close(mean, error.detach())


def test_constant_rate_stops_at_the_mean():
    x = normal(50, 2)
    counts = torch.zeros(3, dtype=torch.float64)
    moved, *_ = mini_batch_step(WeightedRows(x), x[:3], counts, constant_rate(1e3))
    assert_close(moved, lloyd(WeightedRows(x), x[:3], max_iter=1)[0])


def test_centres_without_rows_stay():
    x, far = normal(20, 2), torch.tensor([[0.0, 0.0], [99.0, 99.0]], dtype=torch.float64)
    for rates in (rate_by_counts, constant_rate(0.1)):
        moved, counts, _ = mini_batch_step(WeightedRows(x), far, torch.zeros(2, dtype=torch.float64), rates)
        assert_close(moved[1], far[1])
        assert counts.tolist() == [20, 0]


def test_centres_with_low_counts_are_reassigned():
    x, centers = normal(20, 2), torch.tensor([[0.0, 0.0], [99.0, 99.0], [50.0, 50.0]], dtype=torch.float64)
    counts = torch.tensor([100.0, 0.5, 40.0], dtype=torch.float64)
    moved, after = reassign(WeightedRows(x), centers, counts, 0.01, generator())
    assert_close(moved[[0, 2]], centers[[0, 2]])
    assert (moved[1] == x).all(1).any()
    assert after.tolist() == [100, 40, 40]
    assert_close(reassign(WeightedRows(x), centers, counts, 0.0, generator())[0], centers)


def test_no_reassignment_to_rows_of_zero_weight():
    x, weight = torch.tensor([[1.0], [1e6], [0.0]]), torch.tensor([1.0, 0.0, 1.0])
    centers, counts = torch.tensor([[0.0], [-9.0]]), torch.tensor([5.0, 0.0])
    for seed in range(20):
        assert reassign(WeightedRows(x, weight), centers, counts, 0.5, generator(seed))[0][1] == 1


def test_no_reassignment_to_rows_that_coincide_with_centres():
    x = torch.zeros(5, 2)
    centers, counts = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([5.0, 0.0])
    assert_close(reassign(WeightedRows(x), centers, counts, 0.5, generator())[0], centers)


def settings(**changes):
    usual = {"max_iter": 20, "batch_size": 50, "rates": rate_by_counts, "tol": 0.0, "max_no_improvement": None}
    return usual | {"reassignment_ratio": 0.0} | changes


def test_number_of_steps():
    sampler = DirectBatchSampler(WeightedRows(normal(200, 2)))
    assert fit_mini_batches(sampler, sampler.x[:3], generator(), **settings()).n_steps == 80
    fit = fit_mini_batches(sampler, sampler.x[:3], generator(), **settings(batch_size=1000))
    assert (fit.n_steps, fit.batch_size) == (20, 200)
    assert fit_mini_batches(sampler, sampler.x[:3], generator(), **settings(tol=1e3)).n_steps == 2
    assert fit_mini_batches(sampler, sampler.x[:3], generator(), **settings(max_no_improvement=0)).n_steps == 2


def fit_with(monkeypatch, window, make_sampler, k, **changes):
    """Fit with windows of so many steps; return the fit, and the next draws of the generator."""
    monkeypatch.setattr(minibatch, "max_steps_per_window", lambda device: window)
    fit_generator = generator()
    sampler = make_sampler(fit_generator)
    centers = normal(k, sampler.x.shape[1], seed=1)
    fit = fit_mini_batches(sampler, centers, fit_generator, **settings(batch_size=20, **changes))
    return fit, torch.rand(3, generator=fit_generator)


def streamed(x, weight):
    return WeightedRows(LazyRows(lambda rows: x[rows].clone(), x.shape, x.dtype, x.device, 50), weight)


SAMPLERS = {
    "in memory": lambda x, weight: lambda _: DirectBatchSampler(WeightedRows(x, weight)),
    "streamed": lambda x, weight: lambda _: DirectBatchSampler(streamed(x, weight)),
    "pooled": lambda x, weight: lambda generator: PooledBatchSampler(streamed(x, weight), 160, 4, generator),
    "few": lambda x, weight: (
        lambda _: DirectBatchSampler(WeightedRows(x[:15], None if weight is None else weight[:15]))
    ),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "changes",
    [
        {"tol": 0.1, "reassignment_ratio": 0.01},
        {"tol": 1e-3, "reassignment_ratio": 0.5},
        {"max_no_improvement": 2, "reassignment_ratio": 0.2},
        {"max_no_improvement": 4, "tol": 1e-9},
        {"max_iter": 3, "reassignment_ratio": 0.3},
        {"max_iter": 2, "reassignment_ratio": 1.5, "rates": constant_rate(0.2)},
    ],
    ids=", ".join,
)
def test_windows_change_nothing(changes, name, weighted, monkeypatch):
    x = normal(300, 2) + 4 * torch.arange(300)[:, None].remainder(3)
    make_sampler = SAMPLERS[name](x, torch.arange(300).remainder(3).double() if weighted else None)
    for k in (3, 12):
        single, draws = fit_with(monkeypatch, 1, make_sampler, k, **changes)
        windowed, same_draws = fit_with(monkeypatch, REASSIGNMENT_INTERVAL, make_sampler, k, **changes)
        assert_close(tuple(windowed), tuple(single), rtol=0, atol=0)
        assert_close(same_draws, draws, rtol=0, atol=0)


def test_generator_is_left_where_the_fit_stops(monkeypatch):
    """After a stop within a window, the generator is as if the rest had not been drawn."""
    make_sampler = SAMPLERS["in memory"](normal(300, 2), None)
    lengths = set()
    for max_no_improvement in range(8):
        changes = {"max_no_improvement": max_no_improvement}
        fit, draws = fit_with(monkeypatch, REASSIGNMENT_INTERVAL, make_sampler, 3, **changes)
        expected = generator()
        for _ in range(fit.n_steps):
            torch.rand(20, dtype=torch.float64, generator=expected)
        assert_close(torch.rand(3, generator=expected), draws, rtol=0, atol=0)
        lengths.add(fit.n_steps % REASSIGNMENT_INTERVAL)
    assert len(lengths) > 1


def test_reassignment_at_intervals_or_of_empty_centres():
    counts = torch.tensor([100.0, 0.5, 40.0])
    assert needs_reassignment(REASSIGNMENT_INTERVAL, 0.01, counts)
    assert not needs_reassignment(REASSIGNMENT_INTERVAL, 0.001, counts)
    assert not needs_reassignment(REASSIGNMENT_INTERVAL + 1, 0.01, counts)
    assert needs_reassignment(1, 0.01, torch.tensor([3.0, 0.0]))


def test_stop_after_steps_without_improvement():
    monitor = ConvergenceMonitor(batch_share=0.5, threshold=0.0, max_no_improvement=3)
    stops = [monitor.update(step, mean, 0.0) for step, mean in enumerate([9.0, 5, 4, 4, 4, 4])]
    assert stops == [False, False, False, False, False, True]
    assert monitor.mean == 4


def test_best_of_several_initializations():
    x = torch.cat([normal(50, 2), normal(50, 2, seed=1) + 100])
    sampler = DirectBatchSampler(WeightedRows(x))
    good, bad = sampler.centered(torch.stack([x[:50].mean(0), x[50:].mean(0)])), sampler.centered(x[:2])
    candidates = iter([bad, good, bad])
    assert_close(best_initialization(sampler, lambda _: next(candidates), 3, 30, generator()), good)
