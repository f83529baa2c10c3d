"""Slices of rows: chunks that fit into a cache, and blocks that are read together."""

import torch

LINEAR_BYTES, RESIDUAL_BYTES = 2**21, 2**23  # what a chunk works on should stay in a cache
MIN_CHUNK = 256  # rows


def row_chunks(n_rows, n_columns, chunk_size=None, n_bytes=RESIDUAL_BYTES):
    """Slices that cover the rows; without a chunk size, as many rows as fit into a cache."""
    chunk_size = chunk_size or max(MIN_CHUNK, n_bytes // (8 * n_columns))
    return [slice(start, start + chunk_size) for start in range(0, n_rows, chunk_size)]


def blocks_of(x):
    """Slices of the rows that are at hand at once: all of a tensor, or what streamed rows read at a time."""
    return [slice(0, len(x))] if isinstance(x, torch.Tensor) else x.blocks


def chunks_within(block, *sizes, **settings):
    """`row_chunks` of the rows of a slice."""
    for rows in row_chunks(block.stop - block.start, *sizes, **settings):
        yield slice(block.start + rows.start, min(block.start + rows.stop, block.stop))
