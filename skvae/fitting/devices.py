"""Devices and threads: copies and reads that rarely synchronize, random states, out-of-memory errors, one thread."""

import threading
from contextlib import contextmanager

import torch

from ..models.gaussians import copy_to_device

MAX_PINNED = 2**26  # bytes; pinning more takes longer than waiting
# In messages of torch; cuBLAS is not initialized where there is no memory for its workspace.
OUT_OF_MEMORY_MESSAGES = ("out of memory", "_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
MAX_SERIAL_OPERATIONS = 5e7  # multiplications of a product, about 5 ms on one core

_lock, _numbers_before = threading.Lock(), {}  # by the identifiers of the Python threads in the context


def wide_dtype(x):
    """Return the dtype in which x is summed: float64, or float32 on mps, which has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def in_float64(x):
    """Convert a tensor to float64, on the CPU if its device has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def to_device(x, device):
    """Copy a CPU tensor to a device; to CUDA, unless it is large, without waiting for queued work."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu" and x.nbytes <= MAX_PINNED:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def read_numbers(*tensors):
    """Return the numbers of tensors of one device, a list for each (empty for None); the host waits for it once."""
    if any(x is not None and x.device.type != "cpu" for x in tensors):
        tensors = copy_to_device([None if x is None else x.to(wide_dtype(x)) for x in tensors], "cpu")
    return [[] if x is None else x.flatten().tolist() if x.ndim else [x.item()] for x in tensors]


def read(scalars):
    """Return the numbers of 0-d tensors; the host waits for their device once."""
    return [number for (number,) in read_numbers(*scalars)]


def is_out_of_memory(error):
    """Return whether an error means that a device is out of memory; only for CUDA does torch have an exception."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_MESSAGES)


def random_states(device):
    """Return the states of torch's global generators of the CPU, and of another device (or None)."""
    device = torch.device(device)
    if device.type == "cpu":
        return torch.get_rng_state(), None
    args = () if device.type == "mps" else (device,)  # there is one mps
    return torch.get_rng_state(), getattr(torch, device.type).get_rng_state(*args)


def set_random_states(states, device):
    """Set torch's global generators of the CPU and of a device to states from `random_states`."""
    (cpu_state, device_state), device = states, torch.device(device)
    torch.set_rng_state(cpu_state)
    if device_state is not None and device.type != "cpu":
        args = () if device.type == "mps" else (device,)
        getattr(torch, device.type).set_rng_state(device_state, *args)


@contextmanager
def preserved_rng_state(device):
    """Restore the states of torch's global generators, of the CPU and of a device, afterwards."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)


@contextmanager
def seeded_rng_state(generator):
    """Seed torch's global generators for modules of the user that draw from them, and restore their states afterwards.

    `torch.manual_seed` would change the states of all devices, but only that of one is restored.
    """
    device = generator.device
    with preserved_rng_state(device):
        largest = 2**31 - 1 if device.type == "mps" else 2**62  # mps may draw 32 bits
        seed = int(torch.randint(largest, (), generator=generator, device=device))
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            seeded = torch.Generator(device).manual_seed(seed).get_state()
            set_random_states((torch.get_rng_state(), seeded), device)
        yield


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
