"""The steps of mini-batch k-means, against their definitions."""

import math

import pytest
import torch
from torch.testing import assert_close

from skvae.fitting import minibatch
from skvae.fitting.lazy_rows import LazyRows
from skvae.fitting.lloyd import lloyd
from skvae.fitting.minibatch import (
    Patience,
    WeightedRows,
    by_counts,
    constant_rate,
    fit_mini_batches,
    inertia,
    mini_batch_step,
    reassign,
    should_reassign,
    start_centers,
)
from skvae.fitting.nearest import assign
from skvae.fitting.pool import PooledRows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def test_steps_by_counts_make_centres_the_mean_of_all_rows_seen():
    x = normal(90, 2) + 10 * torch.tensor([[1.0, 0], [0, 1], [-1, -1]]).repeat(30, 1)
    centers, counts = x[:3], torch.zeros(3, dtype=torch.float64)
    for batch in x.split(30):
        centers, counts, _ = mini_batch_step(batch, None, centers, counts, by_counts)
    assert_close(centers, torch.stack([x[c::3].mean(0) for c in range(3)]))
    assert counts.tolist() == [30, 30, 30]


def test_full_step_is_one_of_lloyd():
    x, weight = normal(200, 3), torch.rand(200, dtype=torch.float64, generator=generator())
    start, counts = x[:4], torch.zeros(4, dtype=torch.float64)
    centers, counts, mean = mini_batch_step(x, weight, start, counts, by_counts)
    assert_close(centers, lloyd(x, start, max_iter=1, weight=weight)[0])
    assert_close(counts.sum(), weight.sum())
    assert_close(mean, inertia(x, start, assign(x, start), weight) / weight.sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_constant_rate_is_gradient_descent_on_the_quantization_error(weighted):
    x, start = normal(100, 3), normal(5, 3, seed=1).requires_grad_()
    weight = torch.rand(100, dtype=torch.float64, generator=generator()) if weighted else torch.ones(100).double()
    error = (torch.cdist(x, start).square().min(1).values * weight).sum() / weight.sum()
    error.backward()
    counts = torch.zeros(5, dtype=torch.float64)
    moved, _, mean = mini_batch_step(x, weight if weighted else None, start.detach(), counts, constant_rate(0.05))
    assert_close(moved, (start - 0.05 * start.grad).detach())
    assert_close(mean, error.detach())


def test_constant_rate_stops_at_the_mean():
    x = normal(50, 2)
    counts = torch.zeros(3, dtype=torch.float64)
    moved, *_ = mini_batch_step(x, None, x[:3], counts, constant_rate(1e3))
    assert_close(moved, lloyd(x, x[:3], max_iter=1)[0])


def test_centres_without_rows_stay():
    x, far = normal(20, 2), torch.tensor([[0.0, 0.0], [99.0, 99.0]], dtype=torch.float64)
    for rates in (by_counts, constant_rate(0.1)):
        moved, counts, _ = mini_batch_step(x, None, far, torch.zeros(2, dtype=torch.float64), rates)
        assert_close(moved[1], far[1])
        assert counts.tolist() == [20, 0]


def test_centres_with_low_counts_move_to_rows():
    x, centers = normal(20, 2), torch.tensor([[0.0, 0.0], [99.0, 99.0], [50.0, 50.0]], dtype=torch.float64)
    counts = torch.tensor([100.0, 0.5, 40.0], dtype=torch.float64)
    moved, after = reassign(x, None, centers, counts, 0.01, generator())
    assert_close(moved[[0, 2]], centers[[0, 2]])
    assert (moved[1] == x).all(1).any()
    assert after.tolist() == [100, 40, 40]
    assert_close(reassign(x, None, centers, counts, 0.0, generator())[0], centers)


def test_rows_of_zero_weight_are_not_moved_to():
    x, weight = torch.tensor([[1.0], [1e6], [0.0]]), torch.tensor([1.0, 0.0, 1.0])
    centers, counts = torch.tensor([[0.0], [-9.0]]), torch.tensor([5.0, 0.0])
    for seed in range(20):
        assert reassign(x, weight, centers, counts, 0.5, generator(seed))[0][1] == 1


def test_nothing_moves_to_rows_that_are_centres_already():
    x = torch.zeros(5, 2)
    centers, counts = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([5.0, 0.0])
    assert_close(reassign(x, None, centers, counts, 0.5, generator())[0], centers)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_batches_of_weighted_rows_are_those_of_repeated_rows(offset):
    x, weight = normal(500, 3) + offset, torch.randint(0, 4, (500,), generator=generator())
    repeated = x.repeat_interleave(weight, 0)
    repeated = repeated[torch.randperm(len(repeated), generator=generator())]
    one, two = WeightedRows(x, weight), WeightedRows(repeated)
    assert len(one) == len(two) == int((weight > 0).sum())
    assert_close(one.offset, two.offset)
    assert_close(one.variance(), two.variance())
    for seed in range(3):
        assert_close(one.draw(64, generator(seed)), two.draw(64, generator(seed)))


def test_draws_are_proportional_to_weight():
    rows = WeightedRows(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, 0.0, 3.0]))
    assert len(rows) == 2
    drawn = torch.cat([rows.draw(1, generator(seed))[0] for seed in range(2000)]) + rows.offset
    share = (drawn == 2).double().mean()
    assert not (drawn == 1).any()
    assert abs(float(share) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)


