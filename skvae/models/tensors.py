"""Copies of tensors between devices."""

import torch

MAX_STACKED = 2**20  # numbers that are copied to another device in one piece


def copy_to_device(tensors, device):
    """Return tensors of one dtype on a device, None in place of None.

    They are copied in one piece, unless they are large: the host waits for an accelerator at each copy.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not present or present[0].device == torch.device(device):
        return list(tensors)
    sizes = [tensor.numel() for tensor in present]
    if sum(sizes) > MAX_STACKED:
        copies = iter([tensor.to(device) for tensor in present])
    else:
        copies = iter(torch.cat([tensor.flatten() for tensor in present]).to(device).split(sizes))
    return [None if tensor is None else next(copies).view(tensor.shape) for tensor in tensors]
