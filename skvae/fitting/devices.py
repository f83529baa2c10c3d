"""Devices: copies and reads for which the host seldom waits, random states, and errors that mean too little memory."""

from contextlib import contextmanager

import torch

from ..models.tensors import copy_to_device

MAX_PINNED = 2**26  # bytes: to pin more takes longer than to wait
# In messages of torch; cuBLAS is not initialized where there is no memory for its workspace.
SHORTAGES = ("out of memory", "_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def wide_dtype(x):
    """The dtype for sums of x: float64, but mps has none."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def in_float64(x):
    """A tensor in float64: where it is, or on the CPU if its device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def to_device(x, device):
    """A tensor of the CPU on a device; on CUDA, unless it is large, without waiting for the work queued there."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu" and x.nbytes <= MAX_PINNED:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def read_numbers(*tensors):
    """Return the numbers of tensors of one device, a list for each (empty for None); the host waits for it once."""
    wide = [x if x is None or x.device.type == "cpu" else x.to(wide_dtype(x)) for x in tensors]
    return [[] if x is None else x.flatten().tolist() for x in copy_to_device(wide, "cpu")]


def read(scalars):
    """Return the numbers of 0-d tensors; the host waits for their device once."""
    return [number for (number,) in read_numbers(*scalars)]


def is_out_of_memory(error):
    """Whether an error means that a device has too little memory; of CUDA alone, torch has an exception for it."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SHORTAGES)


def random_states(device):
    """States of torch's global random numbers: those of the CPU, and of another device (or None)."""
    device = torch.device(device)
    if device.type == "cpu":
        return torch.get_rng_state(), None
    own = () if device.type == "mps" else (device,)  # there is one mps
    return torch.get_rng_state(), getattr(torch, device.type).get_rng_state(*own)


def set_random_states(states, device):
    """Let torch's global random numbers of the CPU and of a device go on from `random_states`."""
    (on_cpu, there), device = states, torch.device(device)
    torch.set_rng_state(on_cpu)
    if there is not None and device.type != "cpu":
        own = () if device.type == "mps" else (device,)
        getattr(torch, device.type).set_rng_state(there, *own)


@contextmanager
def restored_randomness(device):
    """Give torch's global random numbers, of the CPU and of a device, back their states afterwards."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)


@contextmanager
def own_randomness(generator):
    """Keep the global state of torch as it is where modules of the user's draw from it, and seed what they draw.

    `torch.manual_seed` would change the states of all devices, and only those of one are restored.
    """
    device = generator.device
    with restored_randomness(device):
        largest = 2**31 - 1 if device.type == "mps" else 2**62  # mps may draw 32 bits
        seed = int(torch.randint(largest, (), generator=generator, device=device))
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            seeded = torch.Generator(device).manual_seed(seed).get_state()
            set_random_states((torch.get_rng_state(), seeded), device)
        yield
