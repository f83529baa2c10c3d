"""The border between arrays and tensors: validation, devices, dtypes, chunks of rows, seeds and pickles."""

import copy
import functools

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..fitting.em import row_chunks

FLOATS = (np.float64, np.float32)
DEVICES = ("cuda", "mps", "cpu")


def fit_method(method):
    """Wrap a fitting method: check the parameters first, and undo everything if it does not finish.

    An exception or an interrupt leaves the estimator exactly as it was before the call.
    """

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return _fit_context(prefer_skip_nested_validation=True)(wrapper)


def resolve_device(device):
    """The torch device for a ``device`` parameter; "auto" is the first of cuda, mps and cpu that is there.

    Raises
    ------
    ValueError
        If torch does not know the device, or the machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if isinstance(device, str) and device == "auto":
        device = next(name for name in DEVICES if available[name])
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = [name for name in DEVICES if available[name]]
        raise ValueError(f"device={device!r} can not be used here; use 'auto' or one of {there}.") from error
    return resolved


def generator_from(random_state, device="cpu"):
    """A private torch generator, seeded by an int, a RandomState or, for None, by the operating system."""
    if random_state is None:
        seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))
    else:
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return torch.Generator(device).manual_seed(seed)


def compute_dtype(dtype, device):
    """The torch dtype in which arrays of a dtype are computed with on a device."""
    single = dtype == np.float32 or torch.device(device).type == "mps"  # mps has no float64
    return torch.float32 if single else torch.float64


class TorchEstimator(BaseEstimator):
    """What every estimator shares. Subclasses have ``device`` and ``random_state`` parameters."""

    def _validate(self, X, *, reset, min_samples=1):
        """Check X against scikit-learn's rules; return a 2-D float array."""
        if not reset:
            check_is_fitted(self)
        return validate_data(self, X, reset=reset, dtype=FLOATS, ensure_min_samples=min_samples)

    def _map(self, function, X, device):
        """Apply a tensor function to chunks of rows; return one array in the dtype of X."""
        dtype = compute_dtype(X.dtype, device)
        chunks = row_chunks(len(X), X.shape[1])
        with torch.inference_mode():
            # torch.tensor copies: X may be read-only, which torch.from_numpy warns about.
            parts = [function(torch.tensor(X[rows], dtype=dtype, device=device)).cpu().numpy() for rows in chunks]
        return to_dtype(np.concatenate(parts), X.dtype)

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("net_", None)  # holds the optimizer, and only training needs it
        if "module_" in state:
            state["module_"] = copy.deepcopy(state["module_"]).cpu()
        return state


def to_dtype(array, dtype):
    """The array in a floating dtype; integers stay what they are."""
    return array.astype(dtype, copy=False) if array.dtype.kind == "f" else array
