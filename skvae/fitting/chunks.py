"""Slices of rows: chunks that fit into a cache."""

LINEAR_BYTES, RESIDUAL_BYTES = 2**21, 2**23  # a chunk and what is computed from it should stay in a cache
MIN_CHUNK = 256  # rows


def rows_in_cache(n_columns, n_bytes=RESIDUAL_BYTES):
    """Return the number of rows in a chunk that fits into a cache."""
    return max(MIN_CHUNK, n_bytes // (8 * n_columns))


def row_chunks(n_rows, n_columns, chunk_size=None, n_bytes=RESIDUAL_BYTES):
    """Return slices that cover the rows, of a chunk size or else of as many rows as fit into a cache."""
    chunk_size = chunk_size or rows_in_cache(n_columns, n_bytes)
    return [slice(start, start + chunk_size) for start in range(0, n_rows, chunk_size)]


def chunks_within(block, *sizes, **settings):
    """Yield the `row_chunks` of the rows of a slice."""
    for rows in row_chunks(block.stop - block.start, *sizes, **settings):
        yield slice(block.start + rows.start, min(block.start + rows.stop, block.stop))
