"""Rows that are read when they are needed."""

import numpy as np
import pytest
import torch

from skvae.fitting.batches import RowDataset, TrainingBatches, batches_per_block
from skvae.fitting.rows import LazyRows, select_rows, shuffled_indices


@pytest.fixture
def rows():
    return torch.arange(50, dtype=torch.float32)[:, None] * torch.tensor([1.0, -1.0])


def source_of(rows, run_length=1):
    return LazyRows(lambda indices: rows[indices], rows.shape, rows.dtype, run_length=run_length)


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
    sizes = [16, 1, 0, 20, 13]
    parts = list(shuffled_indices(source_of(rows, run_length), torch.Generator().manual_seed(0), sizes))
    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(50))
    again = shuffled_indices(source_of(rows, run_length), torch.Generator().manual_seed(0), sizes)
    assert all(torch.equal(*pair) for pair in zip(parts, again, strict=True))


def test_neighbours_are_read_together():
    """Blocks are made of whole runs, but within a block rows are mixed."""
    source = LazyRows(lambda indices: indices, (1_000, 1), torch.int64, run_length=10)
    blocks = [block.numpy() for block in shuffled_indices(source, torch.Generator().manual_seed(0), [100] * 10)]
    assert all(len(np.unique(block // 10)) == 10 for block in blocks)
    assert all((np.diff(block) != 1).sum() > 80 for block in blocks)


def test_few_indices_are_known_at_a_time():
    """Those of all rows would need 80 GB."""
    source = LazyRows(lambda indices: indices, (10**10, 1), torch.int64, run_length=10**4)
    part = next(shuffled_indices(source, torch.Generator().manual_seed(0), [100_000, 10**10 - 100_000]))
    assert len({*part.tolist()}) == 100_000
    assert len({*(part // 10**4).tolist()}) == 10


@pytest.mark.parametrize(("width", "batch_size", "n_batches"), [(1, 128, 65536), (784, 128, 83), (784, 20_000, 1)])
def test_runs_are_mixed_in_a_pool_of_as_many_bytes(width, batch_size, n_batches):
    source = LazyRows(lambda rows: torch.zeros(1000, width)[rows], (1000, width), torch.float32, run_length=8)
    assert batches_per_block(source, batch_size) == n_batches


@pytest.mark.parametrize("run_length", [1, 5])
def test_batches_of_a_source_read_blocks(rows, run_length):
    read = []

    def count(indices):
        read.append(len(indices))
        return rows[indices]

    generator = torch.Generator().manual_seed(0)
    source = LazyRows(count, rows.shape, rows.dtype, run_length=run_length)
    batches = TrainingBatches(RowDataset(source), 8, (2,), generator, standardize=torch.clone, n_block=3)
    found = torch.cat([batch["u"] for batch, _ in batches])
    assert torch.equal(found[:, 0].sort().values, rows[:, 0])
    assert len(read) == 3  # of seven batches


def test_batches_of_a_source_in_memory_are_those_of_the_tensor(rows):
    def batches(found):
        generator = torch.Generator().manual_seed(0)
        return [
            batch["u"] for batch, _ in TrainingBatches(RowDataset(found), 8, (2,), generator, standardize=torch.clone)
        ]

    # The order is drawn first, so the blocks change nothing but when the noise is drawn.
    assert torch.equal(torch.cat(batches(rows)), torch.cat(batches(source_of(rows))))
