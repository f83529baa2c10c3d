"""Threads of torch: one for work that is too small for several."""

import threading
from contextlib import contextmanager

import torch

SERIAL_OPERATIONS = 5e7  # multiplications of a product: about 5 ms of a core

_lock, _inside = threading.Lock(), {}  # numbers that threads of Python had before, by their identifiers


@contextmanager
def serial_if_small(n_operations, device):
    """Compute with one thread where products are too small for several, and with as many as before afterwards.

    After every product threads wait for one another. On a machine with other work, the one whose core is taken keeps
    all others waiting, for far longer than a small product takes.

    torch's number of threads belongs partly to a thread of Python and partly to the process. A thread that begins while
    another one is in here takes over the one thread; if it enters before the other leaves, it gets back the number from
    before, and so does a thread that had chosen one thread itself. Where there is one thread, nothing changes.

    Parameters
    ----------
    n_operations : float
        Multiplications in the largest product.
    device : torch.device
        On an accelerator nothing changes.
    """
    own = threading.get_ident()
    if n_operations >= SERIAL_OPERATIONS or device.type != "cpu" or own in _inside:
        yield
        return
    with _lock:
        before = max([torch.get_num_threads(), *_inside.values()])
        if before > 1:
            _inside[own] = before
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            del _inside[own]
        torch.set_num_threads(before)
