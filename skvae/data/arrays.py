"""Arrays and tensors: dtypes, devices and seeds."""

import re
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

from .messages import meant

FLOATS = (np.float64, np.float32)
DEVICES = ("cuda", "mps", "cpu")
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"}


def host_array(value):
    """Return a tensor as an array on the host, in float64 where NumPy lacks its dtype; other inputs as they are.

    A list or tuple of tensors becomes a list of arrays.

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
    """Rename X to the name of an array in errors about it, for arrays that are checked as X."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if name == "X" or type(error) not in (ValueError, TypeError):
            raise
        message = re.sub(r"(?<![\w'\".])(?<!- )X(?![\w'\"])", name, str(error))  # neither adata.X nor a column
        raise type(error)(message if name in message else f"{name}: {message}") from error


def resolve_device(device, *, dtype=torch.float32):
    """Return the torch device of a ``device`` parameter; "auto" is the first of cuda, mps and cpu that can be used.

    Parameters
    ----------
    device : str or torch.device
    dtype : torch.dtype, default=torch.float32
        Dtype of the computations (mps has no float64).

    Raises
    ------
    ValueError
        If torch has no such device, or the machine does not have it, or it cannot compute in the dtype.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name in DEVICES if available[name] and not (name == "mps" and dtype == torch.float64)]
    try:
        resolved = torch.device(usable[0] if device == "auto" else device)
        torch.empty(0, device=resolved, dtype=dtype)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        why = _why_not(device, dtype, error)
        raise ValueError(f"device={str(device)!r} cannot be used here; use 'auto' or one of {usable}: {why}") from error
    return resolved


def _why_not(device, dtype, error):
    """Return why a device cannot be used, by the error that torch raised, and what to do."""
    if "forked" in str(error):
        return (
            "this process was forked from one that has used the device, which CUDA does not allow; start processes by "
            "'spawn' or with joblib's loky backend."
        )
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError):
        name = str(device).lower().split(":")[0]
        return f"torch has no device of this name.{meant(OTHER_NAMES.get(name, name), DEVICES)}"
    if named.type == "cuda" and torch.cuda.is_available():
        if named.index is not None and named.index >= torch.cuda.device_count():
            return f"the CUDA devices of this machine are 0 to {torch.cuda.device_count() - 1}."
        return f"{str(error).splitlines()[0]}."
    if named.type == "mps" and torch.backends.mps.is_available():
        return f"it does not compute in {dtype}."
    if named.type == "cuda":
        build = "a build of torch with CUDA" if torch.version.cuda is None else "a driver for this GPU"
        return f"torch finds no CUDA device on this machine; install {build}, or take device='auto'."
    return f"torch finds no {named.type} device on this machine."


def generator_from(random_state):
    """Return a torch generator that is seeded by an int, a RandomState or, for None, the operating system."""
    return torch.Generator().manual_seed(seed_from(random_state))


def seed_from(random_state):
    """Return a seed below 2**31 from an int, a RandomState or, for None, the operating system."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def compute_dtype(dtype, device):
    """Return the torch dtype of computations with arrays of a dtype on a device."""
    single = dtype == np.float32 or torch.device(device).type == "mps"  # mps has no float64
    return torch.float32 if single else torch.float64


def device_dtype(dtype, device):
    """Return the torch dtype of arrays of a dtype on a device: float32 instead of float64 on mps."""
    converted = tensor_dtype(dtype)
    return torch.float32 if converted == torch.float64 and torch.device(device).type == "mps" else converted


def to_tensor(array, dtype, device):
    """Copy an array to a tensor; the array may be read-only or have negative strides."""
    return torch.tensor(np.asarray(array, order="C"), dtype=dtype, device=device)


def tensor_dtypes(dtypes, device):
    """Return the torch dtypes of NumPy's, without those that a device does not have."""
    converted = [tensor_dtype(dtype) for dtype in dtypes]
    return [dtype for dtype in converted if device.type != "mps" or dtype != torch.float64]


def tensor_dtype(dtype):
    """Return the torch dtype of a dtype of NumPy."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def to_dtype(array, dtype):
    """Convert results of floats to the dtype of results of data of a dtype; integers are returned as they are."""
    return array.astype(float_dtype(dtype), copy=False) if array.dtype.kind == "f" else array


def float_dtype(dtype):
    """Return the dtype of results of data of a dtype: the same, or float64 for integers."""
    return dtype if np.dtype(dtype).kind == "f" else np.dtype(np.float64)


def is_exact(estimator, names, published):
    """Return whether an estimator has float64 parameters of which the public float32 attributes are the rounded values.

    They are not if the user changed the public ones.

    Parameters
    ----------
    estimator : estimator
    names : tuple of str
        Attributes in float64.
    published : tuple of ndarray
        Public attributes in the same order.
    """
    return all(
        hasattr(estimator, name) and np.array_equal(getattr(estimator, name).astype(array.dtype), array)
        for name, array in zip(names, published, strict=True)
    )
