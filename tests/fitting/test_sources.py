"""Rows that are read when they are needed."""

import numpy as np
import pytest
import torch

from skvae.fitting.batches import RowBatches, Rows
from skvae.fitting.sources import RowSource, select_rows, shuffled


@pytest.fixture
def rows():
    return torch.arange(50, dtype=torch.float32)[:, None] * torch.tensor([1.0, -1.0])


def source_of(rows, run_length=1):
    return RowSource(len(rows), lambda indices: rows[indices], run_length)


def test_a_source_is_asked_like_a_tensor(rows):
    source = source_of(rows)
    assert len(source) == 50
    assert torch.equal(source[3:9], rows[3:9])
    assert torch.equal(source[torch.tensor([4, 2, 4])], rows[[4, 2, 4]])
    assert torch.equal(torch.cat(list(source.split(7))), rows)
    picked = select_rows(source, torch.tensor([9, 1, 5]))
    assert torch.equal(picked[:], select_rows(rows, torch.tensor([9, 1, 5])))
    assert torch.equal(picked[torch.tensor([1])], rows[[1]])


@pytest.mark.parametrize("run_length", [1, 4, 7, 100])
def test_every_row_comes_once(rows, run_length):
    order = shuffled(source_of(rows, run_length), torch.Generator().manual_seed(0), 16)
    assert sorted(order.tolist()) == list(range(50))
    again = shuffled(source_of(rows, run_length), torch.Generator().manual_seed(0), 16)
    assert torch.equal(order, again)


def test_neighbours_are_read_together():
    """Blocks are made of whole runs, but within a block rows are mixed."""
    source = RowSource(1_000, lambda indices: indices, 10)
    order = shuffled(source, torch.Generator().manual_seed(0), 100)
    blocks = [block.numpy() for block in order.split(100)]
    assert all(len(np.unique(block // 10)) == 10 for block in blocks)
    assert all((np.diff(block) != 1).sum() > 80 for block in blocks)


@pytest.mark.parametrize("run_length", [1, 5])
def test_batches_of_a_source_read_blocks(rows, run_length):
    read = []

    def count(indices):
        read.append(len(indices))
        return rows[indices]

    generator = torch.Generator().manual_seed(0)
    source = RowSource(len(rows), count, run_length)
    batches = RowBatches(Rows(source), 8, (2,), generator, standardize=torch.clone, n_block=3)
    found = torch.cat([batch["u"] for batch, _ in batches])
    assert torch.equal(found[:, 0].sort().values, rows[:, 0])
    assert len(read) == 3  # of seven batches


def test_batches_of_a_source_in_memory_are_those_of_the_tensor(rows):
    def batches(found):
        generator = torch.Generator().manual_seed(0)
        return [batch["u"] for batch, _ in RowBatches(Rows(found), 8, (2,), generator, standardize=torch.clone)]

    # The order is drawn first, so the blocks change nothing but when the noise is drawn.
    assert torch.equal(torch.cat(batches(rows)), torch.cat(batches(source_of(rows))))