def test_variance_of_weighted_rows():
    x, weight = normal(100, 4) + 1e5, torch.rand(100, dtype=torch.float64, generator=generator())
    mean = weight @ x / weight.sum()
    assert_close(WeightedRows(x, weight).variance(), float((weight @ (x - mean).square() / weight.sum()).mean()))


def settings(**changes):
    usual = {"max_iter": 20, "batch_size": 50, "rates": by_counts, "tol": 0.0, "max_no_improvement": None}
    return usual | {"reassignment_ratio": 0.0} | changes


def test_number_of_steps():
    rows = WeightedRows(normal(200, 2))
    assert fit_mini_batches(rows, rows.x[:3], generator(), **settings()).n_steps == 80
    fit = fit_mini_batches(rows, rows.x[:3], generator(), **settings(batch_size=1000))
    assert (fit.n_steps, fit.batch_size) == (20, 200)
    assert fit_mini_batches(rows, rows.x[:3], generator(), **settings(tol=1e3)).n_steps == 2
    assert fit_mini_batches(rows, rows.x[:3], generator(), **settings(max_no_improvement=0)).n_steps == 2


def fit_with(monkeypatch, n_together, make_rows, k, **changes):
    """A fit whose decisions are read together for so many steps, and what the generator draws after it."""
    monkeypatch.setattr(minibatch, "steps_together", lambda device: n_together)
    source = generator()
    rows = make_rows(source)
    start = normal(k, rows.x.shape[1], seed=1)
    fit = fit_mini_batches(rows, start, source, **settings(batch_size=20, **changes))
    return fit, torch.rand(3, generator=source)


ROWS = {
    "held": lambda x, weight: lambda source: WeightedRows(x, weight),
    "streamed": lambda x, weight: lambda source: WeightedRows(stream_of(x), weight),
    "pooled": lambda x, weight: lambda source: PooledRows(stream_of(x), weight, 160, 4, source),
    "few": lambda x, weight: lambda source: WeightedRows(x[:15], None if weight is None else weight[:15]),
}


def stream_of(x):
    return LazyRows(lambda rows: x[rows].clone(), x.shape, x.dtype, x.device, 50)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ROWS)
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
def test_decisions_that_are_read_together_change_nothing(changes, name, weighted, monkeypatch):
    x = normal(300, 2) + 4 * torch.arange(300)[:, None].remainder(3)
    make_rows = ROWS[name](x, torch.arange(300).remainder(3).double() if weighted else None)
    for k in (3, 12):
        single, draws = fit_with(monkeypatch, 1, make_rows, k, **changes)
        together, same_draws = fit_with(monkeypatch, minibatch.REASSIGN_EVERY, make_rows, k, **changes)
        assert_close(tuple(together), tuple(single), rtol=0, atol=0)
        assert_close(same_draws, draws, rtol=0, atol=0)


def test_generator_is_left_where_the_fit_stops(monkeypatch):
    """Stops in the middle of steps that are taken together, and the rest of their draws is not made."""
    make_rows = ROWS["held"](normal(300, 2), None)
    lengths = set()
    for max_no_improvement in range(8):
        changes = {"max_no_improvement": max_no_improvement}
        fit, draws = fit_with(monkeypatch, minibatch.REASSIGN_EVERY, make_rows, 3, **changes)
        source = generator()
        for _ in range(fit.n_steps):
            torch.rand(20, dtype=torch.float64, generator=source)
        assert_close(torch.rand(3, generator=source), draws, rtol=0, atol=0)
        lengths.add(fit.n_steps % minibatch.REASSIGN_EVERY)
    assert len(lengths) > 1


def test_looks_are_due_or_at_empty_centres():
    counts = torch.tensor([100.0, 0.5, 40.0])
    assert should_reassign(minibatch.REASSIGN_EVERY, 0.01, counts)
    assert not should_reassign(minibatch.REASSIGN_EVERY, 0.001, counts)
    assert not should_reassign(minibatch.REASSIGN_EVERY + 1, 0.01, counts)
    assert should_reassign(1, 0.01, torch.tensor([3.0, 0.0]))


def test_patience_waits_for_so_many_steps():
    patience = Patience(share=0.5, threshold=0.0, max_no_improvement=3)
    found = [patience.exhausted(step, mean, 0.0) for step, mean in enumerate([9.0, 5, 4, 4, 4, 4])]
    assert found == [False, False, False, False, False, True]
    assert patience.mean == 4


def test_best_start_is_kept():
    x = torch.cat([normal(50, 2), normal(50, 2, seed=1) + 100])
    rows = WeightedRows(x)
    good, bad = rows.centered(torch.stack([x[:50].mean(0), x[50:].mean(0)])), rows.centered(x[:2])
    found = start_centers(rows, [lambda *_: bad, lambda *_: good, lambda *_: bad], 30, generator())
    assert_close(found, good)
