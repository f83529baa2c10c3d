"""Lazy rows that are read in blocks."""

import pytest
import torch
from helpers import generator
from torch.testing import assert_close

from skvae.fitting.rows import LazyRows, blocks_of, chunks_within
from skvae.fitting.weighted_rows import WeightedRows
from skvae.fitting.whitened_rows import WhitenedRows, scatter_of
from skvae.models import COVARIANCES
from skvae.models.covariances import Mixture


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


@pytest.mark.parametrize("family", COVARIANCES.values(), ids=COVARIANCES)
@pytest.mark.parametrize("block_size", [100, 1000])
def test_whitened_rows_of_a_stream(family, block_size, x):
    x = x - x.mean(0)
    stream, _ = stream_of(x, block_size)
    assert_close(scatter_of(stream, family), scatter_of(x, family))
    streamed, held = WhitenedRows(WeightedRows(stream), family, 0.0), WhitenedRows(WeightedRows(x.clone()), family, 0.0)
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
    streamed = WhitenedRows(WeightedRows(stream_of(x, block_size)[0]), family, 0.0)
    held = WhitenedRows(WeightedRows(x.clone()), family, 0.0)
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
