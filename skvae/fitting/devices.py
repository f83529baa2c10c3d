"""Devices: the states of torch's global random numbers, and errors that mean too little memory."""

from contextlib import contextmanager

import torch

SHORTAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")  # in messages of torch


def is_out_of_memory(error):
    """Whether an error means that a device has too little memory; of CUDA alone, torch has an exception for it."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SHORTAGES)


def random_states(device):
    """States of torch's global random numbers: those of the CPU, and of another device (or None)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return torch.get_rng_state(), torch.mps.get_rng_state() if device.type == "mps" else None


def set_random_states(states, device):
    """Let torch's global random numbers of the CPU and of a device go on from `random_states`."""
    on_cpu, there = states
    torch.set_rng_state(on_cpu)
    if there is not None and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(there, device)
    elif there is not None:
        torch.mps.set_rng_state(there)


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
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            seeded = torch.Generator(device).manual_seed(seed).get_state()
            set_random_states((torch.get_rng_state(), seeded), device)
        yield
