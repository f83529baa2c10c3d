"""Arrays and tensors: dtypes, devices and seeds."""

import re
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

from .messages import meant

FLOATS = (np.float64, np.float32)
DEVICES = ("cuda", "mps", "cpu")
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"}  # what people call them


def host_array(value):
    """A tensor as an array on the host, in float64 where NumPy has no such dtype; anything else as it is.

    A list or tuple of tensors is a list of arrays.

    Raises
    ------
    TypeError
        If the tensor is sparse.
    """
    if isinstance(value, list | tuple) and any(isinstance(part, torch.Tensor) for part in value):
        return [host_array(part) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    check_dense(value)
    if value.is_floating_point() and value.dtype not in (torch.float64, torch.float32, torch.float16):
        value = value.detach().cpu().double()
    return value.numpy(force=True)


def check_dense(tensor):
    """Raise if a tensor is sparse."""
    if tensor.layout != torch.strided:
        raise TypeError(
            f"Got a tensor of layout {tensor.layout}; give tensor.to_dense(), or a CSR matrix of scipy.sparse, whose "
            "rows are made dense a chunk at a time."
        )


@contextmanager
def named_in_errors(name):
    """Let an error about an array that is checked as X say the array's own name."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if name == "X" or type(error) not in (ValueError, TypeError):
            raise
        message = re.sub(r"(?<![\w'\".])(?<!- )X(?![\w'\"])", name, str(error))  # neither adata.X nor a column
        raise type(error)(message if name in message else f"{name}: {message}") from error


def resolve_device(device, *, dtype=torch.float32):
    """The torch device for a ``device`` parameter; "auto" is the first of cuda, mps and cpu that can be used.

    Parameters
    ----------
    device : str or torch.device
    dtype : torch.dtype, default=torch.float32
        What has to be computed there (mps has no float64).

    Raises
    ------
    ValueError
        If torch does not know the device, or the machine does not have it, or it can not compute in the dtype.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name in DEVICES if available[name] and not (name == "mps" and dtype == torch.float64)]
    try:
        resolved = torch.device(there[0] if device == "auto" else device)
        torch.empty(0, device=resolved, dtype=dtype)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        why = _why_not(device, dtype, error)
        raise ValueError(f"device={str(device)!r} can not be used here; use 'auto' or one of {there}: {why}") from error
    return resolved


def _why_not(device, dtype, error):
    """Return why a device cannot be used, by the error that torch raised, and what to do."""
    if "forked" in str(error):
        return (
            "this process was forked from one that has used the device, which CUDA does not allow; start processes by "
            "'spawn' or with joblib's loky backend."
        )
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        name = str(device).lower().split(":")[0]
        return f"torch has no device of this name.{meant(OTHER_NAMES.get(name, name), DEVICES)}"
    if found.type == "cuda" and torch.cuda.is_available():
        if found.index is not None and found.index >= torch.cuda.device_count():
            return f"the CUDA devices of this machine are 0 to {torch.cuda.device_count() - 1}."
        return f"{str(error).splitlines()[0]}."
    if found.type == "mps" and torch.backends.mps.is_available():
        return f"it does not compute in {dtype}."
    if found.type == "cuda":
        build = "a build of torch with CUDA" if torch.version.cuda is None else "a driver for this GPU"
        return f"torch finds no CUDA device on this machine; install {build}, or take device='auto'."
    return f"torch finds no {found.type} device on this machine."


def generator_from(random_state):
    """A private torch generator, seeded by an int, a RandomState or, for None, by the operating system."""
    return torch.Generator().manual_seed(seed_from(random_state))


def seed_from(random_state):
    """A seed below 2**31, from an int, a RandomState or, for None, the operating system."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def compute_dtype(dtype, device):
    """The torch dtype in which arrays of a dtype are computed with on a device."""
    single = dtype == np.float32 or torch.device(device).type == "mps"  # mps has no float64
    return torch.float32 if single else torch.float64


def device_dtype(dtype, device):
    """The torch dtype of arrays of a dtype on a device: float32 instead of float64 where there is none."""
    converted = tensor_dtype(dtype)
    return torch.float32 if converted == torch.float64 and torch.device(device).type == "mps" else converted


def to_tensor(array, dtype, device):
    """A copy of an array as a tensor; the array may be read-only or have negative strides."""
    return torch.tensor(np.asarray(array, order="C"), dtype=dtype, device=device)


def tensor_dtypes(dtypes, device):
    """NumPy's dtypes as those of tensors, without what a device does not have."""
    found = [tensor_dtype(dtype) for dtype in dtypes]
    return [dtype for dtype in found if device.type != "mps" or dtype != torch.float64]


def tensor_dtype(dtype):
    """The dtype of tensors that is this one of NumPy."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def to_dtype(array, dtype):
    """The array in the floating dtype that belongs to data of a dtype; integers stay what they are."""
    return array.astype(float_dtype(dtype), copy=False) if array.dtype.kind == "f" else array


def float_dtype(dtype):
    """The dtype of what is computed from data of a dtype: the same, or float64 for integers."""
    return dtype if np.dtype(dtype).kind == "f" else np.dtype(np.float64)


def is_exact(estimator, names, published):
    """Whether an estimator has parameters in float64 beside those published in float32, which are these rounded.

    The user may change what is published.

    Parameters
    ----------
    estimator : estimator
    names : tuple of str
        Attributes in float64.
    published : tuple of ndarray
        Those published, in the same order.
    """
    return all(
        hasattr(estimator, name) and np.array_equal(getattr(estimator, name).astype(array.dtype), array)
        for name, array in zip(names, published, strict=True)
    )
