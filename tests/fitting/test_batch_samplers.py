"""Batches of weighted rows, drawn from all rows and from a pool."""

import math

import pytest
import torch
from helpers import generator
from torch.testing import assert_close

from skvae.fitting.batch_samplers import DirectBatchSampler, PooledBatchSampler
from skvae.fitting.rows import LazyRows
from skvae.fitting.weighted_rows import WeightedRows


@pytest.fixture
def x():
    return torch.randn(1000, 3, dtype=torch.float64, generator=generator()) + 5


def direct(x, weight=None):
    return DirectBatchSampler(WeightedRows(x, weight))


def pooled(x, weight=None):
    """A pool of 64 rows, in runs of 16."""
    stream = LazyRows(lambda rows: x[rows].clone(), x.shape, x.dtype, x.device, 300)
    return PooledBatchSampler(WeightedRows(stream, weight), 64, 16, generator())


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_integer_weights_are_repeated_rows(offset, x):
    x, weight = x[:500] + offset, torch.randint(0, 4, (500,), generator=generator())
    repeated = x.repeat_interleave(weight, 0)
    one, two = direct(x, weight), direct(repeated[torch.randperm(len(repeated), generator=generator())])
    assert one.n_distinct == two.n_distinct == int((weight > 0).sum())
    assert_close(one.offset, two.offset)
    assert_close(one.variance(), two.variance())
    for seed in range(3):
        assert_close(one.sample(64, generator(seed)).x, two.sample(64, generator(seed)).x)


def test_draws_are_proportional_to_weight():
    sampler = direct(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, 0.0, 3.0]))
    assert sampler.n_distinct == 2
    drawn = torch.cat([sampler.sample(1, generator(seed)).x for seed in range(2000)]) + sampler.offset
    share = (drawn == 2).double().mean()
    assert not (drawn == 1).any()
    assert abs(float(share) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)


@pytest.mark.parametrize("make_sampler", [direct, pooled])
@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_of_all_rows(x, weighted, make_sampler):
    x = x + 1e5
    weight = torch.rand(1000, dtype=torch.float64, generator=generator()) if weighted else torch.ones(1000).double()
    sampler, mean = make_sampler(x, weight if weighted else None), weight @ x / weight.sum()
    assert sampler.total_weight == pytest.approx(float(weight.sum()))
    assert_close(sampler.offset, mean)
    assert sampler.variance() == pytest.approx(float((weight @ (x - mean).square() / weight.sum()).mean()))
    assert sampler.largest == float(x.abs().max())


@pytest.mark.parametrize("weighted", [False, True])
def test_pool_is_renewed_in_proportion_to_weight(weighted):
    weight = torch.arange(1000).remainder(3).double() if weighted else torch.ones(1000, dtype=torch.float64)
    indices = torch.arange(1000.0, dtype=torch.float64)[:, None]
    sampler, batch_generator = pooled(indices, weight if weighted else None), generator(1)
    assert sampler.n_distinct == int((weight > 0).sum())
    counts = torch.zeros(1000)
    for _ in range(4000):
        batch = sampler.sample(32, batch_generator)
        assert batch.weight is None
        counts += torch.bincount((batch.x[:, 0] + sampler.offset).round().long(), minlength=1000)
    assert not counts[weight == 0].any()
    shares = counts.view(20, 50).sum(1) / counts.sum()
    assert_close(shares, (weight.view(20, 50).sum(1) / weight.sum()).float(), rtol=0.15, atol=0)


@pytest.mark.parametrize("make_sampler", [direct, pooled])
def test_batches_are_written_to_a_buffer(x, make_sampler):
    buffer = x.new_empty(50, 3)
    drawn = make_sampler(x).batch(50, generator(), buffer).x
    assert drawn.data_ptr() == buffer.data_ptr()
    assert_close(make_sampler(x).sample(50, generator()).x, drawn)
