"""Tables that are read a chunk at a time, as rows of tensors."""

import torch

from ..fitting.devices import to_device
from ..fitting.streams import StreamedRows


def streamed(X, dtype, device, *, center=None, block_size=None):
    """Rows of a table, less a float64 centre, as tensors that are read in blocks.

    Parameters
    ----------
    X : Table of shape (n, d)
    dtype : torch.dtype
    device : torch.device
    center : ndarray of shape (d,), optional
    block_size : int, optional
        Rows read at a time; None: a few megabytes.

    Returns
    -------
    x : StreamedRows of shape (n, d)
    """

    def read(rows):
        found = X[rows if isinstance(rows, slice) else rows.numpy()]
        found = found if center is None else found - center
        return to_device(torch.from_numpy(found).to(dtype), device)

    return StreamedRows(read, X.shape, dtype, device, block_size)
