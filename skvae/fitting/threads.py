"""Threads of torch: a single one for work that is too small for several."""

import threading
from contextlib import contextmanager

import torch

MAX_SERIAL_OPERATIONS = 5e7  # multiplications of a product, about 5 ms on one core

_lock, _numbers_before = threading.Lock(), {}  # by the identifiers of the Python threads in the context


@contextmanager
def serial_if_small(n_operations, device):
    """Limit torch to one thread within the context if products are too small for several.

    Threads are synchronized after every product. On a busy machine, one whose core is taken delays all others for far
    longer than a small product takes.

    torch's number of threads belongs partly to a Python thread and partly to the process. A Python thread that starts
    while another is in this context inherits one thread; if it enters the context before the other leaves, the number
    from before is restored, even if it had set the number to one itself. With one thread nothing changes.

    Parameters
    ----------
    n_operations : float
        Multiplications in the largest product.
    device : torch.device
        On an accelerator nothing changes.
    """
    own = threading.get_ident()
    if n_operations >= MAX_SERIAL_OPERATIONS or device.type != "cpu" or own in _numbers_before:
        yield
        return
    with _lock:
        before = max([torch.get_num_threads(), *_numbers_before.values()])
        if before > 1:
            _numbers_before[own] = before
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            del _numbers_before[own]
        torch.set_num_threads(before)
