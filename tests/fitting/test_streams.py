"""Rows that are read in blocks, samples of them, and batches from a pool."""

import pytest
import torch
from torch.testing import assert_close

from skvae.fitting.chunks import blocks_of, chunks_within
from skvae.fitting.lazy_rows import LazyRows
from skvae.fitting.pool import PooledRows
from skvae.fitting.streams import draw_indices, sample_indices
from skvae.fitting.whitened_rows import WhitenedRows, scatter_of
from skvae.models import COVARIANCES
from skvae.models.covariances import Mixture


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    return torch.randn(1000, 3, dtype=torch.float64, generator=generator()) + 5


def stream_of(x, block_size=None):
    """The rows as a stream, and a list that says what was read."""
    reads = []

    def read(rows):
        reads.append(rows)
        return x[rows].clone()

    return LazyRows(read, x.shape, x.dtype, x.device, block_size), reads


def test_slices_are_those_of_a_tensor(x):
    stream, _ = stream_of(x, 300)
    assert len(stream) == len(x)
    assert stream.shape == x.shape
    for rows in (slice(0, 10), slice(290, 300), slice(290, 310), slice(950, 1300), slice(None), slice(1000, 1001)):
        assert_close(stream[rows], x[rows], rtol=0, atol=0)
    assert_close(stream.map(torch.square)[slice(280, 340)], x[280:340].square())


@pytest.mark.parametrize("block_size", [1, 300, 500, 1000, 5000])
def test_a_pass_reads_each_row_once(x, block_size):
    stream, reads = stream_of(x, block_size)
    doubled = stream.map(lambda rows: 2 * rows)
    chunks = [rows for block in blocks_of(doubled) for rows in chunks_within(block, 3, 70)]
    assert_close(torch.cat([doubled[rows] for rows in chunks]), 2 * x)
    assert_close(torch.cat([stream[rows] for rows in chunks]), x)
    passes = 1 if block_size >= len(x) else 2
    assert sum(len(x[rows]) for rows in reads) == passes * len(x)


def test_rows_are_taken_in_one_pass(x):
    stream, reads = stream_of(x, 300)
    indices = torch.tensor([0, 5, 5, 299, 300, 999])
    assert_close(stream.take(indices), x[indices])
    assert reads == [slice(0, 300), slice(300, 600), slice(900, 1000)]
    visited = []
    stream.take(indices, lambda rows, block: visited.append((rows, len(block))))
    assert [n for _, n in visited] == [300, 300, 300, 100]


@pytest.mark.parametrize("weighted", [False, True])
def test_draws_are_ascending_and_by_weight(x, weighted):
    weight = torch.arange(1000).remainder(3).double() if weighted else None
    mass = torch.ones(1000, dtype=torch.float64) if weight is None else weight
    counts = torch.zeros(1000)
    for seed in range(400):
        indices = draw_indices(x, 100, generator(seed), weight)
        assert (indices.diff() >= 0).all()
        counts += torch.bincount(indices, minlength=1000)
    assert not weighted or not counts[weight == 0].any()
    expected = 400 * 100 * mass / mass.sum()
    assert ((counts - expected).abs() <= 6 * expected.sqrt()).all()


def test_a_sample_of_a_short_stream_is_all_of_it(x):
    weight = torch.rand(1000, generator=generator())
    indices, held = sample_indices(x, 3, generator(), weight)
    assert_close(indices, torch.arange(1000))
    assert held is weight


def test_a_sample_has_rows_for_every_cluster(x, monkeypatch):
    monkeypatch.setattr("skvae.fitting.streams.SAMPLE_ROWS", 10)
    indices, held = sample_indices(x, 5, generator(), torch.ones(1000))
    assert (len(indices), held) == (200, None)


@pytest.mark.parametrize("family", COVARIANCES.values(), ids=COVARIANCES)
@pytest.mark.parametrize("block_size", [100, 1000])
def test_whitened_rows_of_a_stream(family, block_size, x):
    x = x - x.mean(0)
    stream, _ = stream_of(x, block_size)
    assert_close(scatter_of(stream, family), scatter_of(x, family))
    streamed, held = WhitenedRows(stream, family, 0.0), WhitenedRows(x.clone(), family, 0.0)
    assert_close(torch.cat([streamed.x[rows] for rows in streamed.x.blocks]), held.x)
    resp = torch.rand(1000, 2, dtype=torch.float64, generator=generator())
    for one, two in zip(
        streamed.sums_from_resp(resp.__getitem__, 2)[0], held.sums_from_resp(resp.__getitem__, 2)[0], strict=True
    ):
        assert_close(one, two)


@pytest.mark.parametrize("block_size", [100, 1000])
def test_least_likely_rows_of_a_stream(block_size, x):
    family = COVARIANCES["diag"]
    x = x - x.mean(0)
    streamed = WhitenedRows(stream_of(x, block_size)[0], family, 0.0)
    held = WhitenedRows(x.clone(), family, 0.0)
    resp = torch.rand(1000, 2, dtype=torch.float64, generator=generator())
    moments, means = held.sums_from_resp(resp.__getitem__, 2)[:2]
    mixture = mixture_of(family, moments, means)
    assert_close(streamed.least_likely(mixture, 7), held.least_likely(mixture, 7))


def mixture_of(family, moments, means):
    """The mixture that moments imply."""
    covariances = family.estimate(moments, 0.0)
    factor, _ = family.factor(covariances)
    weight = moments.weight
    return Mixture((weight / weight.sum()).log(), means + moments.first / weight[:, None], covariances, factor)


@pytest.mark.parametrize("weighted", [False, True])
def test_pool_is_renewed_by_weight(x, weighted):
    weight = torch.arange(1000).remainder(3).double() if weighted else None
    mass = torch.ones(1000, dtype=torch.float64) if weight is None else weight
    places = torch.arange(1000.0, dtype=torch.float64)[:, None]
    stream, _ = stream_of(places, 300)
    rows, source = PooledRows(stream, weight, 64, 16, generator()), generator(1)
    assert len(rows) == int((mass > 0).sum())
    assert_close(rows.offset[0], (mass @ places[:, 0]) / mass.sum())
    counts = torch.zeros(1000)
    for _ in range(4000):
        drawn, own = rows.draw(32, source)
        assert own is None
        counts += torch.bincount((drawn[:, 0] + rows.offset).round().long(), minlength=1000)
    assert not weighted or not counts[weight == 0].any()
    shares = counts.view(20, 50).sum(1) / counts.sum()
    assert_close(shares, (mass.view(20, 50).sum(1) / mass.sum()).float(), rtol=0.15, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_variance_in_a_pass(x, weighted):
    weight = torch.rand(1000, dtype=torch.float64, generator=generator()) if weighted else torch.ones(1000).double()
    rows = PooledRows(stream_of(x, 300)[0], weight if weighted else None, 64, 16, generator())
    mean = weight @ x / weight.sum()
    assert rows.variance() == pytest.approx(float((weight @ (x - mean).square() / weight.sum()).mean()))
    assert rows.largest == float(x.abs().max())


def test_batches_of_a_pool_are_drawn_into_a_buffer(x):
    rows, buffer = PooledRows(stream_of(x, 300)[0], None, 64, 16, generator()), x.new_empty(50, 3)
    drawn = rows.batch(50, generator(), buffer).x
    assert drawn.data_ptr() == buffer.data_ptr()
    again = PooledRows(stream_of(x, 300)[0], None, 64, 16, generator())
    assert_close(again.draw(50, generator())[0], drawn)
