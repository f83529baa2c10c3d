"""Threads of torch: one for work that is too small for several."""

import threading
from contextlib import contextmanager

import torch

SERIAL_OPERATIONS = 5e7  # multiplications between two waits of threads for one another: a few milliseconds of a core

_lock, _inside = threading.Lock(), {}  # numbers that threads of Python had before, by their identifiers


@contextmanager
def serial_if_small(n_operations, device):
    """Compute with one thread where products are too small for several, and with as many as before afterwards.

    After every product threads wait for one another. On a machine with other work, the one whose core is taken keeps
    all others waiting, for far longer than a small product takes.

    torch's number of threads belongs partly to a thread of Python and partly to the process. A thread that begins while
    another one is in here has taken over its number, and gets the one from before.

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
    before = torch.get_num_threads()
    with _lock:
        _inside[own] = before = max([1, *_inside.values()]) if before == 1 else before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            del _inside[own]
        torch.set_num_threads(before)
