"""Copies between the host and an accelerator that make the host wait as seldom as possible."""

import torch

from .nearest import wide_dtype


def to_device(x, device):
    """A host tensor on a device; on CUDA without waiting for the work that is queued there."""
    if device.type == "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def read(scalars):
    """Values of 0-d tensors (a list of numbers), which the host waits for once."""
    if scalars[0].device.type == "cpu":
        return [scalar.item() for scalar in scalars]
    return torch.stack([scalar.to(wide_dtype(scalar)) for scalar in scalars]).tolist()
